"""The growth benchmark on a store small enough for every test run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.bench import policy_scale


def test_definitions_are_deterministic_and_of_the_promised_size(tmp_path: Path) -> None:
    one, two = tmp_path / "1.json", tmp_path / "2.json"
    assert policy_scale.write_definitions(one, 300) == 900  # three vhosts: three permissions each
    policy_scale.write_definitions(two, 300)
    assert one.read_bytes() == two.read_bytes()
    document = json.loads(one.read_text())
    assert len({user["name"] for user in document["users"]}) == 300
    assert len(document["vhosts"]) == 3
    assert policy_scale.write_definitions(one, 1000) == 10_000


def test_the_steps_and_their_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policy_scale, "MANY", 300)
    database = tmp_path / "s.db"
    policy_scale.write_definitions(database.with_suffix(".json"), 200)
    found = {
        f"import_{key}": value for key, value in policy_scale.import_step(database, 200).items()
    }
    assert found["import_permissions"] == 400
    served = policy_scale.serve_step(database, 200)
    assert min(served.values()) > 0
    found |= served | {f"warm_{key}": value for key, value in served.items()}
    found |= {key: 0.0 for _, key, _, _ in policy_scale.COLUMNS if key not in found}
    lines = policy_scale.table([found, found]).splitlines()
    assert len(lines) == len(policy_scale.COLUMNS)
    assert lines[2].split() == ["permissions", "400", "400"]
