"""A sweep's directory: which one a command means, what it was started with, and who may run it."""

import fcntl
import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from crmuons import config
from crmuons.runs.location import RunStorage
from crmuons.storage.differences import differences
from tune.options import SweepOptions
from tune.space import Space

SWEEP_FILE, LOCK_FILE = "sweep.json", "lock"

# These may change when a sweep is continued; its trials have the same of everything else.
MUTABLE_SETTINGS = re.compile(
    r"settings\.(run\.(?!seed$).*|scaling\..*|tracking\..*)"
    r"|options\.(samples|concurrency|cpus_per_trial|gpus_per_trial|max_seconds)"
)


def define(settings: config.Config, space: Space, options: SweepOptions) -> dict[str, Any]:
    """All that a sweep is started with, as JSON can hold it."""
    return {"settings": settings.model_dump(mode="json"), "space": space.to_dict(), "options": asdict(options)}


def find(settings: config.Config, storage: RunStorage, definition: Mapping[str, Any]) -> Path:
    """The sweep's directory: named by run.name, or by the preset and a digest of all that shapes the sweep.

    Raises:
        ValueError: if there is one and it is not to be continued, or was started with something else.
    """
    if storage.url is not None:
        msg = f"run.storage_path = {settings.run.storage_path} is a URL; the trials of a sweep need a directory that all nodes reach"
        raise ValueError(msg)
    fixed = {path: value for path, value in _flat(definition).items() if not MUTABLE_SETTINGS.fullmatch(path)}
    name = settings.run.name
    if name.endswith(settings.digest()):  # Not given by the user.
        digest = hashlib.sha256(json.dumps(fixed, sort_keys=True).encode()).hexdigest()[:8]
        name = f"{name.removesuffix(settings.digest())}sweep-{digest}"
    directory = storage.directory / name
    if not directory.exists() or {path.name for path in directory.iterdir()} <= {LOCK_FILE}:
        return directory
    if settings.run.resume == "never" or not (directory / SWEEP_FILE).is_file():
        msg = (
            f"'{name}' exists in {directory.parent}; continue a sweep with run.resume=auto, or choose another run.name"
        )
        raise ValueError(msg)
    before = json.loads((directory / SWEEP_FILE).read_text())
    before["settings"] = config.with_new_names(before["settings"])
    _check_unchanged(name, _flat(before), fixed)
    return directory


def _check_unchanged(name: str, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    paths = sorted({path for path in before if not MUTABLE_SETTINGS.fullmatch(path)} | set(now))
    changed = differences(before, now, keys=paths, missing="not there")
    if changed:
        msg = f"sweep '{name}' was started with something else: {'; '.join(changed)}. Take it back, or choose another run.name"
        raise ValueError(msg)


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


@contextmanager
def exclusive(directory: Path) -> Iterator[None]:
    """Be the one process that runs the sweep; the kernel frees the lock of one that dies.

    Raises:
        BlockingIOError: if another process is that.
    """
    with (directory / LOCK_FILE).open("wb") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            msg = f"{directory} is being swept by a process that is alive; wait for it, or choose another run.name"
            raise BlockingIOError(msg) from error
        yield
