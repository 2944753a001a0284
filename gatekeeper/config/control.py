"""Where the control socket is."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote

from gatekeeper.config.settings import ControlSettings
from gatekeeper.config.typed import Typed

_KEY = "control.socket"
_FILE_STORE = "sqlite:///"


def control(typed: Typed) -> ControlSettings:
    """As configured; else beside the store's file, and where the store is none, nowhere."""
    if typed.is_set(_KEY):
        path = typed.optional(_KEY, object)
        return ControlSettings(socket=path if isinstance(path, Path) else None, configured=True)
    store = typed.one("store.url", str)
    if not store.startswith(_FILE_STORE):
        return ControlSettings()
    path = unquote(store.removeprefix(_FILE_STORE)).lstrip("/")
    return ControlSettings(socket=Path(f"/{path}.sock"))
