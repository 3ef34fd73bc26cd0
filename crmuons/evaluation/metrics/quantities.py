"""The quantities in which bundles are compared.

Logarithms are to base 10. Energies are in GeV, distances from the shower axis in metres.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from jaxtyping import Bool, Float, Float32, Float64, Int64, UInt64

from crmuons.data.events import EventArrays
from crmuons.data.features import MuonFeature
from crmuons.evaluation.metrics import further as further_features

MIN_RADIUS_M = 1e-3  # The logarithm of 0 is undefined, and no detector resolves a millimetre.

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

EXTRA = "extra_"  # Prefix of the names of further features: a user's own feature may be named "correlation".
MUON_QUANTITIES = ("log_energy", "log_radius")
BUNDLE_QUANTITIES = tuple(name for name in LABELS if name not in MUON_QUANTITIES)


@dataclass(frozen=True)
class Counted:
    """Primary, N and shower of each event.

    Attributes:
        conditions: `primary_features` of each event.
        counts: the number of muons of each event.
        showers: the number of the shower that each event belongs to.
    """

    conditions: Float64[np.ndarray, "events 4"]
    counts: Int64[np.ndarray, " events"]
    showers: Int64[np.ndarray, " events"]

    def __len__(self) -> int:
        return len(self.counts)


@dataclass(frozen=True)
class Sample(Counted):
    """Events with the quantities in which they are compared.

    Attributes:
        muons: the quantities of each muon, in single precision to save memory (1e-7 of a decade does not matter); further
            features of the muons as `extra_` and their name (see metrics/further.py).
        bundles: the quantities of each bundle, NaN if undefined; mean and spread of each further feature.
    """

    muons: dict[str, Float32[np.ndarray, " muons"]]
    bundles: dict[str, Float64[np.ndarray, " events"]]

    @classmethod
    def of(
        cls,
        events: EventArrays,
        showers: Int64[np.ndarray, " events"] | None = None,
        further: Sequence[MuonFeature] = (),
    ) -> Self:
        """Compute the quantities of events. Without `showers`, each event counts as a separate shower.

        Args:
            events: the events; their muons may lack the further features.
            showers: the shower of each event.
            further: features of a muon beyond the first three.
        """
        muons = muon_quantities(events)
        showers = np.arange(len(events.counts)) if showers is None else showers
        single = {name: values.astype(np.float32) for name, values in muons.items()}
        further = further_features.in_common(further, events)
        names = [f"{EXTRA}{column.name}" for column in further_features.columns(further)]
        single |= dict(zip(names, further_features.values(events, further).T, strict=True))
        bundles = bundle_summaries(events.counts, muons | {name: single[name].astype(np.float64) for name in names})
        return cls(primary_features(events.primaries), events.counts, showers, single, bundles)

    @classmethod
    def concat(cls, samples: Sequence["Sample"]) -> Self:
        """Join the events of several samples, in order."""
        return cls(
            np.concatenate([sample.conditions for sample in samples]),
            np.concatenate([sample.counts for sample in samples]),
            np.concatenate([sample.showers for sample in samples]),
            {name: np.concatenate([sample.muons[name] for sample in samples]) for name in samples[0].muons},
            {name: np.concatenate([sample.bundles[name] for sample in samples]) for name in samples[0].bundles},
        )

    def where(self, kept: Bool[np.ndarray, " events"]) -> "Sample":
        """Return the selected events, each with its muons."""
        kept_muons = np.repeat(kept, self.counts)
        return Sample(
            self.conditions[kept],
            self.counts[kept],
            self.showers[kept],
            {name: values[kept_muons] for name, values in self.muons.items()},
            {name: values[kept] for name, values in self.bundles.items()},
        )

    def of_muons(self, kept: Bool[np.ndarray, " muons"]) -> "Sample":
        """Return the events that have any of the selected muons, with these muons only."""
        counts = np.bincount(event_of_muon(self.counts)[kept], minlength=len(self))
        some = counts > 0
        muons = {name: values[kept] for name, values in self.muons.items()}
        doubles = {name: values.astype(np.float64) for name, values in muons.items()}
        bundles = bundle_summaries(counts[some], doubles)
        return Sample(self.conditions[some], counts[some], self.showers[some], muons, bundles)

    def values(self, name: str) -> Float[np.ndarray, " values"]:
        """Return one quantity of all muons, or of the bundles for which it is defined."""
        return self.values_and_showers(name)[0]

    def values_and_showers(self, name: str) -> tuple[Float[np.ndarray, " values"], Int64[np.ndarray, " values"]]:
        """Return one quantity, and the shower of each value."""
        if name in self.muons:
            return self.muons[name], np.repeat(self.showers, self.counts)
        defined = np.isfinite(self.bundles[name])
        return self.bundles[name][defined], self.showers[defined]

    @property
    def quantities(self) -> tuple[str, ...]:
        """Return the names of all quantities."""
        return (*MUON_QUANTITIES, *BUNDLE_QUANTITIES, *(name for name in self.muons if name.startswith(EXTRA)))

    def num_showers(self, name: str) -> int:
        """Count the showers that have a value of the quantity."""
        has_value = self.counts > 0 if name in self.muons else np.isfinite(self.bundles[name])
        return len(np.unique(self.showers[has_value]))


def shower_numbers(*ids: UInt64[np.ndarray, "events 2"]) -> list[Int64[np.ndarray, " events"]]:
    """Number the showers of several sets of events from 0; equal ids get the same number in all sets."""
    _, numbers = np.unique(np.concatenate(ids), axis=0, return_inverse=True)
    return np.split(numbers.ravel(), np.cumsum([len(part) for part in ids])[:-1])


def muon_quantities(events: EventArrays) -> dict[str, Float64[np.ndarray, " muons"]]:
    """Return log_energy and log_radius of every muon."""
    energy, x, y = events.muons[:, :3].astype(np.float64).T
    return {"log_energy": np.log10(energy), "log_radius": np.log10(np.maximum(np.hypot(x, y), MIN_RADIUS_M))}


def bundle_summaries(
    counts: Int64[np.ndarray, " events"], muons: dict[str, Float64[np.ndarray, " muons"]]
) -> dict[str, Float64[np.ndarray, " events"]]:
    """Compute the quantities of every bundle; NaN where the bundle has too few muons.

    Spreads are standard deviations over the bundle's muons (divided by N). The correlation is Pearson's; it is NaN also
    if all muons have the same energy or the same radius.

    Args:
        counts: the number of muons of each event, with zeros for empty events.
        muons: `muon_quantities` of the events, and further features.
    """
    log_energy, log_radius = muons["log_energy"], muons["log_radius"]
    energy, radius = 10.0**log_energy, 10.0**log_radius
    total = _per_event(np.add, energy, counts)
    mean_energy = _per_event(np.add, log_energy, counts) / counts_or_nan(counts)
    mean_radius = _per_event(np.add, log_radius, counts) / counts_or_nan(counts)
    off_energy, off_radius = log_energy - np.repeat(mean_energy, counts), log_radius - np.repeat(mean_radius, counts)
    spread_energy = np.sqrt(_mean(off_energy**2, counts, at_least=2))
    spread_radius = np.sqrt(_mean(off_radius**2, counts, at_least=2))
    covariance = _mean(off_energy * off_radius, counts, at_least=3)  # The correlation of any two muons is +-1.
    spreads = spread_energy * spread_radius
    further = {
        f"{name}_{what}": values
        for name, column in muons.items()
        if name.startswith(EXTRA)
        for what, values in zip(("mean", "spread"), _mean_and_spread(column, counts), strict=True)
    }
    return further | {
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
    """Return log10 energy [GeV], cosine of the zenith angle, log10 mass [GeV] and slant depth [km]."""
    energy, zenith, mass, depth = primaries.astype(np.float64).T
    return np.stack([np.log10(energy), np.cos(zenith), np.log10(mass), depth / 1000], axis=1)


def event_of_muon(counts: Int64[np.ndarray, " events"]) -> Int64[np.ndarray, " muons"]:
    """Return the index of the event that each muon belongs to."""
    return np.repeat(np.arange(len(counts)), counts)


def counts_or_nan(counts: Int64[np.ndarray, " events"], at_least: int = 1) -> Float64[np.ndarray, " events"]:
    """Return the counts as a divisor, with NaN below `at_least`."""
    divisor = counts.astype(np.float64)
    divisor[counts < at_least] = np.nan
    return divisor


_ROUNDING = 1e-10  # Smaller products of spreads are rounding: float32 energies are equal, or differ by 1e-7.


def _mean_and_spread(
    values: Float64[np.ndarray, " muons"], counts: Int64[np.ndarray, " events"]
) -> tuple[Float64[np.ndarray, " events"], Float64[np.ndarray, " events"]]:
    mean = _mean(values, counts)
    return mean, np.sqrt(_mean((values - np.repeat(mean, counts)) ** 2, counts, at_least=2))


def _mean(
    values: Float64[np.ndarray, " muons"], counts: Int64[np.ndarray, " events"], at_least: int = 1
) -> Float64[np.ndarray, " events"]:
    mean: np.ndarray = _per_event(np.add, values, counts) / counts_or_nan(counts, at_least)
    return mean


def _per_event(
    reduce: np.ufunc, values: Float64[np.ndarray, " muons"], counts: Int64[np.ndarray, " events"]
) -> Float64[np.ndarray, " events"]:
    """Reduce each event's muons to one number; NaN for an empty event."""
    result = np.full(len(counts), np.nan)
    nonempty = counts > 0  # reduceat has no empty ranges.
    if nonempty.any():
        result[nonempty] = reduce.reduceat(values, (np.cumsum(counts) - counts)[nonempty])
    return result
