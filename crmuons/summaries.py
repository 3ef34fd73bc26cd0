"""What a bundle looks like in a few numbers: the quantities in which bundles are compared.

Logarithms are to base 10, of energies in GeV and of distances from the shower axis in metres.
"""

import numpy as np
from jaxtyping import Float, Float64, Int64

from crmuons.schema import EventArrays

MIN_RADIUS_M = 1e-3  # A muon on the axis has no logarithm; no detector resolves a millimetre.

# Muons that a bundle must have before the quantity is defined: two for a spread; three for a correlation, which is
# +-1 for any two. A quantity that is not here needs one muon.
MUONS_NEEDED = {"log_num_muons": 0, "spread_log_energy": 2, "spread_log_radius": 2, "correlation": 3}

LABELS = {
    "log_energy": "log10 E of a muon [GeV]",
    "log_radius": "log10 r of a muon [m]",
    "log_num_muons": "log10 (N + 1)",
    "log_total_energy": "log10 total energy [GeV]",
    "log_leading_energy": "log10 leading energy [GeV]",
    "log_mean_radius": "log10 mean radius [m]",
    "log_weighted_radius": "log10 energy-weighted radius [m]",
    "mean_log_energy": "mean of log10 E in the bundle [GeV]",
    "mean_log_radius": "mean of log10 r in the bundle [m]",
    "spread_log_energy": "spread of log10 E in the bundle",
    "spread_log_radius": "spread of log10 r in the bundle",
    "correlation": "correlation of log E and log r in the bundle",
}


def muon_quantities(events: EventArrays) -> dict[str, Float64[np.ndarray, " muons"]]:
    """log_energy and log_radius of every muon."""
    energy, x, y = events.muons.astype(np.float64).T
    return {"log_energy": np.log10(energy), "log_radius": np.log10(np.maximum(np.hypot(x, y), MIN_RADIUS_M))}


def bundle_summaries(
    events: EventArrays, muons: dict[str, Float64[np.ndarray, " muons"]] | None = None
) -> dict[str, Float64[np.ndarray, " events"]]:
    """The quantities of every bundle, NaN where it has too few muons for one (MUONS_NEEDED).

    Spreads are standard deviations over the bundle's muons (divided by N); the correlation is Pearson's, and NaN also
    where all its muons share one energy or one radius.

    Args:
        events: any events, empty ones too.
        muons: `muon_quantities` of the events, where they are at hand.
    """
    muons = muon_quantities(events) if muons is None else muons
    counts = events.counts
    log_energy, log_radius = muons["log_energy"], muons["log_radius"]
    energy, radius = events.muons[:, 0].astype(np.float64), 10.0**log_radius
    total = _per_event(np.add, energy, counts)
    mean_energy = _per_event(np.add, log_energy, counts) / counts_or_nan(counts)
    mean_radius = _per_event(np.add, log_radius, counts) / counts_or_nan(counts)
    off_energy, off_radius = log_energy - np.repeat(mean_energy, counts), log_radius - np.repeat(mean_radius, counts)
    spread_energy = np.sqrt(_mean(off_energy**2, counts, at_least=2))
    spread_radius = np.sqrt(_mean(off_radius**2, counts, at_least=2))
    covariance = _mean(off_energy * off_radius, counts, at_least=3)
    spreads = spread_energy * spread_radius
    return {
        "log_num_muons": np.log10(counts + 1.0),
        "log_total_energy": np.log10(total),
        "log_leading_energy": _per_event(np.maximum, log_energy, counts),
        "log_mean_radius": np.log10(_mean(radius, counts)),
        "log_weighted_radius": np.log10(_per_event(np.add, energy * radius, counts) / total),
        "mean_log_energy": mean_energy,
        "mean_log_radius": mean_radius,
        "spread_log_energy": spread_energy,
        "spread_log_radius": spread_radius,
        "correlation": np.divide(covariance, spreads, out=np.full(len(counts), np.nan), where=spreads > _ROUNDING),
    }


def primary_features(primaries: Float[np.ndarray, "events 4"]) -> Float64[np.ndarray, "events 4"]:
    """log10 energy [GeV], cosine of the zenith angle, log10 mass [GeV], slant depth [km]."""
    energy, zenith, mass, depth = primaries.astype(np.float64).T
    return np.stack([np.log10(energy), np.cos(zenith), np.log10(mass), depth / 1000], axis=1)


def event_of_muon(counts: Int64[np.ndarray, " events"]) -> Int64[np.ndarray, " muons"]:
    """The event that each muon belongs to."""
    return np.repeat(np.arange(len(counts)), counts)


def counts_or_nan(counts: Int64[np.ndarray, " events"], at_least: int = 1) -> Float64[np.ndarray, " events"]:
    """The counts, NaN below `at_least`: to divide by."""
    divisor = counts.astype(np.float64)
    divisor[counts < at_least] = np.nan
    return divisor


_ROUNDING = 1e-10  # A product of spreads below this is rounding: float32 energies are equal, or differ by 1e-7.


def _mean(
    values: Float64[np.ndarray, " muons"], counts: Int64[np.ndarray, " events"], at_least: int = 1
) -> Float64[np.ndarray, " events"]:
    return _per_event(np.add, values, counts) / counts_or_nan(counts, at_least)


def _per_event(
    reduce: np.ufunc, values: Float64[np.ndarray, " muons"], counts: Int64[np.ndarray, " events"]
) -> Float64[np.ndarray, " events"]:
    """Reduce each event's muons to one number, NaN for an empty event."""
    result = np.full(len(counts), np.nan)
    filled = counts > 0  # reduceat cannot express an empty range; the filled events alone tile the muons.
    if filled.any():
        result[filled] = reduce.reduceat(values, (np.cumsum(counts) - counts)[filled])
    return result
