"""Which SASL mechanisms a connection is offered, and those that need more than its responses.

Source: RabbitMQ's ``should_offer``: EXTERNAL on TLS connections (whether or not the client has
shown a certificate), ANONYMOUS where a user for it is configured.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from gatekeeper.config.settings import Settings
from gatekeeper.model import Peer
from gatekeeper.protocol import sasl
from gatekeeper.server.endpoint import Endpoint

Offered = tuple[tuple[str, ...], Mapping[str, sasl.Mechanism]]
"""The names to offer, in order, and what each of them does."""


class Mechanisms:
    """Those of the configuration; made once, for only EXTERNAL differs from client to client."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        able = dict(sasl.MECHANISMS)
        if settings.anonymous is not None:
            able["ANONYMOUS"] = sasl.anonymous(settings.anonymous.user, settings.anonymous.password)
        self._common = self._offered(able)

    def of(self, endpoint: Endpoint, peer: Peer) -> Offered:
        if not peer.tls or "EXTERNAL" not in self._settings.auth_mechanisms:
            return self._common
        certified = sasl.external(_certified(self._settings, endpoint))
        return self._offered({**self._common[1], "EXTERNAL": certified})

    def _offered(self, able: dict[str, sasl.Mechanism]) -> Offered:
        names = tuple(name for name in self._settings.auth_mechanisms if name in able)
        return names, MappingProxyType(able)


def _certified(settings: Settings, endpoint: Endpoint) -> bytes | sasl.Refusal:
    """The name in the client's certificate (``rabbit_ssl:peer_cert_auth_name``), or why not."""
    tls = endpoint.transport.get_extra_info("ssl_object")
    der = None if tls is None else tls.getpeercert(binary_form=True)
    if der is None:
        return sasl.Refusal("connection peer presented no TLS (x.509) certificate")
    # INVARIANT: only a certificate that was verified says who somebody is.
    if settings.tls is None or not settings.tls.verify_peer:
        return sasl.Refusal("TLS configuration is unsafe")
    # Only where clients have certificates: the import takes a while, and memory.
    from gatekeeper.server.certificates import login_name  # noqa: PLC0415

    name = login_name(der, settings.cert_login)
    return sasl.Refusal("no name found") if name is None else name
