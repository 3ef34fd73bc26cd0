"""Where a run is: its directory, its URL, and the names of its files."""

from dataclasses import dataclass
from pathlib import Path
from typing import Self

from crmuons.runs.location import local_copy
from crmuons.storage.files import File

ENSEMBLE_FILE = "ensemble.json"  # In an ensemble's directory: the names of its members, which are runs next to it.


@dataclass(frozen=True)
class RunPaths:
    """The place of a run, and of its files.

    Attributes:
        directory: its directory on this machine.
        url: the URL where its results are stored (see remote.py); None if they are stored in the directory.
        found_files: the training files as this attempt found them; None for the recorded files.
    """

    directory: Path
    url: str | None = None
    found_files: tuple[File, ...] | None = None

    @classmethod
    def open(cls, uri: str) -> Self:
        """Return the run of a directory or a URL; see `uri`."""
        return cls(local_copy(uri), uri) if "://" in uri else cls(Path(uri))

    @property
    def uri(self) -> str:
        """The URL or path that names the run on every machine."""
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
        """TensorBoard's event files, if `tracking.tensorboard` is set."""
        return self.directory / "tensorboard"

    @property
    def profile(self) -> Path:
        """Traces of the profiled steps."""
        return self.directory / "profile"

    @property
    def losses(self) -> Path:
        """One JSON line for each loss of workers, with the reasons."""
        return self.directory / "losses.jsonl"

    @property
    def moved(self) -> Path:
        """Training files that have moved since the run began: the present place, by the place at the start."""
        return self.directory / "moved.json"

    @property
    def failure(self) -> Path:
        """Why the run stopped, if trying again is useless."""
        return self.directory / "failure.json"

    @property
    def stop_request(self) -> Path:
        """A file that asks the run, if it exists, to save a checkpoint and end."""
        return self.directory / "stop"

    @property
    def done(self) -> Path:
        """A file that exists once the run has reached its end."""
        return self.directory / "done.json"
