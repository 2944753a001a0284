"""RabbitMQ's advanced.config: its options as the keys that say the same, which then win.

Strategy: an option becomes the text of a key and goes through the same table, types and rules as
if it stood in the conf file; only a chain with several authorisation backends, which no key can
say, goes beside. As in RabbitMQ an option replaces the conf file's as a whole (its servers, its
TLS options). What the gate does not have is refused where its loss would weaken the gate, and
named in one warning where not (the policy of :mod:`gatekeeper.config.known`).

Sources: ``rabbit_prelaunch_conf``, ``cuttlefish_advanced``, and the schemas' translations (4.3.5).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType

from gatekeeper.config.backends import module
from gatekeeper.config.conf import Key, Origin, format_key
from gatekeeper.config.datatypes import BadValueError
from gatekeeper.config.encrypted import TAG
from gatekeeper.config.erlang_terms import Atom, Term, TermError, Terms, read_terms, shown, text_of
from gatekeeper.config.known import refusal
from gatekeeper.config.schema import BY_PATTERN, KEYS, find
from gatekeeper.config.settings import BackendPair
from gatekeeper.config.sources import Document, Value, read_text
from gatekeeper.config.spec import matches
from gatekeeper.errors import ConfigError

Texts = Mapping[Key, str]
"""Below an option: the rest of the key and its text."""

_FILE_LIMIT = 4 * 1024 * 1024
_PASSPHRASE_LIMIT = 64 * 1024

# Where an application's options stand in a conf file.
_LENIENT: Mapping[str, Key] = MappingProxyType(
    {"rabbit": (), "rabbitmq_management": ("management",)}
)
# Those that decide who may do what: none of their options may be lost.
_STRICT: Mapping[str, Key] = MappingProxyType(
    {
        "rabbitmq_auth_backend_ldap": ("auth_ldap",),
        "rabbitmq_auth_backend_http": ("auth_http",),
        "rabbitmq_auth_backend_oauth2": ("auth_oauth2",),
        "rabbitmq_auth_backend_cache": ("auth_cache",),
        "rabbitmq_trust_store": ("trust_store",),
    }
)
_PREFIXES: Mapping[str, Key] = MappingProxyType({**_LENIENT, **_STRICT})
_AUTH = "rabbitmq_auth_"


class _OptionError(Exception):
    """The option's value cannot be read; what is wrong and what to do."""


@dataclass(frozen=True, slots=True)
class Advanced:
    """What an advanced.config says.

    values: by key. replaced: heads of keys that no longer count in the conf files.
    backends: ``auth_backends``, where it is set.
    """

    values: Mapping[Key, Value] = field(default_factory=dict)
    replaced: tuple[Key, ...] = ()
    backends: tuple[BackendPair, ...] | None = None
    warnings: tuple[str, ...] = ()

    def over(self, document: Document) -> Document:
        """The document with these values in the place of its own."""
        kept = {
            key: value
            for key, value in document.values.items()
            if not any(key[: len(head)] == head for head in self.replaced)
        }
        warnings = (*document.warnings, *self.warnings)
        return replace(document, values={**kept, **self.values}, warnings=warnings)


def read_advanced(file: Path, place: str = "") -> Advanced:
    """Read the file. place: what named it, for messages.

    Raises ConfigError: it cannot be read, is no list of applications, or says what the gate
    must not ignore; one line for each.
    """
    try:
        terms = read_terms(read_text(file, place, _FILE_LIMIT))
    except TermError as error:
        raise ConfigError(f"{file}:{error.line}:{error.column}: {error.problem}") from None
    if len(terms.terms) != 1 or not isinstance(terms.terms[0], list):
        raise ConfigError(f"{file}: expected one list of applications: [{{rabbit, [...]}}, ...].")
    return _Reading(file, terms).advanced(terms.terms[0])


