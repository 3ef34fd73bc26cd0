"""Train an ensemble: runs that leave out different showers, one after the other, and join their models."""

import logging
from dataclasses import dataclass
from typing import Any

from crmuons import config
from crmuons.generation.ensemble import joined
from crmuons.generation.generator import BundleGenerator
from crmuons.generation.load import load_generator
from crmuons.models.saved_model import digest_of, save_model
from crmuons.runs.directory import Run
from crmuons.runs.find import has_started
from crmuons.runs.location import RunStorage
from crmuons.runs.owned import own
from crmuons.runs.paths import ENSEMBLE_FILE
from crmuons.storage import artifacts, files, records
from crmuons.storage.atomic import write_json
from crmuons.tracking.health import usable_uri
from crmuons.tracking.interface import AnyTracker, NullTracker, Status
from crmuons.training.driver import Launcher, run_training
from crmuons.training.interface import Outcome
from crmuons.training.setup import refuse_credentials
from crmuons.training.summary import RunSummary

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class EnsembleSummary:
    """The end of the training of an ensemble.

    Attributes:
        run: where the ensemble is: its directory, and its URL if it has one.
        members: summaries of the members that this command trained or continued.
        outcome: whether all members reached their end.
        number: number of members.
    """

    run: Run
    members: list[RunSummary]
    outcome: Outcome
    number: int

    def describe(self) -> str:
        """Return a few lines: the members, and where the ensemble is."""
        lines = [member.describe() for member in self.members]
        if self.outcome == "finished":
            lines.append(f"ensemble {self.run.uri} ({self.number} members)")
        else:
            lines.append(f"ensemble {self.run.uri}: the same command with run.resume=auto continues")
        return "\n".join(lines)


def train_ensemble(settings: config.Config, number: int, launcher: Launcher) -> EnsembleSummary:
    """Train the members of an ensemble one after the other, and join them to one model.

    Member k is the ordinary run `NAME-member-k`, next to the directory NAME of the ensemble. It has the seed
    run.seed + k. It trains without fold k of the showers, and this fold validates it. Every shower therefore validates
    one member, and the spread of the members shows the uncertainty that comes from the finite number of showers.

    Args:
        settings: settings of all members.
        number: number of members.
        launcher: starts the workers of each run.

    Raises:
        FileNotFoundError, ValueError: if the data or the settings do not allow it, or the name belongs to another run or
            to an ensemble of another size.
        HeldError: if another process trains this ensemble.
        RunFailedError: if a member stopped; the same command with run.resume=auto continues.
    """
    refuse_credentials(settings)
    if settings.data.fold is not None:
        msg = f"data.fold={list(settings.data.fold)}: --ensemble gives each member its own; leave data.fold out"
        raise ValueError(msg)
    storage = RunStorage.of(settings)
    if storage.url is not None:
        files.check_writable(storage.url)
    name = settings.run.name
    # Ensembles of different sizes need different names, and so do an ensemble and a run with the same settings.
    if name.endswith(settings.digest()):
        name = f"{name}-ensemble-{number}"
    run = Run(storage.directory / name, None if storage.url is None else f"{storage.url}/{name}")
    with own(run):
        _begin(run, settings, number)
        return _train(run, config.changed(settings, {"run.name": name}), number, launcher, storage)


def member_settings(settings: config.Config, number: int, members: int) -> config.Config:
    """Return the settings of a member. If an earlier command has begun the member, it continues."""
    values = {
        "run.name": member_name(settings.run.name, number),
        "run.seed": settings.run.seed + number,
        "run.resume": "auto",
        "data.fold": [number, members],
    }
    return config.changed(settings, values)


def member_name(name: str, number: int) -> str:
    """Return the name of a member's run."""
    return f"{name}-member-{number}"


