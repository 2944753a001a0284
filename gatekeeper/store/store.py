"""The store as the rest of the gate sees it: RabbitMQ's internal database, in its terms.

Reads are dictionary look-ups in an immutable snapshot and may happen anywhere, at any time.
A change is one transaction: validated against the newest rows, written, committed, and only
then visible, as a new snapshot; the epoch is bumped and the subscribers are told. The same
happens when :meth:`Store.refresh` finds that another process has committed a change.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Protocol
from urllib.parse import unquote, urlsplit

import structlog

from gatekeeper.errors import StoreError
from gatekeeper.model import UserLimits, VhostLimits
from gatekeeper.policy import pcre
from gatekeeper.policy.epoch import Epoch
from gatekeeper.policy.permissions import PermissionSet, TopicPermissionSet
from gatekeeper.store import passwords
from gatekeeper.store.draft import CredentialValidator, Draft, Writer, accept_everything
from gatekeeper.store.records import (
    Snapshot,
    StoreEvent,
    User,
    Vhost,
    difference,
)
from gatekeeper.store.refusals import NoSuchUserError, NoSuchVhostError
from gatekeeper.store.sqlite import MEMORY, SqliteDatabase

Subscriber = Callable[[StoreEvent], object]


class Database(Writer, Protocol):
    """What a store needs below it."""

    def load(self) -> Snapshot: ...
    def changed_elsewhere(self) -> bool: ...
    def transaction(self) -> contextlib.AbstractContextManager[None]: ...
    def close(self) -> None: ...


class Store:
    """Users, vhosts, permissions and limits.

    Changes may come from any thread, one at a time. Every method that changes something raises
    a RequestError (store/refusals.py) if the request is at fault, StoreError if the store is.
    """

    def __init__(
        self,
        database: Database,
        epoch: Epoch | None = None,
        *,
        validator: CredentialValidator = accept_everything,
        algorithm: str = passwords.DEFAULT_ALGORITHM,
    ) -> None:
        if algorithm not in passwords.ALGORITHMS:
            known = ", ".join(passwords.ALGORITHMS)
            raise StoreError(f"password_hashing_module: unknown '{algorithm}'; use one of {known}")
        pcre.load()  # fails now rather than at the first check
        self.epoch = Epoch() if epoch is None else epoch
        self._database = database
        self._validator = validator
        self._algorithm = algorithm
        self._lock = threading.RLock()
        self._subscribers: list[Subscriber] = []
        self._snapshot = database.load()

    @classmethod
    def open(
        cls,
        url: str,
        epoch: Epoch | None = None,
        *,
        validator: CredentialValidator = accept_everything,
        algorithm: str = passwords.DEFAULT_ALGORITHM,
    ) -> Store:
        """Open ``sqlite:///PATH`` (created where missing) or ``sqlite::memory:``.

        validator: judges clear passwords when they are set. algorithm: hashes new ones.
        Raises StoreError; OperatorError where libpcre2 is missing.
        """
        database = SqliteDatabase.open(_sqlite_path(url))
        try:
            return cls(database, epoch, validator=validator, algorithm=algorithm)
        except BaseException:
            database.close()
            raise

    def close(self) -> None:
        self._database.close()

    # -- reading -------------------------------------------------------------------------

    @property
    def snapshot(self) -> Snapshot:
        """Everything, as of now; it will not change under the reader."""
        return self._snapshot

    def is_blank(self) -> bool:
        """Without users or without vhosts: to be seeded (RabbitMQ 4.x)."""
        return self._snapshot.is_blank

    def user(self, name: bytes) -> User | None:
        return self._snapshot.users.get(name)

    def vhost(self, name: bytes) -> Vhost | None:
        return self._snapshot.vhosts.get(name)

    def permissions(self, user: bytes, vhost: bytes) -> PermissionSet | None:
        """None: no record, hence no access to the vhost at all."""
        return self._snapshot.permissions.get((user, vhost))

    def topic_permissions(
        self, user: bytes, vhost: bytes, exchange: bytes
    ) -> TopicPermissionSet | None:
        """None: no record, hence no restriction."""
        return self._snapshot.topic_permissions.get((user, vhost, exchange))

    def user_limits(self, name: bytes) -> UserLimits:
        """What applies to this user; no limits where the user is not in this database."""
        user = self._snapshot.users.get(name)
        return UserLimits() if user is None else user.effective_limits

    def vhost_limits(self, name: bytes) -> VhostLimits:
        vhost = self._snapshot.vhosts.get(name)
        return VhostLimits() if vhost is None else vhost.effective_limits

    def metadata(self, key: str) -> object:
        """The value under ``key`` (``cluster_name``, ...), None if there is none."""
        return self._snapshot.metadata.get(key)

    def list_users(self) -> list[User]:
        return sorted(self._snapshot.users.values(), key=lambda user: user.name)

    def list_vhosts(self) -> list[Vhost]:
        return sorted(self._snapshot.vhosts.values(), key=lambda vhost: vhost.name)

    def list_permissions(
        self, vhost: bytes | None = None
    ) -> list[tuple[bytes, bytes, PermissionSet]]:
        """(user, vhost, permissions), of one vhost or of all. Raises NoSuchVhostError."""
        self._must_know_vhost(vhost)
        return sorted(
            (
                (user, where, permissions)
                for (user, where), permissions in self._snapshot.permissions.items()
                if vhost in {None, where}
            ),
            key=lambda row: row[:2],
        )

    def list_user_permissions(self, user: bytes) -> list[tuple[bytes, PermissionSet]]:
        """(vhost, permissions). Raises NoSuchUserError."""
        self._must_know_user(user)
        return [(row[1], row[2]) for row in self.list_permissions() if row[0] == user]

    def list_topic_permissions(
        self, vhost: bytes | None = None
    ) -> list[tuple[bytes, bytes, bytes, TopicPermissionSet]]:
        """(user, vhost, exchange, permissions), of one vhost or of all."""
        self._must_know_vhost(vhost)
        return sorted(
            (
                (*key, permissions)
                for key, permissions in self._snapshot.topic_permissions.items()
                if vhost in {None, key[1]}
            ),
            key=lambda row: row[:3],
        )

    def list_user_topic_permissions(
        self, user: bytes
    ) -> list[tuple[bytes, bytes, TopicPermissionSet]]:
        """(vhost, exchange, permissions). Raises NoSuchUserError."""
        self._must_know_user(user)
        return [row[1:] for row in self.list_topic_permissions() if row[0] == user]

    def _must_know_user(self, name: bytes) -> None:
        if name not in self._snapshot.users:
            raise NoSuchUserError(name)

    def _must_know_vhost(self, name: bytes | None) -> None:
        if name is not None and name not in self._snapshot.vhosts:
            raise NoSuchVhostError(name)

    # -- changes -------------------------------------------------------------------------

    def subscribe(self, callback: Subscriber) -> Callable[[], None]:
        """Have ``callback`` called with every event, after its change is in force.

        It runs in the thread that made the change. Returns the way to unsubscribe.
        """
        self._subscribers.append(callback)
        return lambda: self._subscribers.remove(callback)

    @contextlib.contextmanager
    def change(self) -> Iterator[Draft]:
        """Several operations as one: all of them, or on any exception none."""
        with self._lock:
            reloaded: Snapshot | None = None
            try:
                with self._database.transaction():
                    if self._database.changed_elsewhere():
                        reloaded = self._database.load()
                    base = reloaded or self._snapshot
                    draft = Draft(base, self._database, self._validator, self._algorithm)
                    yield draft
            except BaseException:
                # Our change is undone; the other process's, seen on the way, is not.
                if reloaded is not None:
                    self._publish(reloaded)
                raise
            self._publish(draft.snapshot())

    def refresh(self) -> bool:
        """Take over what another process has committed; True if there was anything.

        To be called every second or so. It never waits for a change of this process.
        Raises StoreError.
        """
        if not self._lock.acquire(blocking=False):
            return False  # a change in another thread is under way: it takes the news along
        try:
            if not self._database.changed_elsewhere():
                return False
            self._publish(self._database.load())
            return True
        finally:
            self._lock.release()

    def _publish(self, snapshot: Snapshot) -> None:
        old, self._snapshot = self._snapshot, snapshot
        # INVARIANT: the snapshot first, the epoch after it: whoever sees the new number must
        # not be able to decide by the old rows.
        self.epoch.bump()
        for event in difference(old, snapshot):
            for callback in tuple(self._subscribers):
                try:
                    callback(event)
                except Exception:  # noqa: BLE001 - a subscriber's mistake is its own
                    # The change is in force and the other subscribers have to hear of it.
                    _log.exception("store subscriber failed", store_event=type(event).__name__)

    def add_user(
        self,
        name: bytes,
        password: bytes | None = None,
        *,
        password_hash: bytes | None = None,
        algorithm: str | None = None,
        tags: Iterable[str] = (),
    ) -> None:
        """Raises UserExistsError, CredentialRefusedError, InvalidTagsError, InvalidNameError.

        password_hash: raw ``salt || digest``, instead of a password; ``algorithm`` is its own.
        """
        with self.change() as draft:
            draft.add_user(
                name, password, password_hash=password_hash, algorithm=algorithm, tags=tags
            )

    def delete_user(self, name: bytes) -> bool:
        with self.change() as draft:
            return draft.delete_user(name)

    def change_password(self, name: bytes, password: bytes) -> None:
        with self.change() as draft:
            draft.change_password(name, password)

    def change_password_hash(
        self, name: bytes, password_hash: bytes, algorithm: str | None = None
    ) -> None:
        with self.change() as draft:
            draft.change_password_hash(name, password_hash, algorithm)

    def clear_password(self, name: bytes) -> None:
        with self.change() as draft:
            draft.clear_password(name)

    def set_user_tags(self, name: bytes, tags: Iterable[str]) -> None:
        with self.change() as draft:
            draft.set_user_tags(name, tags)

    def set_user_limits(self, name: bytes, limits: Mapping[str, object]) -> None:
        with self.change() as draft:
            draft.set_user_limits(name, limits)

    def clear_user_limits(self, name: bytes, limit: str = "all") -> None:
        with self.change() as draft:
            draft.clear_user_limits(name, limit)

    def add_vhost(
        self,
        name: bytes,
        *,
        description: str | None = None,
        tags: Iterable[str] | None = None,
        default_queue_type: str | None = None,
        protected: bool | None = None,
    ) -> bool:
        """Create or update; True if it is new (an existing vhost is no error in RabbitMQ)."""
        with self.change() as draft:
            return draft.put_vhost(
                name,
                description=description,
                tags=tags,
                default_queue_type=default_queue_type,
                protected=protected,
            )

    def delete_vhost(self, name: bytes) -> None:
        """Raises NoSuchVhostError, VhostProtectedError."""
        with self.change() as draft:
            draft.delete_vhost(name)

    def set_vhost_limits(self, name: bytes, limits: Mapping[str, object]) -> None:
        with self.change() as draft:
            draft.set_vhost_limits(name, limits)

    def clear_vhost_limits(self, name: bytes, limit: str | None = None) -> bool:
        with self.change() as draft:
            return draft.clear_vhost_limits(name, limit)

    def set_permissions(
        self, user: bytes, vhost: bytes, configure: bytes, write: bytes, read: bytes
    ) -> None:
        """Raises InvalidPatternError, NoSuchUserError, NoSuchVhostError, in this order."""
        with self.change() as draft:
            draft.set_permissions(user, vhost, PermissionSet(configure, write, read))

    def clear_permissions(self, user: bytes, vhost: bytes) -> bool:
        with self.change() as draft:
            return draft.clear_permissions(user, vhost)

    def set_topic_permissions(
        self, user: bytes, vhost: bytes, exchange: bytes, write: bytes, read: bytes
    ) -> None:
        with self.change() as draft:
            draft.set_topic_permissions(user, vhost, exchange, TopicPermissionSet(write, read))

    def clear_topic_permissions(
        self, user: bytes, vhost: bytes, exchange: bytes | None = None
    ) -> int:
        with self.change() as draft:
            return draft.clear_topic_permissions(user, vhost, exchange)

    def set_metadata(self, key: str, value: object) -> None:
        with self.change() as draft:
            draft.set_metadata(key, value)


_log = structlog.get_logger(__name__)


def _sqlite_path(url: str) -> str:
    """The file that a ``store.url`` names. Raises StoreError; never repeats a password."""
    try:
        parts = urlsplit(url)
    except ValueError:
        raise StoreError("store.url: not a URL; write sqlite:///PATH") from None
    if parts.scheme in {"postgresql", "postgres"}:
        raise StoreError("store.url: postgresql:// is not supported yet; use sqlite:///PATH")
    if parts.scheme != "sqlite":
        raise StoreError(
            f"store.url: unknown scheme '{parts.scheme}'; write sqlite:///PATH, "
            "for example sqlite:///var/lib/gatekeeper/gatekeeper.db"
        )
    if parts.path == MEMORY:
        return MEMORY
    if parts.netloc or parts.query or parts.fragment or not parts.path.strip("/"):
        raise StoreError(
            "store.url: write sqlite:///PATH with three slashes and an absolute path, "
            "without host, query or fragment"
        )
    path = unquote(parts.path)
    if "\0" in path:
        raise StoreError("store.url: the path holds a NUL character; write sqlite:///PATH")
    # sqlite:////PATH, as SQLAlchemy writes an absolute path, is the same file.
    return "/" + path.lstrip("/") if path.startswith("//") else path
