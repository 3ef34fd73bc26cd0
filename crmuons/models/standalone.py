"""Muon bundles from a trained model, with torch and numpy alone. This file is copied beside exported weights as bundles.py.

    from bundles import Bundles
    counts, muons = Bundles().generate(primaries, seed=1)

or, for a table with one primary per line (energy_gev, zenith_rad, mass_gev, depth_m), `python bundles.py primaries.csv out.npz`.
Python 3.8 and torch 1.13 are enough. `crmuons generate` runs this file too: with the same torch on the same machine, the bundles are
the same to the last bit.

The networks are those of crmuons.models, crmuons.multiplicity and crmuons.features, stated for speed instead of for training: as many
muons at once as a CPU's cache holds, in arrays that are changed in place.
"""

import argparse
import json
import math
import re
from pathlib import Path
from typing import Any, Iterator  # noqa: UP035  # as Python 3.8 has it

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import embedding_bag, layer_norm, leaky_relu_, relu, silu

# Events that share a random stream, so that what is drawn does not depend on how calls are cut; a GPU is idle with few of them.
EVENTS_PER_BLOCK = {"cpu": 1024, "cuda": 16_384}
# Muons made at once. 64 hidden numbers of each fill 2 MB of a CPU's cache, or 256 MB of a GPU's memory.
MUONS_PER_PIECE = {"cpu": 2**13, "cuda": 2**20}
COUNTS, MUONS = 0, 1  # A block's random streams.
SLOPE = 0.2
MAX_SHAPE = 1e4
RADIUS_OFFSET_M = 1e-3
KNOWN = re.compile(
    r"features\.\w+|multiplicity\.network\.[024]\.(weight|bias)|generator\.(context\.[023]|embed|embed_event|out|local\.[024]"
    r"|layers\.\d+\.(pool|event|event_to_muon|muon|out))\.(weight|bias)"
)


