"""The processes that serve clients, as the administration sees them: however many there are.

:class:`Fleet` is what both have in common: ``LocalFleet`` is the only process there is,
``HubFleet`` asks the workers through the supervisor's hub.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from itertools import chain
from typing import Protocol, TypeVar

from gatekeeper.config.settings import Upstream
from gatekeeper.errors import GatekeeperError
from gatekeeper.server.control import Answers, Hub
from gatekeeper.server.describe import channel_infos, connection_info
from gatekeeper.server.infos import ChannelInfo, ConnectionInfo, UpstreamInfo, UpstreamStatus
from gatekeeper.server.registry import Registry, process_figures
from gatekeeper.server.upstreams import Upstreams

SETTLE_TIMEOUT = 25.0
"""Seconds for a worker to take a change over: longer than a hung one is left alive, for then its
connections are gone and nothing stands against the change any more."""
BATCH = 200
"""Connections that are described in one go: clients come first."""

T = TypeVar("T")


class SilentWorkersError(GatekeeperError):
    """Some workers have not answered; a part is not passed off as the whole.

    silent: by worker, why not. answered: what the others said, by worker, where they said more
    than that it is done.
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

    async def clear_caches(self, user: bytes | None) -> int:
        """Have the cache backend forget what it knows of this user (None: of everybody), and
        the channels what it has allowed; how many of the cache's answers that were."""
        ...

    async def statistics(self) -> Mapping[int, Mapping[str, int]]:
        """``pid``, ``connections`` and ``cpu_ms`` by worker; 0 is the only process."""
        ...

    def upstreams(self) -> list[UpstreamInfo]:
        """By name. Of several processes, what the one says that sees it worst."""
        ...


class LocalFleet:
    """The only process.

    refresh: takes over what other processes have changed in the store; may raise StoreError.
    clear_caches: as :meth:`Fleet.clear_caches`.
    """

    def __init__(
        self,
        registry: Registry,
        upstreams: Upstreams,
        refresh: Callable[[], None],
        clear_caches: Callable[[bytes | None], int],
    ) -> None:
        self._registry = registry
        self._upstreams = upstreams
        self._refresh = refresh
        self._clear_caches = clear_caches

    async def connections(self) -> list[ConnectionInfo]:
        infos = []
        for at, live in enumerate(sorted(self._registry, key=lambda live: live.number), 1):
            infos.append(connection_info(live))
            if not at % BATCH:
                await asyncio.sleep(0)
        return infos

    async def channels(self) -> list[ChannelInfo]:
        infos: list[ChannelInfo] = []
        for at, live in enumerate(sorted(self._registry, key=lambda live: live.number), 1):
            infos.extend(channel_infos(live))
            if not at % BATCH:
                await asyncio.sleep(0)
        return infos

    async def close(
        self,
        *,
        reason: bytes,
        number: int | None = None,
        user: bytes | None = None,
        vhost: bytes | None = None,
    ) -> int:
        return self._registry.close(number, user, vhost, reason)

    async def settle(self) -> None:
        # What another thread has committed is carried out by a callback that it has scheduled
        # (``app.py``), and callbacks run in their order: this one after those.
        await asyncio.sleep(0)
        self._refresh()

    async def clear_caches(self, user: bytes | None) -> int:
        return self._clear_caches(user)

    async def statistics(self) -> Mapping[int, Mapping[str, int]]:
        return {0: process_figures(self._registry)}

    def upstreams(self) -> list[UpstreamInfo]:
        return [
            upstream_info(link.settings, link.status)
            for _, link in sorted(self._upstreams.links.items())
        ]


class HubFleet:
    """All workers, through the supervisor's hub.

    upstreams: those of the configuration. clear_own: as :meth:`Fleet.clear_caches`, of the
    supervisor's process, where administrators log in.
    """

    def __init__(
        self,
        hub: Hub,
        upstreams: Mapping[str, Upstream],
        clear_own: Callable[[bytes | None], int],
    ) -> None:
        self._hub = hub
        self._settings = upstreams
        self._clear_own = clear_own

    async def connections(self) -> list[ConnectionInfo]:
        lists = _complete(await self._hub.list_connections()).values()
        return sorted(chain.from_iterable(lists), key=lambda info: info.number)

    async def channels(self) -> list[ChannelInfo]:
        lists = _complete(await self._hub.list_channels()).values()
        return sorted(chain.from_iterable(lists), key=lambda info: (info.connection, info.number))

    async def close(
        self,
        *,
        reason: bytes,
        number: int | None = None,
        user: bytes | None = None,
        vhost: bytes | None = None,
    ) -> int:
        answers = await self._hub.close_connections(
            reason=reason, number=number, user=user, vhost=vhost
        )
        return sum(_complete(answers).values())

    async def settle(self) -> None:
        answers = await self._hub.refresh(within=SETTLE_TIMEOUT)
        if answers.silent:
            raise SilentWorkersError(answers.silent, None)

    async def clear_caches(self, user: bytes | None) -> int:
        own = self._clear_own(user)
        return own + sum(_complete(await self._hub.clear_caches(user)).values())

    async def statistics(self) -> Mapping[int, Mapping[str, int]]:
        return _complete(await self._hub.statistics())

    def upstreams(self) -> list[UpstreamInfo]:
        said = self._hub.upstreams()
        return [
            upstream_info(settings, worst(name, said.get(name, ())))
            for name, settings in sorted(self._settings.items())
        ]


def upstream_info(settings: Upstream, status: UpstreamStatus) -> UpstreamInfo:
    return UpstreamInfo(tuple(map(str, settings.servers)), settings.vhosts, status)


def worst(name: str, said: Iterable[UpstreamStatus]) -> UpstreamStatus:
    """Who cannot reach it counts before who has not asked yet, and that before who can; of
    equals, the one that has been so for the shortest time."""
    order = {False: 0, None: 1, True: 2}
    unknown = UpstreamStatus(name, None, 0, "", "", "")
    return min(said, key=lambda status: (order[status.reachable], -status.since), default=unknown)


def _complete(answers: Answers[T]) -> Mapping[int, T]:
    if answers.silent:
        raise SilentWorkersError(answers.silent, answers.by_worker)
    return answers.by_worker
