"""Every setting of a run: one typed tree, one way in.

A run is a TOML preset plus `section.key=value` words; the same dotted path is a key in TOML, on the command line and in a
sweep. Later wins: defaults, preset, words. Secrets, ranks and devices are never settings.
"""

import difflib
import hashlib
import json
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

OLD_KIND, NEW_KIND = "baseline", "predecessor"  # Of model.kind; runs and models made before 0.2 hold the old name.


class Section(BaseModel):
    """A group of settings; an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)


class Run(Section):
    name: str = Field(default="", pattern=r"^([A-Za-z0-9_-][A-Za-z0-9._-]*)?$")
    """Directory of the run below storage_path. Empty: the preset's name and a digest of the settings."""
    storage_path: str = "runs"
    """Where runs are kept: a directory that every worker can write to, or a URL (docs/pelican.md)."""
    seed: int = Field(default=0, ge=0, lt=2**63)
    """Seed of the weights, the noise and the order of the data."""
    resume: Literal["never", "auto"] = "never"
    """auto: continue the newest run of this name from its last checkpoint, or start it. never: always a new run."""
    max_failures: int = Field(default=3, ge=-1)
    """How many lost workers the run survives; -1 for any number."""
    checkpoint_every: int = Field(default=500, ge=1)
    """Steps between checkpoints."""
    keep_checkpoints: int = Field(default=2, ge=1)
    """How many of the newest checkpoints are kept, beside the best one."""
    upload_seconds: float = Field(default=1800, gt=0)
    """Where runs are kept at a URL: at the end, how long to go on trying to write what is not there yet."""


class Staging(Section):
    dir: str | None = None
    """Directory for copies of remote files, on each node that reads; unset: they are read where they lie."""
    files_ahead: int = Field(default=32, ge=1, le=256)
    """How many files each worker has staged before they are read."""
    max_bytes: int = Field(default=50 * 2**30, ge=1)
    """Bound on what is in the directory."""
    max_files: int = Field(default=10_000, ge=1)
    """Bound on how many files are in the directory."""
    delete_after_use: bool = False
    """Remove a file once it was read, rather than when its room is needed."""


class Data(Section):
    train: list[str] = Field(default_factory=list)
    """Paths, directories, globs or URLs of event Parquet."""
    validation: list[str] = Field(default_factory=list)
    """Likewise, for validation. Empty: the validation share of `train`."""
    depth: Literal["slant", "vertical"] = "slant"
    """What the files' depth_m is; a vertical depth is turned into the slant one with the zenith."""
    validation_share: float = Field(default=0.05, ge=0, lt=1)
    """Share of the showers kept for validation, by a hash of their ids."""
    test_share: float = Field(default=0.05, ge=0, lt=1)
    """Share of the showers kept for testing, by a hash of their ids."""
    max_muons_per_event: int | None = Field(default=None, ge=1)
    """Events with more muons go to the outliers data set instead of the training."""
    max_muons_per_batch: int | None = Field(default=None, ge=1)
    """A batch is closed before it exceeds this; an event that alone exceeds it goes to the outliers data set."""
    max_quarantined_share: float = Field(default=0.01, ge=0, le=1)
    """The run stops when more than this share of the rows read cannot be used."""
    shuffle_bytes: int = Field(default=32 * 2**20, ge=1)
    """Bytes of Parquet that are read and shuffled together."""
    prefetch_batches: int = Field(default=8, ge=1)
    """Batches that are made ready ahead of the step."""
    staging: Staging = Field(default_factory=Staging)

    @field_validator("train", "validation", mode="before")
    @classmethod
    def _one_or_many(cls, value: object) -> object:
        return [value] if isinstance(value, str) else value

    @model_validator(mode="after")
    def _shares_leave_training_data(self) -> Self:
        if self.validation_share + self.test_share >= 1:
            msg = f"validation_share {self.validation_share} + test_share {self.test_share} leave nothing to train on"
            raise ValueError(msg)
        return self


