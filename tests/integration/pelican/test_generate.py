"""Bundles and exported models written to a federation: whole files, a run that goes on there, refusal before the work begins."""

from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from crmuons.cli import main
from crmuons.storage import files
from crmuons.storage.pelican import federation as client
from tests.integration.pelican.federation.federation import Federation, federation, what_is_missing
from tests.integration.ray.test_generate import save

MISSING = what_is_missing()
pytestmark = [pytest.mark.pelican, pytest.mark.skipif(bool(MISSING), reason=MISSING)]


@pytest.fixture(scope="module")
def running() -> Iterator[Federation]:
    with pytest.MonkeyPatch.context() as patch, federation() as running:
        patch.setenv("SSL_CERT_FILE", str(running.ca))
        yield running


@pytest.fixture
def fed(running: Federation, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Federation:
    monkeypatch.setattr(client, "_federations", {})
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("BEARER_TOKEN", running.token("storage.read:/ storage.create:/ storage.modify:/"))
    return running


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(save(tmp_path_factory.mktemp("run"), "set"))


def generate(model: Path, out: object) -> int:
    words = ["--spectrum", "events=3000", "--counts", "5", "--events-per-shard", "1024"]
    return main(["generate", "--model", str(model), "--out", str(out), *words])


def test_bundles_go_to_a_federation_and_an_interrupted_run_goes_on_there(
    fed: Federation, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url, there = fed.url("/private/generated/a"), fed.data / "private/generated/a"
    assert generate(model, tmp_path / "here") == generate(model, url) == 0
    wanted = {path.name: pq.read_table(path) for path in (tmp_path / "here").glob("*.parquet")}
    assert len(wanted) == 3
    assert {path.name: pq.read_table(path) for path in there.glob("*.parquet")} == wanted
    second, third = there / "events-00001.parquet", there / "events-00002.parquet"
    second.write_bytes(second.read_bytes()[:20_000])  # What a killed upload leaves.
    third.unlink()
    assert generate(model, url) == 0
    assert {path.name: pq.read_table(path) for path in there.glob("*.parquet")} == wanted
    assert "3000 events with 15000 muons" in capsys.readouterr().out


def test_a_model_is_exported_to_a_federation(fed: Federation, model: Path, tmp_path: Path) -> None:
    url = fed.url("/private/exported/a")
    assert main(["export", str(model), "--out", url]) == 0
    files.get_tree(url, tmp_path / "back")
    assert (tmp_path / "back/weights.pt").read_bytes() == (model / "weights.pt").read_bytes()
    assert {path.name for path in (tmp_path / "back").iterdir()} == {
        "README.txt",
        "bundles.py",
        "model.json",
        "weights.pt",
    }
    assert main(["export", str(model), "--out", url]) == 1


def test_without_a_token_that_covers_the_place_nothing_is_done(
    fed: Federation, model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("BEARER_TOKEN", fed.token("storage.read:/ storage.create:/elsewhere"))
    url = fed.url("/private/generated/b")
    for words in (generate, lambda model, url: main(["export", str(model), "--out", url])):
        assert words(model, url) == 1
        assert f"{url} cannot be written with" in capsys.readouterr().err
    assert not (fed.data / "private/generated/b").exists()
