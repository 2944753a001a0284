"""Filling ``${...}`` in patterns: RabbitMQ's variables, in its order, with its escaping. Pure.

Substitution is textual and one variable after the other, so a value that itself holds
``${vhost}`` is expanded by a later step, as in RabbitMQ. Unknown variables stay as they are.
Sources: ``rabbit_auth_backend_ldap_util:fill``, ``rabbit_ldap_rfc4514`` (4.3.5).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from gatekeeper.config.erlang_terms import Atom, Term
from gatekeeper.errors import BackendError
from gatekeeper.model import Kind, Permission

FIXED = ("username", "user_dn", "vhost", "resource", "name", "permission")
"""Names that a context (topic variables) cannot replace."""

Context = Mapping[str, bytes | Mapping[str, bytes]]
"""What a check adds to the variables, as RabbitMQ's context map."""

FILLED_LIMIT = 256 * 1024
"""Octets of a filled pattern."""

_SPECIAL = frozenset(b',+"\\<>;\0')
_SPACE, _HASH = 0x20, 0x23


@dataclass(frozen=True, slots=True)
class Arguments:
    """Variables in RabbitMQ's order.

    A value is the Erlang term that RabbitMQ has there, which is what ``for`` compares: names are
    binaries (bytes), ``resource`` and ``permission`` atoms, ``user_dn`` a string.
    """

    values: tuple[tuple[str, Term], ...]

    def get(self, name: str) -> Term | None:
        return next((value for key, value in self.values if key == name), None)

    def fill(self, pattern: bytes) -> bytes:
        """The pattern with plain values: for texts and search filters, never for a DN."""
        return _fill(pattern, ((name, _octets(value)) for name, value in self.values))

    def fill_dn(self, pattern: bytes) -> bytes:
        """The pattern with values that cannot leave their place in a DN (RFC 4514).

        ``user_dn`` is a whole DN and stands as it is.
        """
        return _fill(
            pattern,
            (
                (name, _octets(value) if name == "user_dn" else escape(_octets(value)))
                for name, value in self.values
            ),
        )


def login(username: bytes, user_dn: bytes | None = None) -> Arguments:
    """For bind patterns (no DN yet) and tag queries."""
    values: list[tuple[str, Term]] = [("username", username)]
    if user_dn is not None:
        values.append(_dn(user_dn))
    return Arguments((*values, *_active_directory(username)))


def vhost_access(username: bytes, user_dn: bytes, vhost: bytes) -> Arguments:
    """RabbitMQ also has ``peeraddr`` here, a tuple, which fills as nothing."""
    return Arguments(
        (
            ("username", username),
            _dn(user_dn),
            ("vhost", vhost),
            ("peeraddr", ()),
            *_active_directory(username),
        )
    )


def resource_access(
    username: bytes,
    user_dn: bytes,
    vhost: bytes,
    resource: Kind | str,
    name: bytes,
    permission: Permission,
    context: Context | None = None,
) -> Arguments:
    """resource: ``queue``, ``exchange`` or ``topic``. context: what a topic check adds."""
    return Arguments(
        (
            ("username", username),
            _dn(user_dn),
            ("vhost", vhost),
            ("resource", Atom(str(resource))),
            ("name", name),
            ("permission", Atom(str(permission))),
            *_context(context or {}),
            *_active_directory(username),
        )
    )


def escape(value: bytes) -> bytes:
    """A value for a place in a DN (RFC 4514 section 2.4): special characters after a backslash."""
    out = bytearray()
    last = len(value) - 1
    for at, octet in enumerate(value):
        edge = (at == 0 and octet in (_SPACE, _HASH)) or (at == last and octet == _SPACE)
        if edge or octet in _SPECIAL:
            out += b"\\"
        out.append(octet)
    return bytes(out)


def _dn(user_dn: bytes) -> tuple[str, Term]:
    return "user_dn", user_dn.decode("latin-1")


def _context(context: Context) -> Iterable[tuple[str, Term]]:
    for key in sorted(context):
        value = context[key]
        if key in FIXED:
            continue
        if isinstance(value, bytes):
            yield key, value
        else:
            for inner in sorted(value):
                if inner not in FIXED:
                    yield f"{key}.{inner}", value[inner]


def _active_directory(username: bytes) -> tuple[tuple[str, Term], ...]:
    r"""Of ``DOMAIN\user``: split at the first backslash, where both parts are something."""
    domain, backslash, user = username.partition(b"\\")
    return (("ad_domain", domain), ("ad_user", user)) if backslash and domain and user else ()


def _fill(pattern: bytes, values: Iterable[tuple[str, bytes]]) -> bytes:
    """Raises BackendError above FILLED_LIMIT: a value may ask for others many times over."""
    for name, value in values:
        if b"${" not in pattern:
            break
        variable = b"${%s}" % name.encode()
        if len(pattern) + pattern.count(variable) * len(value) > FILLED_LIMIT:
            raise BackendError(f"LDAP: a filled pattern of more than {FILLED_LIMIT} octets")
        pattern = pattern.replace(variable, value)
    return pattern


def _octets(value: Term) -> bytes:
    match value:
        case bytes():
            return value
        case str():
            return value.encode("latin-1")
        case Atom(name):
            return name.encode()
        case _:
            return b""
