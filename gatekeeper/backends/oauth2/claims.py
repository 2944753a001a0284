"""From the claims of a token to its resource server, scopes, username and tags.

Pure functions over decoded JSON. Where RabbitMQ has a word for what is wrong, it is the reason
of a TokenRefusedError; where RabbitMQ's own code would crash (which it turns into the refusal
"authentication failed with internal error"), a ClaimsError is raised.
Source: ``rabbit_auth_backend_oauth2``, ``rabbit_oauth2_rar``, ``rabbit_oauth2_resource_server``
(4.3.5).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from gatekeeper.backends.oauth2.scopes import Pattern
from gatekeeper.config.oauth2 import OAuth2Settings, ResourceServer

Claims = Mapping[str, object]

MAX_SCOPES = 2048
MAX_TAG = 255
"""Characters of an Erlang atom, which RabbitMQ's tags are."""

_REQUESTING_PARTY_TOKEN = "authorization.permissions.scopes"  # noqa: S105 - a path of claims
_TAG = "tag:"
_TAGS = frozenset({"monitoring", "administrator", "management", "policymaker"})
_ACTIONS = frozenset({"read", "write", "configure"}) | _TAGS
_LOCATION_ATTRIBUTES = frozenset({"cluster", "vhost", "queue", "exchange", "routing-key"})


class TokenRefusedError(Exception):
    """The token is no good; ``str(error)`` is RabbitMQ's Erlang term for why."""


class ClaimsError(ValueError):
    """Claims of a shape that RabbitMQ does not survive. The message holds none of the token."""


def resource_server(claims: Claims, settings: OAuth2Settings) -> ResourceServer:
    """Whom the token is for, by ``aud``.

    Raises TokenRefusedError, or ClaimsError for an audience that is neither text nor list.
    """
    if "aud" in claims:
        audience = claims["aud"]
        wanted = _words(audience) if isinstance(audience, str) else _list(audience)
        found = [each for each in wanted if isinstance(each, str) and each in settings.servers]
        if len(found) > 1:
            raise TokenRefusedError("aud_matched_many_resource_servers_only_one_allowed")
        if found:
            return settings.servers[found[0]]
    unverified = [server for server in settings.servers.values() if not server.verify_aud]
    if len(unverified) == 1:
        return unverified[0]
    many, none = (
        ("no_aud_found_cannot_pick_one_from_too_many_resource_servers", "no_aud_found")
        if "aud" not in claims
        else ("too_many_resources_with_verify_aud_false", "no_matching_aud_found")
    )
    raise TokenRefusedError(many if unverified else none)


def username(claims: Mapping[str, object], preferred: Sequence[str]) -> str:
    """The first preferred claim that is text."""
    return next((c for name in preferred if isinstance(c := claims.get(name), str)), "unknown")


def tags(scopes: Sequence[str]) -> frozenset[str]:
    """RabbitMQ takes only tags whose names its node knows already; the gate takes any."""
    named = (scope.removeprefix(_TAG) for scope in scopes if scope.startswith(_TAG))
    return frozenset(tag for tag in named if len(tag) <= MAX_TAG)


def scopes(claims: Claims, server: ResourceServer) -> tuple[str, ...]:
    """Every scope of the token that is meant for this resource server, without its prefix.

    In RabbitMQ's order of steps, each of which sees what the ones before it have found. Raises
    TokenRefusedError, ClaimsError.
    """
    scope = claims.get("scope", [])
    found = _words(scope) if isinstance(scope, str) else _list(scope)
    found = [*_flat(_values(claims, _REQUESTING_PARTY_TOKEN, server.id)), *found]
    for path in _split(server.additional_scopes_key, " "):
        found = [*_flat(_values(claims, path, server.id)), *found]
    texts = [_text(each) for each in found]
    texts += [mapped for each in texts for mapped in server.scope_aliases.get(each, ())]
    details = claims.get("authorization_details")
    if isinstance(details, list):
        texts += _rich_authorization_request(details, server)
    prefix = server.scope_prefix
    own = sorted({each.removeprefix(prefix) for each in texts if each.startswith(prefix)})
    if len(own) > MAX_SCOPES:
        raise TokenRefusedError("{error,too_many_scopes}")
    return tuple(own)


