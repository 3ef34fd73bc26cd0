"""Weighted events with the water above them, and weighted means over some of them with their statistical errors.

The events of a shower are alike, so all of them together count as one fluctuation.
"""

from dataclasses import dataclass
from typing import Self

import numpy as np
from jaxtyping import Bool, Float64, Int64

from crmuons.data.events import EventArrays
from crmuons.data.geometry import EARTH_RADIUS_M, FloatArray
from crmuons.evaluation.metrics.quantities import shower_numbers
from crmuons.evaluation.nature.weights import Coverage, Drawn, Flux, nucleons, row_weights
from crmuons.simulation.propagation import water_equivalent_m

FEW = 16  # With fewer effective showers, the relative error is at least 1 / sqrt(showers).


@dataclass(frozen=True)
class Sample:
    """Events that are weighted to a flux.

    Attributes:
        drawn: how they were made.
        coverage: which share of nature's muons they can hold.
        cosine: cosine of the zenith angle, [events].
        slant_km: depth along the track in km w.e., [events].
        vertical_km: vertical depth in km w.e., [events].
        counts: muons above the threshold, [events].
        weight: see `row_weights`, [events].
        shower: number of the shower, [events].
        unknown: whether a model was not trained on such a primary, [events].
        event: event of each muon above the threshold, rising, [muons].
        muons: energy, x and y of these muons, [muons, 3].
    """

    drawn: Drawn
    coverage: Coverage
    cosine: FloatArray
    slant_km: FloatArray
    vertical_km: FloatArray
    counts: Int64[np.ndarray, " events"]
    weight: FloatArray
    shower: Int64[np.ndarray, " events"]
    unknown: Bool[np.ndarray, " events"]
    event: Int64[np.ndarray, " muons"]
    muons: Float64[np.ndarray, "muons 3"]

    @classmethod
    def of(cls, events: EventArrays, drawn: Drawn, flux: Flux, unknown: Bool[np.ndarray, " events"] | None) -> Self:
        """Weight events.

        Raises:
            ValueError: if there are no muons, a nucleus has no flux, or an energy is outside of the drawn range.
        """
        energy, zenith, mass, depth = events.primaries.astype(np.float64).T
        number = nucleons(mass)
        weight = row_weights(energy, number, drawn, flux)
        cosine, medium = np.cos(zenith), drawn.passed
        hard = events.muons[:, 0] >= drawn.threshold_gev
        event = np.repeat(np.arange(len(events.counts)), events.counts)[hard]
        if not event.size:
            msg = (
                f"none of the {len(events.counts)} events has a muon above {drawn.threshold_gev:g} GeV: there is "
                "nothing to weigh; check the energies (GeV) and the depths (m), or give more events"
            )
            raise ValueError(msg)
        vertical = np.minimum(_vertical_m(depth, cosine, medium.surface_m), depth)
        return cls(
            drawn,
            Coverage(drawn, flux, set(np.unique(number).tolist())),
            cosine,
            water_equivalent_m(depth, cosine, medium) / 1e3,
            water_equivalent_m(vertical, np.ones_like(vertical), medium) / 1e3,
            np.bincount(event, minlength=len(events.counts)),
            weight,
            shower_numbers(events.ids)[0],
            np.zeros(len(weight), bool) if unknown is None else unknown,
            event,
            events.muons[hard].astype(np.float64),
        )

    def mean(self, rows: Bool[np.ndarray, " events"], values: FloatArray) -> tuple[float, float] | None:
        """Return the mean of weight times value over some events, and its error; None if there are no events.

        Args:
            rows: which events.
            values: one for each event of the sample.
        """
        num = int(rows.sum())
        if not num:
            return None
        of_shower = np.bincount(self.shower[rows], self.weight[rows] * values[rows])
        return float(of_shower.sum() / num), float(np.sqrt((of_shower**2).sum()) / num)

    def ratio(
        self, rows: Bool[np.ndarray, " events"], above: FloatArray, below: FloatArray
    ) -> tuple[float, float] | None:
        """Return the ratio of the weighted sums of two quantities, and its error; None if the lower sum is 0."""
        weight = self.weight[rows]
        total = (weight * below[rows]).sum()
        if not total > 0:
            return None
        value = (weight * above[rows]).sum() / total
        of_shower = np.bincount(self.shower[rows], weight * (above[rows] - value * below[rows]))
        error = np.sqrt((of_shower**2).sum()) / total
        num = total**2 / (np.bincount(self.shower[rows], weight * below[rows]) ** 2).sum()
        if num < FEW:  # The spread of a few showers is uncertain, and the spread of one shower is 0.
            error = max(error, value / np.sqrt(num))
        return float(value), float(error)

    def per_event(self, values: FloatArray) -> FloatArray:
        """Return the sum over the muons of each event."""
        return np.bincount(self.event, values, len(self.counts))

    def unknown_share(self, rows: Bool[np.ndarray, " events"], values: FloatArray) -> float:
        """Return the share of a weighted sum that comes from primaries a model was not trained on."""
        weighted = self.weight[rows] * values[rows]
        total = weighted.sum()
        return float(weighted[self.unknown[rows]].sum() / total) if total > 0 else 0.0


def _vertical_m(slant_m: FloatArray, cosine: FloatArray, surface_m: float) -> FloatArray:
    """Return the vertical depth of a slant depth over a round Earth: the inverse of `geometry.slant_depth_m`."""
    radius = EARTH_RADIUS_M + surface_m
    chord = slant_m * cosine
    # r = sqrt(R^2 - s^2 sin^2) - s cos, and R - r without the difference of large numbers.
    square = (slant_m**2 - chord**2) / radius
    vertical: FloatArray = chord + square / (1 + np.sqrt(1 - square / radius))
    return vertical
