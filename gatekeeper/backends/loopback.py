"""RabbitMQ's internal_loopback backend: the internal database, for local clients alone.

Source: ``rabbit_auth_backend_internal_loopback`` of RabbitMQ 4.3.
"""

from __future__ import annotations

from collections.abc import Awaitable

from gatekeeper.backends.internal import InternalBackend
from gatekeeper.model import Credentials, Peer
from gatekeeper.policy.ports import LoginAnswer, Refused
from gatekeeper.store.refusals import shown

NAME = "rabbit_auth_backend_internal_loopback"
_TELLS_THE_ADDRESS = "PLAIN"
"""The one mechanism with which RabbitMQ tells a backend where the client is."""


class InternalLoopbackBackend(InternalBackend):
    """Passwords and permissions are the internal backend's."""

    @property
    def name(self) -> str:
        return NAME

    def authenticate(
        self, credentials: Credentials, peer: Peer
    ) -> LoginAnswer | Awaitable[LoginAnswer]:
        user = shown(credentials.username)
        if credentials.mechanism != _TELLS_THE_ADDRESS:
            return Refused(
                f"user '{user}' attempted to log in, but no socket or address was provided to the "
                "internal_loopback auth backend, so cannot verify if connection is from localhost "
                "or not."
            )
        if not peer.loopback:
            return Refused(
                f"user '{user}' attempted to log in, but the socket or address was not from "
                "loopback/localhost, which is prohibited by the internal loopback authN backend."
            )
        return super().authenticate(credentials, peer)
