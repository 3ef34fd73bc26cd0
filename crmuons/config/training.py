"""The settings of section `train`: steps, losses, optimizers and penalty."""

from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from crmuons.config.adaptation import Adapt
from crmuons.config.base import MANY, Section, not_empty

Beta = Annotated[float, Field(ge=0, lt=1)]


class Optimizer(Section):
    kind: Literal["adam", "sgd"] = "adam"
    """Optimizer of generator and critic (the multiplicity model always uses Adam)."""
    lr: float = Field(default=1e-3, gt=0, le=1e3)
    """Learning rate of generator and critic at the end of the warm-up."""
    generator_lr: float | None = Field(default=None, gt=0, le=1e3)
    """Learning rate of the generator. Unset: lr."""
    critic_lr: float | None = Field(default=None, gt=0, le=1e3)
    """Learning rate of the critic. Unset: lr."""
    multiplicity_lr: float = Field(default=1e-2, gt=0, le=1e3)
    """Learning rate of the multiplicity model."""
    momentum: float = Field(default=0.5, ge=0, lt=1)
    """Momentum of SGD."""
    betas: tuple[Beta, Beta] = (0.0, 0.99)
    """Decay rates of Adam's moments."""
    warmup_steps: int = Field(default=100, ge=0, le=MANY)
    """Steps over which the learning rates rise from zero."""
    decay: Literal["cosine", "linear", "none"] = "cosine"
    """Shape of the decrease of the learning rates to final_lr_share over the run."""
    final_lr_share: float = Field(default=0.01, ge=0, le=1)
    """Learning rate at the end, as a share of the highest."""
    max_grad_norm: float | None = Field(default=None, gt=0, le=1e12)
    """Largest L2 norm of a network's gradient; a larger gradient is scaled down to it. Unset: no limit."""


class Penalty(Section):
    kind: Literal["zero_centred", "one_centred", "none"] = "zero_centred"
    """zero_centred: squared gradient norm on real and on fake events. one_centred: (norm - 1)^2 on interpolates."""
    lambda_gp: float = Field(default=10.0, ge=0, le=1e6)
    """Weight of the penalty."""
    every: int = Field(default=1, ge=1, le=10_000)
    """Critic steps between penalties. The weight is multiplied by this number, so the mean penalty stays the same."""
    sample_fraction: float = Field(default=1.0, gt=0, le=1)
    """Share of a batch's events on which the penalty is computed."""
    max_pairs: int | None = Field(default=None, ge=1, le=MANY)
    """Largest number of events of a batch on which the penalty is computed."""


