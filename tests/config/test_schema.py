"""The key table, and that the samples and the README say the same."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gatekeeper.config.conf import Setting, parse, parse_key
from gatekeeper.config.known import (
    REFUSALS,
    KnownKeys,
    edit_distance,
    known_patterns,
    nearest,
    refusal,
)
from gatekeeper.config.load import load_settings
from gatekeeper.config.schema import BY_PATTERN, KEYS, annotated_conf, find, markdown_table
from gatekeeper.config.spec import matches

ROOT = Path(__file__).parents[2]
ANNOTATED = ROOT / "config" / "gatekeeper.annotated.conf"
ENVIRON = {"GATEKEEPER_UPSTREAM_PASSWORD": "hunter2"}
OWN = re.compile(
    r"upstreams\.|store\.url|workers|drain_timeout|config_entry_decoder\.|log\.audit\.|control\."
    r"|advanced_config|gatekeeper\.|auth_ip_range\."
)
ALIASES = {"channel_max"}


def test_no_key_has_two_rows() -> None:
    assert len(BY_PATTERN) == len(KEYS)
    for spec in KEYS:
        concrete = tuple(word.replace("$", "x") for word in spec.words)
        found = [other.pattern for other in KEYS if matches(other.words, concrete)]
        assert found == [spec.pattern]


def test_defaults_and_examples_are_keys_of_their_row() -> None:
    for spec in KEYS:
        assert spec.default or spec.example, "the sample has a line for every key"
        assert not (spec.default and spec.example)
        for key in spec.default | spec.example:
            words = parse_key(key)
            assert words is not None
            assert find(words) is spec


def test_defaults_are_of_their_type() -> None:
    for spec in KEYS:
        for text in spec.default.values():
            spec.type.convert(text)


def test_names_are_rabbitmqs_or_the_gates_own() -> None:
    rabbitmq = known_patterns()
    unknown = {spec.pattern for spec in KEYS if spec.pattern not in rabbitmq}
    assert {pattern for pattern in unknown if not OWN.match(pattern)} == ALIASES


def test_every_sentence_is_one() -> None:
    for spec in KEYS:
        assert spec.doc.endswith(".")
        assert "|" not in spec.doc + spec.type.name, "it is a cell of a markdown table"


def test_annotated_sample_is_the_table() -> None:
    assert ANNOTATED.read_text(encoding="utf-8") == annotated_conf(), (
        "write gatekeeper.config.schema.annotated_conf() to config/gatekeeper.annotated.conf"
    )


def test_annotated_sample_has_every_key_with_its_default_and_no_other() -> None:
    """Independently of how it was made: take the comments off and read it."""
    text = re.sub(r"(?m)^# (?=[\w.]+ = )", "", ANNOTATED.read_text(encoding="utf-8"))
    shown: dict[str, dict[str, str]] = {}
    for entry in parse(text, "annotated"):
        assert isinstance(entry, Setting)
        spec = find(entry.key)
        assert spec is not None, entry.key
        shown.setdefault(spec.pattern, {})[".".join(entry.key)] = entry.text
    assert shown == {spec.pattern: dict(spec.default or spec.example) for spec in KEYS}


@pytest.mark.parametrize("name", ["gatekeeper.conf", "gatekeeper.annotated.conf"])
def test_samples_load(name: str) -> None:
    settings = load_settings(ROOT / "config" / name, ENVIRON)
    assert settings.warnings == ()
    assert settings.upstreams["default"].password.value == b"hunter2"


def test_minimal_sample_differs_from_the_defaults_only_where_it_says_so() -> None:
    minimal = load_settings(ROOT / "config" / "gatekeeper.conf", ENVIRON)
    annotated = load_settings(ROOT / "config" / "gatekeeper.annotated.conf", ENVIRON)
    assert [str(a) for a in minimal.tcp_listeners] == ["127.0.0.1:5672"]
    assert minimal.upstreams == annotated.upstreams
    assert replace(minimal, tcp_listeners=annotated.tcp_listeners) == annotated


def test_readme_has_the_table() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    _, begin, rest = readme.partition("<!-- keys:begin -->\n")
    table, end, _ = rest.partition("<!-- keys:end -->")
    assert begin, "README.md needs <!-- keys:begin --> and <!-- keys:end -->"
    assert end, "README.md needs <!-- keys:end -->"
    assert table.strip() == markdown_table().strip(), (
        "put gatekeeper.config.schema.markdown_table() between the markers"
    )


def test_refusals_hit_known_keys_or_the_gates_own() -> None:
    known = known_patterns()
    for rule in REFUSALS:
        hit = [p for p in known if rule.matches(tuple(p.split(".")))]
        assert hit or rule.pattern in {"control.**", "connection_max"}


def test_no_refused_key_is_supported() -> None:
    for spec in KEYS:
        assert refusal(tuple(word.replace("$", "x") for word in spec.words)) is None


SECURITY = re.compile(
    r"auth_|password|pass$|tls|ssl|secret|verify|crl|limit|max_|_max|validator|definitions"
    r"|loopback|anonymous|users|permissions|hashing|trust|cert"
)
ELSEWHERE = re.compile(
    r"(amqp10_client|amqp_client|auth_cache|auth_http|auth_ldap|auth_oauth2|cluster_formation"
    r"|log\.syslog|mqtt|prometheus|quorum_queue|raft|stomp|stream|tracing|web_mqtt|web_stomp"
    r"|management|http_dispatch|default_policies|log\.\w+\.rotation|queue_types|vm_memory\w*)\."
)
HARMLESS = {
    # Identity from a certificate, and ANONYMOUS: mechanisms that the gate refuses to offer.
    # What the gate does is the stricter side, whatever is asked for.
    "ssl_allow_poodle_attack",
    "ssl_options.client_renegotiation",
    "ssl_options.secure_renegotiate",
    # Performance, preferences and logs of Erlang's TLS.
    "ssl_options.bypass_pem_cache",
    "ssl_options.dh",
    "ssl_options.dhfile",
    "ssl_options.honor_ecc_order",
    "ssl_options.log_alert",
    "ssl_options.log_level",
    "definitions.tls.dh",
    "definitions.tls.log_alert",
    "definitions.tls.log_level",
    "definitions.tls.reuse_session",
    "definitions.tls.reuse_sessions",
    "definitions.tls.secure_renegotiate",
    # A server's option, which RabbitMQ's client has no use for either.
    "definitions.tls.fail_if_no_peer_cert",
    # The broker behind the gate enforces its own.
    "cluster_exchange_limit",
    "cluster_queue_limit",
    "consumer_max_per_channel",
    "disk_free_limit.absolute",
    "disk_free_limit.relative",
    "link_max_per_session",
    "mirroring_sync_max_throughput",
    "mnesia_table_loading_retry_limit",
    "num_acceptors.ssl",
    "runtime_parameters.limits.$category",
    "session_max_per_connection",
    "shovel.local.max_credit",
}


def test_every_ignored_key_that_sounds_like_security_was_judged() -> None:
    """A key that RabbitMQ gains, or a refusal that is dropped, must come by this list."""
    ignored = {
        pattern
        for pattern in known_patterns()
        if pattern not in BY_PATTERN
        and refusal(tuple(pattern.split("."))) is None
        and SECURITY.search(pattern)
        and not ELSEWHERE.match(pattern)
    }
    assert ignored == HARMLESS


def test_known_keys() -> None:
    known = KnownKeys()
    assert ("mqtt", "vhost") in known
    assert ("cluster_tags", "anything") in known
    assert ("cluster_tags",) not in known
    assert ("nonsense",) not in known
    assert len(list(known.patterns())) == len(known_patterns()) == 1102


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("heartbeats", "heartbeat"),
        ("listener.tcp.default", "listeners.tcp.$name"),
        ("upstream.default.servers.1", "upstreams.$name.servers.$n"),
        ("ssl_option.verify", "ssl_options.verify"),
        ("frame-max", "frame_max"),
    ],
)
def test_nearest(key: str, expected: str) -> None:
    found = nearest(tuple(key.split(".")), tuple(spec.words for spec in KEYS))
    assert found[0] == expected
    assert len(found) <= 3


def distance(a: str, b: str) -> int:
    """Levenshtein's definition, written down."""
    if not a or not b:
        return len(a) + len(b)
    change = distance(a[1:], b[1:]) + (a[0] != b[0])
    return min(change, distance(a[1:], b) + 1, distance(a, b[1:]) + 1)


@given(st.text("ab", max_size=5), st.text("abc", max_size=5), st.integers(0, 6))
def test_edit_distance(a: str, b: str, limit: int) -> None:
    expected = distance(a, b)
    assert edit_distance(a, b, limit) == (expected if expected <= limit else None)