class Model(Section):
    kind: Literal["set", "predecessor"] = "set"
    """set: generator and critic whose muons see each other. predecessor: the predecessor's networks."""
    width: int = Field(default=64, ge=1)
    """Width of the hidden layers."""
    layers: int = Field(default=2, ge=1)
    """Set layers of the generator."""
    critic_layers: int = Field(default=1, ge=1)
    """Set layers of the critic."""
    shower_latents: int = Field(default=8, ge=0)
    """Latent variables shared by the muons of an event."""
    muon_latents: int = Field(default=4, ge=1)
    """Latent variables of each muon."""
    multiplicity: Literal["mixture", "regressor"] = "mixture"
    """mixture: negative binomials with an exact likelihood. regressor: log10(N + 1) by least squares, without spread."""
    multiplicity_width: int = Field(default=128, ge=1)
    """Width of the multiplicity model's hidden layers."""
    multiplicity_components: int = Field(default=4, ge=1)
    """Negative binomials in the mixture."""


Beta = Annotated[float, Field(ge=0, lt=1)]


class Optimizer(Section):
    kind: Literal["adam", "sgd"] = "adam"
    """Optimizer of generator and critic (the multiplicity model always uses Adam)."""
    lr: float = Field(default=1e-3, gt=0)
    """Learning rate of generator and critic, at the end of the warm-up."""
    generator_lr: float | None = Field(default=None, gt=0)
    """Learning rate of the generator, where it differs."""
    critic_lr: float | None = Field(default=None, gt=0)
    """Learning rate of the critic, where it differs."""
    multiplicity_lr: float = Field(default=1e-2, gt=0)
    """Learning rate of the multiplicity model."""
    momentum: float = Field(default=0.5, ge=0, lt=1)
    """Momentum of SGD."""
    betas: tuple[Beta, Beta] = (0.0, 0.99)
    """Decay rates of Adam's moments."""
    warmup_steps: int = Field(default=100, ge=0)
    """Steps over which the learning rates rise from zero."""
    decay: Literal["cosine", "linear", "none"] = "cosine"
    """How the learning rates fall to final_lr_share over the run."""
    final_lr_share: float = Field(default=0.01, ge=0, le=1)
    """Learning rate at the end, as a share of the highest."""
    max_grad_norm: float | None = Field(default=None, gt=0)
    """Gradients of a network are scaled down to this L2 norm."""


class Penalty(Section):
    kind: Literal["zero_centred", "one_centred", "none"] = "zero_centred"
    """zero_centred: squared gradient norm on real and on fake events. one_centred: (norm - 1)^2 on interpolates."""
    lambda_gp: float = Field(default=10.0, ge=0)
    """Weight of the penalty."""
    every: int = Field(default=1, ge=1)
    """Critic steps between penalties; the weight is multiplied by it, so that the mean penalty stays the same."""
    sample_fraction: float = Field(default=1.0, gt=0, le=1)
    """Share of the events on which the penalty is computed."""
    max_pairs: int | None = Field(default=None, ge=1)
    """At most this many events of a batch are penalised."""


class Train(Section):
    steps: int | None = Field(default=None, ge=1)
    """The run ends after this many generator steps."""
    max_seconds: float | None = Field(default=None, gt=0)
    """The run ends after this much training time."""
    events_per_worker: int = Field(default=2048, ge=1)
    """Events in one worker's batch (an optimizer step sees this times the workers times grad_accumulation)."""
    grad_accumulation: int = Field(default=1, ge=1)
    """Batches whose gradients are summed before an optimizer moves."""
    muons_per_event: int | None = Field(default=128, ge=1)
    """The kinematics learn from at most so many muons of an event, drawn at random; N remains the event's own.
    Muons of an event are exchangeable, and the largest events would otherwise take most of the time."""
    weight_power: float = Field(default=0.25, ge=0, le=1)
    """Generator and critic give an event the weight of its number of muons (as capped) to this power. With 0, all events alike,
    large bundles are too rare for their energies and radii to vary from shower to shower as they should."""
    n_critic: int = Field(default=1, ge=1)
    """Critic steps per generator step."""
    reuse_batch: bool = False
    """All updates of a step are made on the same events and the same generated muons: less is read and generated, and less is
    learned from a step. Unset: each update takes new ones."""
    loss: Literal["wasserstein", "relativistic"] = "relativistic"
    """relativistic: softplus of the difference of paired scores."""
    optimizer: Optimizer = Field(default_factory=Optimizer)
    penalty: Penalty = Field(default_factory=Penalty)
    ema_decay: float = Field(default=0.998, ge=0, lt=1)
    """Decay per step of the averaged generator, which is the one that generates."""
    log_every: int = Field(default=20, ge=1)
    """Steps between metrics."""
    validate_every: int = Field(default=500, ge=1)
    """Steps between validations."""
    validation_events: int = Field(default=50_000, ge=100)
    """Events of a validation."""
    profile_steps: tuple[int, int] | None = None
    """[first,last]: steps of which rank 0 writes a trace of torch.profiler, in `profile` below the run's directory."""
    tf32: bool = False
    """Allow TF32 matrix products on NVIDIA GPUs."""
    bf16: bool = False
    """Run the networks in bfloat16; losses, penalties and features stay in float32."""

    @field_validator("profile_steps")
    @classmethod
    def _in_order(cls, steps: tuple[int, int] | None) -> tuple[int, int] | None:
        if steps is not None and not 1 <= steps[0] <= steps[1]:
            msg = "the first and the last step to profile are numbers from 1 on, in this order"
            raise ValueError(msg)
        return steps

    @model_validator(mode="after")
    def _ends(self) -> Self:
        if self.steps is None and self.max_seconds is None:
            msg = "neither train.steps nor train.max_seconds is set: the run would never end"
            raise ValueError(msg)
        return self