def _begin(run: Run, settings: config.Config, number: int) -> None:
    """Record the size of a new ensemble, or check that the existing ensemble of this name may be continued.

    Raises:
        ValueError: if the name belongs to a run or to an ensemble of another size, or if an ensemble of this name
            exists and run.resume is not "auto".
    """
    record = run.directory / ENSEMBLE_FILE
    if has_started(run) or (run.directory / "config.json").exists():
        msg = f"'{run.directory.name}' is a single run, not an ensemble; choose another run.name"
        raise ValueError(msg)
    begun = _number_of(run)
    if begun is None:
        write_json(record, {"members": number})
        if run.url is not None:
            files.put(record, f"{run.url}/{ENSEMBLE_FILE}")
        return
    if settings.run.resume != "auto":
        msg = f"ensemble '{run.directory.name}' exists in {run.uri}; continue it with run.resume=auto, or choose another run.name"
        raise ValueError(msg)
    if begun != number:
        msg = f"ensemble '{run.directory.name}' was begun with {begun} members, not {number}; give --ensemble {begun}, or choose another run.name"
        raise ValueError(msg)
    if not record.is_file():
        write_json(record, {"members": number})


def _number_of(run: Run) -> int | None:
    """Return the size of an ensemble that was begun, here or at its URL; None if there is none."""
    remedy = "choose another run.name"
    for place in (str(run.directory), run.url):
        if place is not None and ENSEMBLE_FILE in files.names(place):
            file = f"{place}/{ENSEMBLE_FILE}"
            record = records.read(file, keys=("members",), remedy=remedy)
            with records.damage_named(file, remedy):
                return int(record["members"])
    return None


def _train(run: Run, settings: config.Config, number: int, launcher: Launcher, storage: RunStorage) -> EnsembleSummary:
    tracker = _open_tracker(run, settings, number, storage)
    parent = getattr(tracker, "identity", "")
    summaries: list[RunSummary] = []
    status: Status = "FAILED"
    try:
        for member in range(number):
            of_member = config.changed(member_settings(settings, member, number), {"tracking.parent": parent})
            # A finished member is started too: it ends at once, or continues if the command gives it more steps.
            logger.info("member %d of %d", member, number)
            summaries.append(run_training(of_member, launcher))
            if summaries[-1].outcome != "finished":
                status = "KILLED"
                return EnsembleSummary(run, summaries, summaries[-1].outcome, number)
        _join(run, settings, number, storage, tracker)
        status = "FINISHED"
    finally:
        tracker.finish(status)
    return EnsembleSummary(run, summaries, "finished", number)


def _join(run: Run, settings: config.Config, number: int, storage: RunStorage, tracker: AnyTracker) -> None:
    """Write the ensemble of the trained members, send it to MLflow, and upload it."""
    names = [member_name(settings.run.name, member) for member in range(number)]
    places = [f"{storage.url}/{name}" if storage.url is not None else storage.directory / name for name in names]
    members: dict[str, BundleGenerator] = {
        name: load_generator(place) for name, place in zip(names, places, strict=True)
    }
    model, about = joined(members, number=number)
    about = {"run": run.directory.name, **about}
    digest = digest_of(model.state_dict())
    if run.done.is_file() and records.read(run.done).get("digest") == digest:
        return  # An earlier command has delivered it.
    save_model(run.model, model, about)
    primaries = Run(storage.directory / names[0]).load_validation().primaries[:3]
    if run.url is not None:
        artifacts.upload(run.url, run.model, f"model-{about['step']:08d}", {"step": about["step"]})
    tracker.model(run.model, primaries)
    write_json(run.done, {"steps": about["step"], "model": str(run.model), "members": names, "digest": digest})


def _open_tracker(run: Run, settings: config.Config, number: int, storage: RunStorage) -> AnyTracker:
    """Open the run of the ensemble in MLflow. MLflow shows the members below it."""
    if not settings.tracking.enabled:
        return NullTracker()
    from crmuons.tracking.tracker import Tracker  # noqa: PLC0415  # Importing MLflow takes 1.6 CPU-seconds.

    params: dict[str, Any] = settings.flat()
    return Tracker.open(
        run.directory,
        uri=usable_uri(storage.directory.parent),
        experiment=settings.tracking.experiment,
        run_name=run.directory.name,
        params=params,
        tags={"ensemble.members": str(number)},
        parent=settings.tracking.parent,
    )
