"""Suite `generate`: muons per second, against networks like the predecessor's for the same primaries and N."""

import numpy as np
import torch

from crmuons import config
from crmuons.benchmark import events, timing
from crmuons.benchmark.figures import Figure
from crmuons.benchmark.reference import ReferenceGenerator
from crmuons.generation.generator import BundleGenerator
from crmuons.models.bundle_model import BundleModel
from crmuons.models.features import Features


def run(rounds: int, device: torch.device, number: int = 20_000, mean: float = 13.5) -> list[Figure]:
    """Measure muons per second of a model of the default size, for given N, until the muons are on the host."""
    drawn = events.draw(number, mean, seed=2)
    model = BundleModel(config.Model(), Features().fit(events.draw(5_000, 5.0, seed=1)))
    generator, reference = BundleGenerator(model, {}, device), ReferenceGenerator().to(device)
    primaries, counts = torch.from_numpy(drawn.primaries).log().to(device), torch.from_numpy(drawn.counts).to(device)

    @torch.no_grad()
    def plain() -> np.ndarray:
        return reference(primaries, counts)[0].cpu().numpy()

    runs = {"ours": lambda: generator.generate(drawn.primaries, seed=0, counts=drawn.counts), "reference": plain}
    times = timing.alternate(runs, rounds)
    muons = len(drawn.muons)
    against = "the predecessor's generator, without the conversion to physical units"
    return [Figure("generate, muons", "muons", muons, times["ours"], against, muons, times["reference"])]
