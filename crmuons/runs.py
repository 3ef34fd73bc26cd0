"""A run's directory: where everything that one run leaves behind is, and which run a command continues."""

import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch

from crmuons import config, schema
from crmuons.features import Features
from crmuons.files import File
from crmuons.schema import EventArrays

logger = logging.getLogger(__name__)

# These may change when a run is continued; a change of any other setting is refused.
MAY_CHANGE = re.compile(
    r"run\.(resume|max_failures|checkpoint_every|keep_checkpoints|storage_path|name)"
    r"|scaling\..*|tracking\..*|train\.(steps|max_seconds|log_every|validate_every|compile)"
    r"|data\.(prefetch_batches|max_quarantined_share)"
)


@dataclass(frozen=True)
class Run:
    """The directory of a run."""

    directory: Path

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
    def quarantine(self) -> Path:
        """Rows that cannot be used, with the reasons."""
        return self.directory / "quarantine"

    @property
    def outliers(self) -> Path:
        """Events with more muons than the cap."""
        return self.directory / "outliers"

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

    def prepare(
        self, settings: config.Config, files: Sequence[File], features: Features, validation: EventArrays
    ) -> None:
        """Write what every worker, and every later attempt, starts from; the directory appears once it is whole.

        Raises:
            OSError: if it cannot be written, or if there is a directory of this name with something else in it.
        """
        partial = self.directory.with_name(f".{self.directory.name}.partial")
        try:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            torch.save(features.state_dict(), partial / "features.pt")
            schema.write_events(partial / "validation.parquet", [validation.to_table()])
            write_json(partial / "files.json", [[file.url, file.size] for file in files])
            write_json(partial / "config.json", settings.model_dump(mode="json"))
            partial.rename(self.directory)
        except (OSError, RuntimeError) as error:  # torch says RuntimeError where a write falls short
            shutil.rmtree(partial, ignore_errors=True)
            msg = f"the run's directory {self.directory} cannot be written ({error}); choose another run.storage_path"
            raise OSError(msg) from error

    def load_features(self, settings: config.Config) -> Features:
        """The features that were fitted when the run started."""
        features = Features(cartesian=settings.model.kind == "baseline")
        features.load_state_dict(torch.load(self.directory / "features.pt", weights_only=True))
        return features

    def load_validation(self) -> EventArrays:
        """The held-out events that validations use."""
        return schema.to_arrays(pq.read_table(self.directory / "validation.parquet"))

    def load_files(self) -> list[File]:
        """The training files, as they were when the run started: the plan of its reading rests on them."""
        return [File(url, size) for url, size in json.loads((self.directory / "files.json").read_text())]

    def latest_metrics(self) -> dict[str, int | float]:
        """The newest value of each metric."""
        newest: dict[str, int | float] = {}
        for line in self._metric_lines():
            newest |= line
        return newest

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
        before = config.from_dict(json.loads((self.directory / "config.json").read_text())).flat()
        changed = [
            f"{path} was {before.get(path)!r}, is {value!r}"
            for path, value in settings.flat().items()
            if before.get(path) != value and not MAY_CHANGE.fullmatch(path)
        ]
        if changed:
            msg = (
                f"run '{self.directory.name}' was started with other settings: {'; '.join(changed)}. "
                "Take them back, or start a new run with another run.name"
            )
            raise ValueError(msg)


def find_run(settings: config.Config) -> Run:
    """The run that the settings name: the one to continue (run.resume=auto), or a new one.

    Raises:
        ValueError: if a run of the given name exists and is not to be continued.
    """
    storage = storage_path(settings)
    base = storage / settings.run.name
    numbered = _numbered(base) if settings.run.name.endswith(settings.digest()) else {}
    if settings.run.resume == "auto":
        started = [run for run in map(Run, (base, *numbered.values())) if run.has_started()]
        return started[-1] if started else Run(base)
    if not base.exists():
        return Run(base)
    if not settings.run.name.endswith(settings.digest()):
        msg = f"run '{settings.run.name}' exists in {storage}; continue it with run.resume=auto, or choose another run.name"
        raise ValueError(msg)
    return Run(storage / f"{settings.run.name}-{max(numbered, default=1) + 1}")


def storage_path(settings: config.Config) -> Path:
    """Where runs are kept. A Ray job runs in a temporary copy of its working directory, so there it is below the home.

    Raises:
        ValueError: for a URL. A run writes many small files, renames and prunes them: that takes a directory.
    """
    if "://" in settings.run.storage_path:
        msg = f"run.storage_path = {settings.run.storage_path} is a URL; runs need a directory that all workers reach"
        raise ValueError(msg)
    path = Path(settings.run.storage_path).expanduser()
    if path.is_absolute() or not in_ray_job():
        return path.absolute()
    return Path.home() / path


def in_ray_job() -> bool:
    """Whether this process was started by `ray job submit`."""
    return "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ


def write_json(path: Path, content: Any) -> None:
    """Write a small file that appears whole."""
    write_text(path, json.dumps(content, indent=1))


def write_text(path: Path, text: str) -> None:
    """Write a small file that appears whole."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    partial.write_text(text)
    partial.replace(path)


def _numbered(base: Path) -> dict[int, Path]:
    """The runs NAME-n beside a run NAME by their n, ascending: runs of the same settings are numbered from 2."""
    found = {
        path: re.fullmatch(re.escape(base.name) + r"-(\d+)", path.name) for path in base.parent.glob(f"{base.name}-*")
    }
    return dict(sorted((int(match[1]), path) for path, match in found.items() if match))
