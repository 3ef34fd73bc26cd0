"""Compare true events with a model's training data, to catch other units, another energy threshold or another depth."""

import numpy as np

from crmuons.data.events import EventArrays
from crmuons.evaluation.metrics.quantities import muon_quantities
from crmuons.generation.generator import BundleGenerator

MAX_SHIFT = 0.3  # Largest shift of the median, in decades. Another spectrum of primaries shifts it by about 0.1.
LABELS_AND_UNITS = {"log_energy": ("muon energies", "GeV"), "log_radius": ("distances of muons from the axis", "m")}


def training_warnings(generator: BundleGenerator, truth: EventArrays) -> list[str]:
    """Return warnings where the median muon energy or distance differs between true events and training data."""
    # The knots are quantiles of both quantities in a sample of the training data.
    knots = generator.model.features.knots.cpu().double().numpy()
    quantities = muon_quantities(truth)
    warnings = []
    for (name, (label, unit)), quantiles in zip(LABELS_AND_UNITS.items(), knots, strict=True):
        trained, true = np.median(quantiles), np.median(quantities[name])
        if abs(true - trained) > MAX_SHIFT:
            warnings.append(
                f"the true {label} have a median of {10**true:.3g} {unit}, and the training data have a median of "
                f"{10**trained:.3g} {unit}: check the units, the energy threshold and the primaries of the true events"
            )
    return warnings
