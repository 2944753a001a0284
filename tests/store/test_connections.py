"""Live connections when more has changed in the store than is told one by one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from gatekeeper.app import Connections
from gatekeeper.errors import AmqpError, ReplyCode, StoreError
from gatekeeper.model import Peer
from gatekeeper.server.registry import Live
from gatekeeper.store.store import Store

PEER = Peer("192.0.2.1", 40000)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store.open(f"sqlite://{tmp_path}/s.db")
    for name in (b"a", b"b"):
        store.add_user(name, b"pw")
        store.add_vhost(name)
    yield store
    store.close()


@pytest.fixture
def connections(store: Store) -> Connections:
    connections = Connections(store)
    for number, (user, vhost) in enumerate(
        [(b"a", b"a"), (b"a", b"b"), (b"b", b"b"), (b"from ldap", b"b")]
    ):
        connections.add(Live(number, PEER, user, vhost))
    return connections


def ended(connections: Connections) -> dict[int, str]:
    return {
        live.number: str(live.doomed) for live in connections if isinstance(live.doomed, AmqpError)
    }


def test_nobody_is_ended_for_nothing(store: Store, connections: Connections) -> None:
    store.set_user_tags(b"a", ["t"])
    store.change_password(b"a", b"x")
    store.add_user(b"from ldap", b"pw")  # of the same name as somebody authenticated elsewhere
    connections.recheck()
    assert ended(connections) == {}


@pytest.mark.parametrize("again", [False, True])
def test_users_that_are_gone_or_others(store: Store, connections: Connections, again: bool) -> None:
    store.delete_user(b"a")
    if again:
        store.add_user(b"a", b"pw")
    connections.recheck()
    text = "320 CONNECTION_FORCED - user 'a' is deleted"
    assert ended(connections) == {0: text, 1: text}


@pytest.mark.parametrize("again", [False, True])
def test_vhosts_that_are_gone_or_others(
    store: Store, connections: Connections, again: bool
) -> None:
    store.delete_vhost(b"a")
    if again:
        store.add_vhost(b"a")
    connections.recheck()
    assert ended(connections) == {0: "320 CONNECTION_FORCED - vhost 'a' is deleted"}


def test_who_has_left_is_not_remembered(store: Store, connections: Connections) -> None:
    for live in connections:
        connections.remove(live)
        connections.remove(live)
    assert len(connections) == 0
    assert connections._incarnations == {}


def test_a_check_that_fails_is_to_be_made_again(
    store: Store, connections: Connections, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.delete_user(b"a")

    def fail(_name: bytes) -> None:
        raise StoreError("disk")

    monkeypatch.setattr(store, "vhost", fail)
    with pytest.raises(StoreError):
        connections.recheck()
    assert connections.outdated
    assert ended(connections) == {}
    monkeypatch.undo()
    connections.recheck()
    assert not connections.outdated
    assert set(ended(connections)) == {0, 1}
    assert all(
        live.doomed is None or live.doomed.code is ReplyCode.CONNECTION_FORCED
        for live in connections
    )
