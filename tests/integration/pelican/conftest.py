"""A federation of two XRootD servers with data, and a client that knows nothing of it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from crmuons.data.arrow import write_events
from crmuons.storage.pelican import federation as client
from tests.integration.pelican.federation.federation import Federation, federation
from tests.integration.pelican.sample import RUN_DIRECTORIES, events

WAITS = {"CONNECT_S": "5", "READ_S": "1.5", "PATIENCE_S": "20", "START_S": "3", "TOKEN_S": "3"}


@pytest.fixture(scope="module")
def running() -> Iterator[Federation]:
    with (
        pytest.MonkeyPatch.context() as patch,
        federation(lifetime_s=70) as running,
    ):
        patch.setenv("SSL_CERT_FILE", str(running.ca))
        for name, value in WAITS.items():
            patch.setenv(f"CRMUONS_PELICAN_{name}", value)
        for namespace in ("public", "private"):
            for seed, runs in enumerate(RUN_DIRECTORIES):
                folder = running.data / namespace / "sim" / runs
                folder.mkdir(parents=True)
                for part in range(2):
                    write_events(folder / f"part{part}.parquet", [events(10 * seed + part)], row_group_rows=500)
        yield running


@pytest.fixture
def fed(running: Federation, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Federation:
    """The federation without faults, and a client that knows nothing of it and has no token."""
    running.clear()
    monkeypatch.setattr(client, "_federations", {})
    for name in ("BEARER_TOKEN", "BEARER_TOKEN_FILE", "_CONDOR_CREDS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    return running
