"""Model directories: weights, settings and provenance. Torch can load them without crmuons."""

import hashlib
import json
import os
import pickle
import zipfile
import zlib
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import IO, Any, cast

import torch

from crmuons import config
from crmuons.models.bundle_model import BundleModel, Ensemble
from crmuons.models.bundles import check_finite
from crmuons.models.features import Features
from crmuons.storage import records
from crmuons.storage.atomic import atomic_directory
from crmuons.storage.records import damage_named

SETTINGS_FILE, WEIGHTS_FILE = "model.json", "weights.pt"
FORMAT, ENSEMBLE_FORMAT = 1, 2  # Earlier versions refuse an ensemble by its format.
REMEDY = "copy the model again, or take another checkpoint"


def save_model(directory: Path, model: BundleModel | Ensemble, about: Mapping[str, Any]) -> Path:
    """Write a model directory and return it; an earlier one of the same name is replaced.

    Args:
        directory: where to write.
        model: the model.
        about: settings and provenance for model.json; `load_model` needs the settings under "model"; for an ensemble it
            needs the settings and the digest of each member under "members".
    """
    with atomic_directory(directory, replace=True) as partial:
        write_model_files(partial, model, about)
    return directory


def load_model(directory: Path) -> tuple[BundleModel, dict[str, Any]]:
    """Read a directory of one model. Return the model, ready to generate, and the content of model.json.

    Raises:
        FileNotFoundError: if it is not a model directory.
        ValueError: if it is damaged, has another format, holds NaN, or holds an ensemble.
    """
    model, about = load_model_or_ensemble(directory)
    if isinstance(model, Ensemble):
        msg = f"{directory} is an ensemble of {len(model.members)} models, and one model is needed; give one of its members"
        raise ValueError(msg)  # noqa: TRY004 - a fault of the file, not of the program
    return model, about


def load_model_or_ensemble(directory: Path) -> tuple[BundleModel | Ensemble, dict[str, Any]]:
    """Read a model directory that may hold an ensemble. It raises the same errors as `load_model`."""
    settings_file = directory / SETTINGS_FILE
    if not settings_file.is_file():
        msg = f"no model at {directory}: it has no {SETTINGS_FILE}; give a run, a checkpoint or a model directory"
        raise FileNotFoundError(msg)
    about: dict[str, Any] = records.read(settings_file, keys=("format",), remedy=REMEDY)
    if about.get("format") not in {FORMAT, ENSEMBLE_FORMAT}:
        msg = f"{settings_file} has format {about.get('format')}, this crmuons reads formats {FORMAT} and {ENSEMBLE_FORMAT}; {REMEDY}"
        raise ValueError(msg)
    is_ensemble = about["format"] == ENSEMBLE_FORMAT
    with damage_named(settings_file, REMEDY):
        members = [dict(member) for member in about["members"]] if is_ensemble else [about]
        digests = [str(member["digest"]) for member in members if is_ensemble]
        # The settings are checked before the weights are read: this refuses networks that do not fit into any memory.
        settings = [
            config.Model.model_validate(config.with_new_names({"model": member["model"]})["model"])
            for member in members
        ]
    weights = read_tensors(directory / WEIGHTS_FILE)
    if not is_ensemble:
        return _model_of(settings[0], weights, directory), about
    parts: list[dict[str, Any]] = [{} for _ in members]
    with damage_named(directory / WEIGHTS_FILE, REMEDY):
        for name, values in weights.items():
            _, place, of_member = name.split(".", 2)
            parts[int(place)][of_member] = values
    models = []
    for number, (own, digest, part) in enumerate(zip(settings, digests, parts, strict=True)):
        if (found := digest_of(part)) != digest:
            msg = f"{directory}: the weights of member {number} have the digest {found}, but {SETTINGS_FILE} has {digest}: they belong to another model; {REMEDY}"
            raise ValueError(msg)
        models.append(_model_of(own, part, directory))
    with damage_named(settings_file, REMEDY):
        return Ensemble(models).eval(), about


def digest_of(weights: Mapping[str, torch.Tensor]) -> str:
    """Return 16 hexadecimal digits of a hash of a model's weights and statistics."""
    content = hashlib.sha256()
    for name, values in sorted(weights.items()):
        content.update(name.encode())
        content.update(values.cpu().numpy().tobytes())
    return content.hexdigest()[:16]


