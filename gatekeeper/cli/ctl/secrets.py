"""Encrypted values of configuration files: ``encode`` and its kin. Needs no gate.

The algorithm is ``gatekeeper/config/encrypted.py``'s, which reads such values.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from gatekeeper.cli.ctl.command import (
    UNAVAILABLE,
    Answer,
    ArgumentError,
    Call,
    Command,
    CommandError,
    Value,
    bad_argument,
)
from gatekeeper.cli.ctl.terms import (
    Atom,
    Charlist,
    NotATermError,
    Tuple,
    Verbatim,
    erlang,
    read_encrypted,
    read_term,
    wrapped,
)
from gatekeeper.config.encrypted import (
    ATOM,
    BINARY,
    CIPHERS,
    HASHES,
    STRING,
    TAG,
    Decoder,
    DecryptionError,
)
from gatekeeper.model import Secret

_FAILED = (
    "Failed to decrypt the value. Things to check: is the passphrase correct? Are the cipher and "
    "hash algorithms the same as those used for encryption?"
)
_NO_INPUT = "Error during cipher operation"
_LONGEST_ATOM = 255


def _check(full_stop: str, iterations: str) -> Callable[[Call], None]:
    """The two kinds of commands differ in a full stop and a few words."""

    def check(call: Call) -> None:
        if (call.text("cipher") or "aes_128_cbc") not in CIPHERS:
            bad_argument(f"The requested cipher is not supported{full_stop}")
        if (call.text("hash") or "sha256") not in HASHES:
            bad_argument("The requested hash is not supported")
        if call.number("iterations", 1) < 1:
            bad_argument(f"The requested number of iterations is incorrect{iterations}")

    return check


_check_encode = _check(".", "")
_check_parameters = _check("", " (must be a positive integer)")


def _check_decode(call: Call) -> None:
    if not call.arguments:
        text = "not enough arguments: Please provide a value to decode and a passphrase"
        raise ArgumentError(text)
    _check_parameters(call)


def _decoder(call: Call, passphrase: str) -> Decoder:
    return Decoder(
        passphrase=Secret(passphrase.encode("utf-8", "surrogateescape")),
        cipher=call.text("cipher") or "aes_128_cbc",
        hash=call.text("hash") or "sha256",
        iterations=call.number("iterations", 1),
    )


def _input(call: Call, at: int, prompt: str) -> str:
    if len(call.arguments) > at:
        return call.arguments[at]
    found = call.prompt(prompt)
    if found is None:
        raise CommandError(UNAVAILABLE, "not_enough_args")
    return found


def _encrypted(call: Call) -> str:
    value = _input(call, 0, "Value to encode: ")
    passphrase = _input(call, 1, "Passphrase: ")
    try:
        tag, text = _written(read_term(value))
    except (NotATermError, UnicodeEncodeError):
        raise CommandError(UNAVAILABLE, _NO_INPUT) from None
    return _decoder(call, passphrase).encrypt_term(tag, text)


def _written(term: object) -> tuple[int, bytes]:
    """A term's tag and bytes. Raises NotATermError, UnicodeEncodeError."""
    match term:
        case Atom() if len(term.encode()) <= _LONGEST_ATOM:
            return ATOM, term.encode()
        case Charlist() if 0 < len(term) < 2**16:
            return STRING, term.encode("latin-1")
        case str() if not isinstance(term, Atom | Charlist):
            # In Erlang's source, as rabbitmqctl reads it, each character is one byte.
            return BINARY, term.encode("latin-1")
        case _:
            raise NotATermError


def _encode(call: Call) -> Answer:
    return Value(Tuple((Atom("encrypted"), _encrypted(call))))


def _encrypt_conf_value(call: Call) -> Answer:
    return Value(TAG + _encrypted(call))


def _decode(call: Call) -> Answer:
    return _decrypted(call, read_encrypted)


def _decrypt_conf_value(call: Call) -> Answer:
    return _decrypted(call, _conf_value)


def _conf_value(text: str) -> str:
    """As in the file, or quoted as an Erlang term as rabbitmqctl wants it."""
    found = text if text.startswith(TAG) else read_encrypted(text)
    return found.removeprefix(TAG)


