"""The brokers behind the gate, and which virtual host goes where.

Strategy: every upstream is complete or an error, because the mistake would else show only when
the first client of its virtual host comes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, TypeVar, cast

from gatekeeper.config.settings import Address, ClientTls, Upstream
from gatekeeper.config.tls import client_tls
from gatekeeper.config.tokens import service_token
from gatekeeper.config.typed import Problems, Typed
from gatekeeper.model import Secret

T = TypeVar("T")

_DEFAULT = "default"
_PREFIX = "upstreams.$name."


def upstreams(typed: Typed, problems: Problems, warnings: list[str]) -> Mapping[str, Upstream]:
    """By name, in file order; ``default`` is always among them."""
    names = typed.names("upstreams")
    if _DEFAULT not in names:
        problems.add(
            typed.place(_PREFIX + "servers.$n", _DEFAULT, "1"),
            "is missing; give the broker as HOST:PORT, such as 127.0.0.1:5673",
        )
    found = {name: _upstream(typed, name, problems, warnings) for name in names}
    _check_routes(typed, found, problems)
    return found


def _upstream(typed: Typed, name: str, problems: Problems, warnings: list[str]) -> Upstream:
    servers = ordered(typed.many(_PREFIX + "servers.$n", Address, name))
    vhosts = ordered(typed.many(_PREFIX + "vhosts.$n", str, name))
    credentials = cast(
        "Literal['service', 'client']", typed.one(_PREFIX + "credentials", str, name)
    )
    username = typed.optional(_PREFIX + "username", str, name) or ""
    password = typed.optional(_PREFIX + "password", Secret, name) or Secret(b"")
    if not servers:
        problems.add(
            typed.place(_PREFIX + "servers.$n", name, "1"), "is missing; give a broker as HOST:PORT"
        )
    if not vhosts and name != _DEFAULT:
        problems.add(
            typed.place(_PREFIX + "vhosts.$n", name, "1"),
            "is missing; without a virtual host nothing is routed to this upstream",
        )
    mechanism = typed.one(_PREFIX + "auth_mechanism", str, name)
    tls = client_tls(typed, name, problems, warnings)
    token = service_token(typed, name, problems, warnings)
    if token is None and mechanism == "EXTERNAL":
        _check_external(typed, name, tls, password, problems)
    elif token is None and (credentials == "service" or username or password.value):
        for key, value in (("username", username), ("password", password.value)):
            if not value:
                problems.add(
                    typed.place(_PREFIX + key, name),
                    "is missing or empty; the service account needs both username and password",
                )
    return Upstream(
        name=name,
        servers=tuple(servers.values()),
        vhosts=tuple(vhost.encode() for vhost in vhosts.values()),
        credentials=credentials,
        username=username.encode(),
        password=password,
        token=token,
        auth_mechanism="EXTERNAL" if mechanism == "EXTERNAL" else "PLAIN",
        tls=tls,
        proxy_protocol=cast(
            "Literal['v1', 'v2'] | None", typed.optional(_PREFIX + "proxy_protocol", str, name)
        ),
    )


def _check_external(
    typed: Typed, name: str, tls: ClientTls | None, password: Secret, problems: Problems
) -> None:
    if tls is None or tls.certfile is None:
        problems.add(
            typed.place(_PREFIX + "auth_mechanism", name),
            "EXTERNAL needs a client certificate; set ssl = true, ssl_options.certfile and"
            " ssl_options.keyfile of this upstream",
        )
    elif password.value:
        problems.add(
            typed.place(_PREFIX + "password", name),
            "has no effect with auth_mechanism = EXTERNAL; remove it",
        )


def _check_routes(typed: Typed, found: Mapping[str, Upstream], problems: Problems) -> None:
    owner: dict[str, str] = {}
    for name in found:
        for label, vhost in typed.many(_PREFIX + "vhosts.$n", str, name).items():
            other = owner.setdefault(vhost, name)
            if other != name:
                problems.add(
                    typed.place(_PREFIX + "vhosts.$n", name, label),
                    f"this virtual host is already routed to the upstream {other}; remove one",
                )


def ordered(labelled: Mapping[str, T]) -> Mapping[str, T]:
    """Numbers first and as numbers (2 before 10), then other labels by their text."""
    return {
        label: labelled[label]
        for label in sorted(labelled, key=lambda text: (not text.isdecimal(), text.zfill(20), text))
    }
