"""Checkpoints and saved models: directories that appear under their name only once they are whole.

A model directory holds `model.json` (settings and provenance) and `weights.pt`; torch alone loads it. A checkpoint is a model
directory with `training.pt` beside it: everything else that resume needs.
"""

import re
import shutil
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import torch

from crmuons.models.bundle_model import BundleModel
from crmuons.models.saved_model import write_model_files, write_tensors
from crmuons.storage.atomic import atomic_directory, atomic_file, remove_atomically

TRAINING_FILE, BEST_FILE = "training.pt", "best"
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
    try:
        # A run that was continued from an earlier checkpoint replaces its later ones.
        with atomic_directory(target, replace=True) as partial:
            write_model_files(partial, model, about)
            write_tensors(partial / TRAINING_FILE, training)
    except (OSError, RuntimeError) as error:  # torch says RuntimeError where a write falls short
        msg = (
            f"checkpoint of step {step} could not be written to {directory} ({_reason(error)}); free space there where the disk is full: "
            "earlier ones are intact"
        )
        raise OSError(msg) from error
    return target


def _reason(error: Exception) -> str:
    """What torch means where it says at which position of its archive it should be and is."""
    return "No space left on device: a write fell short" if "inline_container" in str(error) else str(error)


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


def mark_best(directory: Path, checkpoint: Path) -> None:
    """Select a checkpoint."""
    with atomic_file(directory / BEST_FILE) as partial:
        partial.write_text(checkpoint.name)


def prune(directory: Path, keep: int) -> None:
    """Delete all checkpoints but the newest `keep` and the best, and what a kill left half written or half deleted."""
    kept = {*list(steps(directory).values())[-keep:], best(directory)}
    for saved in steps(directory).values():
        if saved not in kept:
            remove_atomically(saved)
    for left_over in directory.glob(".step-*"):
        shutil.rmtree(left_over)