class Scaling(Section):
    num_workers: int = Field(default=1, ge=0)
    """Ray Train workers. 0: train in this process, without a cluster. [least,most]: an elastic run, of as many as the cluster
    has room for; it goes on with fewer when nodes are lost, and takes those that come."""
    min_workers: int | None = Field(default=None, ge=1)
    """The least of an elastic run, which scaling.num_workers=[least,most] sets."""
    resize_seconds: float = Field(default=60.0, gt=0)
    """How often an elastic run looks whether more workers have room."""
    use_gpu: bool | None = None
    """One GPU per worker. Unset: where the cluster has GPUs."""
    cpus_per_worker: float | None = Field(default=None, gt=0)
    """CPUs reserved per worker. Unset: at most 1, leaving one CPU of the cluster to read the data."""
    threads_per_worker: int | None = Field(default=None, ge=1)
    """Torch threads per worker. Unset: the machine's cores over its workers."""

    @model_validator(mode="before")
    @classmethod
    def _split_pair(cls, values: Any) -> Any:
        pair = values.get("num_workers") if isinstance(values, dict) else None
        if not isinstance(pair, list | tuple):
            return values
        if len(pair) != 2:
            msg = f"num_workers is a number or a pair [least,most], not {pair}"
            raise ValueError(msg)
        return values | {"min_workers": pair[0], "num_workers": pair[1]}

    @model_validator(mode="after")
    def _least_is_least(self) -> Self:
        if self.min_workers is not None and self.min_workers > self.num_workers:
            msg = f"an elastic run has at least {self.min_workers} and at most {self.num_workers} workers: which is it?"
            raise ValueError(msg)
        return self


class Tracking(Section):
    enabled: bool = True
    """Send the run to MLflow."""
    experiment: str = "crmuons"
    """MLflow experiment."""
    tensorboard: bool = False
    """Write TensorBoard's event files too, in `tensorboard` below the run's directory."""
    parent: str = ""
    """The journal of the sweep that the run is a trial of; `crmuons sweep` sets it."""


class Config(Section):
    run: Run = Field(default_factory=Run)
    data: Data = Field(default_factory=Data)
    model: Model = Field(default_factory=Model)
    train: Train
    scaling: Scaling = Field(default_factory=Scaling)
    tracking: Tracking = Field(default_factory=Tracking)

    def flat(self) -> dict[str, Any]:
        """Every setting under its dotted path."""
        return dict(_flatten(self.model_dump(mode="json")))

    def digest(self) -> str:
        """Eight hexadecimal digits that name the settings that shape the result."""
        bookkeeping: Any = {
            "scaling": True,
            "tracking": True,
            "data": {"staging"},
            "train": {"profile_steps"},
            "run": {"name", "resume", "storage_path", "upload_seconds"},
        }
        kept = self.model_dump(mode="json", exclude=bookkeeping)
        return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:8]


