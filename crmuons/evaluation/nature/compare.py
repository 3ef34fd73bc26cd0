"""Compare weighted events with the published tables, row by row."""

from collections.abc import Callable, Iterator
from itertools import pairwise

import numpy as np
from jaxtyping import Bool

from crmuons.data.geometry import FloatArray
from crmuons.evaluation.nature import tables
from crmuons.evaluation.nature.rows import Reference, Row, make_row
from crmuons.evaluation.nature.sample import Sample
from crmuons.simulation.atmosphere import effective_cosine

VERTICAL_KM = (1.0, 1.5, 1.77, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0)
ZENITH_SLANT_KM = (0.6, 0.8, 1.0, 1.5, 2.0, 2.5, 3.0)  # 33, 51, 60, 70, 76, 78, 80 degrees at 0.5 km w.e.
BUNDLE_KM = (1.77, 3.0)  # IceCube's centre, and a depth of the sea.
MOST_MUONS = 10
WIDTH = 0.05  # A depth stands for all depths within 5 %. References are averaged over the same events.
NEAR_VERTICAL = np.cos(np.deg2rad(30))
SURFACE_KM, SURFACE_COSINE = 0.035, np.cos(np.deg2rad(15))
SURFACE_BINS = (200.0, 400.0, 1e3, 3e3, 1e4, 2e4)
AVERAGED = 1024  # Events over which a reference is averaged; its spread within 5 % of depth is 15 %.
ROCK = "the reference is in water"

Rows = Bool[np.ndarray, " events"]


def compare(sample: Sample) -> list[Row]:
    """Return all rows."""
    parts = (vertical_intensity, zenith, mean_energy, multiplicity, distances, surface)
    return [row for part in parts for row in part(sample)]


def vertical_intensity(sample: Sample) -> Iterator[Row]:
    """Yield the vertical intensity at each depth, compared with each reference."""
    for depth in VERTICAL_KM:
        rows = _near_vertical(sample, depth)
        measured = sample.mean(rows, sample.counts)
        covered = sample.coverage.share(depth, 1.0)
        unknown = sample.unknown_share(rows, sample.counts)
        for reference in _vertical_references(sample, rows, depth):
            where = ("vertical intensity, 1 / (m² s sr)", f"{depth:g} km w.e.", depth)
            yield make_row(where, measured, reference, covered=covered, unknown=unknown)


def _vertical_references(sample: Sample, rows: Rows, depth: float) -> Iterator[Reference]:
    least, rock = sample.drawn.threshold_gev, sample.drawn.medium == "rock"

    def expected(slant: FloatArray, cosine: FloatArray) -> FloatArray:
        intensity = tables.vertical_intensity(slant, least) / effective_cosine(cosine)
        return intensity / tables.water_over_rock(slant) if rock else intensity

    value = _average(sample, rows, depth, expected)
    yield Reference(value, value * tables.vertical_error(depth), "daemonflux through " + ("rock" if rock else "water"))
    for measured_at, intensity, error in () if rock else tables.DUMAND:
        if abs(measured_at / depth - 1) < WIDTH:
            shift = value / float(expected(np.array(measured_at), np.array(1.0)))
            yield Reference(intensity * shift, error * shift, "DUMAND, measured")
    if not rock and tables.MUPAGE_KM[0] <= depth <= tables.MUPAGE_KM[1]:
        value = _average(sample, rows, depth, lambda x, c: tables.all_bundles(x * c, c))
        yield Reference(value, value * tables.MUPAGE_INTENSITY_ERROR, "MUPAGE")
    value = _average(sample, rows, depth, lambda x, c: tables.mei_hime(x) / effective_cosine(c))
    # This is a fit to measurements in rock, without an error. For water it is only shown, not judged.
    yield Reference(value, 0.1 * value, "Mei and Hime, measured in rock", judged=rock)


