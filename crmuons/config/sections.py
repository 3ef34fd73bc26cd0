"""The typed tree of all settings of a run.

A setting has the same dotted path in TOML, on the command line and in a sweep. The tree holds no secrets (they come
from the environment), and no ranks or devices (the launcher gives them).
"""

import hashlib
import json
import re
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from crmuons.config.base import MANY, Section, flatten, not_empty
from crmuons.config.training import Train

MOST_FOLDS = 100  # Largest K of data.fold: the part of the showers that validates must not be too small.


class Run(Section):
    name: str = Field(default="", max_length=200)
    """Directory of the run below storage_path. Empty: the preset's name and a digest of the settings."""
    storage_path: str = "runs"
    """Storage of the runs: a directory that every worker can write to, or a URL (docs/pelican.md)."""
    seed: int = Field(default=0, ge=0, lt=2**63)
    """Seed of the weights, the noise and the order of the data."""
    resume: Literal["never", "auto"] = "never"
    """auto: continue the newest run of this name from its last checkpoint, or start it. never: always a new run."""
    max_failures: int = Field(default=3, ge=-1, le=10**6)
    """Number of worker failures that the run survives; -1 for any number."""
    checkpoint_every: int = Field(default=500, ge=1, le=MANY)
    """Steps between checkpoints."""
    keep_checkpoints: int = Field(default=2, ge=1, le=10**6)
    """Number of newest checkpoints to keep, in addition to the best one."""
    upload_seconds: float = Field(default=1800, gt=0, le=1e9)
    """For a run stored at a URL: seconds at the end during which failed uploads are tried again."""

    @field_validator("name")
    @classmethod
    def _is_one_folder(cls, value: str) -> str:
        if not re.fullmatch(r"([A-Za-z0-9_-][A-Za-z0-9._-]*)?", value):
            msg = "expected a name of letters, digits, '.', '_' and '-' that does not begin with '.', such as first-run"
            raise ValueError(msg)
        return value

    @field_validator("storage_path")
    @classmethod
    def _no_empty_path(cls, value: str) -> str:
        return not_empty(value)


class Staging(Section):
    dir: str | None = None
    """Directory for local copies of remote files, on each node that reads data. Unset: read remote files directly."""
    files_ahead: int = Field(default=32, ge=1, le=256)
    """Number of files that each worker stages ahead of reading."""
    max_bytes: int = Field(default=50 * 2**30, ge=1, le=10**18)
    """Largest total size of the files in the directory."""
    max_files: int = Field(default=10_000, ge=1, le=MANY)
    """Largest number of files in the directory."""
    delete_after_use: bool = False
    """Remove a file right after it was read, instead of when its space is needed."""

    @field_validator("dir")
    @classmethod
    def _no_empty_path(cls, value: str | None) -> str | None:
        return None if value is None else not_empty(value)


