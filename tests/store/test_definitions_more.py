"""Global parameters, exports' headers, single vhosts, grants to whoever imports."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from structlog.testing import capture_logs

from gatekeeper.config.settings import DefaultUser, Permissions, VhostDefaults
from gatekeeper.errors import DefinitionsError
from gatekeeper.model import Secret
from gatekeeper.policy.permissions import PermissionSet
from gatekeeper.store import passwords
from gatekeeper.store.definitions import import_definitions
from gatekeeper.store.definitions_export import export_definitions, export_vhost_definitions
from gatekeeper.store.definitions_vhost import import_vhost_definitions
from gatekeeper.store.passwords import ARGON2ID
from gatekeeper.store.records import MetadataChanged, StoreEvent
from gatekeeper.store.refusals import InvalidTextError, InvalidValueError, NoSuchVhostError
from gatekeeper.store.store import Store
from gatekeeper.store.validators import min_password_length

FULL = PermissionSet(b".*", b".*", b".*")


@pytest.fixture
def store() -> Iterator[Store]:
    store = Store.open("sqlite::memory:")
    yield store
    store.close()


# -- global parameters -------------------------------------------------------------------

PARAMETERS = [
    {"name": "cluster_name", "value": "prod"},
    {"name": "labels", "value": {"b": [1, 2.5, None, {"é": True}], "a": "x"}},
    {"name": "none", "value": None},
]


def test_global_parameters_are_kept_and_exported(store: Store) -> None:
    hidden = [
        {"name": "internal_cluster_id", "value": "id"},
        {"name": "imported_definition_hash_value", "value": "another's"},
    ]
    report = import_definitions(store, json.dumps({"global_parameters": PARAMETERS + hidden}))
    assert report.warnings == ()
    assert store.global_parameter("labels") == PARAMETERS[1]["value"]
    assert store.global_parameter("imported_definition_hash_value") is None
    assert dict(store.list_global_parameters()) == {
        **{str(one["name"]): one["value"] for one in PARAMETERS},
        "internal_cluster_id": "id",
    }
    assert export_definitions(store)["global_parameters"] == PARAMETERS
    store.set_metadata("imported_definition_hash_value", "ours")
    assert "imported_definition_hash_value" not in dict(store.list_global_parameters())
    assert export_definitions(store)["global_parameters"] == PARAMETERS


def test_global_parameters_one_by_one(store: Store) -> None:
    events: list[StoreEvent] = []
    store.subscribe(events.append)
    store.set_global_parameter("p", [1])
    assert store.global_parameter("p") == [1]
    assert store.clear_global_parameter("p")
    assert not store.clear_global_parameter("p")
    assert store.global_parameter("p") is None
    assert events == [MetadataChanged("p")] * 2
    with pytest.raises(InvalidTextError):
        store.set_global_parameter("\ud800", 1)
    deep: list[object] = []
    for _ in range(100_000):
        deep = [deep]
    for bad in (float("nan"), {"x": "\udc00"}, b"bytes", deep):
        with pytest.raises(InvalidValueError):
            store.set_global_parameter("p", bad)
    while deep:  # its destructor would recurse
        deep = deep.pop()  # type: ignore[assignment]
    assert store.list_global_parameters() == []


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ('[{"value": 1}]', "global_parameters[0].name: missing"),
        ('[{"name": "x"}]', "global_parameters[0].value: missing"),
        ('[{"name": 1, "value": 1}]', "global_parameters[0].name: must be a string"),
        ('[{"name": "cluster_name", "value": 1}]', "global_parameters[0].value: must be a string"),
        ('[{"name": "x", "value": [{"a": 1, "a": 2}]}]', "global_parameters[0].value: the key"),
        ('[{"name": "x", "value": "\\ud800"}]', "global_parameters[0].value: the value is not"),
        ('[{"name": "x", "value": 1e999}]', "global_parameters[0].value: the value is not JSON"),
        (
            '[{"name": "x", "value": 1}, {"name": "x", "value": 2}]',
            "global_parameters[1]: is about the same as global_parameters[0]",
        ),
    ],
)
def test_malformed_global_parameters(store: Store, parameters: str, message: str) -> None:
    with pytest.raises(DefinitionsError) as caught:
        import_definitions(store, f'{{"global_parameters": {parameters}}}')
    assert message in str(caught.value)
    assert store.list_global_parameters() == []


# -- exports -----------------------------------------------------------------------------


def test_the_header_of_an_export(store: Store) -> None:
    assert export_definitions(store)["original_cluster_name"] == "gatekeeper"
    store.set_global_parameter("cluster_name", "prod")
    exported = export_definitions(store)
    assert exported["rabbitmq_definition_format"] == "cluster"
    assert exported["original_cluster_name"] == "prod"
    assert exported["explanation"] == "Definitions of cluster 'prod'"
    copy = Store.open("sqlite::memory:")
    assert import_definitions(copy, json.dumps(exported)).warnings == ()
    assert export_definitions(copy) == exported
    copy.close()


def test_passwords_that_rabbitmq_cannot_check_are_exported_with_a_warning(store: Store) -> None:
    hashed = passwords.hash_password(b"pw", ARGON2ID)
    store.add_user(b"sha", b"pw")
    with capture_logs() as logged:
        export_definitions(store)
    assert logged == []
    store.add_user(b"u", password_hash=hashed, algorithm=ARGON2ID)
    with capture_logs() as logged:
        exported = export_definitions(store)
    assert [line["log_level"] for line in logged] == ["warning"]
    assert "1 user(s) have an argon2id password" in logged[0]["event"]
    copy = Store.open("sqlite::memory:")
    assert import_definitions(copy, json.dumps(exported)).warnings == ()
    user = copy.user(b"u")
    assert user is not None
    assert (user.password_hash, user.algorithm) == (hashed, ARGON2ID)
    copy.close()


# -- one virtual host --------------------------------------------------------------------


def test_one_vhost_to_another(store: Store) -> None:
    store.add_vhost(b"from", description="d", tags=["t"], protected=True)
    store.set_vhost_limits(b"from", {"max-queues": 3})
    store.add_vhost(b"to", description="stays")
    store.add_user(b"u", b"pw")
    store.set_permissions(b"u", b"from", b"", b"", b"")
    exported = export_vhost_definitions(store, b"from")
    assert exported == {
        "rabbit_version": "4.3.5",
        "rabbitmq_version": "4.3.5",
        "product_name": "gatekeeper",
        "product_version": "4.3.5",
        "rabbitmq_definition_format": "single_virtual_host",
        "original_vhost_name": "from",
        "explanation": "Definitions of virtual host 'from'",
        "metadata": {"description": "d", "tags": ["t"], "protected_from_deletion": True},
        "description": "d",
        "limits": {"max-queues": 3},
        "parameters": [{"component": "vhost-limits", "name": "limits", "value": {"max-queues": 3}}],
        "policies": [],
        "queues": [],
        "exchanges": [],
        "bindings": [],
    }
    report = import_vhost_definitions(store, b"to", json.dumps(exported).encode())
    assert report.warnings == ()
    to = store.vhost(b"to")
    assert to is not None
    assert to.limits == {"max-queues": 3}
    assert (to.description, to.tags, to.protected) == ("stays", (), False)
    with pytest.raises(DefinitionsError, match="of one virtual host"):
        import_definitions(store, json.dumps(exported))
    with pytest.raises(NoSuchVhostError):
        export_vhost_definitions(store, b"gone")
    with pytest.raises(NoSuchVhostError):
        import_vhost_definitions(store, b"gone", b"{}")


def test_of_a_whole_cluster_one_vhost_takes_the_parameters(store: Store) -> None:
    """Whatever vhost they name, as in RabbitMQ; users and permissions in it count for nothing."""
    store.add_vhost(b"v")
    document = {
        "users": [{"name": "u", "tags": "administrator"}],
        "vhosts": [{"name": "other"}],
        "permissions": [{"user": "u"}],
        "parameters": [
            {"vhost": "other", "component": "vhost-limits", "name": "limits", "value": {}},
            {"component": "vhost-limits", "name": "limits", "value": {"max-connections": 1}},
            {"component": "shovel", "name": "s", "value": {}},
        ],
        "queues": [{"name": "q"}],
    }
    report = import_vhost_definitions(store, b"v", json.dumps(document).encode(), source="f")
    assert report.warnings == (
        "f: ignored, a gate has no use for it: parameters of other components (1), queues (1)",
    )
    vhost = store.vhost(b"v")
    assert vhost is not None
    assert vhost.limits == {"max-connections": 1}
    assert [*store.list_users()] == []
    assert [one.name for one in store.list_vhosts()] == [b"v"]


def test_a_malformed_vhost_document_names_the_place(store: Store) -> None:
    store.add_vhost(b"v")
    limits = {"component": "vhost-limits", "name": "limits", "value": {"max-queues": 1}}
    bad = {**limits, "value": {"max-queues": "1"}}
    with pytest.raises(DefinitionsError, match=r"d.json: parameters\[1\]\.value: max-queues"):
        import_vhost_definitions(
            store, b"v", json.dumps({"parameters": [limits, bad]}).encode(), source="d.json"
        )
    vhost = store.vhost(b"v")
    assert vhost is not None
    assert vhost.limits == {}


# -- new virtual hosts -------------------------------------------------------------------


def test_who_imports_may_do_everything_in_the_vhosts_that_are_new(store: Store) -> None:
    store.add_vhost(b"known")
    store.add_user(b"admin", b"pw")
    document = json.dumps({"vhosts": [{"name": "known"}, {"name": "new"}]})
    import_definitions(store, document, grant_to=b"admin")
    assert store.permissions(b"admin", b"new") == FULL
    assert store.permissions(b"admin", b"known") is None
    assert store.add_vhost(b"newer", grant_to=b"nobody")
    assert [*store.list_permissions(b"newer")] == []
    assert store.add_vhost(b"newest", grant_to=b"admin")
    assert not store.add_vhost(b"known", grant_to=b"admin")
    assert store.permissions(b"admin", b"newest") == FULL
    assert store.permissions(b"admin", b"known") is None


def test_imported_vhosts_have_the_defaults_that_the_file_may_override() -> None:
    everybody = DefaultUser(
        name=b"monitor",
        vhost_pattern=b".*",
        permissions=Permissions(configure=b"^$", write=b"^$", read=b".*"),
        password=Secret(b"secret"),
    )
    store = Store.open("sqlite::memory:", vhost_defaults=VhostDefaults(users=(everybody,)))
    document = {
        "users": [{"name": "u", "tags": ""}],
        "vhosts": [{"name": "a"}, {"name": "b"}],
        "permissions": [
            {"user": "monitor", "vhost": "b", "configure": "", "write": "", "read": ""},
        ],
    }
    import_definitions(store, json.dumps(document))
    assert store.permissions(b"monitor", b"a") == PermissionSet(b"^$", b"^$", b".*")
    assert store.permissions(b"monitor", b"b") == PermissionSet(b"", b"", b"")
    store.close()


def test_a_default_user_whose_password_is_refused_stops_the_import() -> None:
    rights = Permissions(configure=b"", write=b"", read=b"")
    user = DefaultUser(name=b"m", vhost_pattern=b"b", permissions=rights, password=Secret(b"short"))
    store = Store.open(
        "sqlite::memory:",
        validator=min_password_length(6),
        vhost_defaults=VhostDefaults(users=(user,)),
    )
    with pytest.raises(DefinitionsError) as caught:
        import_definitions(store, '{"vhosts": [{"name": "a"}, {"name": "b"}]}')
    assert str(caught.value) == (
        "definitions: vhosts[1]: the password of a default user (default_users) is refused: "
        "minimum required password length is 6"
    )
    assert [*store.list_vhosts()] == []
    store.close()
