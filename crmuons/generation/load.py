"""Load a generator from a run, a checkpoint or a model directory, at a path or a URL."""

import hashlib
import pickle
import re
import shutil
from pathlib import Path
from typing import Any

import torch

from crmuons.generation.generator import BundleGenerator
from crmuons.models import saved_model, standalone
from crmuons.models.bundle_model import BundleModel
from crmuons.runs import checkpoint
from crmuons.runs.location import caches
from crmuons.storage import artifacts, files


def local_model(place: str | Path) -> Path:
    """Return the local directory of a model; a model at a URL is copied first.

    For the URL of a run, the model is the selected one, or the newest checkpoint while the run goes on. A run never
    changes its artifacts, so their copies are kept; other directories are copied on each call.

    Raises:
        FileNotFoundError: if there is nothing at the URL.
        DamagedError: if an artifact's content does not match its name.
    """
    url = str(place).rstrip("/")
    if "://" not in url:
        return Path(place)
    storage, name = _artifact_of(url)
    copies = caches() / "models" / hashlib.sha256(storage.encode()).hexdigest()[:8]
    if name is None:
        shutil.rmtree(copies, ignore_errors=True)
        files.get_tree(url, copies)
        return copies
    if not (copies / name).is_dir():
        artifacts.download(storage, name, copies / name)
    return copies / name


def _artifact_of(url: str) -> tuple[str, str | None]:
    """Return the URL of a run and the name of its model's artifact; the name is None for other directories."""
    above, _, last = url.rpartition("/")
    if re.fullmatch(r"(?:model|step)-\d{8}-[0-9a-f]{16}", last):
        return above, last
    for label in (r"model-\d{8}", r"step-\d{8}"):
        for name in reversed(artifacts.find_artifacts(url, label)):
            if artifacts.is_whole(url, name):
                return url, name
    return url, None


def choose_device(device: str, *, elsewhere: bool) -> str:
    """Return the device for `auto`, `cpu` or `cuda`; `auto` takes an NVIDIA GPU if this machine has one.

    Args:
        device: one of the three.
        elsewhere: other machines do the work and may have a GPU, even if this one has none.

    Raises:
        ValueError: for another name, for `mps`, or for `cuda` if torch finds no GPU.
    """
    if device == "mps":
        # The likelihood and the draw of N are in double precision, see models/standalone.py and models/multiplicity.py.
        msg = "--device mps: Apple's GPUs have no double precision, which the model of N needs; use --device cpu"
        raise ValueError(msg)
    if device not in {"auto", *standalone.EVENTS_PER_BLOCK}:
        msg = f"--device {device}: expected auto, {' or '.join(standalone.EVENTS_PER_BLOCK)}"
        raise ValueError(msg)
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not elsewhere and not torch.cuda.is_available():
        msg = f"--device cuda: torch {torch.__version__} sees no GPU here; use --device cpu, or install torch for CUDA"
        raise ValueError(msg)
    return device


def load_generator(path: str | Path, device: torch.device | str = "cpu") -> BundleGenerator:
    """Load the generator of a run (its selected checkpoint), a checkpoint or a model directory, at a path or a URL.

    Raises:
        FileNotFoundError: if there is no model.
        ValueError: if the model is damaged, or of another format.
    """
    directory = local_model(path)
    selected = checkpoint.best(directory / "checkpoints")
    for candidate in (directory, selected):
        if candidate is not None and (candidate / saved_model.SETTINGS_FILE).is_file():
            return BundleGenerator(*_load(candidate), device)
    return BundleGenerator(*_load(directory), device)  # Raises the error that says what is missing.


def _load(directory: Path) -> tuple[BundleModel, dict[str, Any]]:
    try:
        return saved_model.load_model(directory)
    except FileNotFoundError:
        raise
    except (
        RuntimeError,
        OSError,
        EOFError,
        KeyError,
        pickle.UnpicklingError,
    ) as error:  # Torch raises these for damaged files.
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        msg = f"the model at {directory} is damaged or of another version ({reason}); export or copy it again"
        raise ValueError(msg) from error
