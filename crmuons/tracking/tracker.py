"""Log a run to MLflow: the training calls the methods of `Tracker`.

When runs are compared, MLflow's chart of parallel coordinates opens with the first three parameters, by name, that differ
between the runs, and with the first metric that the server lists (MLflow 3.17, `ParallelCoordinatesPlotPanel`). Therefore
settings that do not change the training are tags, and the score is logged first: SQLite lists metrics in this order. For
PostgreSQL, mlflow_server.py sorts them.
"""

import json
import logging
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np
from jaxtyping import Float32
from matplotlib.figure import Figure
from PIL import Image

from crmuons.provenance import code_tags, user_name
from crmuons.storage.redact import without_credentials
from crmuons.tracking.interface import SCORE, Status
from crmuons.tracking.journal import Journal
from crmuons.tracking.pyfunc import save_logged_model
from crmuons.tracking.sender import Sender
from crmuons.tracking.server import Server
from crmuons.tracking.system_metrics import SystemMetrics
from crmuons.tracking.uri import bare_uri

logger = logging.getLogger(__name__)

MAX_PARAM_LENGTH, MAX_TAG_LENGTH = 6000, 8000  # MLflow's limits in characters
# Settings that are logged as tags. As parameters they would take the places of the settings to compare: run.name always
# differs.
TAG_SETTINGS = re.compile(r"(run|scaling|tracking|data\.staging)\..+|train\.(log_every|profile_steps)")
THUMBNAIL_PIXELS = 256

_NAME = re.compile(r"^[\w.\-/ ]{1,250}$")


