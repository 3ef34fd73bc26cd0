"""Models at URLs, fetched to this machine: a run that is kept at a URL, one of its checkpoints, or a model directory."""

import hashlib
import re
import shutil
from pathlib import Path

from crmuons.runs.location import caches
from crmuons.storage import artifacts, files


def local(place: str | Path) -> Path:
    """The directory of a model; for a URL, of a copy.

    Of a run's URL this is the selected model, or before its end the newest checkpoint. What a run has written never changes, so
    it is fetched once; another directory is fetched each time.

    Raises:
        FileNotFoundError: if there is nothing at the URL.
        DamagedError: if it is not what was written.
    """
    url = str(place).rstrip("/")
    if "://" not in url:
        return Path(place)
    storage, name = _bundle(url)
    copies = caches() / "models" / hashlib.sha256(storage.encode()).hexdigest()[:8]
    if name is None:
        shutil.rmtree(copies, ignore_errors=True)
        files.get_tree(url, copies)
        return copies
    if not (copies / name).is_dir():
        artifacts.get(storage, name, copies / name)
    return copies / name


def _bundle(url: str) -> tuple[str, str | None]:
    """The URL of a run and the name of its model; None as the name, where a URL is no run's."""
    above, _, last = url.rpartition("/")
    if re.fullmatch(r"(?:model|step)-\d{8}-[0-9a-f]{16}", last):
        return above, last
    for label in (r"model-\d{8}", r"step-\d{8}"):
        for name in reversed(artifacts.find(url, label)):
            if artifacts.is_whole(url, name):
                return url, name
    return url, None
