"""Artifacts at a URL: found once they are complete, and verified by the digest in their names."""

import json

import fsspec
import pytest

from crmuons.storage import artifacts, files


@pytest.fixture
def url(tmp_path):
    """An object store, which replaces what is overwritten."""
    return f"memory://bundles{tmp_path}"


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "folder"
    (folder / "below").mkdir(parents=True)
    (folder / "weights").write_bytes(b"w" * 1000)
    (folder / "below/metrics").write_text("{}\n")
    return folder


def test_a_bundle_comes_back_as_it_was(url, folder, tmp_path):
    name = artifacts.upload(url, folder, "step-00000005", {"best": 3})
    assert artifacts.find_artifacts(url, r"step-\d{8}") == [name]
    assert artifacts.is_whole(url, name)
    manifest = artifacts.download(url, name, tmp_path / "back")
    assert (manifest.label, manifest.about) == ("step-00000005", {"best": 3})
    assert (tmp_path / "back/weights").read_bytes() == b"w" * 1000
    assert (tmp_path / "back/below/metrics").read_text() == "{}\n"


def test_the_same_content_has_one_name_and_other_content_another(url, folder):
    first = artifacts.upload(url, folder, "model-00000001", {})
    assert artifacts.upload(url, folder, "model-00000001", {}) == first
    (folder / "weights").write_bytes(b"v" * 1000)
    assert artifacts.upload(url, folder, "model-00000001", {}) != first
    assert len(artifacts.find_artifacts(url, "model-00000001")) == 2
    assert artifacts.find_artifacts(url, "model") == []  # Labels are matched whole.


def break_off_at(monkeypatch, name):
    """Interrupt uploads before a file."""
    put = files.put

    def breaking(local, target):
        if name in target:
            msg = "broken"
            raise ConnectionError(msg)
        put(local, target)

    monkeypatch.setattr(files, "put", breaking)


@pytest.mark.parametrize("at", ["weights", "manifest"])
def test_what_broke_off_is_no_bundle_and_is_completed_by_the_next_attempt(url, folder, tmp_path, monkeypatch, at):
    with monkeypatch.context() as patch:
        break_off_at(patch, at)
        with pytest.raises(ConnectionError):
            artifacts.upload(url, folder, "start", {})
    (name,) = artifacts.find_artifacts(url, "start")
    assert not artifacts.is_whole(url, name)
    with pytest.raises(
        artifacts.DamagedArtifactError, match=r"start-\w{16} has no manifest .* its upload was interrupted"
    ):
        artifacts.download(url, name, tmp_path / "back")
    assert artifacts.upload(url, folder, "start", {}) == name
    assert artifacts.is_whole(url, name)


def overwrite(url, change):
    path = fsspec.core.url_to_fs(url)[1]
    memory = fsspec.filesystem("memory")
    memory.pipe_file(path, change(memory.cat_file(path)))


def of_another(content):
    """A complete manifest of other content, as a cache may serve it for a name that was used before."""
    return json.dumps(json.loads(content) | {"about": {"best": 4}}).encode()


DAMAGE = {
    "a changed file": ("weights", lambda content: b"x" + content[1:], "weights does not match its manifest"),
    "half a manifest": ("manifest.json", lambda content: content[:50], "no manifest that matches"),
    "a manifest of something else": ("manifest.json", of_another, "no manifest that matches"),
    "a manifest that is a list": ("manifest.json", lambda _: b"[]", "no manifest that matches"),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_what_does_not_fit_its_name_is_not_believed(url, folder, tmp_path, case):
    file, change, message = DAMAGE[case]
    name = artifacts.upload(url, folder, "start", {})
    overwrite(f"{url}/{name}/{file}", change)
    with pytest.raises(artifacts.DamagedArtifactError, match=message):
        artifacts.download(url, name, tmp_path / "back")
    assert not (tmp_path / "back").exists()
    assert not list(tmp_path.glob(".back*"))


def test_a_file_that_is_gone_is_damage(url, folder, tmp_path):
    name = artifacts.upload(url, folder, "start", {})
    fsspec.filesystem("memory").rm_file(fsspec.core.url_to_fs(f"{url}/{name}/weights")[1])
    assert not artifacts.is_whole(url, name)
    with pytest.raises(artifacts.DamagedArtifactError, match="weights"):
        artifacts.download(url, name, tmp_path / "back")


def test_what_cannot_be_overwritten_takes_the_next_name(url, folder, tmp_path, monkeypatch):
    """A federation keeps the partial file of an interrupted upload; with XRootD it is empty."""
    name = artifacts.ArtifactManifest.of("start", folder, {}).name
    for left in ("weights", "weights.1", "manifest.json"):
        fsspec.filesystem("memory").pipe_file(fsspec.core.url_to_fs(f"{url}/{name}/{left}")[1], b"")
    put = files.put

    def put_once(local, target):
        if files.exists(target):
            raise FileExistsError(target)
        put(local, target)

    monkeypatch.setattr(files, "put", put_once)
    assert artifacts.upload(url, folder, "start", {}) == name
    assert {"weights.2", "manifest.json.1"} <= files.sizes(f"{url}/{name}").keys()
    artifacts.download(url, name, tmp_path / "back")
    assert (tmp_path / "back/weights").read_bytes() == b"w" * 1000
