"""A run's directory: the content of its files, and how they are written."""

import errno
import hashlib
import json
import logging
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from crmuons import config
from crmuons.data import arrow
from crmuons.data.events import EventArrays
from crmuons.data.features import declared
from crmuons.data.parquet import open_parquet
from crmuons.models.bundles import check_finite
from crmuons.models.features import Features
from crmuons.models.saved_model import read_tensors, write_tensors
from crmuons.runs import checkpoint, parent
from crmuons.runs.paths import RunPaths
from crmuons.storage import files, records
from crmuons.storage.atomic import filled_directory, full_disk_named, reason_of, remedy_for, write_json, write_text
from crmuons.storage.claims import names_in
from crmuons.storage.differences import differences
from crmuons.storage.files import File
from crmuons.storage.records import damage_named

logger = logging.getLogger(__name__)

FAILURE_BYTES = 4096
REMEDY = "copy it back from a backup, or start a new run with another run.name"
METRICS_REMEDY = "remove the damaged lines"
# The files from which a run starts. config.json comes last: a directory that has it counts as a started run.
START_FILES = ("features.pt", "validation.parquet", "files.json", *parent.FILES, "config.json")
SHOWERS = "training_showers"  # A key in features.pt, in addition to the statistics; see Features.
START = "start"  # Label of the artifact that holds the start of a run stored at a URL.

# Settings that may change when a run continues. A change of any other setting is refused.
MUTABLE_SETTINGS = re.compile(
    r"run\.(resume|max_failures|checkpoint_every|keep_checkpoints|storage_path|upload_seconds|name)"
    r"|scaling\..*|tracking\..*|train\.(steps|max_seconds|epochs|log_every|validate_every|profile_steps|detect_anomaly)"
    r"|data\.(prefetch_batches|read_tasks|pin_memory|max_quarantined_share|skip_missing|staging\..*)"
)


