"""RabbitMQ 4.3's log lines about a connection, with the facts as fields beside them.

Source: semantics.md section 6. RabbitMQ prints an Erlang pid where it has a process; the gate
has none and prints a number of its own in the same place: ``<0.N.0>``.
"""

from __future__ import annotations

import time

from gatekeeper.errors import AmqpError, printable
from gatekeeper.logs import Logger
from gatekeeper.model import Peer
from gatekeeper.protocol.erlang import erlang_string
from gatekeeper.protocol.events import Fail, LogKind
from gatekeeper.protocol.methods import method_atom
from gatekeeper.server.pump import End


def duration(seconds: float) -> str:
    """``rabbit_reader:connection_duration``."""
    if seconds < 1:
        return f"{int(seconds * 1000)}ms"
    whole = int(seconds)
    days, rest = divmod(whole, 86400)
    hours, rest = divmod(rest, 3600)
    minutes, secs = divmod(rest, 60)
    if days:
        return f"{days}D, {hours}H, {minutes}M, {secs}s"
    if hours:
        return f"{hours}H, {minutes}M, {secs}s"
    return f"{minutes}M, {secs}s" if minutes else f"{secs}s"


def text(name: bytes) -> str:
    return printable(name).decode()


class ConnectionLines:
    """The lines of one connection. user, vhost and heartbeat are set as they become known."""

    def __init__(
        self, connection: Logger, channel: Logger, user: Logger, number: int, peer: Peer
    ) -> None:
        self._connection = connection
        self._channel = channel
        self._user = user
        self._pid = f"<0.{number}.0>"
        self._name = str(peer)
        self._started = time.monotonic()
        self.user: bytes | None = None
        self.vhost: bytes | None = None
        self.heartbeat = 0
        self.running = False

    @property
    def name(self) -> str:
        return self._name

    def _fields(self, **more: object) -> dict[str, object]:
        fields: dict[str, object] = {"peer": self._name}
        if self.user is not None:
            fields["user"] = text(self.user)
        if self.vhost is not None:
            fields["vhost"] = text(self.vhost)
        return {**fields, **more}

    def _duration(self) -> str:
        return duration(time.monotonic() - self._started)

    def _where(self) -> str:
        """``NAME, vhost: 'V', user: 'U'``; the vhost is ``none`` until it is open."""
        if self.user is None:
            return self._name
        vhost = text(self.vhost) if self.vhost is not None and self.running else "none"
        return f"{self._name}, vhost: '{vhost}', user: '{text(self.user)}'"

    # What every connection has to say is put into words only where somebody listens.

    def accepted(self) -> None:
        if not self._connection.is_enabled("info"):
            return
        self._connection.info(f"accepting AMQP connection {self._name}", peer=self._name)

    def client_name(self, client_name: bytes) -> None:
        shown = text(client_name)
        if self._connection.is_enabled("info"):
            self._connection.info(
                f"connection {self._name} has a client-provided name: {shown}", peer=self._name
            )
        self._name = f"{self._name} - {shown}"

    def authenticated(self, user: bytes) -> None:
        self.user = user
        if self._user.is_enabled("info"):
            self._user.info(f"User '{text(user)}' authenticated successfully", **self._fields())

    def login_failed(self, user: bytes, reason: str) -> None:
        self._user.warning(
            f"User '{text(user)}' failed to authenticate: {reason}",
            peer=self._name,
            user=text(user),
            reason=reason,
        )

    def opened(self, vhost: bytes) -> None:
        self.vhost = vhost
        self.running = True
        if not self._connection.is_enabled("info"):
            return
        user = text(self.user or b"")
        self._connection.info(
            f"connection {self._name}: user '{user}' authenticated and granted access to vhost "
            f"'{text(vhost)}'",
            **self._fields(),
        )

    def failed(self, fail: Fail) -> None:
        """A handshake that ended in an error."""
        pid, name, user = self._pid, self._name, text(self.user or b"")
        match fail.log_kind:
            case LogKind.LOGIN_REFUSED:
                head = f"Error on AMQP connection {pid} ({name}, state: {fail.state}):"
            case LogKind.OPEN_REFUSED:
                head = f"Error on AMQP connection {pid} ({name}, user: '{user}', state: opening):"
            case LogKind.OPENING_ERROR:
                head = (
                    f"Error on AMQP connection {pid} ({name}, vhost: 'none', user: '{user}', "
                    f"state: opening), channel {fail.channel}:"
                )
            case LogKind.TUNE_FAILED:
                head = f"closing AMQP connection {pid} ({name}):"
            case LogKind.BAD_HEADER:
                head = f"closing AMQP connection {name} (duration: '{self._duration()}'):"
            case LogKind.HANDSHAKE_ERROR:
                head = f"closing AMQP connection {pid} ({name}, duration: '{self._duration()}'):"
        self._connection.error(
            f"{head}\n{fail.log_text}", **self._fields(reason=fail.log_text, state=str(fail.state))
        )

    def handshake_timeout(self, awaited: str) -> None:
        self._connection.error(
            f"closing AMQP connection {self._pid} ({self._name}, duration: "
            f"'{self._duration()}'):\n{{handshake_timeout,{awaited}}}",
            **self._fields(reason="handshake_timeout"),
        )

    def refused(self, channel: int, error: AmqpError) -> None:
        """An operation was refused, or the connection ends for an error."""
        operation = method_atom(error.class_id, error.method_id)
        symbol = error.code.name.lower()
        explanation = text(error.explanation)
        fields = self._fields(channel=channel, method=operation, reason=explanation)
        pid, where = self._pid, self._where()
        if error.closes_channel and channel:
            self._channel.error(
                f"Channel error on connection {pid} ({where}), channel {channel}:\n"
                f"operation {operation} caused a channel exception {symbol}: {explanation}",
                **fields,
            )
            return
        self._connection.error(
            f"Error on AMQP connection {pid} ({where}, state: running), channel {channel}:\n"
            f" operation {operation} caused a connection exception {symbol}: "
            f"{erlang_string(explanation)}",
            **fields,
        )

    def forced(self, error: AmqpError) -> None:
        reason = error.explanation.decode("utf-8", "replace")
        self._connection.warning(
            f"Closing AMQP connection {self._pid} ({self._where()}): {reason}",
            **self._fields(reason=reason),
        )

    def consumer_cancelled(self, channel: int, tag: bytes, queue: bytes, cause: str) -> None:
        """RabbitMQ knows one cause, "credential update"."""
        vhost = text(self.vhost or b"")
        self._channel.warning(
            f"Cancelling consumer <<\"{text(tag)}\">> on queue '{text(queue)}' in vhost "
            f"'{vhost}': read access refused after {cause}",
            **self._fields(channel=channel),
        )

    def upstream_failed(self, reason: str) -> None:
        self._connection.error(
            f"connection {self._name}: no session with the broker: {reason}",
            **self._fields(reason=reason),
        )

    def updated_secret(self, reason: bytes) -> None:
        user, why = text(self.user or b""), text(reason)
        self._connection.info(
            f"connection {self._name}: user '{user}' updated secret, reason: {why}",
            **self._fields(reason=why),
        )

    def secret_refused(self, reason: str) -> None:
        user = text(self.user or b"")
        self._connection.error(
            f"Secret update was refused for user '{user}': {reason}", **self._fields(reason=reason)
        )

    def secret_failed(self, reason: str) -> None:
        user = text(self.user or b"")
        self._connection.error(
            f"Secret update for user '{user}' failed: {reason}", **self._fields(reason=reason)
        )

    def credential_expired(self) -> None:
        user = text(self.user or b"")
        self._connection.warning(
            f"closing AMQP connection {self._name} of user '{user}': credential has expired",
            **self._fields(reason="credential expired"),
        )

    def ended(self, end: End) -> None:
        if end is End.ORDERLY and not self._connection.is_enabled("info"):
            return
        where, took = self._where(), self._duration()
        match end:
            case End.ORDERLY:
                self._connection.info(
                    f"closing AMQP connection ({where}, duration: '{took}')", **self._fields()
                )
                return
            case End.LOST:
                reason, log = "client unexpectedly closed TCP connection", self._connection.warning
            case End.FATAL_FRAME:
                reason, log = "fatal_frame_error", self._connection.error
                where = self._name
            case End.SILENT:
                reason = f"missed heartbeats from client, timeout: {self.heartbeat}s"
                log = self._connection.error
                where = self._name
        log(
            f"closing AMQP connection {self._pid} ({where}, duration: '{took}'):\n{reason}",
            **self._fields(reason=reason),
        )

    def probed(self) -> None:
        """Closed by the client without a byte: a health check."""
        if not self._connection.is_enabled("debug"):
            return
        self._connection.debug(
            f"closing AMQP connection {self._name}: no data received", peer=self._name
        )
