"""``upstreams.NAME.oauth2.*`` and ``.token_file``: a token as the service account's password.

Strategy: a token has one source, and nothing beside it that would be ignored: a password, or a
mechanism that sends none, is an error.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from gatekeeper.config.settings import ClientTls
from gatekeeper.config.typed import Problems, Typed
from gatekeeper.model import Secret

_UPSTREAM = "upstreams.$name."
_OAUTH2 = _UPSTREAM + "oauth2."
_REQUIRED = ("token_endpoint", "client_id", "client_secret")


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenGrant:
    """A token of the gate's own, by OAuth 2's client credentials grant (RFC 6749, 4.4).

    token_endpoint: an https:// URL. scope: empty leaves it to the provider.
    """

    token_endpoint: str
    client_id: str
    client_secret: Secret
    scope: str = ""
    https: ClientTls = field(default_factory=ClientTls)


def service_token(
    typed: Typed, name: str, problems: Problems, warnings: list[str]
) -> TokenGrant | Path | None:
    """Where the upstream's token comes from: a grant, a file, or there is none."""
    file = typed.optional(_UPSTREAM + "token_file", Path, name)
    granted = any(key[:3] == ("upstreams", name, "oauth2") for key in typed.values)
    if file is None and not granted:
        return None
    key = "token_file" if file is not None else "oauth2.token_endpoint"
    if typed.optional(_UPSTREAM + "password", Secret, name) is not None:
        problems.add(
            typed.place(_UPSTREAM + "password", name), f"has no effect beside {key}; remove one"
        )
    if typed.one(_UPSTREAM + "auth_mechanism", str, name) == "EXTERNAL":
        problems.add(
            typed.place(_UPSTREAM + "auth_mechanism", name),
            f"EXTERNAL sends no password, and so no token; remove it or {key}",
        )
    if file is None:
        return _grant(typed, name, problems, warnings)
    if granted:
        problems.add(
            typed.place(_UPSTREAM + "token_file", name),
            "the token cannot come from both token_file and oauth2; remove one",
        )
    return file


def _grant(typed: Typed, name: str, problems: Problems, warnings: list[str]) -> TokenGrant:
    for key in _REQUIRED:
        if not typed.is_set(_OAUTH2 + key, name):
            problems.add(
                typed.place(_OAUTH2 + key, name),
                "is missing; a token needs " + ", ".join(_REQUIRED[:-1]) + f" and {_REQUIRED[-1]}",
            )
    verify = typed.one(_OAUTH2 + "https.verify", str, name) == "verify_peer"
    if not verify:
        warnings.append(
            f"{typed.place(_OAUTH2 + 'https.verify', name)}: whoever can redirect the gate's"
            " connections learns the client secret; use verify_peer"
        )
    return TokenGrant(
        token_endpoint=typed.optional(_OAUTH2 + "token_endpoint", str, name) or "",
        client_id=typed.optional(_OAUTH2 + "client_id", str, name) or "",
        client_secret=typed.optional(_OAUTH2 + "client_secret", Secret, name) or Secret(b""),
        scope=typed.optional(_OAUTH2 + "scope", str, name) or "",
        https=ClientTls(
            cacertfile=typed.optional(_OAUTH2 + "https.cacertfile", Path, name),
            verify_peer=verify,
        ),
    )
