"""The keys of a token as the service account's password (``upstreams.NAME.oauth2.*``)."""

from __future__ import annotations

from gatekeeper.config import datatypes as types
from gatekeeper.config.spec import Section, row

_NAME = types.string(pattern=".+", expected="a name, not an empty text")
# A user and a password in it would be shown wherever the URL is.
_HTTPS = types.string(
    pattern=r"https://[^\s/?#@]+([/?][^\s#]*)?",
    expected="a URL: https://..., without user and password",
    hidden=True,
)
_UPSTREAM = "upstreams.$name."
_OAUTH2 = _UPSTREAM + "oauth2."

SECTION = Section(
    "Upstreams: an OAuth 2 token instead of the service account's password",
    (
        row(
            _UPSTREAM + "token_file",
            types.readable_file(),
            None,
            "A file that holds the token and that others renew, such as Kubernetes; looked at "
            "every few seconds.",
            example="/var/run/secrets/tokens/rabbitmq",
        ),
        row(
            _OAUTH2 + "token_endpoint",
            _HTTPS,
            None,
            "Fetch the token here, by the client credentials grant, and a new one at 80 % of its "
            "life. Open connections get every new token by `connection.update-secret`. Each of "
            "several `workers` fetches its own.",
            example="https://id.example.com/realms/main/protocol/openid-connect/token",
        ),
        row(
            _OAUTH2 + "client_id",
            _NAME,
            None,
            "Who the gate is at the identity provider.",
            example="gatekeeper",
        ),
        row(
            _OAUTH2 + "client_secret",
            types.secret(),
            None,
            "Its secret there; also `encrypted:...`, `$(<file)` or `$(VARIABLE)`.",
            example="$(GATEKEEPER_CLIENT_SECRET)",
        ),
        row(
            _OAUTH2 + "scope",
            _NAME,
            None,
            "Scopes to ask for, separated by spaces; unset: the provider's default.",
            example="rabbitmq.read:*/* rabbitmq.write:*/* rabbitmq.configure:*/*",
        ),
        row(
            _OAUTH2 + "https.cacertfile",
            types.pem_file(),
            None,
            "Authorities that may sign the provider's certificate; unset: those the system trusts.",
            example="/etc/gatekeeper/idp-ca.pem",
        ),
        row(
            _OAUTH2 + "https.verify",
            types.enum("verify_peer", "verify_none"),
            "verify_peer",
            "Check the provider's certificate and its name.",
        ),
    ),
)
