"""The part `generate`: muons per second on the device, copied to the host, and as events; and a profile."""

from collections.abc import Callable

import numpy as np
import torch

from crmuons import config
from crmuons.benchmark import events
from crmuons.benchmark.gpu.machine import Figures, Machine, fitted_features, precision, profile
from crmuons.benchmark.gpu.parity import attempt
from crmuons.generation.generator import BundleGenerator, check_primaries
from crmuons.models.bundle_model import BundleModel


def measure(machine: Machine) -> Figures:
    """Return muons per second for each place where the muons end, and a profile."""
    number = machine.size(1_000_000 if machine.is_gpu else 20_000, 500)
    primaries = events.draw(number, 0.01, seed=2).primaries
    random = np.random.default_rng(0)
    counts = random.poisson(13.5 * random.gamma(0.5, 2.0, number)).astype(np.int64)
    generator = BundleGenerator(BundleModel(config.Model(), fitted_features()), {}, machine.torch)

    def rate(run: Callable[[], object], muons: int = int(counts.sum())) -> float:
        return muons / machine.seconds(run, 3, warm=2)[0]

    def on_device(numbers: np.ndarray = counts) -> None:
        for _ in generator.generate_on_device(primaries, seed=0, counts=numbers):
            pass

    found: Figures = {}
    with precision("tf32"):
        found["muons/s, on the device, tf32"] = rate(on_device)
    found["muons/s, on the device"] = rate(on_device)
    drawn = int(generator.draw_counts(primaries, seed=0).sum())  # An untrained model draws other numbers than `counts`.
    found["muons/s, N drawn too"] = rate(lambda: list(generator.generate_on_device(primaries, seed=0)), drawn)
    found["muons/s, blocks on the host"] = rate(
        lambda: sum(1 for _ in generator.generate_blocks(primaries, seed=0, counts=counts))
    )
    found["muons/s, events on the host"] = rate(lambda: generator.generate(primaries, seed=0, counts=counts))
    found["primaries/s, N drawn"] = rate(lambda: generator.draw_counts(primaries, seed=0), number)
    found["primaries/s, checked"] = rate(lambda: check_primaries(primaries), number)
    large = counts.copy()
    large[:: machine.size(2_000, 100)] = machine.size(10_000, 500)
    found["muons/s, every 2,000th event of 10,000 muons"] = rate(lambda: on_device(large), int(large.sum()))
    sparse = random.poisson(0.36 * random.gamma(0.5, 2.0, number)).astype(np.int64)
    found["muons/s, 0.36 muons an event"] = rate(lambda: on_device(sparse), int(sparse.sum()))
    found["profile of a million muons"] = attempt(_profile_of_a_pass, machine, generator, primaries, counts)
    return found


def _profile_of_a_pass(
    machine: Machine, generator: BundleGenerator, primaries: np.ndarray, counts: np.ndarray
) -> Figures:
    rows = slice(0, machine.size(75_000, 100))

    def once() -> None:
        for _ in generator.network.draw_muons(primaries[rows], counts[rows], 0):
            pass

    with torch.inference_mode():
        return profile(machine, once)
