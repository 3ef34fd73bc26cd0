"""Muon bundles from a trained model, with torch and numpy alone. This file is copied beside exported weights as bundles.py.

    from bundles import Bundles
    counts, muons = Bundles().generate(primaries, seed=1)

or, for a table with one primary per line (energy_gev, zenith_rad, mass_gev, depth_m), `python bundles.py primaries.csv out.npz`.
Python 3.8 and torch 1.13 are enough. With the same versions, the bundles are those of `crmuons generate` to rounding.
"""

import argparse
import json
import math
from pathlib import Path
from typing import Any, Iterator  # noqa: UP035  # as Python 3.8 has it

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import layer_norm, leaky_relu, linear, relu, silu

EVENTS_PER_BLOCK = 1024  # Events that share a random stream; the numbers are those of crmuons.
MUONS_PER_PIECE = 2**14
SLOPE = 0.2
MAX_SHAPE = 1e4
RADIUS_OFFSET_M = 1e-3


class Bundles:
    """A trained model.

    Attributes:
        about: the content of model.json.
        weights: of all networks, by name, with the features' statistics.
    """

    def __init__(self, directory: "Path | str | None" = None) -> None:
        """Load the model of a directory, by default the one in which this file is."""
        folder = Path(__file__).parent if directory is None else Path(directory)
        self.about = json.loads((folder / "model.json").read_text())
        self.weights = torch.load(folder / "weights.pt", map_location="cpu", weights_only=True)

    @property
    def settings(self) -> "dict[str, Any]":
        """The networks' form."""
        return dict(self.about["model"])

    def outside_training(self, primaries: np.ndarray) -> np.ndarray:
        """Which primaries lie outside the range of the training data (by more than 1 % of its width)."""
        low, high = _linear(self.weights["features.primary_range"].numpy())
        slack = 0.01 * (high - low) + 1e-6 * np.maximum(np.abs(low), np.abs(high))
        values = _linear(np.asarray(primaries, np.float32))
        return np.asarray(((values < low - slack) | (values > high + slack)).any(axis=1))

    def generate(
        self, primaries: np.ndarray, seed: int = 0, counts: "np.ndarray | None" = None
    ) -> "tuple[np.ndarray, np.ndarray]":
        """Draw one event for each primary.

        Args:
            primaries: energy_gev, zenith_rad, mass_gev (proton 0.938), depth_m (slant), one row per event.
            seed: of the random numbers.
            counts: muons of each event; drawn where not given.

        Returns:
            Muons of each event, and the muons of all events in that order: energy_gev, x_m, y_m across the shower axis.

        Raises:
            ValueError: if a primary is not legal.
        """
        values = np.ascontiguousarray(primaries, np.float32)
        check(values)
        drawn, muons = [np.empty(0, np.int64)], [np.empty((0, 3), np.float32)]
        for first in range(0, len(values), EVENTS_PER_BLOCK):
            block = torch.from_numpy(values[first : first + EVENTS_PER_BLOCK])
            source = _source(seed, first // EVENTS_PER_BLOCK)
            if counts is None:
                number = self.sample_counts(block, source)
            else:
                number = torch.as_tensor(counts[first : first + EVENTS_PER_BLOCK], dtype=torch.int64)
            drawn.append(number.numpy())
            muons += [self.sample_muons(block[rows], number[rows], source).numpy() for rows in _pieces(number.numpy())]
        return np.concatenate(drawn), np.concatenate(muons)

    @torch.no_grad()
    def sample_counts(self, primaries: Tensor, source: torch.Generator) -> Tensor:
        """Draw N of each event: from a mixture of negative binomials, or by the rounded regression."""
        if self.settings["multiplicity"] == "regressor":
            return (10 ** self.log_counts(primaries) - 1).round().clamp(min=0).long()
        log_weights, log_means, shapes = self.mixture(primaries)
        chosen = torch.multinomial(log_weights.exp(), 1, generator=source)
        shape, mean = shapes.gather(1, chosen)[:, 0], log_means.gather(1, chosen)[:, 0].exp()
        factor = torch._standard_gamma(shape, generator=source) / shape
        return torch.poisson(mean * factor, generator=source).long()

    @torch.no_grad()
    def sample_muons(self, primaries: Tensor, counts: Tensor, source: torch.Generator) -> Tensor:
        """Draw the muons of events [muons, 3]."""
        primaries, counts = primaries[counts > 0], counts[counts > 0]
        num_muons, (of_shower, of_muon) = int(counts.sum()), self.latents
        shower = torch.randn(len(counts), of_shower, generator=source)
        noise = torch.randn(num_muons, of_muon, generator=source)
        azimuth = torch.rand(num_muons, generator=source) * (2 * math.pi)
        event = torch.repeat_interleave(torch.arange(len(counts)), counts)
        return self.muons_of(primaries, counts, event, (shower, noise, azimuth))

    @property
    def latents(self) -> "tuple[int, int]":
        """Latent variables of an event, and of each muon."""
        if self.settings["kind"] == "baseline":
            return 32, 16
        return self.settings["shower_latents"], self.settings["muon_latents"]

    def condition(self, primaries: Tensor) -> Tensor:
        """log10(E/PeV), cos zenith, log10(mass/GeV), slant depth in km, standardised."""
        energy, zenith, mass, depth = primaries.unbind(1)
        columns = [torch.log10(energy / 1e6), torch.cos(zenith), torch.log10(mass), depth / 1000]
        values = torch.stack(columns, dim=1) - self.weights["features.primary_mean"]
        return values / self.weights["features.primary_std"]

    def mixture(self, primaries: Tensor) -> "tuple[Tensor, Tensor, Tensor]":
        """Log weights, log means and shapes of the negative binomials, each [events, components], in double precision."""
        hidden = self.condition(primaries)
        for layer in (0, 2):
            hidden = silu(self._dense(f"multiplicity.network.{layer}", hidden))
        weights, log_means, shapes = self._dense("multiplicity.network.4", hidden).double().chunk(3, dim=1)
        offsets = torch.linspace(-0.5, 0.5, self.settings["multiplicity_components"], dtype=torch.float64)
        shape = MAX_SHAPE * torch.sigmoid(shapes - math.log(MAX_SHAPE / 4))
        return weights.log_softmax(1), 3 * log_means + offsets, shape

    def log_counts(self, primaries: Tensor) -> Tensor:
        """The regression of log10(N + 1) [events]."""
        hidden = self.condition(primaries)
        for layer in (0, 2):
            hidden = relu(self._dense(f"multiplicity.network.{layer}", hidden))
        return self._dense("multiplicity.network.4", hidden)[:, 0]

    def muons_of(
        self, primaries: Tensor, counts: Tensor, event: Tensor, noise: "tuple[Tensor, Tensor, Tensor]"
    ) -> Tensor:
        """Noise to muons [muons, 3], without drawing a number.

        Args:
            primaries: of events with muons.
            counts: muons of each event.
            event: the event of each muon, ascending.
            noise: normal latents of the events and of the muons, and azimuths in radians.
        """
        log_count = torch.log10(counts.float()) - self.weights["features.log_count_mean"]
        given = [self.condition(primaries), (log_count / self.weights["features.log_count_std"])[:, None], noise[0]]
        network = self._baseline if self.settings["kind"] == "baseline" else self._set
        return self._physical(network(torch.cat(given, dim=1), noise[1], counts, event), noise[2])

    def _set(self, given: Tensor, noise: Tensor, counts: Tensor, event: Tensor) -> Tensor:
        """Muons that see the mean over their event, and their event's state."""
        state = _leaky(self._dense("generator.context.2", _leaky(self._dense("generator.context.0", given))))
        muons = _leaky(self._dense("generator.embed", noise) + self._dense("generator.embed_event", state)[event])
        for layer in range(self.settings["layers"]):
            name = f"generator.layers.{layer}"
            mean = torch.zeros_like(state).index_add(0, event, muons) / counts[:, None]
            state = state + _leaky(self._dense(f"{name}.pool", mean) + self._dense(f"{name}.event", state))
            mixed = linear(muons, self.weights[f"{name}.muon.weight"])
            mixed = _leaky(mixed + self._dense(f"{name}.event_to_muon", state)[event])
            muons = muons + _leaky(self._dense(f"{name}.out", mixed))
        return self._dense("generator.out", muons)

    def _baseline(self, given: Tensor, noise: Tensor, _counts: Tensor, event: Tensor) -> Tensor:
        """An event context, then each muon by itself."""
        w = self.weights
        state = self._dense("generator.context.2", relu(self._dense("generator.context.0", given)))
        state = layer_norm(state, state.shape[1:], w["generator.context.3.weight"], w["generator.context.3.bias"])
        hidden = torch.cat([state[event], noise], dim=1)
        for layer in (0, 2):
            hidden = relu(self._dense(f"generator.local.{layer}", hidden))
        return self._dense("generator.local.4", hidden)

    def _physical(self, features: Tensor, azimuth_rad: Tensor) -> Tensor:
        """Features to energy_gev, x_m, y_m."""
        w = self.weights
        if self.settings["kind"] == "baseline":
            network = features * w["features.muon_std"] + w["features.muon_mean"]
            return torch.cat([10 ** network[:, :1] * 1e6, network[:, 1:] * 500], dim=1)
        energy, radius = (_interpolate(features[:, i], w["features.scores"], w["features.knots"][i]) for i in (0, 1))
        radius_m = (10**radius - RADIUS_OFFSET_M).clamp(min=0)
        return torch.stack([10**energy, radius_m * torch.cos(azimuth_rad), radius_m * torch.sin(azimuth_rad)], dim=1)

    def _dense(self, name: str, values: Tensor) -> Tensor:
        return linear(values, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"])


def check(primaries: np.ndarray) -> None:
    """Refuse primaries that cannot be.

    Raises:
        ValueError: naming the first one.
    """
    if primaries.ndim != 2 or primaries.shape[1] != 4:
        msg = f"primaries have shape {primaries.shape}, wanted (events, 4): energy_gev, zenith_rad, mass_gev, depth_m"
        raise ValueError(msg)
    energy, zenith, mass, depth = primaries.T
    good = (energy > 0) & (zenith >= 0) & (zenith <= np.float32(np.pi / 2)) & (mass > 0) & (depth >= 10)
    bad = np.flatnonzero(~(good & np.isfinite(primaries).all(axis=1)))
    if bad.size:
        msg = (
            f"primary {bad[0]} is {primaries[bad[0]].tolist()}; wanted energy_gev > 0, zenith_rad in [0, pi/2], "
            "mass_gev > 0 (proton 0.938), depth_m >= 10 (metres, not kilometres)"
        )
        raise ValueError(msg)


def _leaky(values: Tensor) -> Tensor:
    return leaky_relu(values, SLOPE)


def _interpolate(x: Tensor, xs: Tensor, ys: Tensor) -> Tensor:
    """Piecewise linear through (xs, ys), continued beyond the ends with the last slopes."""
    left = (torch.bucketize(x.contiguous(), xs) - 1).clamp(0, xs.shape[0] - 2)
    slopes = (ys[1:] - ys[:-1]) / (xs[1:] - xs[:-1])
    return ys[left] + (x - xs[left]) * slopes[left]


def _linear(primaries: np.ndarray) -> np.ndarray:
    """Primaries with energy and mass by their decimal logarithms."""
    values = primaries.astype(np.float64)
    values[:, [0, 2]] = np.log10(values[:, [0, 2]])
    return values


def _source(seed: int, block: int) -> torch.Generator:
    state = np.random.SeedSequence([seed, block]).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state >> np.uint64(1)))


def _pieces(counts: np.ndarray) -> "Iterator[slice]":
    """Cut events into runs of about MUONS_PER_PIECE muons, an event being never cut."""
    piece = (np.cumsum(counts) - counts) // MUONS_PER_PIECE
    bounds = [0, *(np.flatnonzero(np.diff(piece)) + 1).tolist(), len(piece)]
    for index in range(len(bounds) - 1):
        yield slice(bounds[index], bounds[index + 1])


def main() -> None:
    """Read primaries, write `counts` and `muons` to an .npz file."""
    parser = argparse.ArgumentParser(description="Draw one muon bundle for each primary.")
    parser.add_argument("primaries", help="text: energy_gev, zenith_rad, mass_gev, depth_m, separated by commas")
    parser.add_argument("out", help=".npz file to write")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    primaries = np.loadtxt(arguments.primaries, delimiter=",", dtype=np.float32, ndmin=2)
    counts, muons = Bundles().generate(primaries, seed=arguments.seed)
    np.savez(arguments.out, primaries=primaries, counts=counts, muons=muons)


if __name__ == "__main__":
    main()
