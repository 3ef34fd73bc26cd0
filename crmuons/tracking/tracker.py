"""The tracker of a run: what the training calls."""

import getpass
import json
import logging
import re
import time
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, Self

import mlflow
import numpy as np
import pandas as pd
from jaxtyping import Float32
from matplotlib.figure import Figure
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema
from mlflow.types.schema import Array
from PIL import Image

from crmuons.data import schema
from crmuons.provenance import code_tags
from crmuons.storage.redact import without_credentials
from crmuons.tracking.interface import Status
from crmuons.tracking.journal import Journal
from crmuons.tracking.sender import Sender
from crmuons.tracking.server import Server
from crmuons.tracking.system_metrics import SystemMetrics
from crmuons.tracking.uri import bare_uri

logger = logging.getLogger(__name__)

MAX_PARAM_LENGTH, MAX_TAG_LENGTH = 6000, 8000  # MLflow's
THUMBNAIL_PIXELS = 256

_NAME = re.compile(r"^[\w.\-/ ]{1,250}$")

MODEL_SIGNATURE = ModelSignature(
    inputs=Schema([ColSpec(DataType.double, name) for name in schema.PRIMARY_FEATURES]),
    outputs=Schema(
        [
            *(ColSpec(DataType.long, name) for name in schema.ID_COLUMNS),
            ColSpec(Array(DataType.float), schema.PRIMARY_COLUMN),
            ColSpec(Array(Array(DataType.float)), schema.MUONS_COLUMN),
        ]
    ),
    params=ParamSchema([ParamSpec("seed", DataType.long, 0)]),
)


