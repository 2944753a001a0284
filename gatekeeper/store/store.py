"""The store as the rest of the gate sees it: RabbitMQ's internal database, in its terms.

Whatever its size, a process holds little of it: reads are answered from bounded caches, or by
one indexed look-up in the file (10-20 us, allowed on the event loop).

A change is one transaction: judged by the newest rows, written, committed. The database logs
every difference in the same transaction; from that log, and from nothing else, this process and
every other one learn what has changed, whoever changed it. Then the caches forget those rows,
the epoch is bumped, and the subscribers are told. A process learns of its own changes at once,
and of others' when :meth:`Store.refresh` looks; until then it may still answer by a cached row.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Protocol

import structlog

from gatekeeper.config.settings import VhostDefaults
from gatekeeper.errors import StoreError
from gatekeeper.model import UserLimits, VhostLimits
from gatekeeper.policy import pcre
from gatekeeper.policy.epoch import Epoch
from gatekeeper.policy.permissions import PermissionSet, TopicPermissionSet
from gatekeeper.store import passwords
from gatekeeper.store.cache import CachedReader
from gatekeeper.store.draft import Draft
from gatekeeper.store.records import IMPORTED_HASH, Reloaded, StoreEvent, User, Vhost
from gatekeeper.store.refusals import NoSuchUserError, NoSuchVhostError
from gatekeeper.store.rows import Reader, Writer
from gatekeeper.store.rules import CredentialValidator, Rules, accept_everything
from gatekeeper.store.sqlite import News, SqliteDatabase
from gatekeeper.store.url import sqlite_path

Subscriber = Callable[[StoreEvent], object]


class Database(Protocol):
    """What a store needs below it."""

    reader: Reader

    def view(self) -> contextlib.AbstractContextManager[Reader]: ...
    def transaction(self) -> contextlib.AbstractContextManager[Writer]: ...
    def aside(self) -> contextlib.AbstractContextManager[Writer]: ...
    def sequence(self) -> int: ...
    def changed_elsewhere(self) -> bool: ...
    def news(self, since: int) -> News: ...
    def close(self) -> None: ...


class Store:
    """Users, vhosts, permissions and limits.

    Any thread may read. Changes may come from any thread, one at a time. Every method raises
    StoreError if the store is at fault, and one that changes something a RequestError
    (store/refusals.py) if the request is. Inside a change ask its draft, not the store.
    """

    def __init__(
        self,
        database: Database,
        epoch: Epoch | None = None,
        *,
        validator: CredentialValidator = accept_everything,
        algorithm: str = passwords.DEFAULT_ALGORITHM,
        vhost_defaults: VhostDefaults | None = None,
    ) -> None:
        if algorithm not in passwords.ALGORITHMS:
            known = ", ".join(passwords.ALGORITHMS)
            raise StoreError(f"password_hashing_module: unknown '{algorithm}'; use one of {known}")
        if not passwords.is_available(algorithm):
            raise StoreError(
                "password_hashing_module: argon2id needs the package argon2-cffi; install "
                "gatekeeper-amqp[argon2]"
            )
        pcre.load()  # fails now rather than at the first check
        self.epoch = Epoch() if epoch is None else epoch
        self._database = database
        self._rules = Rules(
            validator=validator,
            algorithm=algorithm,
            vhost_defaults=vhost_defaults or VhostDefaults(),
        )
        self._lock = threading.RLock()
        self._rehashing = threading.Lock()
        self._subscribers: list[Subscriber] = []
        # Before anything is read: what is committed from now on will be told.
        self._sequence = database.sequence()
        self._behind = False
        self._changing = False
        self._cached = CachedReader(database.reader)

    @classmethod
    def open(
        cls,
        url: str,
        epoch: Epoch | None = None,
        *,
        validator: CredentialValidator = accept_everything,
        algorithm: str = passwords.DEFAULT_ALGORITHM,
        vhost_defaults: VhostDefaults | None = None,
    ) -> Store:
        """Open ``sqlite:///PATH`` (created where missing) or ``sqlite::memory:``.

        validator: judges clear passwords when they are set. algorithm: hashes new ones.
        vhost_defaults: what each new vhost gets.
        Raises StoreError; OperatorError where libpcre2 is missing.
        """
        database = SqliteDatabase.open(sqlite_path(url))
        try:
            return cls(
                database,
                epoch,
                validator=validator,
                algorithm=algorithm,
                vhost_defaults=vhost_defaults,
            )
        except BaseException:
            database.close()
            raise

    def close(self) -> None:
        self._database.close()

    @property
    def algorithm(self) -> str:
        """New passwords are hashed by it."""
        return self._rules.algorithm

    # -- reading -------------------------------------------------------------------------

    def is_blank(self) -> bool:
        """Without users or without vhosts: to be seeded (RabbitMQ 4.x)."""
        return self._database.reader.is_blank()

    def user(self, name: bytes) -> User | None:
        return self._cached.user(name)

    def vhost(self, name: bytes) -> Vhost | None:
        return self._cached.vhost(name)

    def permissions(self, user: bytes, vhost: bytes) -> PermissionSet | None:
        """None: no record, hence no access to the vhost at all."""
        return self._cached.permissions(user, vhost)

    def topic_permissions(
        self, user: bytes, vhost: bytes, exchange: bytes
    ) -> TopicPermissionSet | None:
        """None: no record, hence no restriction."""
        return self._cached.topic_permissions(user, vhost, exchange)

    def user_limits(self, name: bytes) -> UserLimits:
        """What applies to this user; no limits where the user is not in this database."""
        user = self.user(name)
        return UserLimits() if user is None else user.effective_limits

    def vhost_limits(self, name: bytes) -> VhostLimits:
        vhost = self.vhost(name)
        return VhostLimits() if vhost is None else vhost.effective_limits

    def metadata(self, key: str) -> object:
        """The value under ``key`` (``cluster_name``, ...), None if there is none."""
        return self._cached.metadata(key)

    def global_parameter(self, name: str) -> object:
        """None if there is none."""
        return self.metadata(name)

    def list_global_parameters(self) -> list[tuple[str, object]]:
        """(name, value) by name, without what RabbitMQ does not show either."""
        found = self._database.reader.all_metadata()
        return [(name, value) for name, value in found if name != IMPORTED_HASH]

    # Listings are read as they are consumed, so that they may be of any length; what changes
    # meanwhile is seen or not. Where that matters: view().

    def list_users(self) -> Iterator[User]:
        """By name."""
        return self._database.reader.users()

    def list_vhosts(self) -> Iterator[Vhost]:
        """By name."""
        return self._database.reader.vhosts()

    def list_permissions(
        self, vhost: bytes | None = None
    ) -> Iterator[tuple[bytes, bytes, PermissionSet]]:
        """(user, vhost, permissions), of one vhost or of all. Raises NoSuchVhostError."""
        self._must_know_vhost(vhost)
        return self._database.reader.all_permissions(vhost=vhost)

    def list_user_permissions(self, user: bytes) -> Iterator[tuple[bytes, PermissionSet]]:
        """(vhost, permissions). Raises NoSuchUserError."""
        self._must_know_user(user)
        return (row[1:] for row in self._database.reader.all_permissions(user=user))

    def list_topic_permissions(
        self, vhost: bytes | None = None
    ) -> Iterator[tuple[bytes, bytes, bytes, TopicPermissionSet]]:
        """(user, vhost, exchange, permissions), of one vhost or of all."""
        self._must_know_vhost(vhost)
        return self._database.reader.all_topic_permissions(vhost=vhost)

    def list_user_topic_permissions(
        self, user: bytes
    ) -> Iterator[tuple[bytes, bytes, TopicPermissionSet]]:
        """(vhost, exchange, permissions). Raises NoSuchUserError."""
        self._must_know_user(user)
        return (row[1:] for row in self._database.reader.all_topic_permissions(user=user))

    def view(self) -> contextlib.AbstractContextManager[Reader]:
        """Everything as of one moment, read as it is consumed: for exports. Not to be kept open."""
        return self._database.view()

    def _must_know_user(self, name: bytes) -> None:
        if self.user(name) is None:
            raise NoSuchUserError(name)

    def _must_know_vhost(self, name: bytes | None) -> None:
        if name is not None and self.vhost(name) is None:
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
            if self._changing:
                raise StoreError("a change within a change: make both by one draft")
            self._changing = True
            try:
                with self._database.transaction() as rows:
                    yield Draft(rows, self._rules)
            finally:
                self._changing = False
                # Also after a failure: of a commit one may hear that, and it has happened all
                # the same; and another process's news is the likely cause of a refusal.
                self._catch_up()

    def rehash_password(self, user: User, password_hash: bytes) -> bool:
        """Keep a user's password by :attr:`algorithm` from now on; False if it changed meanwhile.

        password_hash: of the password that has just been found to be that of ``user``. For
        threads: it waits for the disk. Nobody is told in them: the news are taken at the next
        refresh or change, and until then the old hash serves as well. Raises StoreError.
        """
        # INVARIANT: not under the lock. However long it waits, refresh() has its turn, or what
        # was revoked meanwhile would not be in force when the worker says that it is.
        with self._rehashing, self._database.aside() as rows:
            return rows.rehash(user, password_hash, self._rules.algorithm)

    def refresh(self) -> bool:
        """Take over what another process has committed; True if there was anything.

        To be called every second or so. It never waits for a change of this process.
        Raises StoreError.
        """
        if not self._lock.acquire(blocking=False):
            return False  # a change is under way in another thread: it takes the news along
        try:
            if self._changing or not (self._behind or self._database.changed_elsewhere()):
                return False
            return self._take_news()
        finally:
            self._lock.release()

    def _catch_up(self) -> None:
        """As :meth:`refresh`, where a failure must not pass for a failure of the change."""
        try:
            self._take_news()
        except StoreError as error:
            # What has changed is not known, so nothing remembered may count. The events are
            # left to the next refresh.
            self._behind = True
            self._in_force((Reloaded(),))
            _log.error("store: changes cannot be read back", reason=str(error))

    def _take_news(self) -> bool:
        news = self._database.news(self._sequence)
        self._sequence = news.sequence
        self._behind = False
        events = (Reloaded(),) if news.missed else news.events
        if not events:
            return False
        self._in_force(events)
        for event in events:
            for callback in tuple(self._subscribers):
                try:
                    callback(event)
                except Exception:  # noqa: BLE001 - a subscriber's mistake is its own
                    # The change is in force and the other subscribers have to hear of it.
                    _log.exception("store subscriber failed", store_event=type(event).__name__)
        return True

    def _in_force(self, events: Iterable[StoreEvent]) -> None:
        # INVARIANT: the caches first, the epoch after them: whoever sees the new number must
        # not be able to decide by the old rows.
        self._cached.forget(events)
        self.epoch.bump()

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

    def put_user(
        self,
        name: bytes,
        password: bytes | None = None,
        *,
        password_hash: bytes | None = None,
        algorithm: str | None = None,
        tags: Iterable[str] = (),
        limits: Mapping[str, object] | None = None,
        permissions: Mapping[bytes, PermissionSet] | None = None,
    ) -> bool:
        """Create or overwrite, as RabbitMQ's HTTP API; True if new. See :meth:`Draft.put_user`."""
        with self.change() as draft:
            return draft.put_user(
                name,
                password,
                password_hash=password_hash,
                algorithm=algorithm,
                tags=tags,
                limits=limits,
                permissions=permissions,
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
        grant_to: bytes | None = None,
    ) -> bool:
        """Create or update; True if it is new (an existing vhost is no error in RabbitMQ).

        grant_to: as in :meth:`Draft.put_vhost`.
        """
        with self.change() as draft:
            return draft.put_vhost(
                name,
                description=description,
                tags=tags,
                default_queue_type=default_queue_type,
                protected=protected,
                grant_to=grant_to,
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

    def set_global_parameter(self, name: str, value: object) -> None:
        with self.change() as draft:
            draft.set_global_parameter(name, value)

    def clear_global_parameter(self, name: str) -> bool:
        with self.change() as draft:
            return draft.clear_global_parameter(name)


_log = structlog.get_logger(__name__)
