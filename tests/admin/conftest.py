from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.admin.serving import Api
from tests.support.rabbit import definitions, permission, user

STATE = definitions(
    users=[
        user("guest", "guest", ["administrator"]),
        user("mgmt", "mgmt", ["management"]),
        user("mon", "mon", ["monitoring"]),
        user("kept", "kept", ["administrator", "protected"]),
        user("plain", "plain"),
    ],
    vhosts=["/", "v2"],
    permissions=[permission("guest"), permission("mgmt"), permission("guest", "v2")],
)


@pytest.fixture
def api(tmp_path: Path) -> Iterator[Api]:
    with Api(tmp_path, STATE) as serving:
        yield serving
