"""Folders at a URL that are never half there, replaced or stale.

Each is named LABEL-DIGEST, by the digest of its manifest, which names every file with its size and SHA-256 and is written last.
So nothing is ever overwritten, the newest is found in the folder's listing rather than in a pointer (a cache would serve an old
one for days), and what is half written, damaged or another run's does not fit its name.
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
from crmuons.storage.atomic import atomic_directory

logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"
MAX_NAMES = 20  # Each upload that breaks off, and may not be overwritten, takes a name.


class DamagedError(OSError):
    """What a URL holds is not what its manifest says."""


@dataclass(frozen=True)
class ArtifactManifest:
    """What a bundle holds.

    Attributes:
        label: what it is, such as `step-00000500`.
        files: size in bytes and SHA-256 of each file, by its path in the bundle.
        about: what else there is to say of it.
    """

    label: str
    files: Mapping[str, tuple[int, str]]
    about: Mapping[str, Any]

    @classmethod
    def of(cls, label: str, folder: Path, about: Mapping[str, Any]) -> "ArtifactManifest":
        """The manifest of a local folder."""
        found = sorted(path for path in folder.rglob("*") if path.is_file())
        entries = {path.relative_to(folder).as_posix(): (path.stat().st_size, _sha256(path)) for path in found}
        return cls(label, entries, dict(about))

    @property
    def name(self) -> str:
        """Of the bundle's folder."""
        content = json.dumps([self.label, self.files, self.about], sort_keys=True)
        return f"{self.label}-{hashlib.sha256(content.encode()).hexdigest()[:16]}"


def find(url: str, label: str) -> list[str]:
    """The names in a folder that bundles with labels of a pattern have, sorted; they may yet be incomplete."""
    return [name for name in files.names(url) if re.fullmatch(rf"(?:{label})-[0-9a-f]{{16}}", name)]


def upload(url: str, folder: Path, label: str, about: Mapping[str, Any]) -> str:
    """Copy a local folder; what is there of it from an earlier attempt is not sent again.

    Args:
        url: the folder in which the bundle's own folder appears.
        folder: what to copy.
        label: what it is.
        about: numbers and words that are kept with it.

    Returns:
        The bundle's name.

    Raises:
        OSError: see `files.put`. What is there by then is not taken for a bundle, and the next attempt goes on from it.
    """
    manifest = ArtifactManifest.of(label, folder, about)
    target = f"{url}/{manifest.name}"
    there = files.sizes(target)
    places = {name: _put(folder / name, target, name, there) for name in manifest.files}
    written = folder.with_name(f"{folder.name}.manifest")
    written.write_text(json.dumps({**vars(manifest), "places": places}, indent=1))
    _put(written, target, MANIFEST, there)
    written.unlink()
    return manifest.name


def download(url: str, name: str, folder: Path) -> ArtifactManifest:
    """Copy a bundle to a local folder, which appears once it is whole and found to be what its name says.

    Raises:
        DamagedError: if it is incomplete or not what its manifest says.
    """
    manifest, places = _read_manifest(f"{url}/{name}", name)
    with atomic_directory(folder, replace=True) as partial:
        for path, (_, digest) in manifest.files.items():
            try:
                files.get(f"{url}/{name}/{places[path]}", partial / path)
            except FileNotFoundError as error:
                raise DamagedError(str(error)) from error
            if _sha256(partial / path) != digest:
                msg = f"{url}/{name}/{places[path]} is not what its manifest says: it was changed or damaged"
                raise DamagedError(msg)
    return manifest


def is_whole(url: str, name: str) -> bool:
    """Whether a bundle's manifest is there, and every file with its size."""
    try:
        manifest, places = _read_manifest(f"{url}/{name}", name)
    except DamagedError:
        return False
    there = files.sizes(f"{url}/{name}")
    return all(there.get(places[path]) == size for path, (size, _) in manifest.files.items())


def _read_manifest(url: str, name: str) -> tuple[ArtifactManifest, dict[str, str]]:
    """The manifest of a bundle, and where in the bundle each file lies."""
    for each in sorted(each for each in files.names(url) if re.fullmatch(r"manifest\.json(\.\d+)?", each)):
        try:
            content = json.loads(files.read_bytes(f"{url}/{each}"))
            places = content.pop("places")
            content["files"] = {path: tuple(entry) for path, entry in content["files"].items()}
            if (manifest := ArtifactManifest(**content)).name == name:
                return manifest, places
        except (ValueError, KeyError, TypeError, AttributeError):  # An upload that broke off leaves the half of one.
            continue
    msg = f"{url} has no manifest that fits its name: its upload broke off, or it is damaged"
    raise DamagedError(msg)


def _put(local: Path, url: str, name: str, there: Mapping[str, int]) -> str:
    """Copy a file under the first name that is free, or holds it already; returns that name."""
    for place in _names(name):
        if there.get(place) == local.stat().st_size:
            return place
        try:
            files.put(local, f"{url}/{place}")
        except FileExistsError as error:  # What an upload that broke off left, where nothing can be overwritten.
            logger.info("%s: trying another name", error)
            continue
        return place
    msg = (
        f"{url}/{name} cannot be written: {MAX_NAMES} uploads of it broke off, and what they left cannot be overwritten"
    )
    raise OSError(msg)


def _names(name: str) -> Iterator[str]:
    yield name
    yield from (f"{name}.{number}" for number in range(1, MAX_NAMES))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
