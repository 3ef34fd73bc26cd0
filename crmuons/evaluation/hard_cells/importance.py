"""The probability with which an event is looked at: high where its primary may give an event of a hard cell.

It depends on the primary alone, so true and generated events of the same primaries have the same probability. The
weights 1/p undo the choice in all averages.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int64
from sklearn.ensemble import HistGradientBoostingRegressor

from crmuons.evaluation.hard_cells.kinds import Conditions, HardCell

BIN = 0.2  # Width of a bin in log10 (N + 1). N fluctuates by about this width for a given primary.


@dataclass(frozen=True)
class Importance:
    """Probabilities in bins of the log10 (N + 1) that a primary is expected to give.

    Attributes:
        expected: predicts log10 (N + 1) from `primary_features`.
        edges: edges between the bins.
        floor: the lowest probability. It is above 0, so that every event can be chosen and the weights are right.
        cells: the cell of each column of `probability`.
        probability: probability of primaries in the region of a cell, [bins, cells].
    """

    expected: HistGradientBoostingRegressor
    edges: Float64[np.ndarray, " edges"]
    floor: float
    cells: list[HardCell]
    probability: Float64[np.ndarray, "bins cells"]

    @classmethod
    def fit(
        cls,
        cells: list[HardCell],
        conditions: Conditions,
        counts: Int64[np.ndarray, " events"],
        members: Int64[np.ndarray, "events cells"],
        *,
        total: int,
        wanted: int,
    ) -> "Importance":
        """Choose probabilities that give every cell the wanted number of events, if there are enough.

        P(k) is the share of the events in bin k that belong to a cell. The probability is proportional to sqrt(P(k)),
        which gives the rate of the cell the smallest error for the number of events that are looked at.

        Args:
            cells: the hard cells.
            conditions, counts: `primary_features` and N of a random sample of the events, the pilot.
            members: `HardCell.members` of the pilot for each cell.
            total: number of all events.
            wanted: number of events of each cell.
        """
        log_counts = np.log10(counts + 1.0)
        expected = HistGradientBoostingRegressor(
            max_iter=60, min_samples_leaf=100, early_stopping=False, random_state=0
        )
        expected.fit(conditions, log_counts)
        predicted = expected.predict(conditions)
        edges = np.arange(BIN, max(float(predicted.max()), BIN) + BIN / 2, BIN)
        bins = np.digitize(predicted, edges)
        scale = total / len(counts)
        columns = []
        for number, cell in enumerate(cells):
            inside = cell.region(conditions)
            primaries, hits = (
                np.bincount(bins[kept], minlength=len(edges) + 1)
                for kept in (inside, inside & (members[:, number] > 0))
            )
            columns.append(_probabilities(hits / np.maximum(primaries, 1), scale * hits, wanted))
        return cls(expected, edges, min(1.0, wanted / max(total, 1)), cells, np.stack(columns, axis=1))

    def of(self, conditions: Conditions) -> Float64[np.ndarray, " events"]:
        """Return the probability of each primary."""
        result = np.full(len(conditions), self.floor)
        if not len(conditions):
            return result
        bins = np.digitize(self.expected.predict(conditions), self.edges)
        for number, cell in enumerate(self.cells):
            inside = cell.region(conditions)
            result[inside] = np.maximum(result[inside], self.probability[bins[inside], number])
        return result


def _probabilities(
    share: Float64[np.ndarray, " bins"], hits: Float64[np.ndarray, " bins"], wanted: int
) -> Float64[np.ndarray, " bins"]:
    """Return min(1, factor sqrt(share)) with the factor for which `wanted` of the hits are expected."""
    root = np.sqrt(share)
    if hits.sum() <= wanted:
        return np.asarray((root > 0).astype(np.float64))
    low, high = 0.0, 1 / root[root > 0].min()
    for _ in range(60):
        factor = (low + high) / 2
        if (hits * np.minimum(1, factor * root)).sum() < wanted:
            low = factor
        else:
            high = factor
    return np.asarray(np.minimum(1, high * root))
