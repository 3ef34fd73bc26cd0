"""Begin a run from the weights of another model: train.init_from."""

import logging
from pathlib import Path
from typing import Any

import torch

from crmuons import config
from crmuons.data.events import EventArrays
from crmuons.data.schema import PRIMARY_FEATURES
from crmuons.generation.load import local_model, model_digest, model_directory, read_generator
from crmuons.models.features import Features
from crmuons.runs import checkpoint
from crmuons.runs.location import RunStorage
from crmuons.runs.parent import Parent
from crmuons.storage import artifacts
from crmuons.storage.files import File
from crmuons.tracking.logged_models import is_logged, local_copy_of
from crmuons.tracking.uri import resolve_uri
from crmuons.training.setup import set_up_run

logger = logging.getLogger(__name__)

RunInputs = tuple[list[File], Features, EventArrays, Parent | None]
FAR_SIGMA = 5.0  # If the mean primary is this far from the parent's, the parent's statistics hardly describe the data.


def set_up_run_and_parent(settings: config.Config, storage: RunStorage) -> RunInputs:
    """Set up a new run (`set_up_run`), and load the model that it begins from.

    Returns:
        The training files, the features, the validation events, and the parent; None without train.init_from.

    Raises:
        FileNotFoundError, ValueError: if the data or the parent cannot be used.
    """
    loaded = _load(settings, storage)  # First, so that an unusable parent is refused before any data are read.
    listed, fitted, validation = set_up_run(settings)
    if loaded is None:
        return listed, fitted, validation, None
    parent, features = loaded
    if fitted.extra != features.extra:
        theirs, ours = (", ".join(one.name for one in found.extra) or "none" for found in (features, fitted))
        msg = f"train.init_from={settings.train.init_from}: its muons have other features ({theirs}) than data.features ({ours})"
        raise ValueError(msg)
    if settings.train.refit_features and fitted.drawn != features.drawn:
        msg = (
            f"train.init_from={settings.train.init_from}: its generator makes its further features, which new models draw from "
            "densities; leave train.refit_features out, or train.init_from"
        )
        raise ValueError(msg)
    _widen(fitted, features)
    features.training_showers = fitted.training_showers
    if settings.train.refit_features:
        features = fitted
    else:
        _warn_if_far(features, fitted)
    about = parent.about
    logger.info(
        "beginning from %s (run %s, step %s, digest %s) %s; the statistics of its features are %s",
        about["uri"],
        about["run"],
        about["step"],
        about["digest"],
        "and its critic" if parent.critic is not None else "with a new critic, because it holds none",
        "fitted again" if settings.train.refit_features else "kept (train.refit_features=true fits them to the data)",
    )
    return listed, features, validation, parent


def _load(settings: config.Config, storage: RunStorage) -> tuple[Parent, Features] | None:
    place = settings.train.init_from
    if place is None:
        return None
    try:
        uri = _uri(place, storage)
        local = local_copy_of(uri, resolve_uri(storage.directory.parent)) if is_logged(uri) else local_model(uri)
        directory = model_directory(local)
        generator = read_generator(directory)
        if generator.members:
            msg = f"it is an ensemble of {len(generator.members)} models, and a run begins from one; give one of its members"
            raise ValueError(msg)  # noqa: TRY301 - reported like all others
        about = generator.metadata
        critic = _critic(uri, directory, about.get("step"))
    except (ValueError, OSError) as error:
        msg = f"train.init_from={place}: {error}"
        raise (FileNotFoundError if isinstance(error, FileNotFoundError) else ValueError)(msg) from error
    theirs = config.Model.model_validate(config.with_new_names({"model": about["model"]})["model"])
    for name in settings.train.frozen:
        if getattr(generator.model, name) is None:
            what = "discrete features" if name == "discrete" else "density of smooth further features"
            msg = f"train.frozen: the model at train.init_from={place} has no {what}; leave '{name}' out"
            raise ValueError(msg)
    _check_architecture(place, theirs, settings.model, has_critic=critic is not None)
    record = {
        "uri": uri,
        "digest": model_digest(generator),
        "run": about.get("run"),
        "step": about.get("step"),
        "critic": critic is not None,
        "features": "fitted" if settings.train.refit_features else "kept",
        "parent": about.get("parent"),
    }
    return Parent(record, generator.model.state_dict(), critic), generator.model.features


def _uri(place: str, storage: RunStorage) -> str:
    """Return a name of the parent that holds in any directory: a URL, an absolute path, or the place of a run."""
    if "://" in place or is_logged(place):
        return place.rstrip("/")
    path = Path(place).expanduser()
    if path.exists() or path.name != place:
        return str(path.absolute())
    return f"{storage.url}/{place}" if storage.url is not None else str(storage.directory / place)


def _critic(uri: str, directory: Path, step: int | None) -> dict[str, Any] | None:
    """Return the weights of the critic that was trained with a model; None if the source holds none."""
    if not (directory / checkpoint.TRAINING_FILE).is_file() and "://" in uri and step is not None:
        # The URL of a run that has ended holds the model and, next to it, the checkpoint that it was made from.
        whole = (name for name in artifacts.find_artifacts(uri, f"step-{step:08d}") if artifacts.is_whole(uri, name))
        directory = next((local_model(f"{uri}/{name}") for name in whole), directory)
    if not (directory / checkpoint.TRAINING_FILE).is_file():
        return None
    critic: dict[str, Any] = checkpoint.load_training(directory)["trainer"]["critic"]
    return critic


def _check_architecture(place: str, theirs: config.Model, ours: config.Model, *, has_critic: bool) -> None:
    there, here = theirs.model_dump(), ours.model_dump()
    different = [name for name in here if there[name] != here[name] and (has_critic or name != "critic_layers")]
    if different:
        values = "; ".join(f"model.{name} is {there[name]} there, {here[name]} here" for name in different)
        remedy = " ".join(f"model.{name}={there[name]}" for name in different)
        msg = (
            f"train.init_from={place}: its networks differ from this run's: {values}; set {remedy}, or leave "
            "train.init_from out"
        )
        raise ValueError(msg)


def _widen(one: Features, other: Features) -> None:
    """Give both features the union of their ranges of primaries, because the model is trained on both data."""
    ranges = torch.stack([one.primary_range, other.primary_range])
    both = torch.stack([ranges[:, 0].amin(0), ranges[:, 1].amax(0)])
    for features in (one, other):
        features.primary_range.copy_(both)


def _warn_if_far(kept: Features, fitted: Features) -> None:
    shifts = ((fitted.primary_mean - kept.primary_mean) / kept.primary_std).tolist()
    far = [
        f"{name} {shift:+.1f} sigma"
        for name, shift in zip(PRIMARY_FEATURES, shifts, strict=True)
        if abs(shift) > FAR_SIGMA
    ]
    if far:
        logger.warning(
            "the primaries of this run are on average far from the primaries of train.init_from (%s), but the "
            "statistics of its features are kept; train.refit_features=true fits them to this run's data",
            ", ".join(far),
        )
