"""``auth_ldap.log``: what the backend asks and decides, step by step, as RabbitMQ logs it.

INVARIANT: a password is never handed to these methods. RabbitMQ's ``network_unsafe`` shows the
passwords of binds; here it only shows the names that ``network`` masks.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from gatekeeper.errors import printable

MASK = "xxxx"

_MASKED = frozenset({"cn", "dc", "ou", "uid"})
_RDN = re.compile(r"(?:\\.|[^,\\])+")


@dataclass(frozen=True, slots=True)
class Trace:
    """log: where lines go. on, network, unmasked: what ``auth_ldap.log`` asks for.

    Texts are ``%`` formats with bytes or values, so that a line that nobody wants costs a test.
    """

    log: Any
    on: bool = False
    network: bool = False
    unmasked: bool = False

    def top(self, text: str, *values: object) -> None:
        self._say("LDAP ", text, values)

    def step(self, text: str, *values: object) -> None:
        self._say("    LDAP ", text, values)

    def detail(self, text: str, *values: object) -> None:
        self._say("        LDAP ", text, values)

    def traffic(self, text: str, dn: bytes, *values: object) -> None:
        """One request or answer; the DN is masked."""
        if self.network:
            self._say("    LDAP network traffic: ", text, (self.masked(dn), *values))

    def masked(self, dn: bytes) -> str:
        """A DN without the values that name somebody; everything that is no DN is masked whole."""
        text = printable(dn).decode()
        if self.unmasked:
            return text
        if "=" not in text:
            return MASK
        return ",".join(map(_masked, _RDN.findall(text)))

    def _say(self, head: str, text: str, values: tuple[object, ...]) -> None:
        if self.on:
            self.log.info(head + text % tuple(map(_shown, values)))


def _masked(rdn: str) -> str:
    kind, equals, value = rdn.partition("=")
    if not equals or "=" in value:
        return f"{MASK}={MASK}"
    return f"{kind}={MASK if kind.strip().lower() in _MASKED else value}"


def _shown(value: object) -> str:
    match value:
        case bytes():
            return printable(value).decode()
        case tuple():
            return "; ".join(map(_shown, value))
        case bool():
            return str(value).lower()
        case _:
            return str(value)
