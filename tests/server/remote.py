"""A whole gate whose users and rights a real HTTP service knows."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

from tests.backends.http_service import Service
from tests.server.local import LocalGate, gate

PATHS = ("user", "vhost", "resource", "topic")


def http_keys(port: int) -> dict[str, str | int]:
    keys = {f"auth_http.{name}_path": f"http://127.0.0.1:{port}/{name}" for name in PATHS}
    return {"auth_http.http_method": "post", **keys}


@contextlib.asynccontextmanager
async def remote(
    folder: Path, broker: int, service: Service, chain: str = "http", **values: str | int
) -> AsyncIterator[LocalGate]:
    """chain: names of ``auth_backends`` with blanks between. values: keys with ``__`` for dots."""
    await service.start()
    keys = http_keys(service.port)
    keys |= {f"auth_backends.{at}": name for at, name in enumerate(chain.split(), 1)}
    keys |= {key.replace("__", "."): value for key, value in values.items()}
    try:
        async with gate(folder, broker, keys) as local:
            yield local
    finally:
        service.go.set()
        await service.stop()
