"""Checkpoints: directories that appear under their names only once they are complete.

A checkpoint is a model directory (see models/saved_model.py) that also holds `training.pt`, with everything else that a
resumed run needs.
"""

import logging
import re
import shutil
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

from crmuons.models.bundle_model import BundleModel
from crmuons.models.features import Features
from crmuons.models.saved_model import load_model, read_tensors, write_model_files, write_tensors
from crmuons.storage.atomic import atomic_directory, atomic_file, reason_of, remedy_for, remove_atomically

logger = logging.getLogger(__name__)

TRAINING_FILE, BEST_FILE = "training.pt", "best"
_NAME = re.compile(r"step-(\d{8})")
ASIDE = "damaged-"  # The first part of the new name of a checkpoint that cannot be read.


def path(directory: Path, step: int) -> Path:
    """Return the path of a step's checkpoint."""
    return directory / f"step-{step:08d}"


def step(name: str) -> int:
    """Return the step in a name that begins with a checkpoint's name."""
    match = _NAME.match(name)
    assert match is not None, name
    return int(match[1])


def save(directory: Path, step: int, model: BundleModel, about: Mapping[str, Any], training: Mapping[str, Any]) -> Path:
    """Write the checkpoint of a step.

    Args:
        directory: the directory of the run's checkpoints.
        step: the number of finished steps.
        model: the averaged model, which generates events.
        about: the content of model.json, without its format; see `save_model`.
        training: the state of training. It may hold only tensors, numbers, strings, lists and dictionaries, since it is
            loaded with `weights_only`.

    Raises:
        OSError: if it cannot be written, for instance because the disk is full. Earlier checkpoints are intact.
    """
    # With eight digits, names are sorted like their steps, in a directory and in a listing of a URL.
    target = path(directory, step)
    try:
        # A run that continued from an earlier checkpoint replaces later ones.
        with atomic_directory(target, replace=True) as partial:
            # The checkpoint is also a complete model: crmuons generate accepts it like any model.
            write_model_files(partial, model, about)
            write_tensors(partial / TRAINING_FILE, training)
    except OSError as error:
        msg = (
            f"checkpoint of step {step} could not be written to {directory} ({reason_of(error)}); {remedy_for(error)}; "
            "earlier checkpoints are intact"
        )
        raise OSError(msg) from error
    return target


def load_training(checkpoint: Path | BytesIO) -> dict[str, Any]:
    """Load the state of training that `save` wrote, from a checkpoint directory or the content of its training.pt."""
    source = checkpoint / TRAINING_FILE if isinstance(checkpoint, Path) else checkpoint
    return read_tensors(source, TRAINING_FILE if isinstance(source, BytesIO) else "")


def steps(directory: Path) -> dict[int, Path]:
    """Return the paths of a run's checkpoints by their steps, in ascending order."""
    matches = {entry: _NAME.fullmatch(entry.name) for entry in directory.glob("step-*")}
    return dict(sorted((int(match[1]), entry) for entry, match in matches.items() if match))


def latest(directory: Path) -> Path | None:
    """Return the newest checkpoint; None if there is none."""
    return next(reversed(steps(directory).values()), None)


def set_aside_damaged(directory: Path) -> None:
    """Rename the checkpoints that cannot be read, and log this, so that the run continues from the newest intact one.

    Raises:
        ValueError: if no checkpoint is intact; nothing is renamed then.
    """
    # Every checkpoint is read at a start; otherwise a damaged best checkpoint would be found only at the end of the run.
    faults = {saved: fault for saved in steps(directory).values() if (fault := _fault(saved)) is not None}
    if not faults:
        return
    # They are renamed and not removed, because the user may want to find the cause.
    intact = [saved for saved in steps(directory).values() if saved not in faults]
    if not intact:
        saved, fault = next(reversed(faults.items()))
        msg = (
            f"no checkpoint in {directory} can be read; {saved.name}: {fault}. Copy one back from a backup, or start a new "
            "run with another run.name"
        )
        raise ValueError(msg)
    for saved, fault in faults.items():
        aside = saved.with_name(f"{ASIDE}{saved.name}")
        remove_atomically(aside)
        saved.rename(aside)
        logger.warning("%s; it is kept as %s, and the newest intact checkpoint is %s", fault, aside, intact[-1].name)


def _fault(saved: Path) -> str | None:
    """Return why a checkpoint cannot be read; None if it can."""
    try:
        load_model(saved)
        load_training(saved)
    except (ValueError, FileNotFoundError) as error:
        return str(error)
    return None


def features_of(checkpoint: Path) -> Features:
    """Return the features of a run from a checkpoint, which also holds them."""
    model, about = load_model(checkpoint)
    model.features.training_showers = about.get("training_showers")
    return model.features


def best(directory: Path) -> Path | None:
    """Return the checkpoint that validation selected, or the newest if it selected none."""
    return selected(directory) or latest(directory)


def selected(directory: Path) -> Path | None:
    """Return the checkpoint that validation selected; None if it selected none."""
    chosen = directory / BEST_FILE
    name = chosen.read_text(encoding="utf-8", errors="replace") if chosen.is_file() else ""
    # The mark may name a checkpoint that was set aside, or be damaged itself.
    return directory / name if _NAME.fullmatch(name) and (directory / name).is_dir() else None


def mark_best(directory: Path, checkpoint: Path) -> None:
    """Mark a checkpoint as the one that validation selected."""
    with atomic_file(directory / BEST_FILE) as partial:
        partial.write_text(checkpoint.name, encoding="utf-8")


def forget_best(directory: Path) -> None:
    """Remove the mark of `mark_best`."""
    (directory / BEST_FILE).unlink(missing_ok=True)


def prune(directory: Path, keep: int) -> None:
    """Delete all checkpoints except the newest `keep` and the best, and all that a killed process left incomplete."""
    # The best checkpoint always stays: it is delivered at the end, however old it is.
    kept = {*list(steps(directory).values())[-keep:], best(directory)}
    for saved in steps(directory).values():
        if saved not in kept:
            remove_atomically(saved)
    for left_over in directory.glob(".step-*"):
        shutil.rmtree(left_over)