def _model_of(settings: config.Model, weights: dict[str, Any], directory: Path) -> BundleModel:
    """Return the model of some settings and weights, ready to generate."""
    with damage_named(directory / WEIGHTS_FILE, REMEDY):
        of_features = {name[9:]: values for name, values in weights.items() if name.startswith("features.")}
        model = BundleModel(settings, Features.of_state(of_features, cartesian=settings.kind == "predecessor"))
        model.load_state_dict(weights)
    check_finite(weights, directory / WEIGHTS_FILE)
    _check_statistics(weights, directory / WEIGHTS_FILE, REMEDY)
    return model.eval().requires_grad_(requires_grad=False)


def _check_statistics(weights: Mapping[str, Any], place: Path, remedy: str) -> None:
    """Refuse features that would turn finite numbers into NaN: a spread of 0, or knots that decrease."""
    for name, values in weights.items():
        is_spread, is_knots = name.endswith("_std"), name.endswith((".knots", ".extra_knots", ".scores"))
        if (is_spread and not (values > 0).all()) or (
            is_knots and not ((values.diff() >= 0).all() and (values[..., -1] > values[..., 0]).all())
        ):
            fault = "a spread that is not above 0" if is_spread else "numbers that do not rise"
            msg = f"{place} is damaged: '{name}' holds {fault}; {remedy}"
            raise ValueError(msg)


def write_model_files(directory: Path, model: BundleModel | Ensemble, about: Mapping[str, Any]) -> None:
    """Write the files of a model into a directory, and wait until they are on disk."""
    write_tensors(directory / WEIGHTS_FILE, model.state_dict())
    with (directory / SETTINGS_FILE).open("w", encoding="utf-8") as file:
        number = ENSEMBLE_FORMAT if isinstance(model, Ensemble) else FORMAT
        json.dump(
            {"format": number} | {name: value for name, value in about.items() if name != "format"}, file, indent=1
        )
        file.flush()
        os.fsync(file.fileno())


def read_tensors(source: Path | BytesIO, name: str = "") -> dict[str, Any]:
    """Load what `torch.save` wrote, to the CPU.

    Args:
        source: the file, or its content.
        name: its name for errors; by default the path.

    Raises:
        FileNotFoundError: if it is missing.
        ValueError: if it is no such file, or does not have the checksums that were written with it.
    """
    # torch writes a CRC-32 of each tensor, but does not check it when it reads: a flipped bit would give a wrong weight.
    try:
        with zipfile.ZipFile(source) as archive:
            for entry in archive.infolist():
                _refuse_compressed(entry)
                archive.read(entry)  # Raises an error if the checksum differs.
        if isinstance(source, BytesIO):
            source.seek(0)
        state: dict[str, Any] = torch.load(source, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:  # torch's own message advises to run any code in the file.
        msg = f"{name or source} holds other things than tensors, perhaps code, which is never run; take another checkpoint or model"
        raise ValueError(msg) from error
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, EOFError, RuntimeError, KeyError) as error:
        reason = str(error).partition(". This is an internal")[0]
        msg = f"{name or source} is damaged or cut short ({reason}); copy it again, or take another checkpoint"
        raise ValueError(msg) from error
    if not isinstance(state, dict):
        msg = f"{name or source} holds {type(state).__name__} in place of tensors by name; copy it again"
        raise ValueError(msg)  # noqa: TRY004 - a fault of the file, not of the program
    return state


def _refuse_compressed(entry: zipfile.ZipInfo) -> None:
    if entry.compress_size != entry.file_size:  # A compressed kilobyte could become gigabytes of memory.
        msg = f"its part {entry.filename} is compressed, which torch's files are not"
        raise zipfile.BadZipFile(msg)


def write_tensors(target: Path, state: Mapping[str, Any]) -> None:
    """Save tensors by name to a file, and wait until it is on disk.

    Raises:
        OSError: if it cannot be written.
    """
    with target.open("wb") as file:
        sink = _Sink(file)
        try:
            torch.save(dict(state), cast("IO[bytes]", sink))
        except RuntimeError as error:
            if sink.error is None:
                raise
            raise sink.error from error
        file.flush()
        os.fsync(file.fileno())


class _Sink:
    """A file to write to that keeps the error of a write: torch says "unexpected pos" in place of a full disk."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self.error: OSError | None = None

    def write(self, content: Any) -> int:  # bytes, or memory of a tensor
        try:
            return self.file.write(content)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        self.file.flush()