def zenith(sample: Sample) -> Iterator[Row]:
    """Yield the intensity 0.5 km w.e. below the surface at each zenith angle, compared with MUTE."""
    rock, least = sample.drawn.medium == "rock", sample.drawn.threshold_gev

    def expected(slant: FloatArray, _: FloatArray) -> FloatArray:
        in_rock = tables.slant_intensity_in_rock(slant)
        above = tables.vertical_intensity(slant, least) / tables.vertical_intensity(slant, 1.0)
        return in_rock * above * (1.0 if rock else tables.water_over_rock(slant))

    at_depth = np.abs(sample.vertical_km / tables.MUTE_VERTICAL_KM - 1) < WIDTH
    for slant in ZENITH_SLANT_KM:
        rows = at_depth & (np.abs(sample.slant_km / slant - 1) < 1.4 * WIDTH)
        angle = np.rad2deg(np.arccos(tables.MUTE_VERTICAL_KM / slant))
        value = _average(sample, rows, slant, expected)
        yield make_row(
            ("intensity at 0.5 km w.e., 1 / (m² s sr)", f"{angle:.0f}°", angle),
            sample.mean(rows, sample.counts),
            Reference(value, value * tables.MUTE_ERROR, "MUTE"),
            covered=sample.coverage.share(slant, tables.MUTE_VERTICAL_KM / slant),
            unknown=sample.unknown_share(rows, sample.counts),
        )


def mean_energy(sample: Sample) -> Iterator[Row]:
    """Yield the mean energy of the muons at each depth."""
    energy, least = sample.per_event(sample.muons[:, 0]), sample.drawn.threshold_gev
    for depth in VERTICAL_KM:
        rows = _near_vertical(sample, depth)
        value = _average(sample, rows, depth, lambda x, _: tables.mean_energy(x, least))
        yield make_row(
            ("mean energy, GeV", f"{depth:g} km w.e.", depth),
            sample.ratio(rows, energy, sample.counts),
            Reference(value, value * tables.MEAN_ENERGY_ERROR, "daemonflux through water"),
            covered=sample.coverage.share(depth, 1.0),
            unknown=sample.unknown_share(rows, energy),
            lacking=ROCK if sample.drawn.medium == "rock" else "",
        )


def multiplicity(sample: Sample) -> Iterator[Row]:
    """Yield the intensities of bundles of 1 to 10 muons, and their ratios to the intensity of single muons."""
    lacking = ROCK if sample.drawn.medium == "rock" else ""
    for depth in BUNDLE_KM:
        rows, single = _near_vertical(sample, depth), sample.counts == 1
        covered_single = sample.coverage.share(depth, 1.0, 1)
        for num_muons in range(1, MOST_MUONS + 1):
            where = f"{num_muons} at {depth:g} km w.e."
            some = sample.counts == num_muons
            covered = sample.coverage.share(depth, 1.0, num_muons)
            unknown = sample.unknown_share(rows, some)
            reference = _bundle_reference(sample, rows, depth, num_muons)
            measured = sample.mean(rows, some)
            yield make_row(
                ("bundles of m muons, 1 / (m² s sr)", where, num_muons),
                measured, reference, covered=covered, unknown=unknown, lacking=lacking,
            )  # fmt: skip
            if num_muons > 1:
                one = _bundle_reference(sample, rows, depth, 1)
                value = reference.value / one.value
                relative = Reference(value, value * reference.error / reference.value, reference.source)
                yield make_row(
                    ("bundles of m muons over single muons", where, num_muons),
                    sample.ratio(rows, some, single), relative,
                    covered=min(covered, covered_single), unknown=unknown, lacking=lacking,
                )  # fmt: skip


def _bundle_reference(sample: Sample, rows: Rows, depth: float, num_muons: int) -> Reference:
    """Return MUPAGE's intensity. Its error combines half of the difference from MuonGun and the error of the fit."""
    many = np.array(float(num_muons))
    mupage, muongun = (
        _average(sample, rows, depth, lambda x, c: tables.bundle_intensity(many, x * c, c, muongun=other))  # noqa: B023
        for other in (False, True)
    )
    error = np.hypot((muongun - mupage) / 2, tables.MULTIPLICITY_ERROR * mupage)
    return Reference(mupage, float(error), "MUPAGE")


