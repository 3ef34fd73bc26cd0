"""Immutable folders at a URL, each verified by the digest in its name.

An artifact is a folder named LABEL-DIGEST. DIGEST is the digest of its manifest, which names every file with its size
and SHA-256 and is written last. No artifact is ever overwritten. The newest is found in a listing, not through a
pointer file, because a cache may serve an old pointer for days. A folder that is incomplete, damaged or from another
run does not match its name.
"""

import hashlib
import json
import logging
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crmuons.storage import files
from crmuons.storage.atomic import atomic_directory, check_owned
from crmuons.storage.bounds import check_copy
from crmuons.storage.inside import inside, relative_name

logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"
MAX_MANIFEST_BYTES = 2**24  # Enough for MAX_FILES (storage/bounds.py) with long names.
MAX_NAMES = 20  # An interrupted upload uses up a file name if the token does not allow overwriting.


class DamagedArtifactError(OSError):
    """Raised if the files at a URL do not match their manifest."""


@dataclass(frozen=True)
class ArtifactManifest:
    """The content of an artifact.

    Attributes:
        label: what the artifact is, such as `step-00000500`.
        files: size in bytes and SHA-256 of each file, by its path in the artifact.
        about: further numbers and text about it.
    """

    label: str
    files: Mapping[str, tuple[int, str]]
    about: Mapping[str, Any]

    @classmethod
    def of(cls, label: str, folder: Path, about: Mapping[str, Any]) -> "ArtifactManifest":
        """Compute the manifest of a local folder."""
        paths = sorted(path for path in folder.rglob("*") if path.is_file())
        entries = {path.relative_to(folder).as_posix(): (path.stat().st_size, _sha256(path)) for path in paths}
        return cls(label, entries, dict(about))

    @property
    def name(self) -> str:
        """The name of the artifact's folder, LABEL-DIGEST."""
        content = json.dumps([self.label, self.files, self.about], sort_keys=True)
        return f"{self.label}-{hashlib.sha256(content.encode()).hexdigest()[:16]}"


def find_artifacts(url: str, label: str) -> list[str]:
    """Return the sorted names of the artifacts in a folder whose labels match a regular expression.

    Some may be incomplete; see `is_whole`.
    """
    return [name for name in files.names(url) if re.fullmatch(rf"(?:{label})-[0-9a-f]{{16}}", name)]


def upload(url: str, folder: Path, label: str, about: Mapping[str, Any]) -> str:
    """Copy a local folder to a new artifact. Files that an earlier attempt copied are not sent again.

    Args:
        url: the parent folder, in which the artifact's folder appears.
        folder: the local folder to copy.
        label: what the artifact is, such as `step-00000500`.
        about: numbers and text to keep in the manifest.

    Returns:
        The artifact's name.

    Raises:
        OSError: if a file cannot be copied; see `files.put`. The incomplete folder does not count as an artifact, and
            the next attempt continues from it.
    """
    check_owned(url)
    manifest = ArtifactManifest.of(label, folder, about)
    target = f"{url}/{manifest.name}"
    remote_sizes = files.sizes(target)
    places = {name: _put(folder / name, target, name, remote_sizes) for name in manifest.files}
    written = folder.with_name(f"{folder.name}.manifest")
    written.write_text(json.dumps({**vars(manifest), "places": places}, indent=1), encoding="utf-8")
    _put(written, target, MANIFEST, remote_sizes)
    written.unlink()
    return manifest.name


def download(url: str, name: str, folder: Path) -> ArtifactManifest:
    """Copy an artifact to a local folder, which appears once every checksum is verified.

    Raises:
        DamagedArtifactError: if the artifact is incomplete or does not match its manifest.
        OutsideError: if the manifest names a file outside the artifact.
        TooMuchError: if it names more files or bytes than a run can have.
    """
    manifest, places = _read_manifest(f"{url}/{name}", name)
    check_copy({path: size for path, (size, _) in manifest.files.items()}, f"{url}/{name}/{MANIFEST}", folder)
    # Sizes are checked before copying, because a server may have another file there, even one without an end.
    remote_sizes = files.sizes(f"{url}/{name}")
    with atomic_directory(folder, replace=True) as partial:
        for path, (size, digest) in manifest.files.items():
            if remote_sizes.get(places[path], size) != size:
                raise DamagedArtifactError(_mismatch(f"{url}/{name}/{places[path]}"))
            target = inside(partial, path, f"{url}/{name}/{MANIFEST}")
            try:
                files.get(f"{url}/{name}/{places[path]}", target)
            except FileNotFoundError as error:
                raise DamagedArtifactError(str(error)) from error
            if _sha256(target) != digest:
                raise DamagedArtifactError(_mismatch(f"{url}/{name}/{places[path]}"))
    return manifest


def _mismatch(url: str) -> str:
    return f"{url} does not match its manifest: it was changed or damaged"


def is_whole(url: str, name: str) -> bool:
    """Return whether an artifact has its manifest, and every file in it with the right size."""
    try:
        manifest, places = _read_manifest(f"{url}/{name}", name)
    except DamagedArtifactError:
        return False
    remote_sizes = files.sizes(f"{url}/{name}")
    return all(remote_sizes.get(places[path]) == size for path, (size, _) in manifest.files.items())


def _read_manifest(url: str, name: str) -> tuple[ArtifactManifest, dict[str, str]]:
    """Return the manifest of an artifact, and the remote name of each of its files."""
    candidates = sorted(entry for entry in files.names(url) if re.fullmatch(r"manifest\.json(\.\d+)?", entry))
    for candidate in candidates[:MAX_NAMES]:
        content = files.read_bytes(f"{url}/{candidate}", MAX_MANIFEST_BYTES)
        try:
            content = json.loads(content, object_pairs_hook=_once)
            places = content.pop("places")
            content["files"] = {path: (size, digest) for path, (size, digest) in content["files"].items()}
            manifest = ArtifactManifest(**content)
            matches = manifest.name == name and places.keys() >= manifest.files.keys()
        # An interrupted upload may leave half a manifest; a stranger may write endless nested brackets.
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            continue
        if matches:
            for path in (*manifest.files, *places.values()):  # The digest proves nothing: its author made both.
                relative_name(path, f"{url}/{candidate}")
            return manifest, places
    msg = f"{url} has no manifest that matches its name: its upload was interrupted, or it is damaged"
    raise DamagedArtifactError(msg)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return a JSON object, and refuse equal keys: Python would take the last one."""
    if len(content := dict(pairs)) < len(pairs):
        msg = "a key occurs twice"
        raise ValueError(msg)
    return content


def _put(local: Path, url: str, name: str, remote_sizes: Mapping[str, int]) -> str:
    """Copy a file to the first of its possible names that is free or already holds it, and return that name."""
    for place in _names(name):
        if remote_sizes.get(place) == local.stat().st_size:
            return place
        try:
            files.put(local, f"{url}/{place}")
        except FileExistsError as error:  # Left by an interrupted upload; the token does not allow overwriting it.
            logger.info("%s: trying another name", error)
            continue
        return place
    msg = (
        f"{url}/{name} cannot be written: {MAX_NAMES} uploads of it were interrupted, and the token does not allow "
        "overwriting the partial files; remove them"
    )
    raise OSError(msg)


def _names(name: str) -> Iterator[str]:
    yield name
    yield from (f"{name}.{number}" for number in range(1, MAX_NAMES))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
