"""Both forms of the scanner for tests: the plain source, however the package was installed.

Where an extension lies beside ``frames.py`` the import system prefers it. The plain form is
loaded from the source under a name of its own, or, for a whole run (GATEKEEPER_PURE=1), put into
the place of the extension before anything imports it.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType

from tests.support.gate import ROOT

NAME = "gatekeeper.protocol.frames"
SOURCE = ROOT / "gatekeeper" / "protocol" / "frames.py"


def load_plain(name: str = "plain_frames", source: Path = SOURCE) -> ModuleType:
    """frames.py as plain Python, under ``name``."""
    spec = importlib.util.spec_from_file_location(name, source)
    if spec is None or spec.loader is None:
        raise ImportError(f"{source} cannot be loaded")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def load_compiled() -> ModuleType | None:
    """The extension, or None where it was not built."""
    found = sorted(SOURCE.parent.glob("frames.*.so"))
    spec = importlib.util.spec_from_file_location(NAME, found[-1]) if found else None
    if spec is None or spec.loader is None:
        return None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def pure_wanted() -> bool:
    return os.environ.get("GATEKEEPER_PURE", "") in {"1", "true"}


def use_plain() -> None:
    """Let this process import the plain scanner; RuntimeError when the other is in use."""
    loaded = sys.modules.get(NAME)
    if loaded is not None:
        if str(loaded.__file__).endswith(".py"):
            return
        raise RuntimeError(f"{NAME} was imported before the plain form was asked for")
    package = importlib.import_module("gatekeeper.protocol")
    if NAME not in sys.modules:
        package.frames = load_plain(NAME)  # type: ignore[attr-defined]
