"""Users: who there is, how they prove it, and their tags."""

from __future__ import annotations

import base64
import binascii

from gatekeeper.cli.ctl.client import GateError
from gatekeeper.cli.ctl.command import (
    DATA,
    NO_USER,
    SOFTWARE,
    Answer,
    Call,
    Command,
    CommandError,
    Document,
    NoOutput,
    Rows,
    Text,
    bad_argument,
)
from gatekeeper.store import passwords

_DONE = (
    "Done. Don't forget to grant the user permissions to some virtual hosts! See "
    "'gatekeeperctl help set_permissions' to learn more."
)
_NO_PASSWORD = "Password is not provided via argument or stdin"  # noqa: S105 - a message
_NO_HASH = "Could not Base64 decode provided password hash value"
_MAX_TAGS = 32
_ALGORITHMS = {
    "sha256": passwords.SHA256,
    "sha-256": passwords.SHA256,
    "sha512": passwords.SHA512,
    "sha-512": passwords.SHA512,
    "md5": passwords.MD5,
}


def _password(call: Call, at: int, code: int, prompt: str = "Password: ") -> str:
    """The argument at this place, else a line of standard input."""
    if len(call.arguments) > at:
        return call.arguments[at]
    found = call.prompt(prompt)
    if found is None:
        raise CommandError(code, _NO_PASSWORD)
    return found


def _is_base64(text: str) -> bool:
    try:
        base64.b64decode(text.encode("ascii"), validate=True)
    except (binascii.Error, UnicodeEncodeError):
        return False
    return True


def _no_user(call: Call, error: GateError) -> None:
    """Raises CommandError for a user that is not there, in the words of these commands."""
    if error.kind == "no_such_user":
        name = error.details["name"]
        call.failed(NO_USER, f'User "{name}" does not exist', f"User {name} does not exists")


# --- commands ---


def _check_add_user(call: Call) -> None:
    if len(call.arguments) < 2:
        return
    user, secret = call.arguments
    if not user:
        bad_argument("user cannot be an empty string")
    if call.options.get("pre-hashed-password") and not _is_base64(secret):
        bad_argument(_NO_HASH)


def _add_user(call: Call) -> Answer:
    user = call.arguments[0]
    if call.options.get("pre-hashed-password"):
        secret = _password(call, 1, DATA, "Hashed and salted password: ")
        if not _is_base64(secret):
            raise CommandError(DATA, _NO_HASH)
        given = {"password_hash": secret}
    else:
        given = {"password": _password(call, 1, DATA)}
    try:
        call.gate.ask("add_user", user=user, **given)
    except GateError as error:
        if error.kind == "user_exists":
            call.failed(SOFTWARE, f'User "{user}" already exists', f"User {user} already exists")
        raise
    if call.json:
        return Document({"status": "ok", "node": call.node, "message": _DONE}, _DONE)
    return NoOutput() if call.terse else Text(_DONE)


def _change_password(call: Call) -> None:
    password = _password(call, 1, SOFTWARE)
    try:
        call.gate.ask("change_password", user=call.arguments[0], password=password)
    except GateError as error:
        _no_user(call, error)
        raise


def _clear_password(call: Call) -> None:
    call.gate.ask("clear_password", user=call.arguments[0])


def _delete_user(call: Call) -> None:
    call.gate.ask("delete_user", user=call.arguments[0])


def _authenticate_user(call: Call) -> Answer:
    user, password = call.arguments[0], _password(call, 1, SOFTWARE)
    try:
        call.gate.ask("authenticate_user", user=user, password=password)
    except GateError as error:
        if error.kind == "login_refused":
            text = f'Error: failed to authenticate user "{user}"\n{error.message}'
            raise CommandError(DATA, text) from None
        raise
    return Text("Success")


def _check_hash_password(call: Call) -> None:
    if list(call.arguments) == [""]:
        bad_argument("password cannot be an empty string")
    algorithm = call.text("hashing-algorithm")
    if algorithm is not None and algorithm.lower() not in _ALGORITHMS:
        bad_argument(f"unsupported hashing algorithm: {algorithm}")


def _hash_password(call: Call) -> Answer:
    """Without a gate: rabbitmqctl's default, which is the gate's as well."""
    password = _password(call, 0, DATA).encode("utf-8", "surrogateescape")
    algorithm = _ALGORITHMS[(call.text("hashing-algorithm") or "sha256").lower()]
    try:
        return Text(passwords.to_base64(passwords.hash_password(password, algorithm)))
    except passwords.PasswordTooLongError as error:
        raise CommandError(DATA, str(error)) from None


def _check_tags(call: Call) -> None:
    count = len(call.arguments) - 1
    if count > _MAX_TAGS:
        bad_argument(f"A user can have at most {_MAX_TAGS} tags (received {count})")


