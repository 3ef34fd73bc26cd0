"""The networks of crmuons.models.networks, written for generation: a part of bundles.py, see exported.py.

The arrays of one piece of muons fit into a CPU's cache and are changed in place. The code needs only Python 3.8, torch and
numpy.
"""

import json
import math
import re
from typing import Any, Callable, Iterator  # noqa: UP035  # for Python 3.8

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import embedding_bag, layer_norm, leaky_relu_, relu, silu

from crmuons.models.blocks import COUNTS, MUONS, MUONS_PER_SUM, blocks, partial_sums, passes, pieces, random_stream
from crmuons.models.drawing import Drawing
from crmuons.models.formulas import (
    SLOPE,
    mixture_parameters,
    muon_from_network,
    muons_from_polar,
    piecewise_linear,
    primary_to_network,
    round_counts,
    sample_mixture,
    standardised_log_counts,
)

KNOWN = re.compile(
    r"features\.\w+|multiplicity\.network\.[024]\.(weight|bias)|generator\.(context\.[023]|embed|embed_event|out|local\.[024]"
    r"|layers\.\d+\.(pool|event|event_to_muon|muon|out))\.(weight|bias)|(discrete\.network\.[02]|smooth\.(networks\.\d+\.[024]|shared))\.(weight|bias)"
)


