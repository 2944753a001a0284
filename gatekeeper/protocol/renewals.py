"""New secrets on their way to the broker, by connection.update-secret.

Where the broker knows the service account, the gate sends its own and keeps the answer to itself;
where the broker knows the client, the client's is passed on and the answer is the client's. Never
both on one connection, so an answer is never in doubt.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gatekeeper.protocol.states import PASS, TAKEN, Outcome, State
from gatekeeper.protocol.wire import Reader, longstr, method, shortstr

if TYPE_CHECKING:
    from gatekeeper.protocol.session import Session

UPDATE_SECRET = (10, 70)


class Renewals:
    """relays: the client is logged in at the broker as itself."""

    __slots__ = ("_next", "_relayed", "_s", "_waiting", "relays")

    def __init__(self, session: Session, *, relays: bool) -> None:
        self._s = session
        self.relays = relays
        self._relayed = 0  # of the client's, not answered yet
        self._waiting = False  # for the answer to one of the gate's own
        self._next: bytes | None = None

    def renew(self, secret: bytes) -> bool:
        """Tell the broker the service account's new secret.

        A broker may be slow to answer (RabbitMQ does not read from publishers when it is short of
        memory): meanwhile only the newest secret waits. False: it is too long for the connection.
        """
        session = self._s
        update = _update(secret, b"token renewed")
        if len(update) > session.lane.frame_max:
            return False
        if session.among(State.RUNNING, State.FAILING):
            if self._waiting:
                self._next = secret
            else:
                self._waiting = True
                session.to_broker.append(update)
        return True

    def relay(self, secret: bytes, reason: bytes) -> None:
        """Tell the broker the client's new secret, which the gate has taken."""
        self._relayed += 1
        self._s.to_broker.append(_update(secret, reason))

    def answered(self) -> Outcome:
        """The broker's update-secret-ok."""
        if self._waiting:
            self._waiting = False
            secret, self._next = self._next, None
            if secret is not None:
                self.renew(secret)
            return TAKEN
        if self._relayed:
            self._relayed -= 1
            return PASS
        self._s.broken = "the broker sent an update-secret-ok that nobody asked for"
        return TAKEN

    def refused(self, payload: bytes) -> bool:
        """Does this connection.close answer a secret of the gate's own? Raises WireError."""
        if not self._waiting:
            return False
        reader = Reader(payload, 4)
        reader.short()
        reader.shortstr()
        return (reader.short(), reader.short()) == UPDATE_SECRET


def _update(secret: bytes, reason: bytes) -> bytes:
    return method(0, *UPDATE_SECRET, longstr(secret) + shortstr(reason))
