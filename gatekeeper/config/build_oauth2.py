"""``auth_oauth2.*``: resource servers with everything inherited, providers with their keys.

Strategy: the settings are what RabbitMQ computes at every login (a server's values, else the
root's, else the defaults), computed once. What would refuse every token is an error here: no
resource server, a provider that does not exist, or one without keys and without a place to fetch
them from.
Source: ``rabbit_oauth2_schema``, ``rabbit_oauth2_resource_server``, ``oauth2_client`` (4.3.5).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

from gatekeeper.config.oauth2 import (
    ROOT,
    USERNAME_CLAIMS,
    OAuth2Settings,
    OAuthProvider,
    ResourceServer,
    public_pem,
)
from gatekeeper.config.settings import ClientTls
from gatekeeper.config.typed import Problems, Typed

_PREFIX = "auth_oauth2."
_SERVER = _PREFIX + "resource_servers.$name."
_PROVIDER = _PREFIX + "oauth_providers.$name."


def oauth2(
    typed: Typed, problems: Problems, warnings: list[str], *, used: bool
) -> OAuth2Settings | None:
    """None where nothing is configured and no position of ``auth_backends`` needs it.

    used: the backend is in ``auth_backends``.
    """
    if not used and "auth_oauth2" not in {key[0] for key in typed.values}:
        return None
    servers = _servers(typed, problems, warnings)
    names = dict.fromkeys(server.provider for server in servers.values())
    configured = _names(typed, "oauth_providers")
    providers: dict[str, OAuthProvider] = {}
    for name in names:
        if name != ROOT and name not in configured:
            problems.add(
                _referrer(typed, name),
                f"there is no oauth provider '{name}'; configure {_PREFIX}oauth_providers.{name}",
            )
            continue
        provider = providers[name] = _Source(typed, name).provider(problems, warnings)
        if not (provider.jwks_uri or provider.discovery_endpoint or provider.signing_keys):
            problems.add(
                _Source(typed, name).place("issuer"),
                "is missing; without issuer, jwks_uri or signing_keys no token can be verified",
            )
    return OAuth2Settings(servers=servers, providers=providers)


def _names(typed: Typed, section: str) -> tuple[str, ...]:
    keys = (key for key in typed.values if key[:2] == ("auth_oauth2", section))
    return tuple(dict.fromkeys(key[2] for key in keys))


def _referrer(typed: Typed, provider: str) -> str:
    """Where an unknown provider is asked for."""
    for name in _names(typed, "resource_servers"):
        if typed.optional(_SERVER + "oauth_provider_id", str, name) == provider:
            return typed.place(_SERVER + "oauth_provider_id", name)
    return typed.place(_PREFIX + "default_oauth_provider")


# --- resource servers ---


def _servers(typed: Typed, problems: Problems, warnings: list[str]) -> Mapping[str, ResourceServer]:
    prefix = typed.optional(_PREFIX + "scope_prefix", str)
    root_id = typed.optional(_PREFIX + "resource_server_id", str) or ""
    root = ResourceServer(
        id=root_id,
        resource_server_type=typed.optional(_PREFIX + "resource_server_type", str) or "",
        verify_aud=typed.one(_PREFIX + "verify_aud", bool),
        require_exp=typed.one(_PREFIX + "require_exp", bool),
        scope_prefix=f"{root_id}." if prefix is None else prefix,
        additional_scopes_key=typed.optional(_PREFIX + "additional_scopes_key", str) or "",
        preferred_username_claims=_labelled(
            typed, _PREFIX + "preferred_username_claims.$preferred_username_claims"
        )
        or USERNAME_CLAIMS,
        scope_aliases=_aliases(typed, _PREFIX, (), warnings) or {},
        provider=typed.optional(_PREFIX + "default_oauth_provider", str) or ROOT,
    )
    servers = {root_id: root} if root_id else {}
    for name in _names(typed, "resource_servers"):
        server = _server(typed, name, root, prefix, warnings)
        if server.id in servers:
            problems.add(
                typed.place(_SERVER + "id", name),
                "another resource server has the same id; give each its own",
            )
        servers[server.id] = server
    if not servers:
        problems.add(
            typed.place(_PREFIX + "resource_server_id"),
            "is missing; it is what tokens must have in their aud claim",
        )
    return servers


def _server(
    typed: Typed, name: str, root: ResourceServer, prefix: str | None, warnings: list[str]
) -> ResourceServer:
    """One of ``resource_servers.*``.

    verify_aud and require_exp are this server's alone. (RabbitMQ's schema writes them to the
    root, so that one server's ``false`` there holds for all.)
    """

    def text(key: str) -> str | None:
        return typed.optional(_SERVER + key, str, name)

    def flag(key: str, inherited: bool) -> bool:
        own = typed.optional(_SERVER + key, bool, name)
        return inherited if own is None else own

    def or_else(own: str | None, inherited: str) -> str:
        return inherited if own is None else own

    server_id = text("id") or name
    aliases = _aliases(typed, _SERVER, (name,), warnings)
    claims = _labelled(
        typed, _SERVER + "preferred_username_claims.$preferred_username_claims", name
    )
    return ResourceServer(
        id=server_id,
        resource_server_type=or_else(text("resource_server_type"), root.resource_server_type),
        verify_aud=flag("verify_aud", root.verify_aud),
        require_exp=flag("require_exp", root.require_exp),
        scope_prefix=or_else(text("scope_prefix"), f"{server_id}." if prefix is None else prefix),
        additional_scopes_key=or_else(text("additional_scopes_key"), root.additional_scopes_key),
        preferred_username_claims=claims or root.preferred_username_claims,
        scope_aliases=root.scope_aliases if aliases is None else aliases,
        provider=text("oauth_provider_id") or root.provider,
    )


def _labelled(typed: Typed, pattern: str, *free: str) -> tuple[str, ...]:
    """In the order of the labels' texts (10 before 2), as RabbitMQ sorts them."""
    found = typed.many(pattern, str, *free)
    return tuple(found[label] for label in sorted(found))


