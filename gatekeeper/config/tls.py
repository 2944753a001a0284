"""TLS options, towards clients and towards brokers: one set of rules for both.

Strategy: refuse here what would otherwise only fail, or be weaker than asked for, when the first
peer connects: a certificate without its key, a gap between versions, a cipher that OpenSSL does
not know.
"""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path

from gatekeeper.config.conf import format_key
from gatekeeper.config.schema import BY_PATTERN
from gatekeeper.config.settings import ClientTls, ServerTls
from gatekeeper.config.typed import Problems, Typed
from gatekeeper.model import Secret

_VERSIONS = ("tlsv1", "tlsv1.1", "tlsv1.2", "tlsv1.3")
_TLS13_CIPHER = "TLS_"
_NONE = "none"


def server_tls(
    typed: Typed,
    problems: Problems,
    warnings: list[str],
    *,
    listening: bool,
    keys: str = "ssl_options",
) -> ServerTls | None:
    """``ssl_options.*``; None where there is neither a TLS listener nor any option.

    listening: there is a TLS listener, which needs a certificate. keys: what the names of its
    options begin with.
    """
    prefix = f"{keys}."
    options = _Options(typed, prefix, ())
    if typed.is_set(keys) or not (listening or options.any_set()):
        if listening:
            problems.add(
                typed.place(keys),
                f"a TLS listener needs options; remove {keys} = none",
            )
        return None
    verify = options.verify()
    must = typed.one(prefix + "fail_if_no_peer_cert", bool)
    if listening:
        for name in ("certfile", "keyfile"):
            if options.path(name) is None:
                problems.add(options.place(name), "is missing; a TLS listener needs it")
    else:
        options.check_pair(problems)
    if must and not verify:
        problems.add(
            options.place("fail_if_no_peer_cert"),
            f"has no effect without {prefix}verify = verify_peer; set that too",
        )
    if verify and options.path("cacertfile") is None:
        problems.add(
            options.place("cacertfile"),
            "is missing; verify_peer needs the authorities to check against",
        )
    versions = options.versions(problems)
    return ServerTls(
        cacertfile=options.path("cacertfile"),
        certfile=options.path("certfile"),
        keyfile=options.path("keyfile"),
        password=typed.optional(prefix + "password", Secret),
        verify_peer=verify,
        fail_if_no_peer_cert=must,
        depth=options.depth(warnings),
        versions=versions,
        ciphers=options.ciphers(versions, problems, warnings),
        honor_cipher_order=typed.optional(prefix + "honor_cipher_order", bool),
    )


def client_tls(
    typed: Typed, upstream: str, problems: Problems, warnings: list[str]
) -> ClientTls | None:
    """``upstreams.NAME.ssl`` and ``.ssl_options.*``; None for a plain connection."""
    options = _Options(typed, "upstreams.$name.ssl_options.", (upstream,))
    if not typed.one("upstreams.$name.ssl", bool, upstream):
        if set_one := options.any_set():
            problems.add(
                set_one,
                "has no effect on a plain connection; set"
                f" {format_key(('upstreams', upstream, 'ssl'))} = true or remove it",
            )
        return None
    return _client(options, problems, warnings)


def client_options(
    typed: Typed, prefix: str, problems: Problems, warnings: list[str]
) -> ClientTls | None:
    """``PREFIX.*`` towards a server that is not a broker; None where no option is set."""
    options = _Options(typed, prefix + ".", ())
    return _client(options, problems, warnings) if options.any_set() else None


def _client(options: _Options, problems: Problems, warnings: list[str]) -> ClientTls:
    typed, free = options.typed, options.free
    options.check_pair(problems)
    versions = options.versions(problems)
    # Not of every server: RabbitMQ's definitions.tls has no such key.
    has_sni = options.prefix + "sni" in BY_PATTERN
    sni = typed.optional(options.prefix + "sni", str, *free) if has_sni else None
    return ClientTls(
        cacertfile=options.path("cacertfile"),
        certfile=options.path("certfile"),
        keyfile=options.path("keyfile"),
        password=typed.optional(options.prefix + "password", Secret, *free),
        verify_peer=options.verify(),
        sni="" if sni == _NONE else sni,
        depth=options.depth(warnings),
        versions=versions,
        ciphers=options.ciphers(versions, problems, warnings),
    )


