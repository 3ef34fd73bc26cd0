"""Writing to pelican:// on a real XRootD federation: each file once, whatever fails on the way."""

import os
from pathlib import Path

import pytest

from crmuons.storage import artifacts, files
from tests.integration.pelican.federation.federation import Federation, what_is_missing

MISSING = what_is_missing()
pytestmark = [pytest.mark.pelican, pytest.mark.skipif(bool(MISSING), reason=MISSING)]


def test_a_file_is_written_once(fed: Federation, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("BEARER_TOKEN", fed.token("storage.read:/ storage.create:/ storage.modify:/"))
    local = tmp_path / "local"
    local.write_bytes(os.urandom(3_000_000))
    url = fed.url("/private/results/run-1/model.pt")
    files.check_writable(url)
    files.put(local, url)
    assert (fed.data / "private/results/run-1/model.pt").read_bytes() == local.read_bytes() == files.read_bytes(url)
    with pytest.raises(FileExistsError, match=r"model.pt exists.*take a new name"):
        files.put(local, url)


def test_a_folder_of_results_goes_there_and_back(
    fed: Federation, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("BEARER_TOKEN", fed.token("storage.read:/ storage.create:/"))
    (tmp_path / "run/checkpoints/step-5").mkdir(parents=True)
    for name in ("config.json", "checkpoints/step-5/weights.pt"):
        (tmp_path / "run" / name).write_text(name)
    url = fed.url("/private/results/tree")
    assert len(files.put_tree(tmp_path / "run", url)) == 2
    assert files.put_tree(tmp_path / "run", url) == []
    files.get_tree(url, tmp_path / "back")
    assert (tmp_path / "back/checkpoints/step-5/weights.pt").read_text() == "checkpoints/step-5/weights.pt"


@pytest.mark.parametrize("scope", ["create", "modify"])
@pytest.mark.parametrize(
    "fault",
    [{"status": 503}, {"reset": True}, {"lost": True}, {"break_upload": 100_000}, {"stall_upload": 100_000}],
    ids=str,
)
def test_writing_survives_faults(
    fed: Federation, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, fault: dict[str, object], scope: str
) -> None:
    # With "create" nothing is overwritten: a file that arrived must be known for it, and half a one takes another name.
    monkeypatch.setenv("BEARER_TOKEN", fed.token(f"storage.read:/ storage.{scope}:/"))
    (tmp_path / "folder").mkdir()
    local = tmp_path / "folder" / "local"
    local.write_bytes(os.urandom(300_000))
    url = fed.url(f"/private/results/{scope}-{'-'.join(fault)}")
    fed.fault("origin", methods=["PUT"], first=1, **fault)
    name = artifacts.upload(url, local.parent, "x", {})
    assert any(entry["fault"] for entry in fed.log("origin"))
    artifacts.download(url, name, tmp_path / "back")
    assert (tmp_path / "back/local").read_bytes() == local.read_bytes()


def test_what_broke_off_is_not_taken_for_the_file(
    fed: Federation, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("BEARER_TOKEN", fed.token("storage.read:/ storage.create:/"))
    local = tmp_path / "local"
    local.write_bytes(os.urandom(300_000))
    url = fed.url("/private/results/broken")
    fed.fault("origin", methods=["PUT"], break_upload=100_000, first=1)
    with pytest.raises(FileExistsError, match=r"broken holds \d+ bytes of an interrupted upload, .* take a new name"):
        files.put(local, url)


def test_a_place_is_tried_where_no_scope_tells(fed: Federation, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BEARER_TOKEN", fed.token(""))
    url = fed.url("/private/results/tried")
    with pytest.raises(PermissionError, match=f"'{url}' cannot be written: PermissionError: .*permission denied"):
        files.check_writable(url)
    assert 403 in {entry["status"] for entry in fed.log("origin")}


def test_a_folder_is_removed_with_the_scope_that_covers_it(fed: Federation, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BEARER_TOKEN", fed.token("storage.read:/ storage.create:/"))
    url = fed.url("/private/results/removed")
    files.put(fed.ca, f"{url}/a/b")
    with pytest.raises(PermissionError, match=r"a/b cannot be removed with the token .* storage\.modify"):
        files.remove_tree(url)
    monkeypatch.setenv("BEARER_TOKEN", fed.token("storage.read:/ storage.modify:/"))
    files.remove_tree(url)
    assert not (fed.data / "private/results/removed").exists()
    files.remove_tree(url)


@pytest.mark.parametrize("scope", ["storage.read:/", "storage.read:/ storage.modify:/elsewhere"])
def test_writing_without_the_scope_is_refused_before_any_upload(
    fed: Federation, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, scope: str
) -> None:
    monkeypatch.setenv("BEARER_TOKEN", fed.token(scope))
    url = fed.url("/private/results/refused")
    for attempt in (lambda: files.check_writable(url), lambda: files.put(fed.ca, url)):
        with pytest.raises(PermissionError, match=rf"{url} cannot be written with .*{scope}.*crmuons login --write"):
            attempt()
    assert "PUT" not in {entry["method"] for entry in fed.log()}
