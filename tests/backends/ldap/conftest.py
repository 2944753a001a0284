"""One directory for all tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.rabbit import TlsFiles
from tests.support.slapd import Slapd


@pytest.fixture(scope="session")
def slapd(tmp_path_factory: pytest.TempPathFactory, tls_files: TlsFiles) -> Iterator[Slapd]:
    with Slapd(tmp_path_factory.mktemp("slapd") / "d", tls=tls_files) as directory:
        yield directory