@dataclass(frozen=True, slots=True)
class _Options:
    """The options that both sides have, under their prefix."""

    typed: Typed
    prefix: str
    free: tuple[str, ...]

    def place(self, name: str) -> str:
        return self.typed.place(self.prefix + name, *self.free)

    def any_set(self) -> str:
        """The place of one option that is set, or ''."""
        rest = iter(self.free)
        words = self.prefix.rstrip(".").split(".")
        head = tuple(next(rest) if word.startswith("$") else word for word in words)
        return next(
            (
                place
                for key, place in self.typed.places.items()
                if len(key) > len(head) and key[: len(head)] == head
            ),
            "",
        )

    def path(self, name: str) -> Path | None:
        return self.typed.optional(self.prefix + name, Path, *self.free)

    def verify(self) -> bool:
        return self.typed.one(self.prefix + "verify", str, *self.free) == "verify_peer"

    def depth(self, warnings: list[str]) -> int:
        if self.typed.is_set(self.prefix + "depth", *self.free) and self.verify():
            # Python's ssl has no call for it. Every certificate of the chain is still checked.
            warnings.append(
                f"{self.place('depth')}: cannot be enforced; limit chains with the authority's"
                " path length constraint (pathlen)"
            )
        return self.typed.one(self.prefix + "depth", int, *self.free)

    def check_pair(self, problems: Problems) -> None:
        for name, other in (("certfile", "keyfile"), ("keyfile", "certfile")):
            if self.path(name) is not None and self.path(other) is None:
                problems.add(self.place(other), f"is missing; {name} needs it")

    def versions(self, problems: Problems) -> tuple[str, ...]:
        labelled = self.typed.many(self.prefix + "versions.$version", str, *self.free)
        wanted = [version for version in _VERSIONS if version in labelled.values()]
        first, last = _VERSIONS.index(wanted[0]), _VERSIONS.index(wanted[-1])
        if gap := [v for v in _VERSIONS[first:last] if v not in wanted]:
            # A range is what OpenSSL is given: it would enable the missing one unasked.
            label = next(iter(labelled))
            problems.add(
                self.typed.place(self.prefix + "versions.$version", *self.free, label),
                f"the enabled versions have a gap; add {' and '.join(gap)}",
            )
        return tuple(wanted)

    def ciphers(
        self, versions: tuple[str, ...], problems: Problems, warnings: list[str]
    ) -> tuple[str, ...]:
        pattern = self.prefix + "ciphers.$cipher"
        # Not every group of TLS options has this one.
        labelled = self.typed.many(pattern, str, *self.free) if pattern in BY_PATTERN else {}
        if not labelled:
            return ()
        for label, name in labelled.items():
            if not name.startswith(_TLS13_CIPHER) and not _known_cipher(name):
                problems.add(
                    self.typed.place(pattern, *self.free, label),
                    "OpenSSL knows no such cipher; 'openssl ciphers' lists them",
                )
        place = self.typed.place(pattern, *self.free, next(iter(labelled)))
        modern = [name for name in labelled.values() if name.startswith(_TLS13_CIPHER)]
        if modern:
            warnings.append(f"{place}: TLS 1.3 ciphers cannot be chosen; OpenSSL's default is used")
        if len(modern) == len(labelled) and versions != ("tlsv1.3",):
            problems.add(
                place,
                "only TLS 1.3 ciphers are listed, but older versions are enabled; list ciphers"
                " for them too, or enable tlsv1.3 alone",
            )
        return tuple(name for name in labelled.values() if name not in modern)


def _known_cipher(name: str) -> bool:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.set_ciphers(name)
    except ssl.SSLError:
        return False
    # Exactly one suite: OpenSSL also takes aliases such as aNULL, which name whole families.
    return any(cipher["name"] == name for cipher in context.get_ciphers())
