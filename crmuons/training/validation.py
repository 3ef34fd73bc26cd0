"""Validate a model during the training, on held-out events."""

from collections.abc import Callable

import torch

from crmuons import config
from crmuons.data.events import EventArrays
from crmuons.evaluation.metrics import distances
from crmuons.generation.generator import MAX_MUONS_PER_EVENT, BundleGenerator, ModelNotFiniteError
from crmuons.models.bundle_model import BundleModel
from crmuons.runs.directory import Run
from crmuons.tracking.interface import AnyTracker, NullTracker
from crmuons.training.interface import Metrics
from crmuons.training.trainer import NonFiniteError

# Largest multiplicity of a generated event in a validation, in units of the largest true one.
VALIDATION_MUON_CAP = 10


class Validation:
    """Compare generated events with held-out events of the same primaries, in metrics and in a figure for MLflow."""

    def __init__(
        self,
        run: Run,
        settings: config.Config,
        device: torch.device,
        tracker: AnyTracker,
        show: Callable[[EventArrays, EventArrays, int], None] | None = None,
    ) -> None:
        self.truth = run.load_validation()
        self.seed, self.device, self.tracker, self.show = settings.run.seed, device, tracker, show
        # Early in the training a multiplicity model sometimes draws millions of muons. The run should get a bad score
        # and not fail.
        self.max_muons = min(VALIDATION_MUON_CAP * max(1, int(self.truth.counts.max())), MAX_MUONS_PER_EVENT)

    def __call__(self, model: BundleModel, step: int) -> Metrics:
        """Return the metrics of a model; "score" is the mean W1/sigma (docs/metrics.md).

        Raises:
            NonFiniteError: if the model gives NaN.
        """
        truth = self.truth
        try:
            generator = BundleGenerator(model, {}, self.device)
            generated = generator.generate(truth.primaries, seed=self.seed, ids=truth.ids, max_muons=self.max_muons)
        except ModelNotFiniteError as error:
            msg = f"step {step}: the averaged model cannot be validated: {str(error).partition(';')[0]}."
            raise NonFiniteError(msg) from error
        if not isinstance(self.tracker, NullTracker):
            from crmuons.evaluation.report import figures  # noqa: PLC0415  # The import takes 0.8 CPU-seconds.

            self.tracker.figure(figures.marginals(truth, generated), "marginals", step)
        if self.show is not None:
            self.show(truth, generated, step)
        return distances.fidelity(truth, generated, model.features.extra)
