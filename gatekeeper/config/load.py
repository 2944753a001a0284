"""The way in: a path and an environment, and out come Settings.

Strategy: the four steps in order, each in its own module: read the files, convert by the key
table, build across keys. Environment variables are RabbitMQ's own names
(https://www.rabbitmq.com/docs/configure#supported-environment-variables).
"""

from __future__ import annotations

import glob
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from gatekeeper.config.advanced import Advanced, read_advanced
from gatekeeper.config.build import build
from gatekeeper.config.settings import Settings
from gatekeeper.config.sources import Document, read
from gatekeeper.config.typed import check
from gatekeeper.errors import ConfigError

_MORE_FILES = "RABBITMQ_CONFIG_FILES"
_ADVANCED = "RABBITMQ_ADVANCED_CONFIG_FILE"


def load_settings(path: Path, environ: Mapping[str, str]) -> Settings:
    """Read the configuration file, then the files of RABBITMQ_CONFIG_FILES, and check all.

    path: the main file, which must exist.
    environ: for ``$(NAME)``; RABBITMQ_CONFIG_FILES (a directory, all of whose files are read,
        or a pattern; sorted by path, later files win); RABBITMQ_DEFAULT_USER, _PASS and
        _VHOST (win over the files); RABBITMQ_ADVANCED_CONFIG_FILE (Erlang terms, which win over
        the files; ignored where there is no such file, as RabbitMQ does).
    Raises ConfigError: every line of it names a place and a remedy; no line holds a secret.
    """
    more, warnings = _more_files(environ.get(_MORE_FILES))
    document = read([path, *more], environ)
    advanced = _advanced(document, environ)
    settings = build(check(advanced.over(document)), environ)
    return replace(
        settings,
        auth_backends=advanced.backends or settings.auth_backends,
        warnings=(*warnings, *settings.warnings),
    )


def _advanced(document: Document, environ: Mapping[str, str]) -> Advanced:
    """The file of the variable, if there is one there; else that of the key."""
    named = environ.get(_ADVANCED)
    if named and Path(named).exists():
        return read_advanced(Path(named), f"the environment: {_ADVANCED}")
    setting = document.values.get(("advanced_config",))
    return Advanced() if setting is None else read_advanced(Path(setting.text), setting.place)


def _more_files(value: str | None) -> tuple[list[Path], list[str]]:
    """The files, in the order to read them, and warnings."""
    if not value:
        return [], []
    place = f"the environment: {_MORE_FILES}"
    try:
        folder = Path(value).is_dir()
        names = [str(p) for p in Path(value).iterdir()] if folder else glob.glob(value)  # noqa: PTH207
    except OSError as error:
        raise ConfigError(
            f"{place}: cannot list {value!r}: {error.strerror}; check its permissions"
        ) from None
    found = [Path(name) for name in sorted(names) if Path(name).is_file()]
    if not found:
        # As RabbitMQ does; but a mistyped path would drop settings unseen.
        return [], [f"{place}: no file matches {value!r}; check the path"]
    return found, []