class Tracker:
    """One MLflow run, journaled in a directory; opened again there, it goes on.

    No method waits for the server. Only what concerns the journal raises: OSError where it cannot be written.
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
        """Begin a run, or go on with the one that the directory holds.

        Args:
            directory: the run's directory; the journal goes to `tracking` below it.
            uri: what `resolve_uri` said.
            experiment: MLflow's experiment, made where there is none.
            run_name: the run's name in MLflow.
            params: settings under dotted paths. One that differs from the run's first value cannot be changed in
                MLflow: it becomes the tag `changed.<path>`.
            tags: added to those that name the code (`provenance.code_tags`), which they override.
            parent: the `identity` of the tracker of the run below which this one is shown; it may be unknown to the server still.
            flush_seconds: `finish` waits no longer than this for the server.

        Raises:
            ValueError: for a name that MLflow would refuse, or a URI that is a directory.
            OSError: if the journal cannot be written.
        """
        uri = bare_uri(uri)
        for name in (*params, *tags):
            _check_name(name)
        journal = Journal(directory)
        where = {"uri": uri, "experiment": experiment, "run_name": run_name, "parent": parent}
        journal.append("open", identity=journal.identity, **where)
        tracker = cls(journal, uri, flush_seconds)
        tracker._params(params)
        tracker.tags(_mlflow_tags() | code_tags() | dict(tags))
        tracker._sender.start()
        tracker._system.start()
        return tracker

    @property
    def identity(self) -> str:
        """Names the run towards other journals, before any server knows it."""
        return self._journal.identity

    @property
    def run_id(self) -> str | None:
        """The MLflow run; None until the server made it."""
        return self._sender.server.sent.run_id

    @property
    def unsent(self) -> int:
        """Entries of the journal that the server does not have, those included that it refused for good."""
        return self._sender.pending + self._sender.server.sent.refused

    def wait_for_run(self, seconds: float) -> str | None:
        """The MLflow run, once the server made it, or None after so many seconds."""
        self._sender.server.known.wait(seconds)
        return self.run_id

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """Metrics of a step. Steps replayed after a resume are left out: the first value of a step stays."""
        for name in values:
            _check_name(name)
        self._journal.append_metrics({name: float(value) for name, value in values.items()}, step)

    def figure(self, figure: Figure, name: str, step: int | None = None) -> None:
        """A matplotlib figure: with a step, one of a series in the UI's image grid; without, `figures/NAME.png`."""
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
        """A file or a directory, as it is now, below the given folder of the run's artifacts."""
        self._journal.append("artifact", file=self._journal.keep_file(path), folder=folder)

    def model(self, directory: Path, primaries: Float32[np.ndarray, "primaries 4"]) -> None:
        """A trained generator, for `mlflow.pyfunc.load_model`.

        Args:
            directory: a model directory (`checkpoint.save_model`). A run or a checkpoint would do, with all that it holds.
            primaries: a few, as an example of its input: energy (GeV), zenith (rad), mass (GeV), depth (m).
        """
        path = self._journal.new_folder() / "model"
        example = pd.DataFrame(primaries.astype(np.float64), columns=list(schema.PRIMARY_FEATURES))
        mlflow.pyfunc.save_model(
            path=path,
            loader_module="crmuons.tracking.pyfunc",
            data_path=str(directory),
            signature=MODEL_SIGNATURE,
            input_example=example,
            pip_requirements=[f"{name}=={version(name)}" for name in ("crmuons", "mlflow", "numpy", "pandas", "torch")],
        )
        self._append_file("model", path)

    def register(self, identity: str, name: str, *, score: float, tags: Mapping[str, str]) -> None:
        """Make the model of another run a version in the registry; see registry.py.

        Args:
            identity: of the journal of the run that has the model.
            name: the registered model.
            score: the model's; lower is better.
            tags: of the version. The alias moves from a better model only where `validation` differs.
        """
        self._journal.append("registration", of=identity, name=name, score=score, tags=dict(tags))

    def tags(self, values: Mapping[str, str]) -> None:
        """Tags of the run; the newest value of a tag stays."""
        for name in values:
            _check_name(name)
        self._journal.append("tags", values={name: _cut(value, MAX_TAG_LENGTH) for name, value in values.items()})

    def finish(self, status: Status) -> None:
        """End the run: send what is left, in bounded time, and say what could not be sent. Once is enough."""
        if self._finished:
            return
        self._finished = True
        self._system.stop()
        self._journal.append("status", status=status)
        self._sender.close(self._flush_seconds)
        self._journal.close()
        self._say_what_is_left()

    def _say_what_is_left(self) -> None:
        directory, refused = self._journal.directory, self._sender.server.sent.refused
        if self._sender.pending:
            logger.warning(
                "%d entries of this run are not in MLflow (%s); they are kept in %s. Send them later with: crmuons sync %s",
                self._sender.pending,
                self._sender.trouble or "the time to send them ran out",
                directory,
                directory,
            )
        if refused:
            logger.warning("MLflow refused %d entries of this run for good; they are kept in %s", refused, directory)

    def _params(self, params: Mapping[str, object]) -> None:
        values = {name: _cut(str(value), MAX_PARAM_LENGTH) for name, value in params.items()}
        before = self._journal.params
        new = {name: value for name, value in values.items() if name not in before}
        changed = {f"changed.{name}": value for name, value in values.items() if before.get(name, value) != value}
        if not (new or changed):
            return
        self._journal.append("params", values=new)
        if changed:
            self.tags(changed)
        path = self._journal.new_folder() / "params.json"
        path.write_text(without_credentials(json.dumps(dict(params), indent=2, default=str)))
        self._append_file("artifact", path, folder="")

    def _append_file(self, kind: str, path: Path, **content: Any) -> None:
        self._journal.append(kind, file=path.relative_to(self._journal.files).as_posix(), **content)


def _save_image(figure: Figure, folder: Path, name: str, step: int) -> None:
    """Write the figure and its thumbnail under the names that the UI's image grid understands.

    Our own names, unlike those of MLflow's `log_image`, stay the same when a lost answer makes us send them again.
    """
    stamp = f"{name.replace('/', '~')}+step+{step}+timestamp+{time.time_ns() // 1_000_000}+{folder.name}"
    figure.savefig(folder / f"{stamp}.png")
    with Image.open(folder / f"{stamp}.png") as image:
        image.thumbnail((THUMBNAIL_PIXELS, THUMBNAIL_PIXELS))
        image.save(folder / f"{stamp}+compressed.webp")


def _mlflow_tags() -> dict[str, str]:
    """The tags behind columns of MLflow's UI."""
    return {"mlflow.source.name": "crmuons", "mlflow.source.type": "LOCAL", "mlflow.user": getpass.getuser()}


def _check_name(name: str) -> None:
    if not _NAME.match(name):
        msg = f"'{name}' cannot be a name in MLflow: 1 to 250 letters, digits, '_', '-', '.', '/' and spaces"
        raise ValueError(msg)


def _cut(value: str, length: int) -> str:
    """A value that MLflow takes; params.json among the artifacts holds the whole one."""
    return value if len(value) <= length else value[: length - 1] + "…"