# --- additional scopes: paths into the claims ---


def _values(claims: Claims, path: str, server_id: str) -> list[object]:
    """What stands at a dotted path; lists of objects on the way are gone through."""
    keys = [key for key in path.split(".") if key]
    return _of_object(claims, keys, server_id) if keys else []


def _of_object(value: Mapping[str, object], keys: list[str], server_id: str) -> list[object]:
    for at, key in enumerate(keys, 1):
        if key not in value:
            return []
        inner = value[key]
        if at == len(keys):
            return _leaf(inner, server_id)
        if isinstance(inner, list):
            return _of_list(inner, keys[at:], server_id)
        if not isinstance(inner, dict):
            return []
        value = inner
    return []


def _of_list(values: list[object], keys: list[str], server_id: str) -> list[object]:
    if not keys:
        return [found for value in values for found in _leaf(value, server_id)]
    found: list[object] = []
    for value in values:
        if not isinstance(value, dict) or keys[0] not in value:
            continue
        inner = value[keys[0]]
        if isinstance(inner, dict):
            found += _of_object(inner, keys[1:], server_id)
        elif isinstance(inner, list):
            found += _of_list(inner, keys[1:], server_id)
        else:
            # Text where the path goes on counts as scopes all the same, as in RabbitMQ.
            found += _leaf(inner, server_id)
    return found


def _leaf(value: object, server_id: str) -> list[object]:
    """Scopes at the end of a path: a list, words, or an object with those of each server."""
    if isinstance(value, list):
        return value
    if isinstance(value, str):
        return [*_words(value)]
    if not isinstance(value, dict):
        return []
    own = value.get(server_id)
    words = _words(own) if isinstance(own, str) else own if isinstance(own, list) else []
    return [f"{server_id}.{_text(word)}" for word in words]


# --- rich authorisation requests (RFC 9396) ---


def _rich_authorization_request(details: list[object], server: ResourceServer) -> list[str]:
    """``TYPE`` objects as scopes; these always start with the server's id and a dot."""
    found: list[str] = []
    for detail in details:
        if not isinstance(detail, dict) or not {"actions", "locations", "type"} <= detail.keys():
            continue
        if not server.resource_server_type or detail["type"] != server.resource_server_type:
            continue
        paths = [*_locations(detail["locations"], server.id)]
        if not paths:
            continue
        actions = detail["actions"]
        for action in [actions] if isinstance(actions, str) else _list(actions):
            if not isinstance(action, str) or action not in _ACTIONS:
                continue
            if action in _TAGS:
                found.append(f"{server.id}.{_TAG}{action}")
            else:
                found += [f"{server.id}.{action}:{path}" for path in paths]
    return found


def _locations(given: object, server_id: str) -> Iterator[str]:
    """``cluster:C/vhost:V/queue:Q/routing-key:K`` as ``V/Q/K``, of this server's cluster."""
    for location in [given] if isinstance(given, str) else _list(given):
        attributes: dict[str, str] = {}
        for attribute in _split(_text(location), "/"):
            words = _split(attribute, ":")
            if not words:
                raise ClaimsError("authorization_details: a location without a name")
            if len(words) > 1 and words[0] in _LOCATION_ATTRIBUTES:
                attributes[words[0]] = words[1]
        cluster = attributes.get("cluster")
        if cluster is None or not Pattern.of(cluster.encode()).matches(server_id.encode()):
            continue
        queue, exchange = attributes.get("queue"), attributes.get("exchange")
        if queue is not None and exchange is not None and queue != exchange:
            continue
        vhost, key = attributes.get("vhost", "*"), attributes.get("routing-key", "*")
        yield f"{vhost}/{queue or exchange or '*'}/{key}"


# --- shapes ---


def _split(text: str, separator: str) -> list[str]:
    return [part for part in text.split(separator) if part]


def _words(text: str) -> list[object]:
    return [*_split(text, " ")]


def _list(value: object) -> list[object]:
    if not isinstance(value, list):
        raise ClaimsError("a claim is neither text nor a list")
    return value


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise ClaimsError("a claim holds something that is not text")
    return value


def _flat(values: list[object]) -> Iterator[object]:
    for value in values:
        if isinstance(value, list):
            yield from _flat(value)
        else:
            yield value