class StandaloneModel:
    """The networks of a trained model, as functions of their weights.

    Args:
        weights: of all networks, by name, with the features' statistics, on the device that is to draw.

    Attributes:
        device: where it draws.
        latents: latent variables of an event, and of each muon.

    Raises:
        ValueError: if there are weights that this file does not know.
    """

    def __init__(self, weights: "dict[str, Tensor]") -> None:
        unknown = [name for name in weights if not KNOWN.fullmatch(name)]
        if unknown:
            msg = f"{__file__} knows no weights named '{unknown[0]}': it must state the networks of crmuons.models as they are"
            raise ValueError(msg)
        self.weights = weights
        self.device = weights["features.knots"].device
        self.baseline = "generator.local.0.weight" in weights
        self.num_layers = sum(name.endswith(".pool.weight") for name in weights)
        self.components = len(weights["multiplicity.network.4.bias"]) // 3  # 0: N is regressed.
        gaps = weights["features.scores"].diff()
        self.even = bool(gaps.max() - gaps.min() < 1e-3 * gaps.mean())
        self.latents = (32, 16) if self.baseline else self._latents()

    def _latents(self) -> "tuple[int, int]":
        shower, muon = (self.weights[f"generator.{name}.weight"].shape[1] for name in ("context.0", "embed"))
        return shower - 5, muon  # The primary and N are the other five.

    @torch.inference_mode()
    def draw_counts(self, primaries: np.ndarray, seed: int, first_event: int = 0) -> np.ndarray:
        """Draw N of each event [events] from a mixture of negative binomials, or by the rounded regression."""
        drawn = [
            self.sample_counts(self._on_device(primaries[rows]), random_stream(seed, block, COUNTS, self.device))
            for block, rows in blocks(len(primaries), first_event, self.device)
        ]
        return torch.cat([torch.empty(0, dtype=torch.int64), *(counts.cpu() for counts in drawn)]).numpy()

    @torch.inference_mode()
    def draw_muons(
        self, primaries: np.ndarray, counts: np.ndarray, seed: int, first_event: int = 0
    ) -> "Iterator[tuple[slice, Tensor]]":
        """Draw the muons of events, some events at a time: which, and their muons [muons, 3] in the order of the events.

        Args:
            primaries: energy_gev, zenith_rad, mass_gev, depth_m (slant), one row per event.
            counts: muons of each event.
            seed: of the random numbers.
            first_event: the number of the first event, a multiple of EVENTS_PER_BLOCK: seed, numbers and N fix the muons.
        """
        for block, rows in blocks(len(primaries), first_event, self.device):
            source = random_stream(seed, block, MUONS, self.device)
            for part in pieces(counts[rows], self.device):
                piece = slice(rows.start + part.start, rows.start + part.stop)
                kept = np.flatnonzero(counts[piece])
                yield piece, self._muons(primaries[piece][kept], counts[piece][kept], source)

    def _muons(self, primaries: np.ndarray, counts: np.ndarray, source: torch.Generator) -> Tensor:
        if not len(counts):
            return torch.empty((0, 3), device=self.device)
        numbers = self._on_device(counts)
        event = torch.repeat_interleave(numbers, output_size=int(counts.sum()))
        return self.muons_of(self._on_device(primaries), numbers, event, self.noise(len(counts), len(event), source))

    def noise(self, events: int, muons: int, source: torch.Generator) -> "tuple[Tensor, Tensor, Tensor]":
        """Normal latents of the events and of the muons, and azimuths in radians."""
        given: Any = {"generator": source, "device": self.device}
        shower, muon = self.latents
        azimuth = torch.rand(muons, **given).mul_(2 * math.pi)
        return torch.randn(events, shower, **given), torch.randn(muons, muon, **given), azimuth

    def sample_counts(self, primaries: Tensor, source: torch.Generator) -> Tensor:
        """Draw N of each event."""
        if not self.components:
            return (10 ** self.log_counts(primaries) - 1).round().clamp(min=0).long()
        log_weights, log_means, shapes = self.mixture(primaries)
        chosen = torch.multinomial(log_weights.exp(), 1, generator=source)
        shape, mean = shapes.gather(1, chosen)[:, 0], log_means.gather(1, chosen)[:, 0].exp()
        factor = torch._standard_gamma(shape, generator=source) / shape
        rate = (mean * factor).clamp_(max=2.0**53)  # Far outside the trained range N may be more than an integer holds.
        return torch.poisson(rate, generator=source).long()

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
            hidden = silu(self._dense(f"multiplicity.network.{layer}", hidden), inplace=True)
        weights, log_means, shapes = self._dense("multiplicity.network.4", hidden).double().chunk(3, dim=1)
        offsets = torch.linspace(-0.5, 0.5, self.components, dtype=torch.float64, device=self.device)
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
        network = self._baseline if self.baseline else self._set
        return self._physical(network(torch.cat(given, dim=1), noise[1], counts, event), noise[2])

    def _set(self, given: Tensor, noise: Tensor, counts: Tensor, event: Tensor) -> Tensor:
        """Muons that see the mean over their event, and their event's state; a row for each feature."""
        state = self._leaky("generator.context.2", self._leaky("generator.context.0", given))
        muons = self._dense("generator.embed_event", state) + self.weights["generator.embed.bias"]
        muons = self._mixed("generator.embed", muons.index_select(0, event), noise)
        for layer in range(self.num_layers):
            name = f"generator.layers.{layer}"
            pooled = self._dense(f"{name}.pool", self.mean(muons, counts))
            state = state + leaky_relu_(pooled + self._dense(f"{name}.event", state), SLOPE)
            mixed = self._dense(f"{name}.event_to_muon", state).index_select(0, event)
            muons += self._leaky(f"{name}.out", self._mixed(f"{name}.muon", mixed, muons))
        # Twice as fast as muons by features: 27 and 5 ns per muon for a width of 64 and two features.
        return torch.mm(self.weights["generator.out.weight"], muons.t()) + self.weights["generator.out.bias"][:, None]

    def _baseline(self, given: Tensor, noise: Tensor, _counts: Tensor, event: Tensor) -> Tensor:
        """An event context, then each muon by itself; a row for each feature."""
        w = self.weights
        state = self._dense("generator.context.2", relu(self._dense("generator.context.0", given)))
        state = layer_norm(state, state.shape[1:], w["generator.context.3.weight"], w["generator.context.3.bias"])
        hidden = torch.cat([state[event], noise], dim=1)
        for layer in (0, 2):
            hidden = relu(self._dense(f"generator.local.{layer}", hidden))
        return self._dense("generator.local.4", hidden).t()

    def _physical(self, features: Tensor, azimuth_rad: Tensor) -> Tensor:
        """Features [features, muons] to energy_gev, x_m, y_m [muons, 3]."""
        w = self.weights
        if self.baseline:
            log_energy, x, y = (features * w["features.muon_std"][:, None] + w["features.muon_mean"][:, None]).unbind(0)
            return torch.stack([10**log_energy * 1e6, x * 500, y * 500], dim=1)
        energy, radius = (self._quantile(features[i], w["features.knots"][i]) for i in (0, 1))
        radius_m = torch.pow(10, radius).sub_(RADIUS_OFFSET_M).clamp_(min=0)
        columns = [torch.pow(10, energy), torch.cos(azimuth_rad).mul_(radius_m), torch.sin(azimuth_rad).mul_(radius_m)]
        return torch.stack(columns, dim=1)

    def _quantile(self, score: Tensor, knots: Tensor) -> Tensor:
        """A normal score to the quantile: linear between the knots, continued beyond the ends with the last slopes."""
        scores = self.weights["features.scores"]
        left = self._piece(score, scores)
        slopes = (knots[1:] - knots[:-1]) / (scores[1:] - scores[:-1])
        steps = (score - scores.index_select(0, left)).mul_(slopes.index_select(0, left))
        return steps.add_(knots.index_select(0, left))

    def _piece(self, score: Tensor, scores: Tensor) -> Tensor:
        """The linear piece in which each score lies.

        Between knots at even distances, it is computed and set right where rounding was on the other side of a knot: 8 ns a muon,
        where a search takes 60.
        """
        last = len(scores) - 2
        if not self.even:  # Models of before had their knots at equal probabilities.
            return (torch.bucketize(score, scores) - 1).clamp_(0, last)
        piece = ((score - scores[0]) / (scores[1] - scores[0])).long().clamp_(0, last)
        too_low = score > scores.index_select(0, piece + 1)
        too_high = score < scores.index_select(0, piece)
        return (piece + too_low.long() - too_high.long()).clamp_(0, last)

    def mean(self, muons: Tensor, counts: Tensor) -> Tensor:
        """The mean over the muons of each event [events, width]."""
        rows = torch.arange(len(muons), device=self.device)
        return embedding_bag(rows, muons, counts.cumsum(0) - counts, mode="sum") / counts[:, None]

    def _dense(self, name: str, values: Tensor) -> Tensor:
        return torch.addmm(self.weights[f"{name}.bias"], values, self.weights[f"{name}.weight"].t())

    def _leaky(self, name: str, values: Tensor) -> Tensor:
        return leaky_relu_(self._dense(name, values), SLOPE)

    def _mixed(self, name: str, given: Tensor, muons: Tensor) -> Tensor:
        """Each muon's own part added to its event's, in place."""
        return leaky_relu_(given.addmm_(muons, self.weights[f"{name}.weight"].t()), SLOPE)

    def _on_device(self, values: np.ndarray) -> Tensor:
        return torch.from_numpy(np.array(values)).to(self.device)


