"""The README's example of a third party's backend, as it stands there (a test compares)."""

from pathlib import Path

from gatekeeper.model import AuthUser, Credentials, Kind, Peer, Permission
from gatekeeper.policy.ports import Accepted, LoginAnswer, Refused, Verdict


class Office:
    """Members of the file ``people`` log in with its password and own what bears their name."""

    name = "office"

    def __init__(self, options):
        lines = Path(options["people"]).read_text("utf-8").splitlines()
        self._people = dict(line.split(":") for line in lines)

    def authenticate(self, credentials: Credentials, peer: Peer) -> LoginAnswer:
        password = self._people.get(credentials.username.decode())
        if not password or credentials.password is None:
            return Refused("not one of us")
        if credentials.password.value != password.encode():
            return Refused("wrong password")
        return Accepted(credentials.username, frozenset({"management"}))

    def authorize_login(self, username: bytes, credentials: Credentials, peer: Peer) -> LoginAnswer:
        known = username.decode() in self._people
        return Accepted(username) if known else Refused("not one of us")

    def vhost_access(self, user: AuthUser, vhost: bytes, peer: Peer) -> Verdict:
        return Verdict(vhost == b"office", rule="there is one office")

    def resource_access(
        self, user: AuthUser, vhost: bytes, kind: Kind, name: bytes, permission: Permission
    ) -> Verdict:
        own = name.startswith(user.username) or permission is Permission.WRITE
        return Verdict(own, rule="what bears the user's name")

    def topic_rule(self, user: AuthUser, vhost: bytes, exchange: bytes) -> bool:
        return True  # topic_access may refuse

    def topic_access(self, user, vhost, exchange, routing_key, permission, variables) -> Verdict:
        return Verdict(routing_key.startswith(b"office."), rule="office.*")
