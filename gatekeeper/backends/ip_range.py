"""The ip_range backend: from which networks a user may connect, by the user's tags.

It authorises only, and looks only at the virtual host's check; it stands beside a backend that
authenticates (``auth_backends.1.authn = internal``, ``.authz = ip_range``).
Source: the plugin rabbitmq-auth-backend-ip-range.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable

from gatekeeper.backends.dummy import DummyBackend
from gatekeeper.config.backends import IpRangeSettings
from gatekeeper.model import AuthUser, Credentials, Peer
from gatekeeper.policy.ports import LoginAnswer, Refused, Verdict

NAME = "rabbit_auth_backend_ip_range"

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class IpRangeBackend(DummyBackend):
    """Everything but the virtual host's check is allowed."""

    def __init__(self, settings: IpRangeSettings) -> None:
        self._tags = {tag: _networks(masks) for tag, masks in settings.tag_masks.items()}
        self._default = _networks(settings.default_masks)

    @property
    def name(self) -> str:
        return NAME

    def authenticate(self, credentials: Credentials, peer: Peer) -> LoginAnswer:
        return Refused("the ip_range backend does not authenticate")

    def vhost_access(self, user: AuthUser, vhost: bytes, peer: Peer) -> Verdict:
        """All networks of all the user's tags count; the default where no tag has networks.

        A client whose address is not known is refused: the plugin lets it in.
        """
        try:
            address = ipaddress.ip_address(peer.host)
        except ValueError:
            return Verdict(False, "the client's address is not known")
        ruled = sorted(user.tags & self._tags.keys())
        networks = [one for tag in ruled for one in self._tags[tag]] if ruled else self._default
        by = f"networks of {', '.join(ruled)}" if ruled else "default networks"
        found = next((network for network in networks if contains(network, address)), None)
        if found is None:
            return Verdict(False, f"{address} is in none of the {by}")
        return Verdict(True, f"{address} is in {found} ({by})")


def contains(network: Network, address: Address) -> bool:
    """An IPv4 address against a mask of more than 32 bits is compared as ``::ffff:a.b.c.d``; a
    mask of at most 32 bits is compared with the first bits of whatever the address is."""
    length = network.prefixlen
    if isinstance(address, ipaddress.IPv4Address) and length > 32:
        address = ipaddress.IPv6Address(b"\0" * 10 + b"\xff\xff" + address.packed)
    return _head(network.network_address, length) == _head(address, length)


def _head(address: Address, length: int) -> str:
    bits = f"{int(address):0{address.max_prefixlen}b}"
    return bits[:length]


def _networks(masks: Iterable[str]) -> tuple[Network, ...]:
    return tuple(ipaddress.ip_network(mask, strict=False) for mask in masks)
