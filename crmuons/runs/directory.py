"""A run's directory: where everything that one run leaves behind is, and which run a command continues."""

import hashlib
import json
import logging
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq
import torch

from crmuons import config
from crmuons.data import arrow
from crmuons.data.events import EventArrays
from crmuons.models.features import Features
from crmuons.runs.location import RunStorage, local_copy
from crmuons.storage import artifacts, files
from crmuons.storage.atomic import atomic_directory, write_json, write_text
from crmuons.storage.differences import differences
from crmuons.storage.files import File

logger = logging.getLogger(__name__)

FAILURE_BYTES = 4096
START = "start"  # Label of the bundle that a run kept at a URL begins with.

# These may change when a run is continued; a change of any other setting is refused.
MUTABLE_SETTINGS = re.compile(
    r"run\.(resume|max_failures|checkpoint_every|keep_checkpoints|storage_path|upload_seconds|name)"
    r"|scaling\..*|tracking\..*|train\.(steps|max_seconds|log_every|validate_every|profile_steps)"
    r"|data\.(prefetch_batches|max_quarantined_share|staging\..*)"
)


@dataclass(frozen=True)
class Run:
    """A run: its directory on this machine, and the URL where its results are kept (remote_runs.py); None: in the directory."""

    directory: Path
    url: str | None = None

    @classmethod
    def open(cls, uri: str) -> "Run":
        """Return the run of a directory or a URL; see `uri`."""
        return cls(local_copy(uri), uri) if "://" in uri else cls(Path(uri))

    @property
    def uri(self) -> str:
        """Where the run is, the same for every machine."""
        return self.url or str(self.directory)

    @property
    def checkpoints(self) -> Path:
        return self.directory / "checkpoints"

    @property
    def model(self) -> Path:
        """The selected model, written when the run ends."""
        return self.directory / "model"

    @property
    def metrics(self) -> Path:
        """One JSON line for each log step."""
        return self.directory / "metrics.jsonl"

    @property
    def tensorboard(self) -> Path:
        """TensorBoard's event files, where they are asked for."""
        return self.directory / "tensorboard"

    @property
    def profile(self) -> Path:
        """Traces of the steps that were profiled."""
        return self.directory / "profile"

    @property
    def losses(self) -> Path:
        """One JSON line for each time that workers were lost, with the reasons."""
        return self.directory / "losses.jsonl"

    @property
    def failure(self) -> Path:
        """Why the run stopped, where it is of no use to try again."""
        return self.directory / "failure.json"

    @property
    def stop_request(self) -> Path:
        """Its presence asks the run to save a checkpoint and end."""
        return self.directory / "stop"

    @property
    def done(self) -> Path:
        """Present once the run has reached its end."""
        return self.directory / "done.json"

    def has_started(self) -> bool:
        """Whether it was prepared far enough to be continued."""
        return (self.directory / "config.json").is_file()

    def create(
        self, settings: config.Config, files: Sequence[File], features: Features, validation: EventArrays
    ) -> None:
        """Write what every worker, and every later attempt, starts from; the directory appears once it is whole.

        Raises:
            OSError: if it cannot be written, or if there is a directory of this name with something else in it.
        """
        try:
            with atomic_directory(self.directory) as partial:
                torch.save(features.state_dict(), partial / "features.pt")
                arrow.write_events(partial / "validation.parquet", [arrow.to_table(validation)])
                write_json(partial / "files.json", [[file.url, file.size] for file in files])
                write_json(partial / "config.json", settings.model_dump(mode="json"))
        except (OSError, RuntimeError) as error:  # torch says RuntimeError where a write falls short
            msg = (
                f"the run's directory {self.directory} cannot be written ({error}); free space there where the disk is full, or "
                "choose another run.storage_path"
            )
            raise OSError(msg) from error

    def reserve_failure(self) -> None:
        """Take the room for `failure` while there is some: a full disk is what it may have to tell."""
        try:
            self._reserved.write_text(" " * FAILURE_BYTES)
        except OSError as error:
            msg = f"the run's directory {self.directory} cannot be written ({error}); free space there where the disk is full"
            raise OSError(msg) from error

    def fail(self, reason: dict[str, str]) -> None:
        """Write down why the run cannot go on, in the room that was taken for it where the disk is full."""
        try:
            write_json(self.failure, reason)
        except OSError as error:
            if not self._reserved.exists():  # On another node than the driver's, or another worker was first.
                logger.warning("%s cannot be written: %s", self.failure, error)
                return
            with self._reserved.open("r+") as file:
                file.write(json.dumps(reason))
            self._reserved.rename(self.failure)

    @property
    def _reserved(self) -> Path:
        return self.directory / ".failure"

    def load_features(self, settings: config.Config) -> Features:
        """The features that were fitted when the run started."""
        features = Features(cartesian=settings.model.kind == "predecessor")
        features.load_state_dict(torch.load(self.directory / "features.pt", weights_only=True))
        return features

    def load_validation(self) -> EventArrays:
        """The held-out events that validations use."""
        return arrow.to_arrays(pq.read_table(self.directory / "validation.parquet"))

    def load_files(self) -> list[File]:
        """The training files, as they were when the run started: the plan of its reading rests on them."""
        return [File(url, size) for url, size in json.loads((self.directory / "files.json").read_text())]

    def latest_metrics(self) -> dict[str, int | float]:
        """The newest value of each metric."""
        newest: dict[str, int | float] = {}
        for line in self._metric_lines():
            newest |= line
        return newest

    def lowest(self, metric: str) -> tuple[int, float] | None:
        """The step at which a metric was lowest, and its value there; None where it was never a finite number."""
        lines = [line for line in self._metric_lines() if math.isfinite(line.get(metric, math.nan))]
        told = [(int(line["step"]), float(line[metric])) for line in lines]
        return min(told, key=lambda entry: entry[1], default=None)

    def forget_metrics_after(self, step: int) -> None:
        """Take the metrics of later steps back, which a run that continues from this one writes again.

        A line that a killed worker left unfinished goes too.
        """
        kept = [json.dumps(line) + "\n" for line in self._metric_lines() if line["step"] <= step]
        write_text(self.metrics, "".join(kept))

    def _metric_lines(self) -> Iterator[dict[str, int | float]]:
        if self.metrics.is_file():
            whole, _, _unfinished = self.metrics.read_text().rpartition("\n")
            yield from map(json.loads, whole.splitlines())

    def fingerprint(self) -> str:
        """Sixteen hexadecimal digits that name the training files and their sizes."""
        return hashlib.sha256((self.directory / "files.json").read_bytes()).hexdigest()[:16]

    def check_unchanged(self, settings: config.Config) -> None:
        """Refuse to continue a run with settings that would make it another one.

        Raises:
            ValueError: naming the settings that differ.
        """
        before = config.from_stored(json.loads((self.directory / "config.json").read_text())).flat()
        now = settings.flat()
        fixed = [path for path in now if not MUTABLE_SETTINGS.fullmatch(path)]
        changed = differences(before, now, keys=fixed, show=repr)
        if changed:
            msg = (
                f"run '{self.directory.name}' was started with other settings: {'; '.join(changed)}. "
                "Take them back, or start a new run with another run.name"
            )
            raise ValueError(msg)


