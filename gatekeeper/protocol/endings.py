"""How a channel or the connection comes to its end: who is told what, and when.

A channel that is refused is closed at the broker first, so that the replies to what came before
reach the client before the refusal. An error that ends the connection waits until whatever is
parked is decided (see ``session.py``); the first of several is told.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gatekeeper.errors import AmqpError, ReplyCode
from gatekeeper.protocol.channels import ChannelState, Mode
from gatekeeper.protocol.states import CONNECTION_CLOSE_OK, DONE, RUNNING, State
from gatekeeper.protocol.wire import close_method

if TYPE_CHECKING:
    from gatekeeper.protocol.session import Session


class Endings:
    """errors: of the connection, which ends when nothing is parked."""

    __slots__ = ("_s", "errors")

    def __init__(self, session: Session) -> None:
        self._s = session
        self.errors: tuple[AmqpError, ...] = ()

    # --- a channel ---

    def refuse_channel(self, number: int, error: AmqpError) -> None:
        """Close the channel at the broker. Content under way stays under way: what the client still
        sends of it is swallowed.

        Where the error ends the connection, nothing of the client's is looked at until then.
        """
        session = self._s
        session.policy.refused(number, error)
        session.to_broker.append(close_method(number, 20, 200, b"", 0, 0))
        channel = session.channels[number]
        channel.mode = Mode.REFUSING
        channel.error = error
        if not error.closes_channel:
            session.error = session.error or error
            session.state = State.FAILING

    def refusal_is_due(self, number: int, channel: ChannelState) -> None:
        """The broker has closed the channel: the client may be told why it was."""
        error = channel.error
        if error is None:
            return
        if error.closes_channel:
            self._tell_refusal(number, channel, error)
        elif self._s.state is State.FAILING:
            self._s.drop(number)  # its number means nothing any more
            self._s.parked.discard(number)
            self.errors += (error,)
            self.conclude()

    def refusal_is_void(self, channel: ChannelState) -> None:
        """The broker has closed the channel for an earlier operation: that is the answer."""
        session, error = self._s, channel.error
        if session.state is not State.FAILING or error is None or error.closes_channel:
            return
        refusing = (c for c in session.channels.values() if c.mode == Mode.REFUSING)
        errors = (c.error for c in refusing if c.error is not None and c is not channel)
        session.error = next((other for other in errors if not other.closes_channel), None)
        if session.error is None:
            session.state = RUNNING

    def _tell_refusal(self, number: int, channel: ChannelState, error: AmqpError) -> None:
        """Send the client the channel.close."""
        self._s.to_client.append(
            close_method(number, 20, error.code, error.text, error.class_id, error.method_id)
        )
        channel.mode = Mode.AWAIT_OK

    # --- the connection ---

    def fail(self, number: int, error: AmqpError) -> None:
        """Close the connection for an error of the client's, after the broker's replies.

        Not before what other channels have sent earlier is decided.
        """
        if not self.errors:
            self._s.policy.refused(number, error)
        self.errors += (error,)
        self.conclude()

    def conclude(self) -> None:
        """Nothing may be parked any more: then the connection ends, if it is to."""
        session = self._s
        if self.errors and not session.parked:
            session.error, self.errors = self.errors[0], ()
            session.state = State.DRAINING
            session.to_broker.append(close_method(0, 10, 200, b"", 0, 0))

    def tell(self) -> None:
        """Send the client the connection.close for the session's ``error``."""
        session, error = self._s, self._s.error
        if error is None:
            return
        self.tell_refusals()
        session.to_client.append(
            close_method(0, 10, error.code, error.text, error.class_id, error.method_id)
        )
        session.state = State.TOLD

    def tell_refusals(self) -> None:
        """Before the connection ends: the refusals of channels that came first.

        A broker that is told to close the connection answers a channel's close no more.
        """
        for number, channel in self._s.channels.items():
            error = channel.error
            if channel.mode == Mode.REFUSING and error is not None and error.closes_channel:
                self._tell_refusal(number, channel, error)

    def close(self, error: AmqpError) -> None:
        """The gate ends the connection (320 and the like): the client is told at once."""
        session = self._s
        if session.state in (RUNNING, State.FAILING, State.DRAINING, State.CLIENT_CLOSING):
            if session.state in (RUNNING, State.FAILING):
                session.to_broker.append(close_method(0, 10, 200, b"", 0, 0))
            session.error = session.error or error
            self.tell()

    def broker_lost(self, explanation: bytes) -> None:
        """The broker's connection has ended, or is given up."""
        if self._s.state is State.CLIENT_CLOSING:
            self._s.to_client.append(CONNECTION_CLOSE_OK)
            self._s.state = DONE
        else:
            self.close(AmqpError(ReplyCode.CONNECTION_FORCED, explanation))
