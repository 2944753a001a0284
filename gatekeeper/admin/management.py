"""The way to the management API for who does not want it: aiohttp is loaded only where it is on."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING

from gatekeeper.admin.service import Administration
from gatekeeper.config.settings import Management
from gatekeeper.errors import ConfigError
from gatekeeper.logs import Logger
from gatekeeper.tls import server_context

if TYPE_CHECKING:
    from gatekeeper.admin.http import HttpServer


def management_api(administration: Administration, log: Logger) -> HttpServer | None:
    """The server, to be started and closed; None where it is off. Raises ConfigError."""
    management = administration.settings.management
    if not management.listeners:
        return None
    check(management)
    from gatekeeper.admin.http import HttpServer  # noqa: PLC0415 - see above

    return HttpServer(administration, management, log)


def check(management: Management) -> None:
    """What can be found wrong without opening a port. Raises ConfigError."""
    if not management.listeners:
        return
    if not _installed("aiohttp"):
        raise ConfigError(
            "management.tcp.port, management.ssl.port: the package aiohttp is missing; install"
            " gatekeeper-amqp[management], or remove the keys"
        )
    for listener in management.listeners:
        if listener.tls is not None:
            server_context(listener.tls, listener.tls_keys)


def _installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ValueError:
        return False
