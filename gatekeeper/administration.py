"""The administration of one gate, and the ways in to it: wherever the one process is that
knows the whole gate (``app.py``, or of several processes ``supervisor.py``)."""

from __future__ import annotations

from gatekeeper import logs
from gatekeeper.admin.control import ControlError, ControlServer
from gatekeeper.admin.management import management_api
from gatekeeper.admin.service import Administration
from gatekeeper.config.settings import Settings
from gatekeeper.policy.engine import Engine
from gatekeeper.server.exchanges import Exchanges
from gatekeeper.server.fleet import Fleet
from gatekeeper.store.store import Store


class Desk:
    """An Administration, its control socket and its HTTP API. Raises ConfigError."""

    def __init__(
        self,
        settings: Settings,
        *,
        store: Store,
        engine: Engine,
        fleet: Fleet,
        exchanges: Exchanges,
    ) -> None:
        self._settings = settings
        self._log = logs.get_logger("default")
        self._administration = Administration(
            settings=settings,
            store=store,
            engine=engine,
            fleet=fleet,
            log=logs.get_logger("audit"),
            exchanges=exchanges,
        )
        self._api = management_api(self._administration, self._log)
        self._control: ControlServer | None = None

    async def start(self) -> None:
        """Raises OperatorError."""
        await self._start_control()
        if self._api is not None:
            await self._api.start()

    async def _start_control(self) -> None:
        """Raises ControlError for a socket that the operator has asked for; a gate without one
        that is only there by default is better than none."""
        path = self._settings.control.socket
        if path is None:
            return
        control = ControlServer(self._administration, path, self._log)
        try:
            await control.start()
        except ControlError as error:
            if self._settings.control.configured:
                raise
            self._log.warning(f"{error}; until then gatekeeperctl cannot reach this gate")
            return
        self._control = control

    async def close(self) -> None:
        """Before the store is closed: a change under way is finished."""
        if self._api is not None:
            await self._api.close()
        if self._control is not None:
            await self._control.close()
        self._administration.close()
