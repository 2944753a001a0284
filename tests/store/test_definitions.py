"""Import and export of RabbitMQ's definitions files."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gatekeeper.errors import DefinitionsError
from gatekeeper.policy import pcre
from gatekeeper.policy.permissions import PermissionSet, TopicPermissionSet
from gatekeeper.store import passwords
from gatekeeper.store.definitions import ImportReport, import_definitions, load_definitions
from gatekeeper.store.definitions_export import export_definitions, write_definitions
from gatekeeper.store.store import Store
from tests.store.contents import contents

TEST12 = "kI3GCqW5JLMJa4iX1lo7X4D6XbYqlLgxIs30+P6tENUV2POR"
TEST12_MD5 = "kI3GChNpte2FApYFXScl+0dIluk="

# The shapes that a 3.10.8 node exported over HTTP, and that a 4.x one writes for vhosts.
EXPORT = {
    "rabbit_version": "3.10.8",
    "rabbitmq_version": "3.10.8",
    "product_name": "RabbitMQ",
    "product_version": "3.10.8",
    "users": [
        {
            "name": "imp1",
            "password_hash": TEST12,
            "hashing_algorithm": "rabbit_password_hashing_sha256",
            "tags": ["management", "x-custom"],
            "limits": {"max-connections": 3},
        },
        {"name": "csv", "password_hash": "", "tags": "a, b ,", "limits": []},
        {"name": "clear", "password": "open", "tags": []},
        {"name": "dé", "tags": ""},
        {"name": "old", "password_hash": TEST12, "administrator": True},
    ],
    "vhosts": [
        {"name": "impv"},
        {
            "name": "v4",
            "limits": [],
            "metadata": {
                "description": "meta",
                "tags": ["t"],
                "default_queue_type": "quorum",
                "protected_from_deletion": True,
            },
        },
        {"name": "v3", "description": "flat", "tags": "x,y", "default_queue_type": "undefined"},
        {"name": "limited", "limits": {"max-queues": 9}},
    ],
    "permissions": [
        {"user": "imp1", "vhost": "impv", "configure": "^é", "write": ".*", "read": ""}
    ],
    "topic_permissions": [
        {"user": "imp1", "vhost": "impv", "exchange": "amq.topic", "write": "a", "read": "b"}
    ],
    "parameters": [
        {
            "vhost": "impv",
            "component": "vhost-limits",
            "name": "limits",
            "value": {"max-connections": 7},
        },
        {"vhost": "impv", "component": "federation-upstream", "name": "up", "value": {}},
    ],
    "global_parameters": [
        {"name": "cluster_name", "value": "rabbit@prod"},
        {"name": "internal_cluster_id", "value": "x"},
    ],
    "policies": [{"vhost": "impv", "name": "ha"}],
    "queues": [],
    "exchanges": [{"name": "e", "vhost": "impv"}, {"name": "f", "vhost": "impv"}],
    "bindings": [],
}


@pytest.fixture
def store() -> Iterator[Store]:
    store = Store.open("sqlite::memory:")
    yield store
    store.close()


def load(store: Store, document: object, **options: bool) -> ImportReport:
    return import_definitions(store, json.dumps(document), **options)


def test_import_of_an_export(store: Store) -> None:
    report = load(store, EXPORT)
    assert (report.users, report.vhosts, report.permissions, report.topic_permissions) == (
        5,
        4,
        1,
        1,
    )
    users = {user.name.decode(): user for user in store.list_users()}
    assert users["imp1"].tags == ("management", "x-custom")
    assert users["imp1"].limits == {"max-connections": 3}
    assert passwords.verify(b"test12", users["imp1"].password_hash, users["imp1"].algorithm)
    assert (users["csv"].tags, users["csv"].password_hash) == (("a", "b"), b"")
    assert passwords.verify(b"open", users["clear"].password_hash, users["clear"].algorithm)
    assert (users["dé"].tags, users["dé"].password_hash) == ((), b"")
    assert users["old"].tags == ("administrator",)
    vhosts = {vhost.name.decode(): vhost for vhost in store.list_vhosts()}
    assert vhosts["impv"].limits == {"max-connections": 7}
    assert vhosts["limited"].limits == {"max-queues": 9}
    v4, v3 = vhosts["v4"], vhosts["v3"]
    assert (v4.description, v4.tags, v4.default_queue_type, v4.protected) == (
        "meta",
        ("t",),
        "quorum",
        True,
    )
    assert (v3.description, v3.tags, v3.default_queue_type, v3.protected) == (
        "flat",
        ("x", "y"),
        None,
        False,
    )
    assert store.permissions(b"imp1", b"impv") == PermissionSet("^é".encode(), b".*", b"")
    assert store.topic_permissions(b"imp1", b"impv", b"amq.topic") == TopicPermissionSet(b"a", b"b")
    assert store.metadata("cluster_name") == "rabbit@prod"


IGNORED = (
    "defs.json: ignored, a gate has no use for it: parameters of other components (1), "
    "policies (1), exchanges (2)"
)


def test_one_warning_names_what_was_ignored(store: Store) -> None:
    report = import_definitions(store, json.dumps(EXPORT), source="defs.json")
    assert list(report.warnings) == [IGNORED]
    assert load(store, {"bogus": [1], "odd": 5, "empty": []}).warnings == (
        "definitions: ignored, a gate has no use for it: bogus (1), odd (1)",
    )
    assert load(store, {"users": []}).warnings == ()


def test_merge_overwrites_what_is_named_and_keeps_the_rest(store: Store) -> None:
    store.add_user(b"kept", b"pw")
    store.add_user(b"imp1", b"old", tags=["old"])
    store.set_user_limits(b"imp1", {"max-channels": 2})
    store.add_vhost(b"impv", description="goes", tags=["s"], default_queue_type="stream")
    store.add_vhost(b"v3", description="goes")
    store.set_permissions(b"imp1", b"impv", b"x", b"x", b"x")
    store.set_permissions(b"kept", b"impv", b"k", b"k", b"k")
    store.set_metadata("cluster_name", "before")
    load(store, EXPORT)
    assert store.user(b"kept") is not None
    imp1 = store.user(b"imp1")
    assert imp1 is not None
    assert imp1.tags == ("management", "x-custom")
    assert imp1.limits == {"max-connections": 3, "max-channels": 2}
    assert not passwords.verify(b"old", imp1.password_hash, imp1.algorithm)
    impv, v3 = store.vhost(b"impv"), store.vhost(b"v3")
    assert impv is not None
    assert v3 is not None
    assert (impv.description, impv.tags, impv.default_queue_type) == ("", (), "stream")
    assert (v3.description, v3.tags) == ("flat", ("x", "y"))
    assert store.permissions(b"imp1", b"impv") == PermissionSet("^é".encode(), b".*", b"")
    assert store.permissions(b"kept", b"impv") == PermissionSet(b"k", b"k", b"k")


def test_a_user_without_password_loses_the_one_it_had(store: Store) -> None:
    store.add_user(b"u", b"pw")
    load(store, {"users": [{"name": "u", "tags": []}]})
    assert store.user(b"u").password_hash == b""  # type: ignore[union-attr]


def test_permissions_may_name_what_is_in_the_store(store: Store) -> None:
    store.add_user(b"u")
    store.add_vhost(b"v")
    load(
        store,
        {"permissions": [{"user": "u", "vhost": "v", "configure": "", "write": "", "read": ""}]},
    )
    assert store.permissions(b"u", b"v") is not None


@pytest.mark.parametrize(
    ("header", "given_algorithm", "expected"),
    [
        ({}, None, passwords.SHA256),
        ({"rabbit_version": "3.10.8"}, None, passwords.SHA256),
        ({"rabbit_version": "3.5.7"}, None, passwords.MD5),
        ({"rabbitmq_version": "3.0.0"}, None, passwords.MD5),
        ({"rabbitmq_version": "3.6.0"}, None, passwords.SHA256),
        ({"rabbitmq_version": "3.5.7"}, passwords.SHA512, passwords.SHA512),
        ({"rabbitmq_version": 3}, passwords.MD5, passwords.MD5),
        ({}, "my_own_module", "my_own_module"),
    ],
)
def test_hashing_algorithm(
    store: Store, header: dict[str, object], given_algorithm: str | None, expected: str
) -> None:
    user = {"name": "u", "password_hash": TEST12, "tags": []}
    if given_algorithm:
        user["hashing_algorithm"] = given_algorithm
    load(store, {**header, "users": [user]})
    assert store.user(b"u").algorithm == expected  # type: ignore[union-attr]


def test_hashes_that_cannot_match_are_imported_with_a_warning(store: Store) -> None:
    report = load(
        store,
        {
            "users": [
                {"name": "fine", "password_hash": TEST12, "tags": []},
                {
                    "name": "long",
                    "password_hash": TEST12,
                    "hashing_algorithm": passwords.SHA512,
                    "tags": [],
                },
                {"name": "odd", "password_hash": TEST12, "hashing_algorithm": "x", "tags": []},
                {"name": "none", "password_hash": "", "hashing_algorithm": "x", "tags": []},
            ]
        },
    )
    (warning,) = report.warnings
    assert warning == (
        "definitions: 2 user(s) cannot log in, for their password_hash does not fit its "
        "hashing_algorithm, or that is unknown; the first is users[1]"
    )


def test_clear_passwords_go_through_the_validator() -> None:
    store = Store.open("sqlite::memory:", validator=lambda _name, _password: "too short")
    with pytest.raises(DefinitionsError) as caught:
        load(store, {"users": [{"name": "u", "password": "s3cret", "tags": []}]})
    assert str(caught.value) == "definitions: users[0].password: refused: too short"
    load(store, {"users": [{"name": "u", "password_hash": TEST12, "tags": []}]})
    store.close()


# -- malformed ---------------------------------------------------------------------------

USER = {"name": "u", "tags": []}
PERMISSION = {"user": "u", "vhost": "v", "configure": "", "write": "", "read": ""}
TOPIC = {"user": "u", "vhost": "v", "exchange": "e", "write": "", "read": ""}
LIMITS = {"component": "vhost-limits", "name": "limits", "vhost": "v", "value": {}}
BASE = {"users": [USER], "vhosts": [{"name": "v"}]}


def users(**fields: object) -> dict[str, object]:
    return {"users": [USER, {"name": "w", "tags": [], **fields}]}


def vhosts(**fields: object) -> dict[str, object]:
    return {"vhosts": [{"name": "w", **fields}]}


def permissions(*entries: dict[str, object]) -> dict[str, object]:
    return {**BASE, "permissions": list(entries)}


def topics(*entries: dict[str, object]) -> dict[str, object]:
    return {**BASE, "topic_permissions": list(entries)}


def parameters(**fields: object) -> dict[str, object]:
    return {**BASE, "parameters": [{**LIMITS, **fields}]}


def without(entry: dict[str, object], key: str) -> dict[str, object]:
    return {name: value for name, value in entry.items() if name != key}


MALFORMED = [
    ([], "$: must be an object, is a list"),
    (5, "$: must be an object, is a number"),
    ({"users": {}}, "users: must be a list, is an object"),
    ({"users": None}, "users: must be a list, is null"),
    ({"users": [1]}, "users[0]: must be an object, is a number"),
    ({"users": [{"tags": []}]}, "users[0].name: missing; add it"),
    (users(name=5), "users[1].name: must be a string, is a number"),
    (users(name=""), "users[1].name: must not be empty; name the user"),
    (users(name="\ud800"), "users[1].name: holds a lone surrogate escape"),
    (users(password=5), "users[1].password: must be a string, is a number"),
    (users(password="x", password_hash=TEST12), "users[1].password: both password and"),
    (users(password_hash="!!"), "users[1].password_hash: not base64; take it from an export"),
    (users(password_hash=["x"]), "users[1].password_hash: must be a string, is a list"),
    (users(hashing_algorithm=True), "users[1].hashing_algorithm: must be a string, is a boolean"),
    (users(tags=None), 'users[1].tags: missing; write "tags": [] for a user without tags'),
    (users(tags=5), "users[1].tags: must be a list of strings, is a number"),
    (users(tags=["a", 5]), "users[1].tags[1]: must be a string, is a number"),
    (users(tags=["\ud800"]), "users[1].tags[0]: must be a string, is a string"),
    (users(tags=[str(tag) for tag in range(33)]), "users[1].tags: a user can have at most 32 tags"),
    (users(limits=5), "users[1].limits: must be an object, is a number"),
    (users(limits=[1]), "users[1].limits: must be an object, is a list"),
    (users(limits={"max-queues": 1}), "users[1].limits: Unrecognised terms"),
    (users(limits={"max-channels": "5"}), "users[1].limits: max-channels should be a number"),
    (users(limits={"a\nb": 1}), 'users[1].limits: Unrecognised terms [{<<"a\\nb">>,1}]'),
    (
        permissions({**PERMISSION, "user": "a\nb\u2028"}),
        "permissions[0].user: user 'a\\nb\\u2028' does not exist",
    ),
    (users(name="u"), "users[1]: is about the same as users[0]; keep one of them"),
    ({"vhosts": ["v"]}, "vhosts[0]: must be an object, is a string"),
    ({"vhosts": [{}]}, "vhosts[0].name: missing"),
    (vhosts(metadata=[]), "vhosts[0].metadata: must be an object, is a list"),
    (vhosts(metadata={"description": 1}), "vhosts[0].metadata.description: must be a string"),
    (vhosts(tags={}), "vhosts[0].tags: must be a list of strings, is an object"),
    (
        vhosts(metadata={"protected_from_deletion": "yes"}),
        "vhosts[0].metadata.protected_from_deletion: must be true or false, is a string",
    ),
    (vhosts(limits={"max-channels": 1}), "vhosts[0].limits: Unrecognised terms"),
    ({"vhosts": [{"name": "v"}, {"name": "v"}]}, "vhosts[1]: is about the same as vhosts[0]"),
    (permissions(without(PERMISSION, "read")), "permissions[0].read: missing; add it"),
    (permissions({**PERMISSION, "write": None}), "permissions[0].write: must be a string, is null"),
    (
        permissions({**PERMISSION, "write": "("}),
        "permissions[0].write: no valid regular expression: missing ) at offset 1",
    ),
    (
        permissions({**PERMISSION, "configure": "x" * 1025}),
        "permissions[0].configure: no valid regular expression: pattern is longer than 1024",
    ),
    (
        permissions({**PERMISSION, "user": "ghost"}),
        "permissions[0].user: user 'ghost' does not exist; add it to users",
    ),
    (
        permissions({**PERMISSION, "vhost": "novh"}),
        "permissions[0].vhost: virtual host 'novh' does not exist; add it to vhosts",
    ),
    (permissions(PERMISSION, PERMISSION), "permissions[1]: is about the same as permissions[0]"),
    (topics(without(TOPIC, "exchange")), "topic_permissions[0].exchange: missing; add it"),
    (topics({**TOPIC, "read": "["}), "topic_permissions[0].read: no valid regular expression"),
    (topics({**TOPIC, "user": "ghost"}), "topic_permissions[0].user: user 'ghost' does not exist"),
    (topics({**TOPIC, "vhost": "no"}), "topic_permissions[0].vhost: virtual host 'no' does not"),
    (topics(TOPIC, TOPIC), "topic_permissions[1]: is about the same as topic_permissions[0]"),
    (parameters(vhost="novh"), "parameters[0].vhost: virtual host 'novh' does not exist"),
    (parameters(vhost=None), "parameters[0].vhost: must be a string, is null"),
    (parameters(value={"max-channels": 1}), "parameters[0].value: Unrecognised terms"),
    (parameters(value="x"), "parameters[0].value: must be an object, is a string"),
    ({"parameters": [7]}, "parameters[0]: must be an object, is a number"),
    (
        {**BASE, "parameters": [LIMITS, LIMITS]},
        "parameters[1]: is about the same as parameters[0]",
    ),
    (
        {"global_parameters": [{"name": "cluster_name", "value": {}}]},
        "global_parameters[0].value: must be a string, is an object",
    ),
    ({"queues": [{"name": "q"}]}, "$: these are the definitions of one virtual host"),
    ({"bindings": [{"source": "e"}]}, "$: these are the definitions of one virtual host"),
    ({"original_vhost_name": "v"}, "$: these are the definitions of one virtual host"),
    (
        {"rabbitmq_definition_format": "single_virtual_host"},
        "$: these are the definitions of one virtual host",
    ),
]


@pytest.mark.parametrize(("document", "message"), MALFORMED)
def test_malformed_documents_name_the_place_and_change_nothing(
    store: Store, document: object, message: str
) -> None:
    store.add_user(b"before", b"pw")
    before, epoch = contents(store), store.epoch.value
    with pytest.raises(DefinitionsError) as caught:
        import_definitions(store, json.dumps(document), source="d.json")
    assert str(caught.value).startswith(f"d.json: {message}")
    assert "\n" not in str(caught.value)
    assert contents(store) == before
    assert store.epoch.value == epoch


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"{bad", "line 1 column 2: not valid JSON: Expecting property name"),
        (b'{"users": [\n  {"name": "u",}\n]}', "line 2 column 16: not valid JSON"),
        (b'{"users": []} x', "line 1 column 15: not valid JSON: Extra data"),
        (b'{"users": "\xff"}', "byte 11: not UTF-8; save the file as UTF-8"),
        (b'{"a": NaN}', "not valid JSON: NaN is no JSON value"),
        (b'{"a": ' + b"9" * 5000 + b"}", "not valid JSON"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"users": [], "users": []}', "$: the key 'users' occurs twice; keep one"),
        (
            b'{"users": [{"name": "u", "tags": [], "name": "v"}]}',
            "users[0]: the key 'name' occurs twice; keep one",
        ),
        (
            b'{"users": [{"name": "u", "tags": [], "limits": {"max-queues": 1, "max-queues": 2}}]}',
            "users[0].limits: the key 'max-queues' occurs twice",
        ),
    ],
)
def test_what_is_no_json(store: Store, text: bytes, message: str) -> None:
    with pytest.raises(DefinitionsError) as caught:
        import_definitions(store, text, source="d.json")
    assert str(caught.value).startswith(f"d.json: {message}")


def test_a_repeated_key_among_many_is_found_at_once(store: Store) -> None:
    """Whoever may import must not stop the rest: looked for pair by pair it took hours."""
    keys = ",".join(f'"{at}":0' for at in range(300_000))
    with pytest.raises(DefinitionsError, match=r"the key '299999' occurs twice"):
        import_definitions(store, f'{{{keys},"299999":1,"0":1}}'.encode())


@pytest.mark.parametrize("text", [b"", b" \n", b"{}", b"\xef\xbb\xbf{}"])
def test_nothing_to_import(store: Store, text: bytes) -> None:
    assert import_definitions(store, text) == ImportReport()
    assert store.is_blank()


def test_secrets_are_not_repeated_in_errors(store: Store) -> None:
    for fields in (
        {"password_hash": "s3cret!"},
        {"password": ["s3cret"]},
        {"password": {"s3cret": 1}},
    ):
        with pytest.raises(DefinitionsError) as caught:
            load(store, users(**fields))
        assert "s3cret" not in str(caught.value)


# -- files -------------------------------------------------------------------------------


def test_a_directory_in_order_of_names(store: Store, tmp_path: Path) -> None:
    (tmp_path / "20.json").write_text(json.dumps({"users": [{"name": "u", "tags": ["late"]}]}))
    (tmp_path / "10.json").write_text(
        json.dumps({"users": [{"name": "u", "tags": ["early"]}, {"name": "w", "tags": []}]})
    )
    (tmp_path / ".hidden").write_text("no json")
    (tmp_path / "folder").mkdir()
    assert load_definitions(store, tmp_path).users == 3
    assert store.user(b"u").tags == ("late",)  # type: ignore[union-attr]
    assert store.user(b"w") is not None


def test_a_directory_is_all_or_nothing(store: Store, tmp_path: Path) -> None:
    (tmp_path / "1.json").write_text(json.dumps(BASE))
    (tmp_path / "2.json").write_text(json.dumps({"permissions": [{**PERMISSION, "user": "x"}]}))
    with pytest.raises(DefinitionsError, match=r"2\.json: permissions\[0\]\.user"):
        load_definitions(store, tmp_path)
    assert store.is_blank()


def test_unreadable_files(store: Store, tmp_path: Path) -> None:
    with pytest.raises(DefinitionsError, match=r"cannot read .*gone\.json: No such file"):
        load_definitions(store, tmp_path / "gone.json")


def test_skip_if_unchanged(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "d.json"
    path.write_text(json.dumps(BASE))
    assert not load_definitions(store, path, skip_if_unchanged=True).skipped
    store.delete_user(b"u")
    assert load_definitions(store, path, skip_if_unchanged=True) == ImportReport(skipped=True)
    assert store.user(b"u") is None  # as RabbitMQ: deleted meanwhile, stays deleted
    assert not load_definitions(store, path).skipped
    assert store.user(b"u") is not None
    path.write_text(json.dumps({**BASE, "explanation": "changed"}))
    assert not load_definitions(store, path, skip_if_unchanged=True).skipped


def test_ten_thousand_users_are_quick(store: Store) -> None:
    document = {
        "vhosts": [{"name": "/"}],
        "users": [
            {"name": f"u{number}", "password_hash": TEST12, "tags": ["management"]}
            for number in range(10_000)
        ],
        "permissions": [
            {
                "user": f"u{number}",
                "vhost": "/",
                "configure": f"^u{number}",
                "write": "",
                "read": "",
            }
            for number in range(10_000)
        ],
    }
    started = time.process_time()
    load(store, document)
    assert time.process_time() - started < 5
    assert len(list(store.list_users())) == 10_000


def test_each_distinct_pattern_is_compiled_once(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: list[bytes] = []
    real = pcre.compile

    def compile_(pattern: bytes) -> pcre.Pattern:
        compiled.append(pattern)
        return real(pattern)

    monkeypatch.setattr(pcre, "compile", compile_)
    numbers = range(3 * pcre.CACHED_PATTERNS)
    load(
        store,
        {
            "users": [{"name": f"u{number}", "tags": []} for number in numbers],
            "vhosts": [{"name": "/"}, {"name": "v"}],
            "permissions": [
                {
                    "user": f"u{number}",
                    "vhost": vhost,
                    "configure": f"^{number}$",
                    "write": ".*",
                    "read": f"^{number}$",
                }
                for vhost in ("/", "v")
                for number in numbers
            ],
        },
    )
    assert sorted(compiled) == sorted([b".*", *(b"^%d$" % number for number in numbers)])


def test_permissions_may_be_of_users_that_the_store_has(store: Store) -> None:
    store.add_user(b"known", b"pw")
    store.add_vhost(b"kv")
    events: list[object] = []
    store.subscribe(events.append)
    report = load(
        store,
        {
            "permissions": [{**PERMISSION, "user": "known", "vhost": "kv"}],
            "topic_permissions": [{**TOPIC, "user": "known", "vhost": "kv"}],
        },
    )
    assert (report.permissions, report.topic_permissions) == (1, 1)
    assert store.permissions(b"known", b"kv") is not None
    assert [type(event).__name__ for event in events] == [
        "PermissionsChanged",
        "TopicPermissionsChanged",
    ]


def test_the_same_import_again_changes_nothing(store: Store) -> None:
    document = {key: value for key, value in EXPORT.items() if key != "users"}
    users = [user for user in EXPORT["users"] if "password" not in user]  # type: ignore[attr-defined]
    load(store, {**document, "users": users})
    epoch, events = store.epoch.value, []
    store.subscribe(events.append)
    load(store, {**document, "users": users})
    assert (store.epoch.value, events) == (epoch, [])


# -- export ------------------------------------------------------------------------------


def test_export_has_rabbitmqs_sections(store: Store) -> None:
    load(store, EXPORT)
    exported = export_definitions(store)
    assert exported["users"][1] == {  # type: ignore[index]
        "name": "csv",
        "password_hash": "",
        "hashing_algorithm": "rabbit_password_hashing_sha256",
        "tags": ["a", "b"],
        "limits": {},
    }
    assert exported["permissions"] == EXPORT["permissions"]
    assert exported["topic_permissions"] == EXPORT["topic_permissions"]
    assert exported["global_parameters"] == [{"name": "cluster_name", "value": "rabbit@prod"}]
    assert {
        "vhost": "limited",
        "component": "vhost-limits",
        "name": "limits",
        "value": {"max-queues": 9},
    } in exported["parameters"]  # type: ignore[operator]
    for section in ("queues", "exchanges", "bindings", "policies"):
        assert exported[section] == []


def test_names_that_json_cannot_hold(store: Store) -> None:
    store.add_user(b"J\xfcrg")
    with pytest.raises(DefinitionsError, match="cannot export 'Jürg'"):
        export_definitions(store)


def test_what_is_written_is_what_is_exported(store: Store) -> None:
    load(store, EXPORT)
    out = io.StringIO()
    write_definitions(store, out, product="p")
    assert json.loads(out.getvalue()) == export_definitions(store, product="p")
    assert '"configure": "^é"' in out.getvalue()
    blank = Store.open("sqlite::memory:")
    out = io.StringIO()
    write_definitions(blank, out)
    assert json.loads(out.getvalue()) == export_definitions(blank)
    blank.close()


def test_an_export_is_of_one_moment(store: Store, tmp_path: Path) -> None:
    source = Store.open(f"sqlite://{tmp_path}/s.db")
    load(source, {**BASE, "permissions": [PERMISSION]})

    class Meddler(io.StringIO):
        """Deletes the user while the vhosts are being written."""

        def write(self, text: str) -> int:
            if '"vhosts"' in text:
                source.delete_user(b"u")
            return super().write(text)

    out = Meddler()
    write_definitions(source, out)
    exported = json.loads(out.getvalue())
    assert source.user(b"u") is None
    assert [user["name"] for user in exported["users"]] == ["u"]
    assert [one["user"] for one in exported["permissions"]] == ["u"]
    source.close()


TEXT = st.text(st.characters(codec="utf-8"), max_size=6)
NAME = st.text(st.characters(codec="utf-8"), min_size=1, max_size=6)
LIMIT = st.integers(-5, 2**40)
PATTERN = st.sampled_from(["", ".*", "^é", "[\\w-.]+", "(a|b)*"])


@settings(max_examples=60, deadline=None)
@given(
    users=st.dictionaries(
        NAME,
        st.tuples(
            st.lists(NAME, max_size=3, unique=True),
            st.one_of(st.just(b""), st.binary(min_size=20, max_size=68)),
            st.sampled_from([*passwords.ALGORITHMS, "other"]),
            st.dictionaries(st.sampled_from(["max-connections", "max-channels"]), LIMIT),
        ),
        min_size=1,
        max_size=4,
    ),
    vhosts=st.dictionaries(
        TEXT,
        st.tuples(
            TEXT,
            st.lists(NAME, max_size=2, unique=True),
            st.sampled_from([None, "quorum"]),
            st.booleans(),
            st.dictionaries(st.sampled_from(["max-connections", "max-queues"]), LIMIT),
        ),
        min_size=1,
        max_size=3,
    ),
    patterns=st.tuples(PATTERN, PATTERN, PATTERN),
    exchange=TEXT,
    cluster=st.one_of(st.none(), NAME),
)
def test_round_trip(
    users: dict[str, tuple[list[str], bytes, str, dict[str, int]]],
    vhosts: dict[str, tuple[str, list[str], str | None, bool, dict[str, int]]],
    patterns: tuple[str, str, str],
    exchange: str,
    cluster: str | None,
) -> None:
    source, target = Store.open("sqlite::memory:"), Store.open("sqlite::memory:")
    encoded = [pattern.encode() for pattern in patterns]
    with source.change() as draft:
        for name, (tags, hashed, algorithm, limits) in users.items():
            draft.put_user(
                name.encode(), password_hash=hashed, algorithm=algorithm, tags=tags, limits=limits
            )
        for name, (description, tags, queue_type, protected, limits) in vhosts.items():
            draft.put_vhost(
                name.encode(),
                description=description,
                tags=tags,
                default_queue_type=queue_type,
                protected=protected,
            )
            draft.set_vhost_limits(name.encode(), limits)
        for user in users:
            for vhost in vhosts:
                key = (user.encode(), vhost.encode())
                draft.set_permissions(*key, PermissionSet(*encoded))
                draft.set_topic_permissions(
                    *key, exchange.encode(), TopicPermissionSet(*encoded[1:])
                )
        if cluster is not None:
            draft.set_metadata("cluster_name", cluster)
    exported = export_definitions(source)
    import_definitions(target, json.dumps(exported))
    assert export_definitions(target) == exported
    assert contents(target).permissions == contents(source).permissions
    assert contents(target).topic_permissions == contents(source).topic_permissions
    assert [user.password_hash for user in target.list_users()] == [
        user.password_hash for user in source.list_users()
    ]
    source.close()
    target.close()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(
        st.sampled_from(
            ["users", "vhosts", "permissions", "parameters", "name", "tags", "limits", "metadata",
             "user", "vhost", "configure", "value", "component", "password_hash", "queues"]
        ),
        inner,
        max_size=4,
    ),
    max_leaves=20,
)  # fmt: skip


@given(JSON)
@settings(max_examples=200, deadline=None)
def test_any_json_is_imported_or_refused(document: object) -> None:
    store = Store.open("sqlite::memory:")
    message = ""
    try:
        load(store, document)
    except DefinitionsError as error:
        message = str(error)
    assert "\n" not in message
    assert not message or store.is_blank()
    store.close()