class _Reading:
    """One file: what was found so far."""

    def __init__(self, file: Path, terms: Terms) -> None:
        self._file = file
        self._terms = terms
        self._values: dict[Key, Value] = {}
        self._replaced: list[Key] = []
        self._backends: tuple[BackendPair, ...] | None = None
        self._ignored: list[str] = []
        self._problems: list[str] = []

    def advanced(self, applications: list[Term]) -> Advanced:
        for application in applications:
            match application:
                case (Atom(name), list() as options) if name in _PREFIXES:
                    for option in options:
                        self._option(name, option)
                case (Atom(name), list()) if name.startswith(_AUTH):
                    self._problem(
                        application, f"{name}: the gate has no such backend or mechanism; remove it"
                    )
                case (Atom(name), list()):
                    self._ignored.append(name)
                case _:
                    self._problem(application, "expected {Application, [{Option, Value}]}")
        if self._problems:
            raise ConfigError("\n".join(self._problems))
        warnings: tuple[str, ...] = ()
        if self._ignored:
            names = ", ".join(dict.fromkeys(self._ignored))
            warnings = (f"{self._file}: these settings have no effect in the gate: {names}",)
        return Advanced(self._values, tuple(self._replaced), self._backends, warnings)

    def _option(self, application: str, option: Term) -> None:
        match option:
            case (Atom(name), value):
                pass
            case Atom(name):  # a bare atom is {Atom, true}, as in every Erlang property list
                value = Atom("true")
            case _:
                self._problem(option, f"{application}: expected {{Option, Value}}")
                return
        try:
            if (application, name) == ("rabbit", "auth_backends"):
                self._backends = tuple(
                    replace(pair, place=self._place(option, "rabbit.auth_backends"))
                    for pair in _chain(value)
                )
                self._replaced.append(("auth_backends",))
            elif translate := _OPTIONS.get((application, name)):
                self._known(option, translate, value)
            else:
                self._other(application, name, option, value)
        except _OptionError as error:
            self._problem(option, f"{application}.{name}: {error}")

    def _known(self, option: Term, translate: _Translate, value: Term) -> None:
        head, texts = translate.head, translate.texts(value)
        for old in (head, *translate.also):
            self._replaced.append(old)
            for key in [key for key in self._values if key[: len(old)] == old]:
                del self._values[key]
        for rest, text in texts.items():
            self._set(option, (*head, *rest), text)

    def _other(self, application: str, name: str, option: Term, value: Term) -> None:
        """An option without a rule of its own: a key of the same name, if the gate has it."""
        head = (*_PREFIXES[application], name)
        try:
            found = dict(_one(value) if find(head) else _plain(value))
        except _OptionError:
            if find(head):
                raise
            found = {}  # of a shape that no key has, so it has no key
        known = {rest: text for rest, text in found.items() if find((*head, *rest))}
        for rest in found or {(): ""}:
            if rest not in known:
                self._unsupported(application, name, option, (*head, *rest))
        self._replaced.extend((*head, *rest) for rest in known)
        for rest, text in known.items():
            self._set(option, (*head, *rest), text)

    def _unsupported(self, application: str, name: str, option: Term, key: Key) -> None:
        rule = next(filter(None, (refusal((*key, *["x"] * more)) for more in range(4))), None)
        if rule is not None:
            self._problem(option, f"{application}.{name}: {rule.reason}")
        elif application in _STRICT or _begins_a_key(key):
            self._problem(
                option,
                f"{application}.{name}: is not read from here; write {format_key(key)} into the"
                " conf file",
            )
        else:
            self._ignored.append(f"{application}.{name}")

    def _set(self, option: Term, key: Key, text: str) -> None:
        spec = find(key)
        if text.startswith(TAG) and spec is not None and not spec.type.secret:
            raise _OptionError("only a password can be encrypted; write this one in the clear")
        origin = Origin(str(self._file), *self._terms.place(option))
        self._values[key] = Value(key, text, text, origin)

    def _problem(self, term: Term, text: str) -> None:
        self._problems.append(self._place(term, text))

    def _place(self, term: Term, text: str) -> str:
        line, column = self._terms.place(term)
        return f"{self._file}:{line}:{column}: {text}"


@dataclass(frozen=True, slots=True)
class _Translate:
    """head: the key, or the beginning of those that it stands for; also: other names of it."""

    head: Key
    texts: Callable[[Term], Texts]
    also: tuple[Key, ...] = ()


def _begins_a_key(head: Key) -> bool:
    """Has the gate keys below this one? Then the option asks for something that it does."""
    return any(matches(spec.words[: len(head)], head) for spec in KEYS)


