"""The keys that say what a change does to open connections: rows of the key table."""

from __future__ import annotations

from gatekeeper.config import datatypes as types
from gatekeeper.config.spec import Section, row

SECTION = Section(
    "Changes and open connections",
    (
        row(
            "gatekeeper.password_change_closes_connections",
            types.switch("true", "false", "boolean"),
            "false",
            "Close a user's connections when the password is changed or cleared. RabbitMQ leaves "
            "them open; new logins need the new password in either case.",
        ),
    ),
)
