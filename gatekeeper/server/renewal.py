"""The token that one upstream's service account logs in by: kept valid, and passed on.

Strategy: one task fetches, for everybody: before anybody needs a token, again before it ends, and
after a failure until there is one. Who needs a token gets the present one, waits for the fetch
under way, or is told why there is none; no client can cause a fetch, except (rationed) one whose
login the broker has refused. A new token goes to the open connections too, a few each turn of the
event loop, once a login has shown that the broker takes it: it closes whatever connection is told
of another. A failure leaves the present token as it is, until it ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from gatekeeper import logs
from gatekeeper.errors import BackendError
from gatekeeper.model import Secret

if TYPE_CHECKING:  # few upstreams have a token, and need the modules that fetch one
    from gatekeeper.backends.oauth2.service_token import ServiceToken, TokenSource

FETCH_TIMEOUT = 10.0
"""Seconds for one fetch."""
RETRY_FIRST, RETRY_MAX = 1.0, 10.0
"""Seconds between fetches that fail."""
RATION = 5.0
"""Seconds after a fetch before a refused login can cause one more."""
AT_ONCE, TURN = 50, 0.01
"""Connections that are told of a new token one after the other, and seconds until the next ones
are: about a millisecond's work, so that 5,000 take a second in which the others hardly wait."""

Renew = Callable[[Secret], None]


class Renewal:
    """name: of the upstream. refuses: does the broker refuse a login by this token?"""

    def __init__(
        self,
        name: str,
        source: TokenSource,
        refuses: Callable[[ServiceToken], Awaitable[bool]],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.current: ServiceToken | None = None
        self._name = name
        self._source = source
        self._refuses = refuses
        self._clock = clock
        self._failure = "none has been fetched yet"
        self._said = ""
        self._idle = asyncio.Event()  # no fetch is under way
        self._doubted = asyncio.Event()
        self._followers: dict[Renew, None] = {}
        self._log = logs.get_logger("default")

    async def get(self) -> ServiceToken:
        """The present token. Raises BackendError, whose text is for the operator."""
        if not self._holds():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(FETCH_TIMEOUT):
                    await self._idle.wait()
        if self.current is None or not self._holds():
            raise BackendError(f"there is no valid token ({self._failure})")
        return self.current

    def _holds(self) -> bool:
        return self.current is not None and self.current.valid(self._clock())

    def _is_new(self, token: ServiceToken) -> bool:
        return self.current is None or self.current.secret != token.secret

    def doubt(self, token: ServiceToken | None) -> None:
        """The broker has refused this token: if it is the present one, fetch another soon."""
        if token is not None and token is self.current:
            self._doubted.set()

    # --- connections that log in by it ---

    def follow(self, used: ServiceToken, renew: Renew) -> None:
        """Call ``renew`` with every token from now on, until ``leave``; at once if ``used``, which
        the connection has logged in by, is not the present one any more."""
        self._followers[renew] = None
        if self.current is not None and self.current is not used:
            renew(self.current.secret)

    def leave(self, renew: Renew) -> None:
        self._followers.pop(renew, None)

    async def _tell(self, token: ServiceToken) -> None:
        for count, renew in enumerate(tuple(self._followers), 1):
            if renew in self._followers:  # it may have left while others were told
                try:
                    renew(token.secret)
                except Exception as error:  # noqa: BLE001 - the others must be told
                    self._log.error("internal error in a renewal", exc_info=error)
            if count % AT_ONCE == 0:
                await asyncio.sleep(TURN)

    # --- the task ---

    async def keep(self) -> None:
        """Fetch for ever. To be started once."""
        retry = RETRY_FIRST
        while True:
            before = self.current
            pause = await self._fetch()
            if pause is None:
                pause, retry = retry, min(retry * 2, RETRY_MAX)
            else:
                retry = RETRY_FIRST
            if self.current is not None and self.current is not before:
                await self._tell(self.current)
            await self._rest(pause)

    async def _fetch(self) -> float | None:
        """Seconds until it is time for the next; None: it has failed."""
        self._idle.clear()
        try:
            async with asyncio.timeout(FETCH_TIMEOUT):
                token = await self._source.fetch()
            if not token.valid(self._clock()):
                raise BackendError("the token has ended already")  # noqa: TRY301
            # The first is tried by whoever comes; there is nothing to lose yet.
            if self._holds() and self._is_new(token) and await self._refuses(token):
                raise BackendError("the broker refuses it")  # noqa: TRY301
        except TimeoutError:
            self._failed(f"no answer within {FETCH_TIMEOUT:.0f} s")
        except BackendError as error:
            self._failed(str(error))
        except Exception as error:  # noqa: BLE001 - whatever it is, the next attempt may go well
            self._failed(f"{type(error).__name__}")
        else:
            self._fetched(token)
            return self._source.pause(token)
        finally:
            self._idle.set()
        return None

    def _fetched(self, token: ServiceToken) -> None:
        self._said = ""
        self._doubted.clear()
        if not self._is_new(token):
            return
        self.current = token
        life = "" if token.expires is None else f", valid for {token.expires - self._clock():.0f} s"
        told = f"; {len(self._followers)} connections are told" if self._followers else ""
        self._log.info(f"upstream {self._name}: new token{life}{told}")

    def _failed(self, reason: str) -> None:
        """One line for each reason, not for each attempt."""
        self._failure = reason
        holds = self._holds()
        means = "the present one still holds" if holds else "clients are refused until there is one"
        if (said := f"upstream {self._name}: no new token: {reason}; {means}") != self._said:
            self._log.warning(said)
        self._said = said

    async def _rest(self, seconds: float) -> None:
        await asyncio.sleep(min(seconds, RATION))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(max(0.0, seconds - RATION)):
                await self._doubted.wait()