class Run(RunPaths):
    """A run, with methods that read and write its files."""

    def has_started(self) -> bool:
        """Return whether this machine's directory was set up, so that the run can continue."""
        return (self.directory / "config.json").is_file()

    def create(
        self,
        settings: config.Config,
        files: Sequence[File],
        features: Features,
        validation: EventArrays,
        begun_from: parent.Parent | None = None,
    ) -> None:
        """Write the files from which every worker and every later attempt starts. config.json comes last: see `has_started`.

        Args:
            settings: the settings of the run.
            files: the training files.
            features: the features fitted to the training events.
            validation: the events held out for validation.
            begun_from: the model whose weights it begins from; None for random weights.

        Raises:
            OSError: if it cannot be written, or if a directory of this name exists and holds anything else.
        """
        try:
            if other := names_in(self.directory) - set(START_FILES):
                raise OSError(errno.ENOTEMPTY, f"it holds {min(other)}")  # noqa: TRY301 - reported like all others
            with filled_directory(self.directory, last=START_FILES[-1]) as partial:
                # Everything is written under a partial name first: a directory that has config.json has the rest too.
                showers = (
                    {} if features.training_showers is None else {SHOWERS: torch.tensor(features.training_showers)}
                )
                write_tensors(partial / "features.pt", features.state_dict() | showers)
                of_muons = features.muon_features
                events = [arrow.to_table(validation, of_muons)]
                arrow.write_events(partial / "validation.parquet", events, features=of_muons)
                write_json(partial / "files.json", [[file.url, file.size, file.stamp, file.digest] for file in files])
                if begun_from is not None:
                    begun_from.write(partial)
                write_json(partial / "config.json", settings.model_dump(mode="json"))
        except OSError as error:
            msg = (
                f"the run's directory {self.directory} cannot be written ({reason_of(error)}); {remedy_for(error)}, or "
                "choose another run.storage_path"
            )
            raise OSError(msg) from error

    def reserve_failure(self) -> None:
        """Reserve disk space for `failure`, so that it can report a full disk.

        Raises:
            OSError: if the directory cannot be written.
        """
        try:
            with full_disk_named(self.directory):
                # Spaces, because a sparse file would reserve no blocks on the disk.
                self._reserved.write_text(" " * FAILURE_BYTES, encoding="utf-8")
        except OSError as error:
            msg = f"the run's directory {self.directory} cannot be written ({reason_of(error)}); {remedy_for(error)}"
            raise OSError(msg) from error

    def fail(self, reason: dict[str, str]) -> None:
        """Write the reason why the run cannot continue; on a full disk, into the reserved space."""
        try:
            # First the ordinary, atomic way.
            write_json(self.failure, reason)
        except OSError as error:
            # Only the driver reserves space, and the first failure uses it, because the first failure is the cause.
            if not self._reserved.exists():  # This is not the driver's node, or another worker was faster.
                logger.warning("%s cannot be written: %s", self.failure, error)
                return
            with self._reserved.open("r+", encoding="utf-8") as file:
                file.write(json.dumps(reason))
            self._reserved.rename(self.failure)

    @property
    def _reserved(self) -> Path:
        return self.directory / ".failure"

    def load_features(self, settings: config.Config) -> Features:
        """Load the features that were fitted when the run started."""
        cartesian = settings.model.kind == "predecessor"
        path = self.directory / "features.pt"
        try:
            return _filled(read_tensors(path), path, cartesian=cartesian)
        except ValueError as error:
            newest = checkpoint.latest(self.checkpoints)
            if newest is None:
                raise
            logger.warning("%s; they are taken from the newest checkpoint, which holds them too", error)
            return checkpoint.features_of(newest)

    def load_validation(self) -> EventArrays:
        """Load the held-out events that validations use."""
        path = self.directory / "validation.parquet"
        with open_parquet(path, str(path)) as parquet:
            return arrow.to_arrays(parquet.read(), features=declared(parquet.schema_arrow, str(path)))

    def load_files(self) -> list[File]:
        """Load the list of training files, from which the read plan follows.

        Raises:
            ValueError: if the record is damaged.
        """
        if self.found_files is not None:
            return list(self.found_files)
        record = self.directory / "files.json"
        with damage_named(record, REMEDY):
            # The order of the record stays, because the read plan follows from it. Early versions recorded only URL and size.
            return [File(str(url), int(size), *rest) for url, size, *rest in json.loads(record.read_bytes())]

    def latest_metrics(self) -> dict[str, int | float]:
        """Return the newest value of each metric."""
        newest: dict[str, int | float] = {}
        # Later lines win: a run that went back has repeated steps.
        for line in self._metric_lines():
            newest |= line
        return newest

    def lowest(self, metric: str) -> tuple[int, float] | None:
        """Return the step at which a metric was lowest, and its value; None if it was never a finite number."""
        lines = [line for line in self._metric_lines() if math.isfinite(line.get(metric, math.nan))]
        # Some lines lack the metric, because validations are rarer than log steps.
        values = [(int(line["step"]), float(line[metric])) for line in lines]
        return min(values, key=lambda entry: entry[1], default=None)

    def forget_metrics_after(self, step: int) -> None:
        """Remove the metrics of later steps, which a run that continues from this step writes again.

        An unfinished line of a killed worker is removed too.
        """
        kept = [json.dumps(line) + "\n" for line in self._metric_lines() if line["step"] <= step]
        write_text(self.metrics, "".join(kept))

    @staticmethod
    def numbers(line: Mapping[str, object], place: object) -> dict[str, int | float]:
        """Check that all values in a line of the metrics are numbers, and return it.

        Raises:
            ValueError: with the place, and the metric that is no number.
        """
        wrong = next((name for name, value in line.items() if not isinstance(value, int | float)), None)
        if wrong is not None:
            msg = f"{place} is damaged: its '{wrong}' is {line[wrong]!r:.80}, expected a number; {METRICS_REMEDY}"
            raise ValueError(msg)
        return dict(line)  # type: ignore[arg-type]  # checked above

    def _metric_lines(self) -> Iterator[dict[str, int | float]]:
        if self.metrics.is_file():
            for line in records.read_lines(self.metrics, keys=("step",), remedy=METRICS_REMEDY):
                with damage_named(self.metrics, METRICS_REMEDY):
                    int(line["step"])
                yield self.numbers(line, self.metrics)

    def fingerprint(self) -> str:
        """Return 16 hexadecimal digits of a hash of the training files' names, sizes and digests at the run's start.

        Digests of remote files are included only if all of them are known at the start: the settings determine how many
        remote files the start reads.
        """
        # The files as recorded at the start, because data that moved are the same data.
        recorded = replace(self, found_files=None).load_files()
        # The time stamps are left out, because a copy changes them.
        all_read = all(file.digest is not None for file in recorded if files.is_remote(file.url))
        entries = [
            [
                file.url,
                file.size,
                *([file.digest] if file.digest and (all_read or not files.is_remote(file.url)) else []),
            ]
            for file in recorded
        ]
        return hashlib.sha256(json.dumps(entries, indent=1).encode()).hexdigest()[:16]

    def stored_settings(self) -> config.Config:
        """Read the settings that the run began with."""
        path = self.directory / "config.json"
        with damage_named(path, REMEDY):
            return config.from_stored(json.loads(path.read_bytes()))

    def stored_names(self) -> set[str]:
        """Return the names of the settings that the run began with; earlier versions had fewer."""
        path = self.directory / "config.json"
        with damage_named(path, REMEDY):
            return {f"{section}.{name}" for section, names in json.loads(path.read_bytes()).items() for name in names}

    def reason_of_failure(self) -> str:
        """Return why the run stopped, from its file `failure`."""
        return str(records.read(self.failure, keys=("error",), remedy="remove the file to try again")["error"])

    def check_unchanged(self, settings: config.Config) -> None:
        """Refuse to continue a run with settings that would make it a different run.

        data.train may differ: its files are compared by content, see training.resume.

        Raises:
            ValueError: if settings outside MUTABLE_SETTINGS differ; the message names all of them.
        """
        before, now = self.stored_settings().flat(), settings.flat()
        # Settings that MUTABLE_SETTINGS does not name are refused, so that a new setting is safe by default.
        fixed = [path for path in now if not MUTABLE_SETTINGS.fullmatch(path) and path != "data.train"]
        changed = differences(before, now, keys=fixed, show=repr)
        if changed:
            msg = (
                f"run '{self.directory.name}' was started with other settings: {'; '.join(changed)}; "
                "take them back, or start a new run with another run.name"
            )
            raise ValueError(msg)


def _filled(state: dict[str, torch.Tensor], path: Path, *, cartesian: bool) -> Features:
    with damage_named(path, REMEDY):
        showers = state.pop(SHOWERS, None)
        features = Features.of_state(state, cartesian=cartesian)
        features.load_state_dict(state)
        features.training_showers = None if showers is None else int(showers)
        check_finite(state, path)
    return features
