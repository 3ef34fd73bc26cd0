"""Weight generated events to a cosmic-ray flux with simweights: the column `weight_hz`."""

import difflib
from typing import Any

import numpy as np
from jaxtyping import Float32, Float64

from crmuons.generation.spectrum import Spectrum, check_ranges, pdg, weight_tables

WEIGHT_COLUMN = "weight_hz"  # A column in addition to the contract's: the rate through the spectrum's cylinder.
# simweights' models that need no arguments.
FLUXES = (
    "GaisserH3a", "GaisserH4a", "GaisserHillas", "GlobalFitGST", "GlobalSplineFit", "GlobalSplineFit5Comp", "Hoerandel",
    "Hoerandel5", "GaisserH4a_IT", "GlobalFitGST_IT", "GlobalSplineFit_IT", "Hoerandel_IT",
)  # fmt: skip


def flux_named(name: str, option: str) -> Any:
    """Return a flux of simweights.

    Raises:
        ValueError: for another name; the message begins with `option` and has the nearest name.
    """
    if name not in FLUXES:
        near = difflib.get_close_matches(name, FLUXES, n=1, cutoff=0.0)[0]
        msg = f"{option} {name}: expected one of {', '.join(FLUXES)}; the nearest is {near}"
        raise ValueError(msg)
    import simweights  # noqa: PLC0415  # it imports scipy, 0.3 CPU-seconds

    return getattr(simweights, name)()


class FluxWeights:
    """The rate of each event of a spectrum in a cosmic-ray flux, in Hz.

    Args:
        spectrum: the spectrum from which all primaries of the data set are drawn.
        flux: a name of FLUXES.

    Raises:
        ValueError: if there is no such flux, it lacks a nucleus of the spectrum, or a range has no width.
    """

    def __init__(self, spectrum: Spectrum, flux: str) -> None:
        self.spectrum, self.flux = spectrum, flux_named(flux, "--weight")
        check_ranges(spectrum, f"--weight {flux}")
        known = {int(code) for code in self.flux.pdgids}
        missing = [name for name, _ in spectrum.composition if pdg(name) not in known]
        if missing:
            msg = (
                f"--weight {flux}: it has no flux of {', '.join(missing)}, which the spectrum's composition names; leave "
                "these nuclei out, or take another flux (GlobalSplineFit has all nuclei)"
            )
            raise ValueError(msg)

    def __call__(self, primaries: Float32[np.ndarray, "events 4"]) -> Float64[np.ndarray, " events"]:
        """Return the weights of some of the data set's primaries."""
        import simweights  # noqa: PLC0415

        return np.asarray(simweights.CorsikaWeighter(weight_tables(self.spectrum, primaries)).get_weights(self.flux))
