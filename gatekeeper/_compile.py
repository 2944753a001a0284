"""Compiles the scanner (protocol/frames.py) when the package is built.

Three ways in: hatchling's wheel hook, ``python -m gatekeeper._compile --inplace`` for a checkout,
and :func:`compile_scanner` for the tests. Cython turns ``frames.py`` with the types of
``frames.pxd`` into C, and the compiler that built this Python turns that into an extension. A
machine without Cython or without a compiler gets the same source as plain Python: slower, never
different. This file is not part of the wheel.

Environment: GATEKEEPER_PURE=1 never compiles; GATEKEEPER_REQUIRE_NATIVE=1 makes a failure fatal.
"""

from __future__ import annotations

import argparse
import importlib
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hatchling.builders.hooks.plugin.interface import BuildHookInterface as Hook
else:
    try:
        from hatchling.builders.hooks.plugin.interface import BuildHookInterface as Hook
    except ImportError:  # in a checkout, hatchling need not be installed
        Hook = object

MODULE = "gatekeeper.protocol.frames"
SOURCE = Path("gatekeeper/protocol/frames.py")
PURE = "GATEKEEPER_PURE"
REQUIRE_NATIVE = "GATEKEEPER_REQUIRE_NATIVE"


_DIRECTIVES = [
    word
    for directive in ("annotation_typing", "boundscheck", "wraparound", "initializedcheck")
    for word in ("-X", f"{directive}=False")
]


class CompileError(Exception):
    """The scanner could not be compiled; the message is one line that says why."""


def extension_name(source: Path = SOURCE) -> str:
    """The extension's file name for the Python that runs this."""
    return source.stem + str(sysconfig.get_config_var("EXT_SUFFIX"))


def compile_scanner(root: Path, target: Path, source: Path = SOURCE, module: str = MODULE) -> Path:
    """Compile ``root/source`` to an extension in the directory ``target``; its path.

    Raises CompileError. Nothing but the finished extension is left behind.
    """
    with tempfile.TemporaryDirectory(prefix="gatekeeper-build-") as scratch:
        # Its own copy of the tree: Cython finds the .pxd beside the source, and knows by the
        # package's __init__ files what the module is called.
        copy = Path(scratch) / source
        for package in source.parents[:-1]:
            (Path(scratch) / package).mkdir(parents=True, exist_ok=True)
            (Path(scratch) / package / "__init__.py").touch()
        original = root / source
        shutil.copy(original, copy)
        for types in original.parent.glob("*.pxd"):
            shutil.copy(types, copy.parent)
        generated = copy.with_suffix(".c")
        # Annotations are for people and mypy; the types that C gets stand in the .pxd.
        options = ["-3", *_DIRECTIVES, f"--module-name={module}"]
        _run([sys.executable, "-m", "cython", *options, str(copy)], "Cython")
        if not generated.exists():
            raise CompileError("Cython wrote no C file")
        built = Path(scratch) / extension_name(source)
        _run([*_compiler(), str(generated), "-o", str(built)], "the C compiler")
        target.mkdir(parents=True, exist_ok=True)
        # Renamed into place: a process that has the old extension mapped keeps it whole.
        fresh = target / f".{built.name}.new"
        shutil.copy(built, fresh)
        return fresh.replace(target / built.name)


def _compiler() -> list[str]:
    """The command that links one C file to an extension, as this Python was configured."""

    def words(name: str) -> list[str]:
        return shlex.split(str(sysconfig.get_config_var(name) or ""))

    link = words("LDSHARED")
    if not link:
        raise CompileError("this Python does not know its C compiler (LDSHARED)")
    override = shlex.split(os.environ.get("CC", ""))
    if override:
        link[:1] = override
    include = [f"-I{sysconfig.get_path('include')}"]
    return [*link, *words("CCSHARED"), "-O3", "-g0", "-DNDEBUG", *include]


def _run(command: list[str], what: str) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    except OSError as error:
        raise CompileError(f"{what} could not be started: {error}") from error
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines()
        # The last line of a Python traceback and the first "error:" of a compiler say it.
        said = next((line for line in lines if "error" in line), lines[-1] if lines else "")
        raise CompileError(f"{what} failed ({command[0]}): {said.strip()}")


def _wanted() -> bool:
    return os.environ.get(PURE, "") not in {"1", "true"}


def _required() -> bool:
    return os.environ.get(REQUIRE_NATIVE, "") in {"1", "true"}


class ScannerHook(Hook):  # type: ignore[type-arg,unused-ignore]
    """Hatchling's hook: puts the extension beside frames.py, or leaves the wheel pure."""

    PLUGIN_NAME = "custom"

    _scratch: Path | None = None

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """``version`` "editable": a checkout compiles in place, by ``make install``."""
        if version == "editable":
            return
        if not _wanted():
            self.app.display_info(f"{PURE} is set: the scanner stays plain Python")
            return
        self._scratch = Path(tempfile.mkdtemp(prefix="gatekeeper-wheel-"))
        try:
            built = compile_scanner(Path(self.root), self._scratch)
        except CompileError as error:
            if _required():
                self._forget()
                raise
            self.app.display_warning(f"{error}; the scanner stays plain Python (slower)")
            return
        build_data["force_include"][str(built)] = str(SOURCE.with_name(built.name))
        build_data["pure_python"] = False
        build_data["infer_tag"] = True

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        del version, build_data, artifact_path
        self._forget()

    def _forget(self) -> None:
        if self._scratch is not None:
            shutil.rmtree(self._scratch, ignore_errors=True)
            self._scratch = None


def main(arguments: list[str] | None = None) -> int:
    """``--inplace`` compiles beside the source; ``--clean`` removes what that left."""
    parser = argparse.ArgumentParser(prog="python -m gatekeeper._compile", description=__doc__)
    group = parser.add_mutually_exclusive_group(required=True)
    group.add_argument("--inplace", action="store_true", help="compile beside frames.py")
    group.add_argument("--clean", action="store_true", help="remove the compiled scanner")
    options = parser.parse_args(arguments)
    root = Path(__file__).resolve().parent.parent
    folder = (root / SOURCE).parent
    for old in folder.glob(f"{SOURCE.stem}.*.so"):
        if options.clean or not _wanted():
            old.unlink()
    if options.clean:
        return 0
    if not _wanted():
        print(f"{PURE} is set: the scanner stays plain Python")  # noqa: T201
        return 0
    try:
        built = compile_scanner(root, folder)
    except CompileError as error:
        print(f"gatekeeper: {error}; the scanner stays plain Python (slower)", file=sys.stderr)  # noqa: T201
        return 1 if _required() else 0
    importlib.invalidate_caches()
    print(f"compiled {built.relative_to(root)}")  # noqa: T201
    return 0


if __name__ == "__main__":
    sys.exit(main())
