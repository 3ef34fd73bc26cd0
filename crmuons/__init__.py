"""crmuons: distributed training of a generator of atmospheric muon bundles.

import crmuons
muons = crmuons.load("runs/NAME").generate({"energy_gev": [1e6, 1e7], "zenith_rad": 0.3, "mass_gev": "Fe", "depth_m": 1_900})
"""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from crmuons.generation.tables import TableGenerator

__all__ = ["load"]


def load(model: str | Path, device: str = "cpu") -> "TableGenerator":
    """Load a trained model that takes primaries as a table and returns muons as a table.

    Args:
        model: a run, a checkpoint, a model directory or an exported one, at a path or a URL; or `models:/NAME@ALIAS` in
            MLflow (MLFLOW_TRACKING_URI, or the database in the working directory).
        device: `cpu`, `cuda`, or `auto` for a GPU if there is one.

    Raises:
        FileNotFoundError: if there is no model.
        ValueError: if it is damaged or of another format, or there is no such device.
    """
    # Imported here: `import crmuons` costs nothing, and each command imports what it needs.
    from crmuons.generation.load import choose_device, load_generator  # noqa: PLC0415
    from crmuons.generation.tables import TableGenerator  # noqa: PLC0415
    from crmuons.tracking.logged_models import local_place  # noqa: PLC0415

    return TableGenerator(load_generator(local_place(str(model)), choose_device(device, elsewhere=False)))