def load(preset: Path | None, words: Sequence[str] = ()) -> Config:
    """Read a preset and the words after it.

    Args:
        preset: a TOML file; None for the defaults alone.
        words: `section.key=value`, the value in TOML (a bare word is a string).

    Raises:
        ValueError: for a word without `=`, a value out of range, or an unknown key, with the nearest valid one.
        FileNotFoundError: if there is no such preset.
    """
    tree: dict[str, Any] = {"train": {}}
    if preset is not None:
        tree |= _read_preset(preset)
    for word in words:
        path, equals, text = word.partition("=")
        if not equals:
            msg = f"'{word}' is not of the form section.key=value"
            raise ValueError(msg)
        _set(tree, path.strip(), _value(text))
    model = tree.get("model")
    if isinstance(model, dict) and model.get("kind") == OLD_KIND:
        msg = f"model.kind = '{OLD_KIND}' is '{NEW_KIND}' now, the predecessor's networks; the default is 'set'"
        raise ValueError(msg)
    tree = _named(tree, preset)
    return from_dict(tree)


def from_dict(tree: Mapping[str, Any]) -> Config:
    """Check a nested dictionary of settings."""
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        raise ValueError("; ".join(_say(fault) for fault in error.errors())) from error


def from_stored(tree: Mapping[str, Any]) -> Config:
    """Read settings that a run keeps, in the names of the crmuons that wrote them."""
    return from_dict(with_new_names(tree))


def with_new_names(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Return stored settings with values that have other names today under these."""
    model = tree.get("model", {})
    if model.get("kind") == OLD_KIND:
        return {**tree, "model": {**model, "kind": NEW_KIND}}
    return dict(tree)


def changed(settings: Config, values: Mapping[str, Any]) -> Config:
    """The settings with other values under some dotted paths.

    Raises:
        ValueError: for an unknown path, with the nearest valid one, or a value out of range.
    """
    tree = settings.model_dump(mode="json")
    for path, value in values.items():
        _set(tree, path, value)
    return from_dict(tree)


def settings() -> dict[str, tuple[str, str]]:
    """Every dotted path there is, with its default and its meaning."""
    return dict(_describe(Config))


def _read_preset(preset: Path) -> dict[str, Any]:
    if not preset.is_file():
        new = preset.with_name("default.toml")
        hint = f"it is {new} now" if preset.name == "baseline.toml" else "the ones that come along are in jobs/configs"
        msg = f"no preset at {preset}; {hint}"
        raise FileNotFoundError(msg)
    try:
        return tomllib.loads(preset.read_text())
    except tomllib.TOMLDecodeError as error:
        msg = f"{preset} is not TOML: {error}"
        raise ValueError(msg) from error


def _named(tree: dict[str, Any], preset: Path | None) -> dict[str, Any]:
    """Give a run without a name the preset's, with a digest: the same settings find the same run again."""
    run = tree.get("run", {})
    if not isinstance(run, dict) or run.get("name"):
        return tree
    stem = preset.stem if preset is not None else "run"
    name = f"{stem}-{from_dict(tree).digest()}"
    return tree | {"run": run | {"name": name}}


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text  # a bare word


def _set(tree: dict[str, Any], path: str, value: Any) -> None:
    *sections, key = path.split(".")
    for section in sections:
        below = tree.get(section)
        tree[section] = (
            below if isinstance(below, dict) else {}
        )  # A section named where a value stood: validation says so.
        tree = tree[section]
    tree[key] = value


def _say(fault: Any) -> str:
    path = ".".join(str(part) for part in fault["loc"])
    if fault["type"] != "extra_forbidden":
        given = "" if fault["type"] == "missing" or isinstance(fault["input"], dict) else f" (got {fault['input']!r})"
        return f"{path or 'config'}: {fault['msg'].removeprefix('Value error, ')}{given}"
    if isinstance(fault["input"], dict):  # A section: its first setting says more about what was meant.
        path = next((f"{path}.{below}" for below, _ in _flatten(fault["input"])), path)
    near = difflib.get_close_matches(path, settings(), n=1, cutoff=0.0)
    return f"unknown setting '{path}'; the nearest valid one is '{near[0]}'"


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _describe(section: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, tuple[str, str]]]:
    for name, field in section.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            yield from _describe(field.annotation, f"{prefix}{name}.")
        else:
            default = field.get_default(call_default_factory=True)
            yield f"{prefix}{name}", ("unset" if default is None else repr(default), field.description or "")
