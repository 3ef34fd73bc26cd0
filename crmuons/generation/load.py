"""Load a generator from a run, a checkpoint or a model directory, at a path or a URL."""

import hashlib
import re
import shutil
from pathlib import Path

import torch

from crmuons.generation.generator import BundleGenerator
from crmuons.models import blocks, saved_model
from crmuons.runs import checkpoint
from crmuons.runs.location import caches
from crmuons.runs.paths import ENSEMBLE_FILE
from crmuons.storage import artifacts, files


def local_model(place: str | Path) -> Path:
    """Return the local directory of a model; a model at a URL is copied first.

    For the URL of a run, this is the selected model, or the newest checkpoint while the run continues. A run never
    changes its artifacts, so their copies are kept; other directories are copied on each call.

    Raises:
        FileNotFoundError: if there is nothing at the URL.
        DamagedArtifactError: if an artifact's content does not match its name.
        ValueError: for a model of MLflow, because loading it would run its code.
    """
    url = str(place).rstrip("/")
    if re.match(r"(models|runs|mlflow-artifacts):", url):
        msg = (
            f"{url} is a model of MLflow, which may hold code of the user who logged it; crmuons loads only weights: give the "
            "run's directory, or run `mlflow artifacts download --artifact-uri "
            f"{url} -d DIR` and give the directory below DIR that holds model.json"
        )
        raise ValueError(msg)
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
        # The likelihood and the draw of N are in double precision, see models/formulas.py and models/multiplicity.py.
        msg = "--device mps: Apple's GPUs have no double precision, which the model of N needs; use --device cpu"
        raise ValueError(msg)
    if device not in {"auto", *blocks.EVENTS_PER_BLOCK}:
        msg = f"--device {device}: expected auto, {' or '.join(blocks.EVENTS_PER_BLOCK)}"
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
    return read_generator(model_directory(local_model(path)), device)


def model_directory(place: Path) -> Path:
    """Return the model directory of a local place: the selected checkpoint for a run, otherwise the place itself.

    Raises:
        FileNotFoundError: for an ensemble whose members are not trained yet.
    """
    if (place / saved_model.SETTINGS_FILE).is_file():
        return place
    if (place / ENSEMBLE_FILE).is_file():
        if not (place / "model" / saved_model.SETTINGS_FILE).is_file():
            msg = f"no model at {place}: some members of this ensemble are not trained yet; the command that began it continues it with run.resume=auto"
            raise FileNotFoundError(msg)
        return place / "model"
    selected = checkpoint.best(place / "checkpoints")
    return place if selected is None else selected


def read_generator(directory: Path, device: torch.device | str = "cpu") -> BundleGenerator:
    """Read the generator of a local model directory. It raises the same errors as `load_generator`."""
    return BundleGenerator(*saved_model.load_model_or_ensemble(directory), device)


def is_model(place: str) -> bool:
    """Return whether a path or URL is a run, a checkpoint or a model directory, and not a data set."""
    if "://" in place:
        above, name = _artifact_of(place.rstrip("/"))
        return name is not None or saved_model.SETTINGS_FILE in files.names(above)
    if not files.exists_locally(place):  # A name that is too long is no model; pathlib would raise.
        return False
    directory = Path(place)
    names = (saved_model.SETTINGS_FILE, ENSEMBLE_FILE, "checkpoints")
    return any((directory / name).exists() for name in names)


def model_digest(generator: BundleGenerator) -> str:
    """Return a digest of a model's weights and statistics."""
    return saved_model.digest_of(generator.model.state_dict())
