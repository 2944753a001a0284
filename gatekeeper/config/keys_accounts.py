"""The keys of credential rules and of what new virtual hosts get."""

from __future__ import annotations

from gatekeeper.config import datatypes as types
from gatekeeper.config.spec import Section, row

ACCEPT_EVERYTHING = "rabbit_credential_validator_accept_everything"
MIN_LENGTH = "rabbit_credential_validator_min_password_length"
REGEXP = "rabbit_credential_validator_password_regexp"

_LIMIT = types.integer(1, 2**31 - 1)
_REGEXP = types.regexp()

SECTIONS = (
    Section(
        "Rules for new passwords",
        (
            row(
                "credential_validator.validation_backend",
                types.enum(ACCEPT_EVERYTHING, MIN_LENGTH, REGEXP),
                ACCEPT_EVERYTHING,
                "What judges a password when it is set; hashes and logins are not judged.",
            ),
            row(
                "credential_validator.min_length",
                types.integer(0, 2**31 - 1, "bytes"),
                "5",
                f"The least length, with `{MIN_LENGTH}`.",
            ),
            row(
                "credential_validator.regexp",
                _REGEXP,
                None,
                f"What a password must match, with `{REGEXP}`: PCRE, not anchored.",
                example="^.{16}",
            ),
        ),
    ),
    Section(
        "What new virtual hosts get",
        (
            row(
                "default_limits.vhosts.$id.pattern",
                _REGEXP,
                None,
                "Which new virtual hosts get these limits: those whose name matches (unset: all). "
                "The first entry that matches counts, in the order of the ids' text.",
                example={"1": "^dev-"},
            ),
            row(
                "default_limits.vhosts.$id.max_connections",
                _LIMIT,
                None,
                "Connections to such a virtual host.",
                example={"1": "100"},
            ),
            row(
                "default_limits.vhosts.$id.max_queues",
                _LIMIT,
                None,
                "Its queues: kept for the broker's sake, which counts them.",
                example={"1": "1000"},
            ),
            row(
                "default_users.$name.vhost_pattern",
                _REGEXP,
                None,
                "In which new virtual hosts this user gets permissions: those whose name matches "
                "(unset: all). Any `default_users.NAME.*` key makes NAME such a user, who is "
                "created with the first of them.",
                example={"monitoring": ".*"},
            ),
            row(
                "default_users.$name.password",
                types.secret(),
                None,
                "The password, if the user has to be created; unset: none.",
                example={"monitoring": "$(MONITORING_PASSWORD)"},
            ),
            row(
                "default_users.$name.configure",
                _REGEXP,
                None,
                "What the user may configure there (unset: everything).",
                example={"monitoring": "^$"},
            ),
            row(
                "default_users.$name.read",
                _REGEXP,
                None,
                "What the user may read (unset: everything).",
                example={"monitoring": ".*"},
            ),
            row(
                "default_users.$name.write",
                _REGEXP,
                None,
                "What the user may write (unset: everything).",
                example={"monitoring": "^$"},
            ),
            row(
                "default_users.$name.tags",
                types.words(),
                None,
                "The tags, if the user has to be created.",
                example={"monitoring": "monitoring"},
            ),
        ),
    ),
)