def _decrypted(call: Call, read: Callable[[str], str]) -> Answer:
    value, passphrase = call.arguments[0], _input(call, 1, "Passphrase: ")
    try:
        tag, raw = _decoder(call, passphrase).decrypt_term(read(value))
    except (NotATermError, DecryptionError):
        raise CommandError(UNAVAILABLE, _FAILED) from None
    text = raw.decode("latin-1")
    if tag == BINARY:
        return Value(text)
    return Value(Charlist(text) if tag == STRING else Atom(text))


def _listed(names: Iterable[str]) -> Callable[[Call], Answer]:
    def run(call: Call) -> Answer:
        if call.options["formatter"] != "erlang":
            return Value(list(names))
        return Value(Verbatim(wrapped([erlang(Atom(name)) for name in names])))

    return run


_SWITCHES = {"cipher": str, "hash": str, "iterations": int}
_OPTIONS = "[--cipher <cipher>] [--hash <hash>] [--iterations <iterations>]"
_HELP = (
    ("<passphrase>", "passphrase to use with the config value encryption key"),
    ("--cipher <cipher>", "cipher suite to use"),
    ("--hash <hash>", "hashing function to use"),
    ("--iterations <iterations>", "number of iteration to apply"),
)
_SECTION = "Configuration and Environment"
_MONITORING = "Monitoring, observability and health checks"

COMMANDS = (
    Command(
        name="encode",
        section=_SECTION,
        usage=f"encode value passphrase {_OPTIONS}",
        description="Encrypts a sensitive configuration value to be used in the "
        "advanced.config file",
        run=_encode,
        most=2,
        check=_check_encode,
        switches=_SWITCHES,
        banner=lambda _call: "Encrypting value to be used in advanced.config...",
        formatter="erlang",
        secret_from=0,
        offline=True,
        help=(("<value>", "value to encode, to be used in advanced.config"), *_HELP),
        guides=("configure",),
    ),
    Command(
        name="decode",
        section=_SECTION,
        usage=f"decode value passphrase {_OPTIONS}",
        description="Decrypts an encrypted advanced.config value",
        run=_decode,
        most=2,
        check=_check_decode,
        switches=_SWITCHES,
        banner=lambda _call: "Decrypting an advanced.config (Erlang term) value...",
        formatter="erlang",
        secret_from=0,
        offline=True,
        help=(("<value>", "advanced.config (Erlang term) value to decode"), *_HELP),
        guides=("configure",),
    ),
    Command(
        name="encrypt_conf_value",
        section=_SECTION,
        usage=f"encrypt_conf_value value passphrase {_OPTIONS}",
        description="Encrypts a sensitive configuration value to be used in the "
        "advanced.config file",
        run=_encrypt_conf_value,
        most=2,
        check=_check_encode,
        switches=_SWITCHES,
        banner=lambda _call: "Encrypting value to be used in rabbitmq.conf...",
        secret_from=0,
        offline=True,
        help=(("<value>", "config value to encode"), *_HELP),
        guides=("configure",),
    ),
    Command(
        name="decrypt_conf_value",
        section=_SECTION,
        usage=f"decrypt_conf_value value passphrase {_OPTIONS}",
        description="Decrypts an encrypted configuration value",
        run=_decrypt_conf_value,
        most=2,
        check=_check_decode,
        switches=_SWITCHES,
        banner=lambda _call: "Decrypting a rabbitmq.conf string value...",
        formatter="erlang",
        secret_from=0,
        offline=True,
        help=(("<value>", "a double-quoted rabbitmq.conf string value to decode"), *_HELP),
        guides=("configure",),
    ),
    Command(
        name="list_ciphers",
        section=_MONITORING,
        usage="list_ciphers",
        description="Lists cipher suites supported by encoding commands",
        run=_listed(CIPHERS),
        banner=lambda _call: "Listing supported ciphers ...",
        formatter="erlang",
        offline=True,
        guides=("configure", "ssl"),
    ),
    Command(
        name="list_hashes",
        section=_MONITORING,
        usage="list_hashes",
        description="Lists hash functions supported by encoding commands",
        run=_listed(HASHES),
        banner=lambda _call: "Listing supported hash algorithms ...",
        formatter="erlang",
        offline=True,
        guides=("configure", "ssl"),
    ),
)