class Train(Section):
    init_from: str | None = None
    """A model to begin from: a run (name, directory or URL), a checkpoint, a model directory, or `models:/...` in MLflow.
    The run takes its weights, and its critic's where it holds one; optimizers and steps are new. Unset: random weights."""
    refit_features: bool = False
    """With init_from: fit the features' statistics to this run's data. By default the parent's are kept, because its
    weights were trained with them."""
    frozen: list[Literal["generator", "multiplicity", "discrete", "smooth"]] = Field(default_factory=list)
    """With init_from: networks that keep the parent's weights, such as the multiplicity model where the new data are too few
    to change how many muons there are."""
    steps: int | None = Field(default=None, ge=1, le=MANY)
    """The run ends after this many generator steps."""
    max_seconds: float | None = Field(default=None, gt=0, le=1e9)
    """The run ends after this many seconds of training."""
    epochs: float | None = Field(default=None, gt=0, le=1e9)
    """The run ends after this many passes over its training events, by critic and generator together. It keeps models of
    few showers from learning them by heart (docs/amplification.md); it is unset where a command gives train.steps."""
    events_per_worker: int = Field(default=2048, ge=1, le=2**24)
    """Events in one worker's batch. An optimizer step uses this times the workers times grad_accumulation."""
    grad_accumulation: int = Field(default=1, ge=1, le=10_000)
    """Number of batches whose gradients are summed for one optimizer step."""
    muons_per_event: int | None = Field(default=128, ge=1, le=10**8)
    """Generator and critic use at most this many muons of an event, drawn at random; the condition N is unchanged.
    Muons of an event are exchangeable, and without a limit the largest events would take most of the time."""
    weight_power: float = Field(default=0.25, ge=0, le=1)
    """Weight of an event for generator and critic: its number of muons (after muons_per_event) to this power.
    With 0 all events have the same weight. Large bundles are then too rare, and their energies and radii vary too
    little from shower to shower."""
    weight_power_many: float | None = Field(default=None, ge=0, le=1)
    """weight_power with 100,000 training events or more. Of many events the largest are learned better with a higher power:
    they hold nearly all muons far from the axis. Of few events the largest are so few that the model learns them by heart."""
    condition_noise: float = Field(default=0.0, ge=0, le=10)
    """Noise on the standardised primary that generator and critic see in training, and half as much on log10 N, in
    standard deviations, for 200 training showers; it falls with the root of their number. A critic that knows the
    primaries of few showers exactly learns these showers by heart (docs/amplification.md)."""
    n_critic: int = Field(default=1, ge=1, le=10_000)
    """Critic steps per generator step."""
    reuse_batch: bool = False
    """true: all updates of a step use the same events and generated muons. A step is cheaper and learns less.
    false: each update uses new events and new generated muons."""
    loss: Literal["wasserstein", "relativistic"] = "relativistic"
    """relativistic: softplus of the difference of paired scores."""
    optimizer: Optimizer = Field(default_factory=Optimizer)
    penalty: Penalty = Field(default_factory=Penalty)
    adapt: Adapt = Field(default_factory=Adapt)
    ema_decay: float = Field(default=0.998, ge=0, lt=1)
    """Decay per step of the averaged generator. The averaged generator is the one that generates events."""
    log_every: int = Field(default=20, ge=1, le=MANY)
    """Steps between metrics."""
    validate_every: int = Field(default=500, ge=1, le=MANY)
    """Steps between validations."""
    validation_events: int = Field(default=50_000, ge=100, le=10**7)
    """Events of a validation."""
    profile_steps: tuple[int, int] | None = None
    """[first,last]: steps that rank 0 records with torch.profiler, in `profile/` of the run's directory."""
    tf32: bool = False
    """Allow TF32 matrix products on NVIDIA GPUs."""
    bf16: bool = False
    """Run the networks in bfloat16; losses, penalties and features stay in float32."""
    detect_anomaly: bool = False
    """Find the operation that made the first NaN of a gradient, with torch's anomaly mode: the error names it. Steps are
    several times slower. A run may be continued with it (run.resume=auto)."""
    cuda_graph: bool = False
    """On an NVIDIA GPU, run a step as one CUDA graph (with several workers, as one graph between two exchanges). Without a
    GPU the setting changes nothing. Off by default until `crmuons benchmark gpu` has compared it on a GPU."""

    @field_validator("profile_steps")
    @classmethod
    def _in_order(cls, steps: tuple[int, int] | None) -> tuple[int, int] | None:
        if steps is not None and not 1 <= steps[0] <= steps[1]:
            msg = "the first and the last step to profile are numbers from 1 on, in this order"
            raise ValueError(msg)
        return steps

    @field_validator("init_from")
    @classmethod
    def _no_empty_parent(cls, value: str | None) -> str | None:
        return None if value is None else not_empty(value)

    @model_validator(mode="after")
    def _refits_with_parent(self) -> Self:
        if self.refit_features and self.init_from is None:
            msg = "refit_features goes with train.init_from: the features of a run without a parent are always fitted; leave it out, or set train.init_from"
            raise ValueError(msg)
        if self.frozen and self.init_from is None:
            msg = f"frozen={self.frozen} goes with train.init_from: random weights are of no use; leave it out, or set train.init_from"
            raise ValueError(msg)
        if self.frozen and self.refit_features:
            msg = f"frozen={self.frozen}: frozen weights belong to the parent's features; leave refit_features out"
            raise ValueError(msg)
        return self

    @model_validator(mode="after")
    def _ends(self) -> Self:
        if self.steps is None and self.max_seconds is None and self.epochs is None:
            msg = "neither train.steps nor train.max_seconds is set, nor train.epochs: the run would never end"
            raise ValueError(msg)
        if self.detect_anomaly and self.cuda_graph:
            msg = "train.detect_anomaly reads each gradient, which a CUDA graph does not allow; set train.cuda_graph=false"
            raise ValueError(msg)
        if self.adapt.enabled:
            self.adapt.check_start(self.n_critic, None if self.penalty.kind == "none" else self.penalty.lambda_gp)
        return self

    def share_done(self, step: int, seconds: float, epochs: float = 0.0) -> float:
        """Return the share of a run that is done, by its steps, training time or epochs, whichever is largest.

        Args:
            step: generator steps done.
            seconds: training time so far.
            epochs: passes over the training events so far.
        """
        limits = (step, self.steps), (seconds, self.max_seconds), (epochs, self.epochs)
        return max((done / limit for done, limit in limits if limit is not None), default=0.0)
