"""How long the answers of backends outside the gate are believed: a row of the key table."""

from __future__ import annotations

from gatekeeper.config import datatypes as types
from gatekeeper.config.spec import Section, row

SECTION = Section(
    "How long permissions of other backends are remembered",
    (
        row(
            "gatekeeper.permission_cache_ttl",
            types.milliseconds(infinity=False, zero=True),
            "30000",
            "How long channels remember what ldap, http, cache or a third party's backend has "
            "allowed (ms); 0: until the users, permissions or limits in the gate's own store "
            "change.",
        ),
    ),
)
