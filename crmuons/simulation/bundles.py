"""Compare small bundles of real showers with the simulator's: their numbers of muons, and the distances of the muons.

Both sides have the same primaries, so no flux of cosmic rays and no weight enters. The comparison is made for the muons
above the shower program's energy cutoff at the surface. It is repeated for the muons that reach a depth of ice; softer
muons do not reach this depth.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64

from crmuons.data.geometry import FloatArray
from crmuons.simulation import propagation, shower
from crmuons.simulation.surface import SurfaceShower
from crmuons.simulation.tracks import follow
from crmuons.simulation.yields import mean_yield

SIZES = ((0, 0), (1, 1), (2, 2), (3, 4), (5, 7), (8, 10), (3, 10), (11, 20))  # Classes of bundles that are counted.
DISTANCES = ((2, 2), (3, 3), (4, 10))  # Classes of bundles whose mean distances are compared.
MOST_MEAN = 60.0  # A shower with a larger mean has no bundle of SIZES.
THRESHOLD_GEV = 10.0
REPLICAS = 100  # Simulated showers for each real shower, and repetitions of a real shower's losses in the ice.


@dataclass(frozen=True)
class Bundles:
    """The bundles of showers, and the sums of distances in them.

    Attributes:
        primary: number of the real shower that has the same primary, [bundles].
        counts: number of muons, [bundles].
        radius_m: sum of the distances from the axis, [bundles].
        pair_m: sum of the distances of all pairs, up to ten muons, [bundles].
    """

    primary: Int64[np.ndarray, " bundles"]
    counts: Int64[np.ndarray, " bundles"]
    radius_m: FloatArray
    pair_m: FloatArray


def bundle_tables(showers: Sequence[SurfaceShower], depth_m: float, *, seed: int = 0) -> Iterator[str]:
    """Yield two Markdown tables, of numbers of muons and of distances, at the surface and under ice.

    Args:
        showers: the real showers, all of one program and site.
        depth_m: slant depth in ice.
        seed: seed of the simulated showers and of the energy losses.
    """
    rng = np.random.default_rng(seed)
    small = [one for one in showers if _mean(one) < MOST_MEAN]
    real, losses, simulated = _muons(small, 1), _muons(small, REPLICAS), _simulate(small, rng)
    primary, many = np.arange(len(small)), np.repeat(np.arange(len(small)), REPLICAS)
    surface = _bundles(primary, real), _bundles(many, simulated)
    deep = _bundles(many, _below(losses, depth_m, rng)), _bundles(many, _below(simulated, depth_m, rng))
    yield (
        "| muons | " + "real | simulated | simulated / real | " + f"at {depth_m:g} m of ice: real | simulated | ratio |"
    )
    yield "|" + "---|" * 7
    for low, high in SIZES:
        cells = [text for pair in (surface, deep) for text in _number_cells(*pair, low, high, len(small))]
        yield f"| {_class(low, high)} | {' | '.join(cells)} |"
    yield ""
    yield (
        "| mean distance, m | real | simulated | simulated / real | "
        f"at {depth_m:g} m of ice: real | simulated | ratio |"
    )
    yield "|" + "---|" * 7
    for low, high in DISTANCES:
        cells = [text for pair in (surface, deep) for text in _distance_cells(*pair, low, high, pairs=False)]
        yield f"| from the axis, bundles of {_class(low, high)} | {' | '.join(cells)} |"
    low, high = DISTANCES[0][0], DISTANCES[-1][1]
    cells = [text for pair in (surface, deep) for text in _distance_cells(*pair, low, high, pairs=True)]
    yield f"| of two muons, bundles of {_class(low, high)} | {' | '.join(cells)} |"


def _class(low: int, high: int) -> str:
    return f"{low}" if low == high else f"{low} to {high}"


def _mean(one: SurfaceShower) -> float:
    energy, nucleons, cosine = np.array([one.energy_gev]), np.array([float(one.mass_number)]), np.cos([one.zenith_rad])
    return float(mean_yield(np.array([one.cutoff_gev]), energy, nucleons, cosine)[0])


def _muons(showers: Sequence[SurfaceShower], times: int) -> shower.Showers:
    """Return the muons of real showers, each shower `times` times."""
    parts = [one.muons for one in showers for _ in range(times)]
    columns = ("energy_gev", "x_m", "y_m", "angle_x", "angle_y")
    joined = (np.concatenate([getattr(part, name) for part in parts]) for name in columns)
    return shower.Showers(np.array([int(part.counts[0]) for part in parts]), *joined)


def _simulate(showers: Sequence[SurfaceShower], rng: np.random.Generator) -> shower.Showers:
    rows = [(one.energy_gev, one.mass_number, np.cos(one.zenith_rad), one.cutoff_gev) for one in showers]
    columns = np.repeat(np.array(rows, np.float64), REPLICAS, axis=0).T
    return shower.draw_showers(*columns, altitude_m=showers[0].altitude_m, rng=rng)


def _below(muons: shower.Showers, depth_m: float, rng: np.random.Generator) -> shower.Showers:
    """Return the muons that reach a depth of ice, for vertical showers; their angles are not needed."""
    slant = np.full((len(muons.counts), 1), depth_m)
    water = propagation.water_equivalent_m(slant, np.ones_like(slant))
    counts, kept = follow(muons, slant, water, THRESHOLD_GEV, rng)
    energy, x, y = kept.astype(np.float64).T
    return shower.Showers(counts, energy, x, y, np.zeros_like(x), np.zeros_like(x))


def _bundles(primary: Int64[np.ndarray, " bundles"], muons: shower.Showers) -> Bundles:
    num = len(muons.counts)
    event = np.repeat(np.arange(num), muons.counts)
    radius = np.bincount(event, np.hypot(muons.x_m, muons.y_m), num)
    pairs = np.zeros(num)
    for lag in range(1, DISTANCES[-1][1]):
        same = np.flatnonzero(event[lag:] == event[:-lag])
        apart = np.hypot(muons.x_m[same + lag] - muons.x_m[same], muons.y_m[same + lag] - muons.y_m[same])
        pairs += np.bincount(event[same], apart, num)
    return Bundles(primary, muons.counts, radius, pairs)


def _number_cells(real: Bundles, simulated: Bundles, low: int, high: int, num_showers: int) -> list[str]:
    """Return the expected numbers of showers of a class, and their ratio with the statistical error of the real showers.

    The error comes from the simulator: sqrt(sum p (1 - p)) over the showers, with p the probability of the class.
    """
    share_real, share = (
        np.bincount(part.primary, (part.counts >= low) & (part.counts <= high), num_showers)
        / np.bincount(part.primary, minlength=num_showers)
        for part in (real, simulated)
    )
    error = np.sqrt((share * (1 - share)).sum())
    # The losses of real showers were drawn many times, so a real shower has a share in several classes.
    if real.primary.size > num_showers:
        error = np.sqrt(((share_real - share) ** 2).sum())
    total = share_real.sum()
    ratio = f"{share.sum() / total:.2f} ± {error * share.sum() / total**2:.2f}" if total > 0 else "-"
    return [f"{total:.3g}", f"{share.sum():.3g}", ratio]


def _distance_cells(real: Bundles, simulated: Bundles, low: int, high: int, *, pairs: bool) -> list[str]:
    """Return mean distances in a class, and their ratio with the statistical error of the real mean, by showers."""
    (value, error), (other, _) = (_mean_distance(part, low, high, pairs=pairs) for part in (real, simulated))
    return [f"{value:.2f} ± {error:.2f}", f"{other:.2f}", f"{other / value:.2f} ± {error * other / value**2:.2f}"]


def _mean_distance(bundles: Bundles, low: int, high: int, *, pairs: bool) -> tuple[float, float]:
    some = (bundles.counts >= low) & (bundles.counts <= high)
    num = bundles.counts[some]
    number = num * (num - 1) / 2 if pairs else num
    total = (bundles.pair_m if pairs else bundles.radius_m)[some]
    if not number.sum():
        return float("nan"), float("nan")
    mean = total.sum() / number.sum()
    of_shower = np.bincount(bundles.primary[some], total - mean * number)
    return float(mean), float(np.sqrt((of_shower**2).sum()) / number.sum())