def _set_user_tags(call: Call) -> None:
    user, *tags = call.arguments
    try:
        call.gate.ask("set_user_tags", user=user, tags=tags)
    except GateError as error:
        _no_user(call, error)
        raise


def _tags_banner(call: Call) -> str:
    user, *tags = call.arguments
    return f'Setting tags for user "{user}" to [{", ".join(tags)}] ...'


def _list_users(call: Call) -> Answer:
    return Rows(call.gate.rows("list_users"))


_USER = ("<username>", "Self-explanatory")
_ACCESS = "access-control"

COMMANDS = (
    Command(
        name="add_user",
        section="Users",
        usage="add_user <username> [<password>] [<password_hash> --pre-hashed-password]",
        description="Creates a new user in the internal database. This user will have no "
        "permissions for any virtual hosts by default.",
        run=_add_user,
        least=1,
        most=2,
        check=_check_add_user,
        switches={"pre-hashed-password": bool},
        banner=lambda call: f'Adding user "{call.arguments[0]}" ...',
        secret_from=1,
        help=(
            _USER,
            (
                "<password>",
                (
                    "Password this user will authenticate with. Use a blank string to disable "
                    "password-based authentication. Mutually exclusive with <password_hash>"
                ),
            ),
            (
                "<password_hash>",
                (
                    "A Base64-encoded password hash produced by the 'hash_password' command or a "
                    "different method as described in the Passwords guide. Must be used in "
                    "combination with --pre-hashed-password. Mutually exclusive with <password>"
                ),
            ),
            (
                "--pre-hashed-password",
                (
                    "Use to pass in a password hash instead of a clear text password. Disabled by "
                    "default"
                ),
            ),
        ),
        guides=(_ACCESS, "passwords"),
    ),
    Command(
        name="authenticate_user",
        section="Users",
        usage="authenticate_user <username> <password>",
        description="Attempts to authenticate a user. Exits with a non-zero code if "
        "authentication fails.",
        run=_authenticate_user,
        least=1,
        most=2,
        banner=lambda call: f'Authenticating user "{call.arguments[0]}" ...',
        secret_from=1,
        help=(
            ("<username>", "Username to use"),
            ("<password>", "Password to use. Can be entered via stdin in interactive mode."),
        ),
        guides=(_ACCESS,),
    ),
    Command(
        name="change_password",
        section="Users",
        usage="change_password <username> <password>",
        description="Changes the user password",
        run=_change_password,
        least=1,
        most=2,
        banner=lambda call: f'Changing password for user "{call.arguments[0]}" ...',
        secret_from=1,
        help=(
            ("<username>", "Name of the user whose password should be changed"),
            ("<password>", "New password to set"),
        ),
        guides=(_ACCESS,),
    ),
    Command(
        name="clear_password",
        section="Users",
        usage="clear_password <username>",
        description="Clears (resets) password and disables password login for a user",
        run=_clear_password,
        least=1,
        most=1,
        banner=lambda call: f'Clearing password for user "{call.arguments[0]}" ...',
        help=(("<username>", "Name of the user whose password should be cleared"),),
        guides=(_ACCESS,),
    ),
    Command(
        name="delete_user",
        section="Users",
        usage="delete_user <username>",
        description="Removes a user from the internal database. Has no effect on users provided "
        "by external backends such as LDAP",
        run=_delete_user,
        least=1,
        most=1,
        banner=lambda call: f'Deleting user "{call.arguments[0]}" ...',
        help=(("<username>", "Name of the user to delete."),),
        guides=(_ACCESS,),
    ),
    Command(
        name="hash_password",
        section="Users",
        usage="hash_password <cleartext_password> [--hashing-algorithm <algorithm>]",
        description="Hashes a plaintext password",
        run=_hash_password,
        most=1,
        check=_check_hash_password,
        switches={"hashing-algorithm": str},
        # rabbitmqctl repeats the password here.
        banner=lambda _call: "Will hash provided password",
        secret_from=0,
        offline=True,
        help=(
            ("<cleartext_password>", "password to hash"),
            (
                "--hashing-algorithm <algorithm>",
                "hashing algorithm to use: sha256, sha512, md5",
            ),
        ),
    ),
    Command(
        name="list_users",
        section="Users",
        usage="list_users [--no-table-headers]",
        description="List user names and tags",
        run=_list_users,
        banner=lambda _call: "Listing users ...",
        formatter="table",
        timeout=True,
        guides=(_ACCESS,),
    ),
    Command(
        name="set_user_tags",
        section="Users",
        usage="set_user_tags <username> <tag> [...]",
        description="Sets user tags",
        run=_set_user_tags,
        least=1,
        most=None,
        check=_check_tags,
        banner=_tags_banner,
        help=(_USER, ("<tags>", "Space separated list of tags")),
        guides=("management", _ACCESS),
    ),
)
