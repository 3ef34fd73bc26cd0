"""Checkpoints and saved models: directories that appear under their name only once they are whole.

A model directory holds `model.json` (settings and provenance) and `weights.pt`; torch alone loads it. A checkpoint is a model
directory with `training.pt` beside it: everything else that resume needs.
"""

import json
import os
import re
import shutil
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import torch

from crmuons import config
from crmuons.models.bundle_model import BundleModel
from crmuons.models.features import Features

SETTINGS_FILE, WEIGHTS_FILE, TRAINING_FILE, BEST_FILE = "model.json", "weights.pt", "training.pt", "best"
FORMAT = 1
_NAME = re.compile(r"step-(\d{8})")


def path(directory: Path, step: int) -> Path:
    """Where the checkpoint of a step is."""
    return directory / f"step-{step:08d}"


def step(name: str) -> int:
    """The step of a checkpoint's name, whatever follows it."""
    match = _NAME.match(name)
    assert match is not None, name
    return int(match[1])


def save(directory: Path, step: int, model: BundleModel, about: Mapping[str, Any], training: Mapping[str, Any]) -> Path:
    """Write the checkpoint of a step.

    Args:
        directory: of the run's checkpoints.
        step: steps done.
        model: the averaged model, which is the one that generates.
        about: what `save_model` writes to model.json.
        training: tensors, numbers, strings, lists and dictionaries alone: it is loaded with `weights_only`.

    Raises:
        OSError: if it cannot be written, for instance for want of room. Earlier checkpoints are then untouched.
    """
    target = path(directory, step)
    partial = directory / f".{target.name}.partial"
    try:
        _clear(partial)
        partial.mkdir(parents=True)
        _write_model(partial, model, about)
        _write_tensors(partial / TRAINING_FILE, training)
        _clear(target)  # Of a run that was continued from an earlier checkpoint.
        partial.rename(target)
    except (OSError, RuntimeError) as error:  # torch says RuntimeError where a write falls short
        shutil.rmtree(partial, ignore_errors=True)
        msg = (
            f"checkpoint of step {step} could not be written to {directory} ({_reason(error)}); free space there where the disk is full: "
            "earlier ones are intact"
        )
        raise OSError(msg) from error
    return target


def _reason(error: Exception) -> str:
    """What torch means where it says at which position of its archive it should be and is."""
    return "No space left on device: a write fell short" if "inline_container" in str(error) else str(error)


def save_model(directory: Path, model: BundleModel, about: Mapping[str, Any]) -> Path:
    """Write a model directory, replacing an earlier one of the same name."""
    partial = directory.with_name(f".{directory.name}.partial")
    _clear(partial)
    partial.mkdir(parents=True)
    _write_model(partial, model, about)
    _clear(directory)
    partial.rename(directory)
    return directory


def load_model(directory: Path) -> tuple[BundleModel, dict[str, Any]]:
    """Read a model directory: the model, ready to generate, and what model.json says about it.

    Raises:
        FileNotFoundError: if it is no model directory.
        ValueError: if it was written by another version's format.
    """
    settings_file = directory / SETTINGS_FILE
    if not settings_file.is_file():
        msg = f"no model at {directory}: it has no {SETTINGS_FILE}; give a run, a checkpoint or a model directory"
        raise FileNotFoundError(msg)
    about: dict[str, Any] = json.loads(settings_file.read_text())
    if about.get("format") != FORMAT:
        msg = f"{settings_file} has format {about.get('format')}, this crmuons reads format {FORMAT}"
        raise ValueError(msg)
    settings = config.Model.model_validate(about["model"])
    model = BundleModel(settings, Features(cartesian=settings.kind == "baseline"))
    model.load_state_dict(torch.load(directory / WEIGHTS_FILE, map_location="cpu", weights_only=True))
    return model.eval().requires_grad_(requires_grad=False), about


def load_training(checkpoint: Path | BytesIO) -> dict[str, Any]:
    """What `save` was given as `training`, from a checkpoint's directory or the content of its training.pt."""
    source = checkpoint / TRAINING_FILE if isinstance(checkpoint, Path) else checkpoint
    state: dict[str, Any] = torch.load(source, map_location="cpu", weights_only=True)
    return state


def steps(directory: Path) -> dict[int, Path]:
    """The checkpoints of a run by their steps, ascending."""
    found = {entry: _NAME.fullmatch(entry.name) for entry in directory.glob("step-*")}
    return dict(sorted((int(match[1]), entry) for entry, match in found.items() if match))


def latest(directory: Path) -> Path | None:
    """The newest checkpoint; None if there is none."""
    return next(reversed(steps(directory).values()), None)


def best(directory: Path) -> Path | None:
    """The checkpoint selected by validation; the newest where none was."""
    return selected(directory) or latest(directory)


def selected(directory: Path) -> Path | None:
    """The checkpoint selected by validation; None where none was."""
    chosen = directory / BEST_FILE
    named = directory / chosen.read_text() if chosen.is_file() else None
    return named if named is not None and named.is_dir() else None


def choose_best(directory: Path, checkpoint: Path) -> None:
    """Select a checkpoint."""
    partial = directory / f".{BEST_FILE}.partial"
    partial.write_text(checkpoint.name)
    partial.rename(directory / BEST_FILE)


def prune(directory: Path, keep: int) -> None:
    """Delete all checkpoints but the newest `keep` and the best, and what a kill left half written or half deleted."""
    kept = {*list(steps(directory).values())[-keep:], best(directory)}
    for saved in steps(directory).values():
        if saved not in kept:
            _clear(saved)
    for left_over in directory.glob(".step-*"):
        shutil.rmtree(left_over)


def _write_model(directory: Path, model: BundleModel, about: Mapping[str, Any]) -> None:
    _write_tensors(directory / WEIGHTS_FILE, model.state_dict())
    with (directory / SETTINGS_FILE).open("w") as file:
        json.dump({"format": FORMAT, **about}, file, indent=1)
        file.flush()
        os.fsync(file.fileno())


def _write_tensors(target: Path, state: Mapping[str, Any]) -> None:
    with target.open("wb") as file:
        torch.save(dict(state), file)
        file.flush()
        os.fsync(file.fileno())


def _clear(directory: Path) -> None:
    """Remove a directory; what is half removed no longer bears its name."""
    if directory.exists():
        doomed = directory.with_name(f".{directory.name}.old")
        shutil.rmtree(doomed, ignore_errors=True)
        directory.rename(doomed)
        shutil.rmtree(doomed)