def _text(term: Term) -> str:
    match term:
        case Atom(name):
            return name
        case bytes():
            try:
                return term.decode()
            except UnicodeDecodeError:
                raise _OptionError("a binary that is not UTF-8; convert it") from None
        case int():
            return str(term)
        case (Atom("encrypted"), value):
            return TAG + _text(value)
    text = text_of(term)
    if text is None:
        raise _OptionError("expected one value: a string, a number or an atom")
    return text


def _one(term: Term) -> Texts:
    return {} if term == Atom("undefined") else {(): _text(term)}


def _listed(term: Term) -> list[Term]:
    if not isinstance(term, list):
        raise _OptionError("expected a list")
    return term


def _numbered(term: Term) -> Texts:
    """A list under labels that sort as it does; an empty one is ``none``."""
    if term == Atom("undefined"):
        return {}
    items = _listed(term)
    return {(f"{at:04}",): _text(item) for at, item in enumerate(items, 1)} or {(): "none"}


def _named(term: Term) -> Texts:
    return {(_text(item),): "true" for item in _listed(term)} or {(): "none"}


def _permissions(term: Term) -> Texts:
    texts = [_text(item) for item in _listed(term)]
    if len(texts) != 3:
        raise _OptionError("expected three patterns: configure, write, read")
    return {(name,): text for name, text in zip(("configure", "write", "read"), texts, strict=True)}


def _tags(term: Term) -> Texts:
    items = _listed(term)
    # Any one key replaces the default, administrator.
    return {(_text(item),): "true" for item in items} or {("administrator",): "false"}


def _listeners(term: Term) -> Texts:
    texts: dict[Key, str] = {}
    for at, item in enumerate(_listed(term), 1):
        match item:
            case int():
                texts[f"{at:04}",] = str(item)
            case (host, int() as port):
                texts[f"{at:04}",] = f"{_text(host)}:{port}"
            case _:
                raise _OptionError('expected ports or {"ADDRESS", PORT}')
    return texts or {(): "none"}


def _bind(term: Term) -> Texts:
    match term:
        case Atom("as_user" | "anon" as name):
            return {(): name}
        case (dn, password):
            return {("user_dn",): _text(dn), ("password",): _text(password)}
    raise _OptionError('expected as_user, anon or {"DN", "PASSWORD"}')


def _query(term: Term) -> Texts:
    return {(): shown(term)}


def _anonymous(term: Term) -> Texts:
    if term != Atom("false"):
        raise _OptionError("binds without a name or a password are not supported; remove it")
    return {}


def _tls(term: Term) -> Texts:
    """``ssl_options``: Erlang's names of the options, most of them the keys' too."""
    texts: dict[Key, str] = {}
    for option in _listed(term):
        match option:
            case (Atom("versions" | "ciphers" as name), values):
                texts |= {(name, *label): text for label, text in _numbered(values).items()}
            case (Atom("server_name_indication"), Atom("disable")):
                texts["sni",] = "none"
            case (Atom("server_name_indication"), value):
                texts["sni",] = _text(value)
            case (Atom(name), value):
                texts[name,] = _text(value)
            case _:
                raise _OptionError("expected {Option, Value}")
    return texts or {(): "none"}


def _socket(term: Term) -> Texts:
    texts: dict[Key, str] = {}
    for option in _listed(term):
        match option:
            case (Atom("linger"), (on, timeout)):
                texts |= {("linger", "on"): _text(on), ("linger", "timeout"): _text(timeout)}
            case (Atom(name), value) if find(("tcp_listen_options", name)):
                texts[name,] = _text(value)
            case _:
                continue  # of the broker's own sockets, such as exit_on_close
    return texts


def _decoder(term: Term) -> Texts:
    """``config_entry_decoder``; of a passphrase's file the first line counts."""
    texts: dict[Key, str] = {}
    for option in _listed(term):
        match option:
            case (Atom("passphrase"), (Atom("file"), path)):
                lines = read_text(Path(_text(path)), "config_entry_decoder", _PASSPHRASE_LIMIT)
                texts["passphrase",] = lines.splitlines()[0] if lines else ""
            case (Atom("passphrase"), Atom("prompt") | (Atom("prompt"), *_)):
                raise _OptionError("a prompt is not supported; use {passphrase, {file, PATH}}")
            case (Atom(name), value):
                texts[name,] = _text(value)
            case _:
                raise _OptionError("expected {Option, Value}")
    return texts