class Tracker:
    """Logs to one MLflow run through a journal in a directory. A tracker opened again there continues the same run.

    No method waits for the server, and none raises an error of the server. All raise OSError if the journal cannot be
    written.
    """

    def __init__(self, journal: Journal, uri: str, flush_seconds: float) -> None:
        self._journal = journal
        self._flush_seconds = flush_seconds
        self._sender = Sender(journal, Server(journal, uri))
        self._system = SystemMetrics(journal)
        self._finished = False

    @classmethod
    def open(
        cls,
        directory: Path,
        *,
        uri: str,
        experiment: str,
        run_name: str,
        params: Mapping[str, object],
        tags: Mapping[str, str],
        parent: str = "",
        flush_seconds: float = 60.0,
    ) -> Self:
        """Begin a run, or continue the run of the directory.

        Args:
            directory: the run's directory; the journal goes to `tracking` below it.
            uri: the result of `resolve_uri`.
            experiment: the MLflow experiment; it is created if it does not exist.
            run_name: the name of the run in MLflow.
            params: settings by dotted path. Those of `TAG_SETTINGS` become tags, the others parameters; the artifact
                params.json has all of them. MLflow cannot change a parameter: a value that differs from the first one
                becomes the tag `changed.<path>`.
            tags: tags of the run. They override the tags that identify the code (`provenance.code_tags`).
            parent: `identity` of the tracker of the parent run. The server may learn of the parent later.
            flush_seconds: longest time that `finish` waits for the server.

        Raises:
            ValueError: if MLflow would refuse a name, or if the URI is a directory.
            OSError: if the journal cannot be written.
        """
        uri = bare_uri(uri)
        for name in (*params, *tags):
            _check_name(name)
        journal = Journal(directory)
        target = {"uri": uri, "experiment": experiment, "run_name": run_name, "parent": parent}
        journal.append("open", identity=journal.identity, **target)
        tracker = cls(journal, uri, flush_seconds)
        tracker._log_settings(params)
        tracker.tags(_mlflow_tags() | code_tags() | dict(tags))
        tracker._sender.start()
        tracker._system.start()
        return tracker

    @property
    def identity(self) -> str:
        """Identity of the run, under which other journals refer to it before a server knows it."""
        return self._journal.identity

    @property
    def run_id(self) -> str | None:
        """ID of the MLflow run; None until the server has created it."""
        return self._sender.server.sent.run_id

    @property
    def unsent(self) -> int:
        """Number of journal entries that the server does not have, including those it refused."""
        return self._sender.pending + self._sender.server.sent.refused

    def wait_for_run(self, seconds: float) -> str | None:
        """Wait until the server has created the MLflow run and return its ID, or None after `seconds`."""
        self._sender.server.known.wait(seconds)
        return self.run_id

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """Log metrics of a step. After a resume, repeated steps are skipped: the first value of a step stays."""
        for name in values:
            _check_name(name)
        ordered = sorted(values, key=lambda name: name != SCORE)  # The score first; the others keep their order.
        self._journal.append_metrics({name: float(values[name]) for name in ordered}, step)
        self._system.begin()

    def figure(self, figure: Figure, name: str, step: int | None = None) -> None:
        """Log a figure: with a step into a series in the UI's image grid, without one as `figures/NAME.png`."""
        _check_name(name)
        if step is not None and not self._journal.is_new(f"images/{name}", step):
            return
        folder = self._journal.new_folder()
        if step is None:
            path = folder / f"{name.replace('/', '~')}.png"
            figure.savefig(path)
            self._append_file("artifact", path, folder="figures")
            return
        _save_image(figure, folder, name, step)
        self._append_file("figure", folder, folder="images", key=f"images/{name}", step=step)

    def artifact(self, path: Path, folder: str = "") -> None:
        """Log a copy of a file or directory, in the given folder of the run's artifacts."""
        self._journal.append("artifact", file=self._journal.keep_file(path), folder=folder)

    def model(self, directory: Path, primaries: Float32[np.ndarray, "primaries 4"]) -> None:
        """Log a trained generator, for `mlflow.pyfunc.load_model`.

        Args:
            directory: a model directory (`saved_model.save_model`).
            primaries: a few primaries as an input example: energy (GeV), zenith (rad), mass (GeV), depth (m).
        """
        path = self._journal.new_folder() / "model"
        save_logged_model(path, directory, primaries)
        self._append_file("model", path)

    def register(self, identity: str, name: str, *, score: float, tags: Mapping[str, str]) -> None:
        """Register the model of another run as a version in the model registry (registry.py).

        Args:
            identity: `identity` of the tracker of the run that logged the model.
            name: name of the registered model.
            score: score of the model; lower is better.
            tags: tags of the version. The alias moves away from a model with a lower score only if `validation` differs.
        """
        self._journal.append("registration", of=identity, name=name, score=score, tags=dict(tags))

    def tags(self, values: Mapping[str, str]) -> None:
        """Set tags of the run; a new value replaces an earlier one."""
        for name in values:
            _check_name(name)
        self._journal.append("tags", values={name: _cut(value, MAX_TAG_LENGTH) for name, value in values.items()})

    def finish(self, status: Status) -> None:
        """End the run: send remaining entries in bounded time, and warn about entries that were not sent.

        A second call does nothing.
        """
        if self._finished:
            return
        self._finished = True
        self._system.stop()
        self._journal.append("status", status=status)
        self._sender.close(self._flush_seconds)
        self._journal.close()
        self._warn_of_unsent()

    def _warn_of_unsent(self) -> None:
        directory, refused = self._journal.directory, self._sender.server.sent.refused
        if pending := self._sender.pending:
            only_files = pending == len(self._sender.server.sent.waiting)
            logger.warning(
                "%d %s of this run are not in MLflow%s (%s); they are kept in %s. Send them later with: crmuons sync %s",
                pending,
                "artifacts" if only_files else "entries",
                ", its metrics and state are" if only_files else "",
                self._sender.last_error or "the time to send them ran out",
                directory,
                directory,
            )
        if refused:
            logger.warning("MLflow refused %d entries of this run for good; they are kept in %s", refused, directory)

    def _log_settings(self, settings: Mapping[str, object]) -> None:
        params, tags = {}, {}
        for name, value in settings.items():
            if TAG_SETTINGS.fullmatch(name):
                tags[name] = _cut(str(value), MAX_TAG_LENGTH)
            else:
                params[name] = _cut(str(value), MAX_PARAM_LENGTH)
        logged = self._journal.params
        new = {name: value for name, value in params.items() if name not in logged}
        tags |= {f"changed.{name}": value for name, value in params.items() if logged.get(name, value) != value}
        tags = {
            name: value for name, value in tags.items() if self._journal.tags.get(name) != without_credentials(value)
        }
        if not (new or tags):
            return
        if new:
            self._journal.append("params", values=new)
        if tags:
            self.tags(tags)
        path = self._journal.new_folder() / "params.json"
        path.write_text(without_credentials(json.dumps(dict(settings), indent=2, default=str)), encoding="utf-8")
        self._append_file("artifact", path, folder="")

    def _append_file(self, kind: str, path: Path, **content: Any) -> None:
        self._journal.append(kind, file=path.relative_to(self._journal.files).as_posix(), **content)


def _save_image(figure: Figure, folder: Path, name: str, step: int) -> None:
    """Write a figure and its thumbnail under names that the UI's image grid understands.

    Unlike names of MLflow's `log_image`, these names stay the same if an image is sent again after a lost answer.
    """
    stamp = f"{name.replace('/', '~')}+step+{step}+timestamp+{time.time_ns() // 1_000_000}+{folder.name}"
    figure.savefig(folder / f"{stamp}.png")
    with Image.open(folder / f"{stamp}.png") as image:
        image.thumbnail((THUMBNAIL_PIXELS, THUMBNAIL_PIXELS))
        image.save(folder / f"{stamp}+compressed.webp")


def _mlflow_tags() -> dict[str, str]:
    """Return the tags that fill columns of MLflow's UI."""
    return {"mlflow.source.name": "crmuons", "mlflow.source.type": "LOCAL", "mlflow.user": user_name()}


def _check_name(name: str) -> None:
    if not _NAME.match(name):
        msg = f"'{name}' cannot be a name in MLflow: 1 to 250 letters, digits, '_', '-', '.', '/' and spaces"
        raise ValueError(msg)


def _cut(value: str, length: int) -> str:
    """Return a value shortened to a length that MLflow accepts; the artifact params.json has the whole value."""
    return value if len(value) <= length else value[: length - 1] + "…"