def _aliases(
    typed: Typed, prefix: str, free: tuple[str, ...], warnings: list[str]
) -> Mapping[str, tuple[str, ...]] | None:
    """``scope_aliases.ALIAS = SCOPES`` and ``scope_aliases.N.alias`` with ``.scope``."""
    plain = typed.many(prefix + "scope_aliases.$alias", str, *free)
    found = {alias: tuple(scopes.split()) for alias, scopes in plain.items()}
    aliases = typed.many(prefix + "scope_aliases.$index.alias", str, *free)
    scopes = typed.many(prefix + "scope_aliases.$index.scope", str, *free)
    for index in dict.fromkeys((*aliases, *scopes)):
        if index in aliases and index in scopes:
            found[aliases[index]] = tuple(scopes[index].split())
            continue
        have, lacks = ("scope", "alias") if index in scopes else ("alias", "scope")
        place = typed.place(f"{prefix}scope_aliases.$index.{have}", *free, index)
        warnings.append(f"{place}: skipped, because .{lacks} is missing")
    return found or None


# --- providers ---


@dataclass(frozen=True, slots=True)
class _Source:
    """Where a provider's keys stand: ``auth_oauth2.*`` itself, or under its name."""

    typed: Typed
    name: str

    @property
    def prefix(self) -> str:
        return _PREFIX if self.name == ROOT else _PROVIDER

    @property
    def free(self) -> tuple[str, ...]:
        return () if self.name == ROOT else (self.name,)

    def place(self, key: str, *free: str) -> str:
        return self.typed.place(self.prefix + key, *self.free, *free)

    def text(self, key: str) -> str | None:
        return self.typed.optional(self.prefix + key, str, *self.free)

    def _set(self, key: str) -> str | None:
        """The same without the default."""
        return self.text(key) if self.typed.is_set(self.prefix + key, *self.free) else None

    def provider(self, problems: Problems, warnings: list[str]) -> OAuthProvider:
        jwks_uri = self.text("jwks_uri")
        if jwks_uri is None and self.name == ROOT:
            jwks_uri = self.text("jwks_url")  # its name before 3.13
        return OAuthProvider(
            name=self.name,
            jwks_uri=jwks_uri or "",
            discovery_endpoint=self._discovery_endpoint(),
            default_key=self.text("default_key"),
            signing_keys=dict(self._signing_keys(problems)),
            algorithms=_labelled(self.typed, self.prefix + "algorithms.$algorithm", *self.free)
            or None,
            https=self._https(warnings),
        )

    def _discovery_endpoint(self) -> str:
        """The issuer with the discovery path and parameters appended, or ""."""
        issuer = self.text("issuer")
        if issuer is None:
            return ""
        path = self.typed.one(self.prefix + "discovery_endpoint_path", str, *self.free)
        pattern = self.prefix + "discovery_endpoint_params.$param"
        params = self.typed.many(pattern, str, *self.free)
        url = urlsplit(issuer)
        full = f"{url.path.removesuffix('/')}/{path.removeprefix('/')}"
        query = [*parse_qsl(url.query, keep_blank_values=True), *params.items()]
        return urlunsplit(url._replace(path=full, query=urlencode(query)))

    def _signing_keys(self, problems: Problems) -> Iterator[tuple[str, bytes]]:
        pattern = f"signing_keys.{'$name' if self.name == ROOT else '$id'}"
        for name, path in self.typed.many(self.prefix + pattern, Path, *self.free).items():
            try:
                yield name, public_pem(path.read_bytes())
            except (OSError, ValueError):
                problems.add(
                    self.place(pattern, name),
                    "the file holds no RSA, EC or Ed key; give a public key or a certificate",
                )

    def _https(self, warnings: list[str]) -> ClientTls:
        verify = self._set("https.verify")
        if verify is None and self.name == ROOT:
            verify = self._set("https.peer_verification")  # its name before 4.0
        if verify == "verify_none":
            key = "https.verify" if self._set("https.verify") else "https.peer_verification"
            warnings.append(
                f"{self.place(key)}: whoever can redirect the gate's connections can make keys"
                " of their own count; use verify_peer"
            )
        elif self.typed.is_set(self.prefix + "https.depth", *self.free):
            # Python's ssl has no call for it. Every certificate of the chain is still checked.
            warnings.append(
                f"{self.place('https.depth')}: cannot be enforced; limit chains with the"
                " authority's path length constraint (pathlen)"
            )
        return ClientTls(
            cacertfile=self.typed.optional(self.prefix + "https.cacertfile", Path, *self.free),
            verify_peer=verify != "verify_none",
        )