class Bundles:
    """A trained model in a directory.

    Attributes:
        about: the content of model.json.
        network: what draws.
    """

    def __init__(self, directory: "Path | str | None" = None, device: str = "cpu") -> None:
        """Load the model of a directory, by default the one in which this file is."""
        folder = Path(__file__).parent if directory is None else Path(directory)
        self.about = json.loads((folder / "model.json").read_text())
        self.network = StandaloneModel(torch.load(folder / "weights.pt", map_location=device, weights_only=True))

    def outside_training(self, primaries: np.ndarray) -> np.ndarray:
        """Which primaries lie outside the range of the training data (by more than 1 % of its width)."""
        low, high = _linear(self.network.weights["features.primary_range"].cpu().numpy())
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
        number = self.network.draw_counts(values, seed) if counts is None else np.asarray(counts, np.int64)
        muons = [part.cpu().numpy() for _, part in self.network.draw_muons(values, number, seed)]
        return number, np.concatenate([np.empty((0, 3), np.float32), *muons])


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


def _linear(primaries: np.ndarray) -> np.ndarray:
    """Primaries with energy and mass by their decimal logarithms."""
    values = primaries.astype(np.float64)
    values[:, [0, 2]] = np.log10(values[:, [0, 2]])
    return values


def random_stream(seed: int, block: int, stream: int, device: torch.device) -> torch.Generator:
    """The random numbers of a block of events."""
    state = np.random.SeedSequence([seed, block, stream]).generate_state(1, np.uint64)[0]
    return torch.Generator(device).manual_seed(int(state >> np.uint64(1)))


def blocks(events: int, first_event: int, device: torch.device) -> "Iterator[tuple[int, slice]]":
    """The blocks of consecutive events: number and rows.

    Raises:
        ValueError: if the first event is not the first of a block.
    """
    size = EVENTS_PER_BLOCK[device.type]
    if first_event % size:
        msg = f"first_event {first_event} is not a multiple of {size}"
        raise ValueError(msg)
    for start in range(0, events, size):
        yield (first_event + start) // size, slice(start, min(start + size, events))


def pieces(counts: np.ndarray, device: torch.device) -> "Iterator[slice]":
    """Cut events into runs of about MUONS_PER_PIECE muons, an event being never cut."""
    piece = (np.cumsum(counts) - counts) // MUONS_PER_PIECE[device.type]
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
