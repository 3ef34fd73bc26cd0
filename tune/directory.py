"""The directory of a sweep: its name, and the definition in it."""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from crmuons import config
from crmuons.runs.location import RunStorage
from crmuons.storage import records
from crmuons.storage.claims import names_in
from crmuons.storage.differences import differences
from tune.options import SweepOptions
from tune.space import Space

SWEEP_FILE = "sweep.json"

# These may change when a sweep continues. All other settings and options must stay as they were at the start.
MUTABLE_SETTINGS = re.compile(
    r"settings\.(run\.(?!seed$).*|scaling\..*|tracking\..*)"
    r"|options\.(samples|concurrency|cpus_per_trial|gpus_per_trial|max_seconds)"
)


def define(settings: config.Config, space: Space, options: SweepOptions) -> dict[str, Any]:
    """Return everything that defines a sweep, as JSON values."""
    return {"settings": settings.model_dump(mode="json"), "space": space.to_dict(), "options": asdict(options)}


def find_sweep(settings: config.Config, storage: RunStorage, definition: Mapping[str, Any]) -> Path:
    """Return the sweep's directory: run.name, or the preset's name and a digest of everything that must not change.

    Raises:
        ValueError: if the storage is a URL, or if the directory exists and run.resume is "never", it holds no sweep, or
            its sweep was started with another definition.
    """
    if storage.url is not None:
        msg = f"run.storage_path = {settings.run.storage_path} is a URL; a sweep needs a directory that all nodes share"
        raise ValueError(msg)
    fixed = {path: value for path, value in _flat(definition).items() if not MUTABLE_SETTINGS.fullmatch(path)}
    later = {f"settings.{path}": default for path, default in config.LATER.items()}
    name = settings.run.name
    if name.endswith(settings.digest()):  # The user gave no name.
        kept = {path: value for path, value in fixed.items() if path not in later or value != later[path]}
        digest = hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:8]
        name = f"{name.removesuffix(settings.digest())}sweep-{digest}"
    directory = storage.directory / name
    if not names_in(directory) - {"lock"}:  # Sweeps of version 0.1 left a lock.
        return directory
    if settings.run.resume == "never" or not (directory / SWEEP_FILE).is_file():
        msg = (
            f"'{name}' exists in {directory.parent}; continue a sweep with run.resume=auto, or choose another run.name"
        )
        raise ValueError(msg)
    remedy = "copy it back from a backup, or start a new sweep with another run.name"
    stored = records.read(directory / SWEEP_FILE, keys=("settings", "space", "options"), remedy=remedy)
    with records.damage_named(directory / SWEEP_FILE, remedy):
        # The record may lack settings that later versions have.
        stored["settings"] = config.from_stored(stored["settings"]).model_dump(mode="json")
    _check_unchanged(name, _flat(stored), fixed)
    return directory


def _check_unchanged(name: str, stored: Mapping[str, Any], current: Mapping[str, Any]) -> None:
    paths = sorted({path for path in stored if not MUTABLE_SETTINGS.fullmatch(path)} | set(current))
    changed = differences(stored, current, keys=paths, missing="absent")
    if changed:
        msg = (
            f"sweep '{name}' was started with other settings: {'; '.join(changed)}. Use the settings of the start, or "
            "choose another run.name"
        )
        raise ValueError(msg)


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat
