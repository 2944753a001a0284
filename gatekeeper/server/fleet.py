"""The processes that serve clients, as the administration sees them: however many there are.

:class:`Fleet` is what both have in common: ``LocalFleet`` is the only process there is,
``HubFleet`` asks the workers through the supervisor's hub.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from gatekeeper.errors import GatekeeperError
from gatekeeper.server.infos import ChannelInfo, ConnectionInfo, UpstreamInfo


class SilentWorkersError(GatekeeperError):
    """Some workers have not answered; a part is not passed off as the whole.

    silent: by worker, why not. answered: what the others said, of the type of the answer.
    """

    def __init__(self, silent: Mapping[int, str], answered: object) -> None:
        reasons = "; ".join(f"worker {worker}: {why}" for worker, why in sorted(silent.items()))
        super().__init__(f"not every process of the gate has answered ({reasons})")
        self.silent = silent
        self.answered = answered


class Fleet(Protocol):
    """For use in one event loop. What has to ask workers raises SilentWorkersError."""

    async def connections(self) -> list[ConnectionInfo]:
        """In the order of their numbers."""
        ...

    async def channels(self) -> list[ChannelInfo]:
        """In the order of connection and channel number."""
        ...

    async def close(
        self,
        *,
        reason: bytes,
        number: int | None = None,
        user: bytes | None = None,
        vhost: bytes | None = None,
    ) -> int:
        """Close, with 320 ``CONNECTION_FORCED - reason``, those that match all that is given
        (all of them where nothing is given); how many that were."""
        ...

    async def settle(self) -> None:
        """When it returns, what the store has committed is in force in every process, and the
        connections that it ends have been told. May raise StoreError."""
        ...

    async def statistics(self) -> Mapping[int, Mapping[str, int]]:
        """``pid``, ``connections`` and ``cpu_ms`` by worker; 0 is the only process."""
        ...

    def upstreams(self) -> list[UpstreamInfo]:
        """By name. Of several processes, what the one says that sees it worst."""
        ...
