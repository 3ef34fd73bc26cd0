"""Whether true events look like those that a model was trained on: other units, thresholds or depths are seen at a glance."""

import numpy as np

from crmuons.data.events import EventArrays
from crmuons.evaluation.metrics.quantities import muon_quantities
from crmuons.generation.generator import BundleGenerator

MAX_SHIFT = 0.3  # Of the median, in decades: a factor of two. Other spectra of primaries shift it by about 0.1.
WHAT = {"log_energy": ("muon energies", "GeV"), "log_radius": ("distances of muons from the axis", "m")}


def training_warnings(generator: BundleGenerator, truth: EventArrays) -> list[str]:
    """What is to be said where the medians of true muons' energies and distances are not those of the training data."""
    knots = generator.model.features.knots.cpu().double().numpy()  # Quantiles of both in a sample of the training data.
    warnings = []
    for (name, (what, unit)), quantiles in zip(WHAT.items(), knots, strict=True):
        trained, found = np.median(quantiles), np.median(muon_quantities(truth)[name])
        if abs(found - trained) > MAX_SHIFT:
            warnings.append(
                f"the true {what} have a median of {10**found:.3g} {unit}, those that the model was trained on {10**trained:.3g} {unit}: "
                "other units, another threshold, or primaries of quite another kind"
            )
    return warnings
