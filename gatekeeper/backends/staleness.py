"""How long the gate goes by what a backend outside of it has allowed.

A channel remembers what it was granted until the policy changes, and of a change in a directory
or a web service the gate is not told. So these grants end after a while, all at once, and the
next frame that needs one asks again.

Source: RabbitMQ keeps twelve grants of a channel until the channel is idle or the credentials
are refreshed (``rabbit_channel:check_resource_access``, 4.3), so a busy channel keeps them for
ever. The time limit is the gate's own.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import NoReturn

from gatekeeper.config.settings import BackendPair

INSIDE = frozenset(
    f"rabbit_auth_backend_{name}"
    for name in ("internal", "internal_loopback", "dummy", "ip_range", "oauth2")
)
"""Their answers follow from the store, the configuration or the token, whose changes are known.
The cache is not among them, whatever it caches: after a change it may repeat an old answer."""


def may_go_stale(pairs: Iterable[BackendPair]) -> bool:
    """Can what these backends have allowed be out of date without the gate's knowing?"""
    return any(name not in INSIDE for pair in pairs for name in pair.authz)


async def every(seconds: float, act: Callable[[], None]) -> NoReturn:
    while True:
        await asyncio.sleep(seconds)
        act()
