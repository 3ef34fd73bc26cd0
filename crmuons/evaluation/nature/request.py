"""Carry out a validation: find out how the primaries were drawn, read or generate the events, and compare them."""

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32

from crmuons.data import geometry
from crmuons.data.events import EventArrays
from crmuons.data.selection import Selection
from crmuons.evaluation.datasets import read
from crmuons.evaluation.nature.compare import VERTICAL_KM, compare
from crmuons.evaluation.nature.origins import recorded
from crmuons.evaluation.nature.rows import OUTSIDE, Row
from crmuons.evaluation.nature.sample import Sample
from crmuons.evaluation.nature.tables import MUTE_VERTICAL_KM
from crmuons.evaluation.nature.weights import DEFAULT_FLUX, Drawn, Flux
from crmuons.evaluation.tasks import Executor
from crmuons.generation.generator import BundleGenerator
from crmuons.generation.load import is_model, load_generator
from crmuons.simulation import shower
from crmuons.simulation.power_law import Powers, joined
from crmuons.simulation.propagation import MEDIA

logger = logging.getLogger(__name__)

MOST_EVENTS = 2_000_000  # Most events that are read: 1 GB, and a statistical error of 2 % at 2 km w.e.
GENERATED_EVENTS = 400_000
# A model generates for these primaries. They cover all muons at 0.5 to 6 km w.e., and give equally many large and small
# bundles.
GENERATED_GEV, GENERATED_GAMMA = (300.0, 1e10), 1.6
MOST_ZENITH_COSINE = 0.15  # 81 degrees.
MOST_MUONS = 100_000  # Largest generated event: a model may draw any number for primaries that it was not trained on.
DEFAULT_THRESHOLD_GEV = 10.0  # The default of `simulate` and `convert`.


@dataclass(frozen=True)
class ValidationRequest:
    """What to validate.

    Attributes:
        sources: a model, or files, directories, globs or URLs of events.
        flux: the cosmic-ray flux, a name in generation.weights.FLUXES.
        energy_gev, gamma: how the primaries were drawn; None for what the files say.
        threshold_gev: leave out softer muons at the depth; None for what the files say, or 10 GeV.
        surface_gev: energy at the surface below which muons are missing in the events.
        medium: medium above the detector; None for what the files say, or ice.
        vertical_depth: whether depth_m of the files is the vertical depth.
        events: largest number of events to read or to generate; None for MOST_EVENTS or GENERATED_EVENTS.
        seed: seed of the generation, and of the choice of files.
    """

    sources: Sequence[str]
    flux: str = DEFAULT_FLUX
    energy_gev: tuple[float, float] | None = None
    gamma: Powers | None = None
    threshold_gev: float | None = None
    surface_gev: float = 0.0
    medium: str | None = None
    vertical_depth: bool = False
    events: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        _require(self.events is None or self.events >= 1, f"--events {self.events}: expected at least 1")


@dataclass(frozen=True)
class Validation:
    """A finished comparison.

    Attributes:
        about: what was compared.
        warnings: what a reader must know before the figures.
        rows: the comparison.
        least_gev: energy of the softest muons at the depth.
        model_step: the step of the model; None for events.
    """

    about: dict[str, Any]
    warnings: list[str]
    rows: list[Row]
    least_gev: float
    model_step: int | None = None

    def flat(self) -> dict[str, float]:
        """Return the ratios of the rows that the data cover by name, for the tracking server."""
        return {
            re.sub(r"[^\w.]+", "_", f"{row.quantity.split(',')[0]} {row.label} {row.source}"): row.ratio
            for row in self.rows
            if row.verdict != OUTSIDE and row.ratio is not None
        }