def _chain(term: Term) -> tuple[BackendPair, ...]:
    """``auth_backends``: names, {Authn, Authz} and {Authn, [Authz, ...]}."""
    chain: list[BackendPair] = []
    for item in _listed(term):
        match item:
            case Atom():
                chain.append(BackendPair(authn=_backend(item), authz=(_backend(item),), both=True))
            case (Atom() as authn, authz):
                both = tuple(map(_backend, authz if isinstance(authz, list) else [authz]))
                if not both:
                    # RabbitMQ takes this for "allowed everything".
                    raise _OptionError(f"{authn} has no authorisation backend; name one")
                chain.append(BackendPair(authn=_backend(authn), authz=both))
            case _:
                raise _OptionError("expected a backend, {Authn, Authz} or {Authn, [Authz]}")
    if not chain:
        raise _OptionError("the list is empty, so nobody could log in; name a backend")
    return tuple(chain)


def _backend(term: Term) -> str:
    name = _text(term)
    try:
        BY_PATTERN["auth_backends.$num"].type.convert(name)
    except BadValueError as error:
        raise _OptionError(f"{name} does not fit: {error}") from None
    return module(name)


def _plain(term: Term) -> Iterator[tuple[Key, str]]:
    """One value, or those of a property list by their names."""
    if isinstance(term, list) and term and all(isinstance(item, tuple) for item in term):
        for item in term:
            match item:
                case (Atom(name), value):
                    for rest, text in _plain(value):
                        yield (name, *rest), text
                case _:
                    raise _OptionError("expected {Option, Value}")
    else:
        yield (), _text(term)


def _rows(application: str, prefix: Key, *names: str) -> dict[tuple[str, str], _Translate]:
    return {(application, name): _Translate((*prefix, name), _one) for name in names}


_RABBIT, _LDAP = "rabbit", "rabbitmq_auth_backend_ldap"
_OPTIONS: Mapping[tuple[str, str], _Translate] = MappingProxyType(
    {
        (_RABBIT, "loopback_users"): _Translate(("loopback_users",), _named),
        (_RABBIT, "default_permissions"): _Translate(("default_permissions",), _permissions),
        (_RABBIT, "default_user_tags"): _Translate(("default_user_tags",), _tags),
        (_RABBIT, "auth_mechanisms"): _Translate(("auth_mechanisms",), _numbered),
        (_RABBIT, "tcp_listeners"): _Translate(("listeners", "tcp"), _listeners),
        (_RABBIT, "ssl_listeners"): _Translate(("listeners", "ssl"), _listeners),
        (_RABBIT, "ssl_options"): _Translate(("ssl_options",), _tls),
        (_RABBIT, "tcp_listen_options"): _Translate(("tcp_listen_options",), _socket),
        (_RABBIT, "config_entry_decoder"): _Translate(("config_entry_decoder",), _decoder),
        (_RABBIT, "channel_max"): _Translate(
            ("max_channels_per_connection",), _one, (("channel_max",),)
        ),
    }
    | _rows(
        _LDAP,
        ("auth_ldap",),
        "port",
        "timeout",
        "idle_timeout",
        "log",
        "user_bind_pattern",
        "user_dn_pattern",
        "dn_lookup_attribute",
        "dn_lookup_base",
        "group_lookup_base",
        "use_ssl",
        "use_starttls",
    )
    | {
        (_LDAP, "servers"): _Translate(("auth_ldap", "servers"), _numbered),
        (_LDAP, "pool_size"): _Translate(("auth_ldap", "connection_pool_size"), _one),
        (_LDAP, "dn_lookup_bind"): _Translate(("auth_ldap", "dn_lookup_bind"), _bind),
        (_LDAP, "other_bind"): _Translate(("auth_ldap", "other_bind"), _bind),
        (_LDAP, "anon_auth"): _Translate(("auth_ldap", "anon_auth"), _anonymous),
        (_LDAP, "ssl_options"): _Translate(("auth_ldap", "ssl_options"), _tls),
        (_LDAP, "ssl_hostname_verification"): _Translate(
            ("auth_ldap", "ssl_options", "hostname_verification"), _one
        ),
    }
    | {
        (_LDAP, option): _Translate(("auth_ldap", "queries", key), _query)
        for option, key in (
            ("vhost_access_query", "vhost_access"),
            ("resource_access_query", "resource_access"),
            ("topic_access_query", "topic_access"),
            ("tag_queries", "tags"),
        )
    }
)