class Data(Section):
    train: list[str] = Field(default_factory=list)
    """Paths, directories, globs or URLs of event Parquet."""
    validation: list[str] = Field(default_factory=list)
    """The same for validation. Empty: use the validation share of `train`."""
    features: list[str] = Field(default_factory=list)
    """Numbers of a muon to learn in addition to energy_gev, x_m, y_m: t_ns, dir_x, dir_y, charge, energy_surface_gev, or
    your own as NAME:KIND with the kind positive, signed, angle or discrete. The files declare them (docs/data-contract.md)."""
    depth: Literal["slant", "vertical"] = "slant"
    """Meaning of depth_m in the files. A vertical depth is converted to the slant depth with the zenith."""
    validation_share: float = Field(default=0.05, ge=0, lt=1)
    """Share of the showers used for validation, selected by a hash of their ids."""
    test_share: float = Field(default=0.05, ge=0, lt=1)
    """Share of the showers reserved for testing, selected by a hash of their ids."""
    fold: tuple[int, int] | None = None
    """[k,K]: cut the showers, without the test share, into K parts by a hash of their ids; validate on part k (0 to K - 1) in
    place of the validation share, and train on the others. `crmuons train --ensemble` sets it."""
    max_muons_per_event: int | None = Field(default=None, ge=1, le=MANY)
    """Events with more muons are written to the outliers data set and not trained on."""
    max_muons_per_batch: int | None = Field(default=None, ge=1, le=MANY)
    """Largest number of muons in a batch. A single event above it is written to the outliers data set."""
    max_quarantined_share: float = Field(default=0.01, ge=0, le=1)
    """The run stops if a larger share of the rows cannot be used."""
    skip_missing: bool = False
    """Leave out files that are gone, damaged, or not those that the run began with, instead of stopping."""
    shuffle_bytes: int = Field(default=32 * 2**20, ge=1, le=2**40)
    """Bytes of Parquet that are read and shuffled together."""
    prefetch_batches: int = Field(default=8, ge=1, le=10_000)
    """Number of batches prepared ahead of the training step."""
    read_tasks: int = Field(default=2, ge=1, le=1024)
    """Segments that each worker has read at once, in Ray tasks; with scaling.num_workers=0 one thread reads. A read of
    fast storage decodes far more than a worker trains on; slow storage may need more."""
    pin_memory: bool = True
    """For a GPU, prepare batches in page-locked memory, from which they are copied while it computes. false: for machines
    that allow little of it."""
    staging: Staging = Field(default_factory=Staging)

    @field_validator("train", "validation", mode="before")
    @classmethod
    def _one_or_many(cls, value: object) -> object:
        return [value] if isinstance(value, str) else value

    @field_validator("train", "validation")
    @classmethod
    def _no_empty_path(cls, value: list[str]) -> list[str]:
        return [not_empty(path) for path in value]

    @model_validator(mode="after")
    def _shares_leave_training_data(self) -> Self:
        if self.validation_share + self.test_share >= 1:
            msg = f"validation_share {self.validation_share} + test_share {self.test_share} leave nothing to train on"
            raise ValueError(msg)
        return self

    @field_validator("fold")
    @classmethod
    def _is_fold(cls, value: tuple[int, int] | None) -> tuple[int, int] | None:
        if value is not None and not (0 <= value[0] < value[1] and 2 <= value[1] <= MOST_FOLDS):
            msg = f"expected [k,K] with K from 2 to {MOST_FOLDS} and k from 0 to K - 1, not {list(value)}"
            raise ValueError(msg)
        return value


class Model(Section):
    kind: Literal["set", "predecessor"] = "set"
    """set: the muons of an event influence each other. predecessor: the networks of the predecessor."""
    width: int = Field(default=64, ge=1, le=8192)
    """Width of the hidden layers."""
    layers: int = Field(default=2, ge=1, le=100)
    """Set layers of the generator."""
    critic_layers: int = Field(default=1, ge=1, le=100)
    """Set layers of the critic."""
    shower_latents: int = Field(default=8, ge=0, le=8192)
    """Latent variables shared by the muons of an event."""
    muon_latents: int = Field(default=4, ge=1, le=8192)
    """Latent variables of each muon."""
    multiplicity: Literal["mixture", "regressor"] = "mixture"
    """mixture: negative binomials, exact likelihood. regressor: log10(N + 1) by least squares, no spread."""
    multiplicity_width: int = Field(default=128, ge=1, le=8192)
    """Width of the multiplicity model's hidden layers."""
    multiplicity_components: int = Field(default=4, ge=1, le=1024)
    """Number of negative binomials in the mixture."""