def find_run(settings: config.Config, storage: RunStorage) -> Run:
    """Find the run that the settings name: the one to continue (run.resume=auto), or a new one.

    Raises:
        ValueError: if a run of the given name exists and is not to be continued.
        OSError: if the storage cannot be asked.
    """
    name, url = settings.run.name, storage.url
    names = {path.name for path in storage.directory.glob("*")} | set(files.names(url) if url else ())
    numbered = _numbered(name, names) if name.endswith(settings.digest()) else {}

    def run(name: str) -> Run:
        return Run(storage.directory / name, f"{url}/{name}" if url else None)

    if settings.run.resume == "auto":
        started = [each for each in map(run, (name, *numbered.values())) if has_started(each)]
        return started[-1] if started else run(name)
    if name not in names:
        return run(name)
    if not name.endswith(settings.digest()):
        msg = f"run '{name}' exists in {url or storage.directory}; continue it with run.resume=auto, or choose another run.name"
        raise ValueError(msg)
    return run(f"{name}-{max(numbered, default=1) + 1}")


def has_started(run: Run) -> bool:
    """Whether a run can be continued, here or from where it is kept."""
    return run.has_started() or (run.url is not None and bool(artifacts.find(run.url, START)))


def _numbered(base: str, names: Iterable[str]) -> dict[int, str]:
    """The runs NAME-n beside a run NAME by their n, ascending: runs of the same settings are numbered from 2."""
    found = {name: re.fullmatch(re.escape(base) + r"-(\d+)", name) for name in names}
    return dict(sorted((int(match[1]), name) for name, match in found.items() if match))