class StandaloneModel:
    """The networks of a trained model, as functions of their weights.

    Args:
        weights: weights of all networks and statistics of the features by name, on the device that generates.

    Attributes:
        latents: number of latent variables of an event, and of each muon.

    Raises:
        ValueError: if this file does not use one of the weights.
    """

    def __init__(self, weights: "dict[str, Tensor]") -> None:
        unknown = [name for name in weights if not KNOWN.fullmatch(name)]
        if unknown:
            msg = f"{__file__} does not know the weights '{unknown[0]}'; give it the networks of crmuons.models"
            raise ValueError(msg)
        self.weights = weights
        self.device = weights["features.knots"].device
        self.predecessor = "generator.local.0.weight" in weights
        self.num_layers = sum(name.endswith(".pool.weight") for name in weights)
        self.components = len(weights["multiplicity.network.4.bias"]) // 3  # 0: a regression predicts N.
        gaps = weights["features.scores"].diff()
        declaration = weights.get("features.declaration")
        rows = [] if declaration is None else json.loads(bytes(declaration.tolist()))[3:]
        self.drawing = Drawing([(row["name"], row["kind"]) for row in rows], weights)
        self.extra = self.drawing.extra
        self.even = bool(gaps.max() - gaps.min() < 1e-3 * gaps.mean())
        of_muon = 16 if self.predecessor else weights["generator.embed.weight"].shape[1]
        self.latents = (weights["generator.context.0.weight"].shape[1] - 5, of_muon)  # 5: the primary and N.

    @torch.inference_mode()
    def draw_counts(self, primaries: np.ndarray, seed: int, first_event: int = 0) -> np.ndarray:
        """Draw N of each event [events] from the multiplicity model."""
        drawn = [torch.empty(0, dtype=torch.int64, device=self.device)]
        for together in passes(blocks(len(primaries), first_event, self.device), self.device):
            first = together[0][1].start
            given = self._on_device(primaries[first : together[-1][1].stop])
            if not self.components:
                drawn.append(round_counts(self.log_counts(given)))
                continue
            weights, means, shapes = self.mixture(given)
            for block, rows in together:
                part = slice(rows.start - first, rows.stop - first)
                source = random_stream(seed, block, COUNTS, self.device)
                drawn.append(sample_mixture(weights[part], means[part], shapes[part], source))
        return torch.cat(drawn).cpu().numpy()  # The only wait for the device.

    @torch.inference_mode()
    def draw_muons(
        self, primaries: np.ndarray, counts: np.ndarray, seed: int, first_event: int = 0
    ) -> "Iterator[tuple[slice, Tensor]]":
        """Draw the muons of events. Yield the rows and the muons [muons, width] of each piece of events in order.

        Seed, event numbers, primaries and N determine the muons; `first_event` is a multiple of EVENTS_PER_BLOCK. The host
        never waits for the device.
        """
        source, current = torch.Generator(), -1
        for together in passes(pieces(counts, first_event, self.device), self.device, counts):
            rows = slice(together[0][1].start, together[-1][1].stop)
            noise: list[tuple[Tensor, ...]] = []
            for block, piece in together:  # The pieces of a block continue its stream.
                if block != current:
                    source, current = random_stream(seed, block, MUONS, self.device), block
                noise.append(self.noise(int(np.count_nonzero(counts[piece])), int(counts[piece].sum()), source))
            yield rows, self._muons(primaries[rows], counts[rows], noise)

    def draw_piece(self, primaries: np.ndarray, counts: np.ndarray, source: torch.Generator) -> Tensor:
        """Draw the muons [muons, width] of events in one piece from a random stream."""
        return self._muons(primaries, counts, [self.noise(int(np.count_nonzero(counts)), int(counts.sum()), source)])

    def _muons(self, primaries: np.ndarray, counts: np.ndarray, noise: "list[tuple[Tensor, ...]]") -> Tensor:
        kept = np.flatnonzero(counts)
        if not len(kept):
            return torch.empty((0, self.width), device=self.device)
        if len(kept) < len(counts):
            primaries, counts = primaries[kept], counts[kept]
        numbers = self._on_device(counts)
        event = torch.repeat_interleave(numbers, output_size=int(counts.sum()))
        latents = noise[0]
        if len(noise) > 1:
            latents = tuple(torch.cat(parts) for parts in zip(*noise))  # noqa: B905  # for Python 3.8
        sums = None
        if self.device.type == "cuda" and counts.max() > MUONS_PER_SUM:
            sums = partial_sums(numbers, int((-(-counts // MUONS_PER_SUM)).sum()))
        return self.muons_of(self._on_device(primaries), numbers, event, latents, sums)

    def noise(self, events: int, muons: int, source: torch.Generator) -> "tuple[Tensor, ...]":
        """Draw normal latent variables of the events and of the muons, and azimuths in radians.

        For further features that are drawn, add their random numbers (`Drawing.numbers`).
        """
        kwargs: Any = {"generator": source, "device": self.device}
        shower, muon = self.latents
        azimuth = torch.rand(muons, **kwargs).mul_(2 * math.pi)
        latents: tuple[Tensor, ...] = (
            torch.randn(events, shower, **kwargs),
            torch.randn(muons, muon, **kwargs),
            azimuth,
        )
        # These come last, so that a seed gives the same other features with and without them.
        return (*latents, *self.drawing.numbers(events, muons, kwargs))

    def sample_counts(self, primaries: Tensor, source: torch.Generator) -> Tensor:
        """Draw N of each event."""
        if self.components:
            return sample_mixture(*self.mixture(primaries), source)
        return round_counts(self.log_counts(primaries))

    def condition(self, primaries: Tensor) -> Tensor:
        """Return the standardised primaries [events, 4]."""
        values = primary_to_network(primaries) - self.weights["features.primary_mean"]
        return values / self.weights["features.primary_std"]

    def mixture(self, primaries: Tensor) -> "tuple[Tensor, Tensor, Tensor]":
        """Return log weights, log means and shapes of the negative binomials, each [events, components]."""
        return mixture_parameters(self._multiplicity(primaries, silu))

    def log_counts(self, primaries: Tensor) -> Tensor:
        """Return the regression's log10(N + 1) [events]."""
        return self._multiplicity(primaries, relu)[:, 0]

    def _multiplicity(self, primaries: Tensor, activation: "Callable[[Tensor], Tensor]") -> Tensor:
        hidden = self.condition(primaries)
        for layer in (0, 2):
            hidden = activation(self._dense(f"multiplicity.network.{layer}", hidden))
        return self._dense("multiplicity.network.4", hidden)

    def muons_of(
        self,
        primaries: Tensor,
        counts: Tensor,
        event: Tensor,
        noise: "tuple[Tensor, ...]",
        sums: "tuple[Tensor, Tensor] | None" = None,
    ) -> Tensor:
        """Compute muons [muons, width] from noise, without drawing a number.

        Args:
            primaries: primaries of events with muons.
            counts: number of muons of each event.
            event: event of each muon, ascending.
            noise: the random numbers that `noise` draws.
            sums: how to add up the muons of large events in parts; see `partial_sums`.
        """
        mean, std = self.weights["features.log_count_mean"], self.weights["features.log_count_std"]
        inputs = torch.cat([self.condition(primaries), standardised_log_counts(counts, mean, std), noise[0]], dim=1)
        if self.predecessor:
            return self._predecessor(inputs, noise[1], event)
        features = self._set(inputs, noise[1], counts, event, sums)
        muons = self._physical(features, noise[2])
        return self._with_extra(muons, features, inputs[:, :5], event, noise) if self.extra.names else muons

    def _set(
        self, inputs: Tensor, noise: Tensor, counts: Tensor, event: Tensor, sums: "tuple[Tensor, Tensor] | None" = None
    ) -> Tensor:
        """Run the SetGenerator. Return its features [features, muons]."""
        state = self._leaky("generator.context.2", self._leaky("generator.context.0", inputs))
        rows = self._dense("generator.embed_event", state) + self.weights["generator.embed.bias"]
        muons = self.mixed("generator.embed", rows, event, noise)
        for layer in range(self.num_layers):
            name = f"generator.layers.{layer}"
            pooled = self._dense(f"{name}.pool", self.mean(muons, counts, sums))
            state = state + leaky_relu_(pooled + self._dense(f"{name}.event", state), SLOPE)
            mixed = self.mixed(f"{name}.muon", self._dense(f"{name}.event_to_muon", state), event, muons)
            muons += self._leaky(f"{name}.out", mixed)
        # [features, muons] takes 5 ns per muon for a width of 64 and two features; [muons, features] takes 27 ns.
        return torch.mm(self.weights["generator.out.weight"], muons.t()) + self.weights["generator.out.bias"][:, None]

    def _predecessor(self, inputs: Tensor, noise: Tensor, event: Tensor) -> Tensor:
        """Run the PredecessorGenerator, whose features are standardised network space. Return the muons [muons, 3]."""
        w = self.weights
        state = self._dense("generator.context.2", relu(self._dense("generator.context.0", inputs)))
        state = layer_norm(state, state.shape[1:], w["generator.context.3.weight"], w["generator.context.3.bias"])
        hidden = torch.cat([state[event], noise], dim=1)
        for layer in (0, 2):
            hidden = relu(self._dense(f"generator.local.{layer}", hidden))
        features = self._dense("generator.local.4", hidden)
        return muon_from_network(features * w["features.muon_std"] + w["features.muon_mean"])

    def _physical(self, features: Tensor, azimuth_rad: Tensor) -> Tensor:
        """Convert the SetGenerator's features [features, muons] to energy_gev, x_m, y_m [muons, 3]."""
        scores, knots = self.weights["features.scores"], self.weights["features.knots"]
        log_energy, log_radius = (
            piecewise_linear(features[i], self._interval(features[i], scores), scores, knots[i]) for i in (0, 1)
        )
        return muons_from_polar(log_energy, log_radius, azimuth_rad)

    def _with_extra(
        self, muons: Tensor, features: Tensor, condition: Tensor, event: Tensor, noise: "tuple[Tensor, ...]"
    ) -> Tensor:
        """Add the further features to muons [muons, 3], in their declared order."""
        scores, knots = self.weights["features.scores"], self.weights["features.extra_knots"]
        columns, levels = self.drawing.draw(features, condition, event, noise[3:])
        mapped = [
            piecewise_linear(column, self._interval(column, scores), scores, knots[i])
            for i, column in enumerate(columns)
        ]
        smooth, drawn = iter(self.extra.from_columns(mapped, muons[:, 0], noise[2])), iter(levels)
        discrete = set(self.extra.discrete)
        further = [next(drawn) if at in discrete else next(smooth) for at in range(len(self.extra.names))]
        return torch.stack([*muons.unbind(1), *further], dim=1)

    @property
    def primary_range(self) -> Tensor:
        """Return lowest and highest primary [2, 4] of a sample of the training data."""
        return self.weights["features.primary_range"]

    @property
    def width(self) -> int:
        """Return the number of numbers of a muon."""
        return 3 + len(self.extra.names)

    def _interval(self, score: Tensor, scores: Tensor) -> Tensor:
        """Find the interval between two knots in which each score lies.

        For evenly spaced knots, a division and a correction for rounding take 8 ns a muon; a search takes 60 ns.
        """
        last = len(scores) - 2
        if not self.even:  # Old models have their knots at equal probabilities.
            return (torch.bucketize(score, scores) - 1).clamp_(0, last)
        interval = ((score - scores[0]) / (scores[1] - scores[0])).long().clamp_(0, last)
        too_low = score > scores.index_select(0, interval + 1)
        too_high = score < scores.index_select(0, interval)
        return (interval + too_low.long() - too_high.long()).clamp_(0, last)

    def mixed(self, name: str, rows: Tensor, event: Tensor, muons: Tensor) -> Tensor:
        """Return LeakyReLU of each muon's own part plus the row of its event [muons, width]."""
        of_events = rows.index_select(0, event)
        return leaky_relu_(of_events.addmm_(muons, self.weights[f"{name}.weight"].t()), SLOPE)

    def mean(self, muons: Tensor, counts: Tensor, sums: "tuple[Tensor, Tensor] | None" = None) -> Tensor:
        """Return the mean over the muons of each event [events, width]."""
        starts = counts.cumsum(0) - counts
        for first in (starts,) if sums is None else sums:
            muons = embedding_bag(torch.arange(len(muons), device=self.device), muons, first, mode="sum")
        return muons / counts[:, None]

    def _dense(self, name: str, values: Tensor) -> Tensor:
        return torch.addmm(self.weights[f"{name}.bias"], values, self.weights[f"{name}.weight"].t())

    def _leaky(self, name: str, values: Tensor) -> Tensor:
        return leaky_relu_(self._dense(name, values), SLOPE)

    def _on_device(self, values: np.ndarray) -> Tensor:
        host = torch.from_numpy(np.require(values, requirements=("C", "W")))  # Copied if read-only.
        # With a copy from page-locked memory, which torch keeps for the next copy, the host does not wait.
        return host if self.device.type == "cpu" else host.pin_memory().to(self.device, non_blocking=True)