def validate(request: ValidationRequest, executor: Executor) -> Validation:
    """Compare a model or events with the published tables.

    Raises:
        FileNotFoundError: if there are no events.
        ValueError: if it is not known how the primaries were drawn, a nucleus has no flux, or there are no muons or
            none at the depths of the tables.
    """
    flux = Flux(request.flux)
    about: dict[str, Any] = {"candidate": ", ".join(request.sources)}
    warnings: list[str] = []
    unknown, step = None, None
    if len(request.sources) == 1 and is_model(request.sources[0]):
        generator = load_generator(request.sources[0])
        drawn = _given(request, {"energy_gev": GENERATED_GEV, "gamma": GENERATED_GAMMA}, warnings)
        events = generate_events(generator, drawn, flux, request.events or GENERATED_EVENTS, request.seed)
        unknown, step = generator.outside_training(events.primaries), int(generator.metadata.get("step", 0))
        warnings += _model_warnings(generator, unknown)
    else:
        drawn = _given(request, recorded(request.sources), warnings)
        selection = Selection("all", vertical_depth=request.vertical_depth)
        limit = request.events or MOST_EVENTS
        (blocks,), counts = read(executor, request.sources, [(selection, limit)], request.seed)
        events = executor.get(blocks.gather(executor, np.arange(len(blocks))).events)
        _require(bool(len(events.counts)), f"{about['candidate']}: no events ({counts.rows} rows read)")
        if counts.quarantined:
            warnings.append(f"{counts.quarantined} of {counts.rows} rows are unusable and left out; the log says why")
    sample = Sample.of(events, drawn, flux, unknown)
    logger.info("%d events, %d muons above %g GeV", len(sample.counts), len(sample.event), drawn.threshold_gev)
    rows = compare(sample)
    if all(row.value is None for row in rows):
        low, high = sample.slant_km.min(), sample.slant_km.max()
        msg = (
            f"the events lie {low:.3g} to {high:.3g} km w.e. deep along the track, and no table has muons there: there "
            f"are tables at {VERTICAL_KM[0]:g} to {VERTICAL_KM[-1]:g} km w.e. near the vertical, at {MUTE_VERTICAL_KM} km "
            "w.e. for all zenith angles, and at the surface"
        )
        raise ValueError(msg)
    about |= {"flux": flux.name, "events": len(sample.counts), "muons": len(sample.event)}
    about |= {
        "energies_of_the_primaries": "{:g} to {:g} GeV".format(*drawn.energy_gev),
        "spectrum": str(drawn.law),
    }
    about |= {"muons_above": f"{drawn.threshold_gev:g} GeV", "medium": drawn.medium, "seed": request.seed}
    return Validation(about, warnings, rows, drawn.threshold_gev, step)


def generate_events(generator: BundleGenerator, drawn: Drawn, flux: Flux, num: int, seed: int) -> EventArrays:
    """Generate a model's events where the tables are: vertical ones at each depth, and all zeniths at 0.5 km w.e."""
    rng = np.random.default_rng([seed, 0x7AB])
    medium = drawn.passed
    energy = drawn.law.quantile(rng.random(num))
    vertical_water = np.full(num, MUTE_VERTICAL_KM)
    cosine = rng.uniform(MOST_ZENITH_COSINE, 1.0, num)
    down = np.arange(num) % 2 == 0  # Half of the events.
    vertical_water[down], cosine[down] = rng.choice(VERTICAL_KM, int(down.sum())), 1.0
    lacking = (medium.density - medium.firn_density) * medium.firn_m  # m w.e. by which firn is lighter than ice.
    vertical = (1e3 * vertical_water + lacking) / medium.density
    mass = shower.mass_gev(rng.choice(np.array(flux.nuclei, float), num))
    slant = geometry.slant_depth_m(vertical, cosine, medium.surface_m)
    primaries: Float32[np.ndarray, "events 4"] = np.stack([energy, np.arccos(cosine), mass, slant], axis=1).astype(
        np.float32
    )
    return generator.generate(primaries, seed=seed, max_muons=MOST_MUONS)


def _given(request: ValidationRequest, on_file: dict[str, Any], warnings: list[str]) -> Drawn:
    """Return how the events were made: from the options, otherwise from the files. Warn if the two differ."""
    options = {"energy_gev": "--energy-range", "gamma": "--gamma", "medium": "--medium"}
    given = {name: getattr(request, name) for name in options if getattr(request, name) is not None}
    for name, value in given.items():
        if name in on_file and np.atleast_1d(value).tolist() != np.atleast_1d(on_file[name]).tolist():
            warnings.append(f"{options[name]}: the files say {on_file[name]}, but {value} is used")
    known: dict[str, Any] = {"medium": "ice", "threshold_gev": DEFAULT_THRESHOLD_GEV} | on_file | given
    missing = [option for name, option in options.items() if name not in known]
    _require(
        not missing,
        f"{', '.join(request.sources)}: the files do not say how their primaries were drawn; give "
        f"{' and '.join(missing)} (E^-GAMMA, the same for each nucleus)",
    )
    least = known["threshold_gev"] if request.threshold_gev is None else request.threshold_gev
    _require(
        least >= on_file.get("threshold_gev", 0),
        f"--threshold-gev {least:g}: the files hold no muons below {on_file.get('threshold_gev', 0):g} GeV",
    )
    _require(known["medium"] in MEDIA, f"--medium {known['medium']}: expected {', '.join(MEDIA)}")
    low, high = known["energy_gev"]
    gamma = joined(np.atleast_1d(known["gamma"]).tolist())
    return Drawn((float(low), float(high)), gamma, float(least), request.surface_gev, known["medium"])


def _model_warnings(generator: BundleGenerator, unknown: Bool[np.ndarray, " events"]) -> list[str]:
    if not unknown.any():
        return []
    ranges = ", ".join(f"{name} {low:.4g} to {high:.4g}" for name, (low, high) in generator.training_ranges.items())
    warning = (
        f"{unknown.mean():.0%} of the generated events have primaries outside the range of the model's training data "
        f"({ranges}); rows that depend on them say so"
    )
    return [warning]


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise ValueError(message)
