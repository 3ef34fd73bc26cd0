"""Load a logged model for `mlflow.pyfunc.load_model`: a table of primaries in, a table of muon bundles out."""

from typing import Any

import numpy as np
import pandas as pd

from crmuons.data import schema
from crmuons.data.arrow import to_table
from crmuons.generation.generator import BundleGenerator
from crmuons.generation.load import load_generator


class PrimariesToBundles:
    """A muon-bundle generator with MLflow's `predict` method."""

    def __init__(self, generator: BundleGenerator) -> None:
        self._generator = generator

    def predict(self, primaries: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """Generate one event for each primary.

        Args:
            primaries: columns energy_gev, zenith_rad, mass_gev, depth_m.
            params: `seed` of the random numbers (0 if not given).

        Returns:
            The columns of the data contract: shower ids (the row number), the primary, and muons as lists of
            [energy_gev, x_m, y_m].
        """
        values = primaries[list(schema.PRIMARY_FEATURES)].to_numpy(np.float32)
        events = self._generator.generate(values, seed=int((params or {}).get("seed", 0)))
        return pd.DataFrame(to_table(events).to_pydict())


def _load_pyfunc(path: str) -> PrimariesToBundles:
    """Return the model of a directory. MLflow calls this function of a loader module by its name."""
    return PrimariesToBundles(load_generator(path))
