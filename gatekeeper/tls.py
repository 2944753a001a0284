"""TLS contexts from RabbitMQ's ssl_options, for listeners, and for brokers and backends."""

from __future__ import annotations

import ssl
from pathlib import Path

from gatekeeper.config.settings import ClientTls, ServerTls
from gatekeeper.errors import ConfigError

_VERSIONS = {
    "tlsv1": ssl.TLSVersion.TLSv1,
    "tlsv1.1": ssl.TLSVersion.TLSv1_1,
    "tlsv1.2": ssl.TLSVersion.TLSv1_2,
    "tlsv1.3": ssl.TLSVersion.TLSv1_3,
}


def server_context(tls: ServerTls, keys: str = "ssl_options") -> ssl.SSLContext:
    """For TLS listeners; ``keys``: what the names of the options begin with.

    Raises ConfigError, naming the key, where a file cannot be used.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    _common(context, tls, keys)
    if tls.honor_cipher_order is not None:
        context.options &= ~ssl.OP_CIPHER_SERVER_PREFERENCE
        if tls.honor_cipher_order:
            context.options |= ssl.OP_CIPHER_SERVER_PREFERENCE
    if tls.verify_peer:
        _trust(context, tls.cacertfile, keys)
        context.verify_mode = ssl.CERT_REQUIRED if tls.fail_if_no_peer_cert else ssl.CERT_OPTIONAL
    context.options |= ssl.OP_NO_RENEGOTIATION
    return context


def client_context(tls: ClientTls, prefix: str) -> ssl.SSLContext:
    """For connections to brokers and backends; ``prefix``: of the options' names, without the
    last dot. Raises ConfigError, naming the key, where a file cannot be used."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    _common(context, tls, prefix)
    if tls.verify_peer:
        context.verify_mode = ssl.CERT_REQUIRED
        context.check_hostname = tls.sni != ""
        if tls.cacertfile is None:
            context.load_default_certs(ssl.Purpose.SERVER_AUTH)
        else:
            _trust(context, tls.cacertfile, prefix)
    return context


def _common(context: ssl.SSLContext, tls: ServerTls | ClientTls, prefix: str) -> None:
    context.minimum_version = _VERSIONS[tls.versions[0]]
    context.maximum_version = _VERSIONS[tls.versions[-1]]
    if tls.ciphers:
        try:
            context.set_ciphers(":".join(tls.ciphers))
        except ssl.SSLError:
            raise ConfigError(
                f"{prefix}.ciphers: none of these ciphers is known to {ssl.OPENSSL_VERSION}; "
                "list them with 'openssl ciphers'"
            ) from None
    if tls.certfile is not None:
        password = None if tls.password is None else tls.password.value
        try:
            # A callback, because without one OpenSSL would ask for the passphrase on the terminal.
            context.load_cert_chain(tls.certfile, tls.keyfile, lambda: password or b"")
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"{prefix}.certfile {tls.certfile} with {prefix}.keyfile {tls.keyfile} cannot be "
                f"used ({_reason(error)}); check that both are PEM, belong together, and that "
                f"{prefix}.password is right if the key has one"
            ) from None


def _trust(context: ssl.SSLContext, path: Path | None, prefix: str) -> None:
    try:
        context.load_verify_locations(cafile=path)
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(
            f"{prefix}.cacertfile {path} cannot be used ({_reason(error)}); it must hold PEM "
            "certificates"
        ) from None


def _reason(error: Exception) -> str:
    return (isinstance(error, ssl.SSLError) and error.reason) or type(error).__name__
