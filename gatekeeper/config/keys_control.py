"""The key of the local socket that gatekeeperctl talks to."""

from __future__ import annotations

from gatekeeper.config import datatypes as types
from gatekeeper.config.spec import Section, row

SECTION = Section(
    "Administration on this machine",
    (
        row(
            "control.socket",
            types.output_path(off="none"),
            None,
            "The local socket of `gatekeeperctl`, for root and the gate's own user only; `none` "
            "has no such socket. Not set: the store's file with `.sock` behind its name.",
            example="/run/gatekeeper/control.sock",
        ),
    ),
)
