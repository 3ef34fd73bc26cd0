"""Serve a trained model in MLflow with torch and numpy alone: a table of primaries in, a table of muon bundles out.

A logged model holds a copy of this file and bundles.py (exported.py), in a package whose name has the digest of both. So it loads
on a machine without crmuons, and models of several versions of crmuons load in one process.
"""

from typing import Any, Callable  # noqa: UP035  # for Python 3.8, as bundles.py

import numpy as np
import pandas as pd

from .bundles import Bundles  # the copy is in a package of another name

PRIMARY = ["energy_gev", "zenith_rad", "mass_gev", "depth_m"]
Generate = Callable[[np.ndarray, int], "tuple[np.ndarray, np.ndarray]"]


class PrimariesToBundles:
    """A muon-bundle generator with MLflow's `predict` method.

    Args:
        generate: primaries [events, 4], seed -> number of muons of each event, muons of all events [muons, 3].
    """

    def __init__(self, generate: Generate) -> None:
        self._generate = generate

    def predict(self, primaries: pd.DataFrame, params: "dict[str, Any] | None" = None) -> pd.DataFrame:
        """Generate one event for each primary.

        Args:
            primaries: columns energy_gev, zenith_rad, mass_gev, depth_m.
            params: `seed` of the random numbers (0 if not given).

        Returns:
            The columns of the data contract: shower ids (the row number), the primary, and muons as lists of
            [energy_gev, x_m, y_m].
        """
        values = primaries[PRIMARY].to_numpy(np.float32)
        counts, muons = self._generate(values, int((params or {}).get("seed", 0)))
        ends = np.cumsum(counts).tolist()
        rows = muons.tolist()
        return pd.DataFrame(
            {
                "primary_major_id": np.arange(len(values)),
                "primary_minor_id": np.zeros(len(values), np.int64),
                "primary": values.tolist(),
                "muons": [rows[end - count : end] for end, count in zip(ends, counts.tolist())],  # noqa: B905  # Python 3.8
            }
        )


def _load_pyfunc(path: str) -> PrimariesToBundles:
    """Return the model of a directory. MLflow calls this function of a loader module by its name."""
    return PrimariesToBundles(Bundles(path).generate)