def distances(sample: Sample) -> Iterator[Row]:
    """Yield the mean distance of muons from the axis in bundles of 2, 3, 4 or more, and of two muons from each other."""
    radius = sample.per_event(np.hypot(sample.muons[:, 1], sample.muons[:, 2]))
    pair_sum, pairs = _pairs(sample)
    few = (sample.counts >= 2) & (sample.counts <= MOST_MUONS)
    lacking = ROCK if sample.drawn.medium == "rock" else ""
    for depth in BUNDLE_KM:
        rows = _near_vertical(sample, depth)
        for least, most, label in ((2, 2, "2"), (3, 3, "3"), (4, MOST_MUONS, "4 to 10")):
            some = rows & (sample.counts >= least) & (sample.counts <= most)
            value = _average(
                sample,
                rows,
                depth,
                lambda x, c: tables.mean_radius(np.array(least), x * c, np.arccos(c)),  # noqa: B023
            )
            yield make_row(
                ("mean distance from the axis, m", f"bundles of {label} at {depth:g} km w.e.", least),
                sample.ratio(some, radius, sample.counts),
                Reference(value, value * tables.DISTANCE_ERROR, "MUPAGE"),
                covered=sample.coverage.share(depth, 1.0, least),
                unknown=sample.unknown_share(some, sample.counts),
                lacking=lacking,
            )
        value = _average(sample, rows, depth, lambda x, c: tables.pair_distance(x * c))
        yield make_row(
            ("mean distance of two muons, m", f"bundles of 2 to {MOST_MUONS} at {depth:g} km w.e.", depth),
            sample.ratio(rows & few, pair_sum, pairs),
            Reference(value, value * tables.DISTANCE_ERROR, "MUPAGE"),
            covered=sample.coverage.share(depth, 1.0, 2),
            unknown=sample.unknown_share(rows & few, pairs),
            lacking=lacking,
        )


def _pairs(sample: Sample) -> tuple[FloatArray, FloatArray]:
    """Return the sum of the distances of all pairs of each event of 2 to 10 muons, and the number of its pairs."""
    num = sample.counts
    inside = np.flatnonzero((num[sample.event] >= 2) & (num[sample.event] <= MOST_MUONS))
    event, place = sample.event[inside], sample.muons[inside, 1:]
    total = np.zeros(len(num))
    for lag in range(1, MOST_MUONS):
        same = event[lag:] == event[:-lag]
        apart = np.hypot(*(place[lag:] - place[:-lag])[same].T)
        total += np.bincount(event[lag:][same], apart, len(num))
    return total, num * (num - 1) / 2


def surface(sample: Sample) -> Iterator[Row]:
    """Yield the vertical flux at the surface in bins of energy, of events at most 35 m w.e. deep."""
    rows = (sample.slant_km < SURFACE_KM) & (sample.cosine > SURFACE_COSINE)
    medium = sample.drawn.passed
    energy = sample.muons[:, 0] + medium.ionisation * 1e3 * sample.slant_km[sample.event]
    for low, high in pairwise(SURFACE_BINS):
        value, error = tables.surface_intensity(low, high)
        number = sample.per_event(((energy >= low) & (energy < high)).astype(float))
        complete = low >= max(sample.drawn.surface_gev, sample.drawn.threshold_gev)
        yield make_row(
            (
                "vertical intensity at the surface, 1 / (m² s sr)",
                f"{low:g} to {high:g} GeV",
                float(np.sqrt(low * high)),
            ),
            sample.mean(rows, number),
            Reference(value, error, "daemonflux"),
            covered=sample.coverage.share_above(low, 1.0) if complete else 0.0,
            unknown=sample.unknown_share(rows, number),
        )


def _near_vertical(sample: Sample, depth: float) -> Rows:
    return (np.abs(sample.slant_km / depth - 1) < WIDTH) & (sample.cosine >= NEAR_VERTICAL)


def _average(
    sample: Sample, rows: Rows, depth: float, expected: Callable[[FloatArray, FloatArray], FloatArray]
) -> float:
    """Return the mean of a reference over the slant depths (km w.e.) and cosines of events.

    Without events, return the reference at `depth` and a cosine of 1.
    """
    number = np.flatnonzero(rows)
    if not len(number):
        return float(np.mean(expected(np.array([depth]), np.ones(1))))
    number = number[:: -(-len(number) // AVERAGED)]
    return float(np.mean(expected(sample.slant_km[number], sample.cosine[number])))
