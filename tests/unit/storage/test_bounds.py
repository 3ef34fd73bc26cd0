"""What a stranger lists or writes in a manifest is counted and weighed before anything of it is copied."""

import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from crmuons.generation.load import local_model
from crmuons.storage import artifacts, bounds, files
from crmuons.storage.http import by_info
from tests.unit.storage.test_hostile_servers import Answer, Handler, impatient, of_json, serving, tls

__all__ = ["impatient", "tls"]  # Fixtures.

DIGEST = hashlib.sha256(b"x").hexdigest()


def pages(of: Callable[[str], list[str]]) -> Callable[[Handler], Answer]:
    """Answer each path without a dot in its last part with a page that links to names, and others with one byte."""

    def answer(request: Handler) -> Answer:
        if "." not in request.path.rstrip("/").rpartition("/")[2]:
            links = "".join(f'<a href="{name}">{name}</a>' for name in of(request.path))
            return 200, {"Content-Type": "text/html"}, links.encode()
        if request.headers.get("Range"):
            return 206, {"Content-Range": "bytes 0-0/1"}, b"x"
        return 200, {}, b"x"

    return answer


def test_a_directory_with_too_many_files_is_counted_on_its_page(tmp_path: Path) -> None:
    names = ["model.json", *(f"{number}.bin" for number in range(bounds.MAX_FILES))]
    with serving(pages(lambda _: names)) as (url, seen):
        with pytest.raises(
            bounds.TooMuchError, match=r"/m names more than 10,000 files, .*; nothing was copied; check"
        ):
            files.get_tree(f"{url}/m", tmp_path / "copy")
        assert len(seen) < 10  # No question for each file.
    assert not (tmp_path / "copy").exists()


def test_a_tree_without_end_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounds, "MAX_FILES", 20)
    with serving(pages(lambda path: ["deeper/", "a.bin"])) as (url, seen):
        with pytest.raises(bounds.TooMuchError, match="names more than 20 files"):
            files.get_tree(f"{url}/m", tmp_path / "copy")
        monkeypatch.setattr(by_info, "MAX_FOLDERS", 20)
        with pytest.raises(OSError, match="has more than 20 directories, or one that links to itself"):
            files.list_files(f"{url}/data")
        assert len(seen) < 200


LISTING = """<?xml version="1.0"?><D:multistatus xmlns:D="DAV:">{}</D:multistatus>"""
FOLDER = (
    "<D:response><D:href>{}</D:href><D:propstat><D:prop><D:resourcetype><D:collection/></D:resourcetype>"
    "</D:prop></D:propstat></D:response>"
)


def test_a_tree_without_end_in_a_federation_is_left(
    tls: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(by_info, "MAX_FOLDERS", 20)
    own: list[str] = []

    def answer(request: Handler) -> Answer:
        if "well-known" in request.path:
            return of_json({"director_endpoint": own[0]})
        path = request.path.rstrip("/")
        if request.command == "PROPFIND" and request.headers.get("Depth") is not None:
            inside = [f"{path}/deeper"] if request.headers["Depth"] == "1" else []
            return 207, {}, LISTING.format("".join(map(FOLDER.format, [path, *inside]))).encode()
        headers = {
            "X-Pelican-Namespace": f"namespace=/ns, require-token=false, collections-url={own[0]}",
            "Link": f'<{own[0]}{path}>; rel="duplicate"; pri=1',
        }
        return 307, {**headers, "Location": f"{own[0]}{path}"}, b""

    with serving(answer, tls) as (url, seen):
        own.append(url)
        with pytest.raises(OSError, match="has more than 20 directories, or one that links to itself"):
            files.list_files(f"pelican://{url.removeprefix('https://')}/ns/data")
        assert 20 < len(seen) < 60


def artifact(root: Path, entries: dict[str, object] | str) -> str:
    """Write a manifest of these files, and the name that is right for it; return the artifact's name."""
    if isinstance(entries, str):
        text, name = entries, f"model-00000001-{'0' * 16}"
    else:
        manifest = artifacts.ArtifactManifest("model-00000001", entries, {})  # type: ignore[arg-type]
        name = manifest.name
        text = json.dumps({**vars(manifest), "places": dict.fromkeys(entries, "one")})
    (root / name).mkdir(parents=True)
    (root / name / "manifest.json").write_text(text)
    (root / name / "one").write_bytes(b"x")
    return name


@pytest.mark.parametrize(
    ("entries", "fault"),
    [
        ({f"{number}": (1, DIGEST) for number in range(bounds.MAX_FILES + 1)}, "names more than 10,000 files"),
        ({"one": (10**15, DIGEST)}, "has 1000.0 TB in 1 files, more than the 68.7 GB"),
        ({"one": (10**400, DIGEST)}, "has 1000000000000.0 TB in 1 files, more than"),
        ({"one": (-1, DIGEST)}, "gives 'one' no size that a file can have"),
        ({"one": (0.5, DIGEST)}, "gives 'one' no size that a file can have"),
        ({"one": (1, DIGEST), "one/below": (1, DIGEST)}, "names 'one/below' below a path that is a file"),
    ],
)
def test_a_manifest_is_weighed_before_a_file_is_copied(
    entries: dict[str, object], fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = artifact(tmp_path / "run", entries)
    monkeypatch.setattr(files, "get", lambda *_: pytest.fail("a file was copied"))
    with pytest.raises(ValueError, match=rf"{name}/manifest.json {re.escape(fault)}.*nothing was copied; check"):
        artifacts.download(f"file://{tmp_path}/run", name, tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


def test_more_than_the_disk_has_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounds.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 5}))
    bounds.check_copy({"one": 5}, "https://h/m", tmp_path)
    with pytest.raises(
        bounds.TooMuchError, match=r"https://h/m has 6 B, and .* has 5 B free; nothing was copied; free"
    ):
        bounds.check_copy({"one": 6}, "https://h/m", tmp_path)


def test_a_file_of_another_size_than_its_manifest_is_not_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = artifact(tmp_path / "run", {"one": (2, DIGEST)})
    monkeypatch.setattr(files, "get", lambda *_: pytest.fail("a file was copied"))
    with pytest.raises(artifacts.DamagedArtifactError, match="one does not match its manifest"):
        artifacts.download(f"file://{tmp_path}/run", name, tmp_path / "copy")


@pytest.mark.parametrize(
    "text",
    [
        '{"label": "model-00000001", "files": {"one": [1, "x"], "one": [1, "x"]}, "about": {}, "places": {}}',
        "[" * 100_000, '{"files": []}', "null", '{"files": {"a": 1}, "places": {}}',
    ],
)  # fmt: skip
def test_a_manifest_that_is_none_is_damaged(text: str, tmp_path: Path) -> None:
    name = artifact(tmp_path / "run", text)
    with pytest.raises(artifacts.DamagedArtifactError, match="has no manifest that matches its name"):
        artifacts.download(f"file://{tmp_path}/run", name, tmp_path / "copy")


def test_a_manifest_of_gigabytes_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(artifacts, "MAX_MANIFEST_BYTES", 2**20)
    name = f"model-00000001-{'0' * 16}"

    def answer(request: Handler) -> Answer:
        if "manifest" not in request.path:
            return pages(lambda _: ["manifest.json"])(request)
        first, last = map(int, re.findall(r"\d+", request.headers["Range"]))
        return 206, {"Content-Range": f"bytes {first}-{last}/{10**12}"}, b"[" * (last - first + 1)

    with serving(answer) as (url, _), pytest.raises(ValueError, match=r"manifest.json has more than 1 MiB, too much"):
        local_model(f"{url}/run/{name}")