class Scaling(Section):
    num_workers: int = Field(default=1, ge=0, le=100_000)
    """Number of Ray Train workers. 0: train in this process, without a cluster. [least,most]: an elastic run. It uses
    as many workers as the cluster has room for, continues with fewer if nodes are lost, and grows if nodes join."""
    min_workers: int | None = Field(default=None, ge=1, le=100_000)
    """Smallest number of workers of an elastic run; scaling.num_workers=[least,most] sets it."""
    resize_seconds: float = Field(default=60.0, gt=0, le=1e9)
    """Seconds between checks of an elastic run for room for more workers."""
    use_gpu: bool | None = None
    """Reserve one GPU per worker; with num_workers=0, train on this machine's. Unset: if there are GPUs."""
    backend: Literal["auto", "gloo", "nccl"] = "auto"
    """How the workers exchange gradients. auto: NCCL between GPUs, Gloo between CPUs. gloo: slower between GPUs, for
    networks on which NCCL fails."""
    cpus_per_worker: float | None = Field(default=None, gt=0, le=4096)
    """CPUs reserved per worker. Unset: at most 1, so that one CPU of the cluster is left for reading the data."""
    threads_per_worker: int | None = Field(default=None, ge=1, le=4096)
    """Torch threads per worker. Unset: the CPUs that crmuons may use (affinity, quota of the control group, Slurm),
    divided by the number of workers on the node, and at most OMP_NUM_THREADS."""

    @model_validator(mode="before")
    @classmethod
    def _split_pair(cls, values: Any) -> Any:
        pair = values.get("num_workers") if isinstance(values, dict) else None
        if not isinstance(pair, list | tuple):
            return values
        if len(pair) != 2:
            msg = f"num_workers: expected a number or a pair [least,most], not {pair}"
            raise ValueError(msg)
        return values | {"min_workers": pair[0], "num_workers": pair[1]}

    @model_validator(mode="after")
    def _least_is_least(self) -> Self:
        if self.min_workers is not None and self.min_workers > self.num_workers:
            msg = (
                f"num_workers=[{self.min_workers},{self.num_workers}] has its minimum above its maximum; give [MIN,MAX]"
            )
            raise ValueError(msg)
        return self


class Tracking(Section):
    enabled: bool = True
    """Send the run to MLflow."""
    experiment: str = "crmuons"
    """MLflow experiment."""
    tensorboard: bool = False
    """Also write TensorBoard event files, in `tensorboard/` of the run's directory."""
    parent: str = ""
    """Identity of the sweep that this run is a trial of; `crmuons sweep` sets it."""

    @field_validator("experiment")
    @classmethod
    def _has_name(cls, value: str) -> str:
        if not value.strip():  # No server accepts an empty name, so the run could never be sent.
            msg = "an empty name, perhaps from a variable that is not set; give a name, or leave the setting out"
            raise ValueError(msg)
        return value


PRESET_EPOCHS = 1000.0  # train.epochs of config/presets/default.toml.
# Settings that version 0.1 did not have. Digests leave them out while they have these defaults, so that runs and sweeps
# of version 0.1 keep their names.
LATER: dict[str, Any] = {
    "data.features": [],
    "data.fold": None,
    "data.skip_missing": False,
    "train.condition_noise": 0.0,
    "train.cuda_graph": False,
    "train.epochs": None,
    "train.frozen": [],
    "train.init_from": None,
    "train.refit_features": False,
    "train.weight_power_many": None,
}


class Config(Section):
    run: Run = Field(default_factory=Run)
    data: Data = Field(default_factory=Data)
    model: Model = Field(default_factory=Model)
    train: Train
    scaling: Scaling = Field(default_factory=Scaling)
    tracking: Tracking = Field(default_factory=Tracking)

    def flat(self) -> dict[str, Any]:
        """Return every setting under its dotted path."""
        return dict(flatten(self.model_dump(mode="json")))

    def digest(self) -> str:
        """Return eight hexadecimal digits that identify the settings that change the result of a run."""
        bookkeeping: Any = {
            "scaling": True,
            "tracking": True,
            "data": {"staging", "skip_missing", "read_tasks", "pin_memory"},
            # Without the adaptive critic, its other settings change nothing.
            "train": {"profile_steps", "cuda_graph", "detect_anomaly"}
            | (set() if self.train.adapt.enabled else {"adapt"})
            # Earlier versions of the default preset had no epochs: their runs keep their names.
            | ({"epochs"} if self.train.epochs == PRESET_EPOCHS else set()),
            "run": {"name", "resume", "storage_path", "upload_seconds"},
        }
        kept = self.model_dump(mode="json", exclude=bookkeeping)
        for section, _, name in (path.partition(".") for path in LATER):
            if kept[section].get(name) == LATER[f"{section}.{name}"]:
                kept[section].pop(name, None)
        return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:8]
