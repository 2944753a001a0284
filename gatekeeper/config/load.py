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

from gatekeeper.config.build import build
from gatekeeper.config.settings import Settings
from gatekeeper.config.sources import read
from gatekeeper.config.typed import check
from gatekeeper.errors import ConfigError

_MORE_FILES = "RABBITMQ_CONFIG_FILES"
_ADVANCED = "RABBITMQ_ADVANCED_CONFIG_FILE"


def load_settings(path: Path, environ: Mapping[str, str]) -> Settings:
    """Read the configuration file, then the files of RABBITMQ_CONFIG_FILES, and check all.

    path: the main file, which must exist.
    environ: for ``$(NAME)``; RABBITMQ_CONFIG_FILES (a directory, all of whose files are read,
        or a pattern; sorted by path, later files win); RABBITMQ_DEFAULT_USER, _PASS and
        _VHOST (win over the files).
    Raises ConfigError: every line of it names a place and a remedy; no line holds a secret.
    """
    advanced = environ.get(_ADVANCED)
    if advanced and Path(advanced).exists():
        raise ConfigError(
            f"the environment: {_ADVANCED}: Erlang terms are not supported yet; move the settings"
            f" to {path} and unset the variable"
        )
    more, warnings = _more_files(environ.get(_MORE_FILES))
    document = read([path, *more], environ)
    settings = build(check(document), environ)
    return replace(settings, warnings=(*warnings, *settings.warnings))


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
