"""Generate muon bundles from a trained model with torch and numpy alone. Every export holds this code as bundles.py.

    from bundles import Bundles
    counts, muons = Bundles().generate(primaries, seed=1)

The command `python bundles.py primaries.csv out.npz` takes one primary per line: energy_gev, zenith_rad, mass_gev,
depth_m. The file needs Python 3.8 and torch 1.13. `crmuons generate` runs the same code: the same torch on the same
machine gives the same bundles, to the last bit.
"""

import argparse
import json
import zipfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from crmuons.models.ensemble import network_of
from crmuons.models.formulas import outside_ranges


class Bundles:
    """A trained model in a directory: `about` is the content of model.json, `network` its networks."""

    def __init__(self, directory: "Path | str | None" = None, device: str = "cpu") -> None:
        """Load the model of a directory, by default of the directory of this file."""
        folder = Path(__file__).parent if directory is None else Path(directory)
        self.about = json.loads((folder / "model.json").read_text(encoding="utf-8"))
        weights = folder / "weights.pt"
        with zipfile.ZipFile(weights) as archive:
            if archive.testzip() is not None:  # torch itself does not compare the checksums that it writes.
                msg = f"{weights} is damaged: it does not have the checksums written with it; copy the model again"
                raise ValueError(msg)
        tensors = torch.load(weights, map_location=device, weights_only=True)
        check_finite(tensors, weights)
        self.network = network_of(tensors)

    def outside_training(self, primaries: np.ndarray) -> np.ndarray:
        """Tell which primaries lie outside the range of the training data (by more than 1 % of its width)."""
        ranges = self.network.primary_range.cpu().numpy()
        return outside_ranges(np.asarray(primaries, np.float32), ranges)

    def generate(
        self, primaries: np.ndarray, seed: int = 0, counts: "np.ndarray | None" = None
    ) -> "tuple[np.ndarray, np.ndarray]":
        """Draw one event for each primary.

        Args:
            primaries: energy_gev, zenith_rad, mass_gev (proton 0.938), depth_m (slant), one row per event.
            seed: seed of the random numbers.
            counts: number of muons of each event; None draws it.

        Returns:
            The number of muons of each event, and the muons of all events in order: energy_gev, x_m, y_m, and the
            further features of `network.extra.names`.

        Raises:
            ValueError: if a primary is out of range.
        """
        values = np.ascontiguousarray(primaries, np.float32)
        check(values)
        number = self.network.draw_counts(values, seed) if counts is None else np.asarray(counts, np.int64)
        muons = [part for _, part in self.network.draw_muons(values, number, seed)]
        none = torch.empty((0, self.network.width), device=self.network.device)
        return number, torch.cat([none, *muons]).cpu().numpy()


def check_finite(tensors: "dict[str, Tensor]", place: "Path | str") -> None:
    """Raise a ValueError that names the first tensor of a file with NaN or infinity, which would generate NaN muons."""
    for name, values in tensors.items():
        if not torch.isfinite(values).all():
            bad = int((~torch.isfinite(values)).sum())
            msg = (
                f"{place}: tensor '{name}' holds {bad} values that are NaN or infinite (of {values.numel()}); copy the file "
                "again, or take another checkpoint"
            )
            raise ValueError(msg)


def check(primaries: np.ndarray) -> None:
    """Raise a ValueError that names the first primary out of range."""
    if primaries.ndim != 2 or primaries.shape[1] != 4:
        msg = f"primaries have shape {primaries.shape}, expected (events, 4): energy_gev, zenith_rad, mass_gev, depth_m"
        raise ValueError(msg)
    energy, zenith, mass, depth = primaries.T
    good = (energy > 0) & (zenith >= 0) & (zenith <= np.float32(np.pi / 2)) & (mass > 0) & (depth >= 10)
    bad = np.flatnonzero(~(good & np.isfinite(primaries).all(axis=1)))
    if bad.size:
        msg = (
            f"primary {bad[0]} is {primaries[bad[0]].tolist()}; expected energy_gev > 0, zenith_rad in [0, pi/2], "
            "mass_gev > 0 (proton 0.938), depth_m >= 10 (metres, not kilometres)"
        )
        raise ValueError(msg)


def main() -> None:
    """Read primaries from a text file, and write `counts` and `muons` to an .npz file."""
    parser = argparse.ArgumentParser(description="Draw one muon bundle for each primary.")
    parser.add_argument("primaries", help="text file: energy_gev, zenith_rad, mass_gev, depth_m, separated by commas")
    parser.add_argument("out", help=".npz file to write")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    primaries = np.loadtxt(arguments.primaries, delimiter=",", dtype=np.float32, ndmin=2)
    counts, muons = Bundles().generate(primaries, seed=arguments.seed)
    np.savez(arguments.out, primaries=primaries, counts=counts, muons=muons)


if __name__ == "__main__":
    main()
