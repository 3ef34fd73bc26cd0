"""Draw true and generated events side by side; no display is needed."""

import numpy as np
from jaxtyping import Float32, Float64
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from crmuons.data.events import EventArrays
from crmuons.evaluation.metrics.quantities import muon_quantities, primary_features

TRUE_COLOUR, GENERATED_COLOUR = "#4d4d4d", "#c8412b"
RATIO_RANGE = (0.5, 1.5)


def marginals(truth: EventArrays, generated: EventArrays) -> Figure:
    """Draw the distributions of muon energy, axis distance, multiplicity and total energy, with ratios to the truth.

    All are per event, so a wrong multiplicity shows in the panels of the muons too. Bands are the statistical errors of
    the truth; the muons of an event count as one fluctuation.
    """
    figure = Figure(figsize=(11, 8.4))
    # Fixed margins, because finding them ("constrained") takes half of the 1.4 CPU-seconds of each validation's figure.
    panels = figure.add_gridspec(2, 2, left=0.09, right=0.99, bottom=0.07, top=0.985, wspace=0.24, hspace=0.2)
    for number, name in enumerate(MARGINALS):
        pair = panels[number].subgridspec(2, 1, height_ratios=(3, 1), hspace=0.06)
        upper, lower = pair.subplots(sharex=True, squeeze=False)[:, 0]
        _draw_ratio_pair(upper, lower, *(_marginal(events, name) for events in (truth, generated)))
        lower.set_xlabel(MARGINALS[name][0])
        upper.set_ylabel(MARGINALS[name][1])
        log_scale(upper)
    return figure


# The labels of the quantity and of the density.
MARGINALS = {
    "energy": ("muon energy: log$_{10}$(E / GeV)", "muons per event per bin"),
    "radius": ("distance from the axis: log$_{10}$(r / m)", "muons per event per bin"),
    "multiplicity": ("multiplicity: log$_{10}$(N + 1)", "share of the events per bin"),
    "total_energy": ("total energy of a bundle: log$_{10}$(ΣE / GeV)", "share of the events per bin"),
}

Column = tuple[Float64[np.ndarray, " values"], Float64[np.ndarray, " values"], int]


def _marginal(events: EventArrays, name: str) -> Column:
    """Return the values to count, the event of each value, and the number of events."""
    counts = events.counts
    if name == "multiplicity":
        return np.log10(counts + 1.0), np.arange(len(counts)), len(counts)
    event = np.repeat(np.arange(len(counts)), counts)
    if name == "total_energy":
        total = np.bincount(event, events.muons[:, 0].astype(np.float64), len(counts))
        return np.log10(total[counts > 0]), np.flatnonzero(counts), len(counts)
    return muon_quantities(events)[f"log_{name}"], event, len(counts)


Histogram = tuple[Float64[np.ndarray, " bins"], Float64[np.ndarray, " bins"]]


def _draw_ratio_pair(upper: Axes, lower: Axes, truth: Column, other: Column) -> None:
    edges = _edges(truth[0], other[0])
    histograms = [per_event_histogram(*values, edges) for values in (truth, other)]
    draw_ratio_histograms(upper, lower, edges, *histograms, widths=np.ones(len(edges) - 1))


def draw_ratio_histograms(
    upper: Axes,
    lower: Axes,
    edges: Float64[np.ndarray, " edges"],
    truth: Histogram,
    other: Histogram,
    *,
    widths: Float64[np.ndarray, " bins"],
) -> None:
    """Draw two histograms with errors, divided by the widths, and below them the ratio of the second to the first."""
    (true_density, true_error), (density, error) = truth, other
    upper.stairs(true_density / widths, edges, color=TRUE_COLOUR, fill=True, alpha=0.25)
    upper.stairs(true_density / widths, edges, color=TRUE_COLOUR, label="true")
    upper.stairs(density / widths, edges, color=GENERATED_COLOUR, label="generated")
    upper.legend(frameon=False)
    nonempty = true_density > 0  # Without true values there is no ratio.
    band = np.divide(true_error, true_density, out=np.zeros_like(true_error), where=nonempty)
    lower.stairs(1 + band, edges, baseline=1 - band, fill=True, color=TRUE_COLOUR, alpha=0.25)
    ratio, ratio_error = density[nonempty] / true_density[nonempty], error[nonempty] / true_density[nonempty]
    centres = ((edges[:-1] + edges[1:]) / 2)[nonempty]
    lower.errorbar(centres, ratio, ratio_error, fmt=".", color=GENERATED_COLOUR, markersize=4, linewidth=1)
    lower.axhline(1, color=TRUE_COLOUR, linewidth=0.8)
    lower.set_ylim(*RATIO_RANGE)
    lower.set_ylabel("ratio")


def _edges(a: Float64[np.ndarray, " n"], b: Float64[np.ndarray, " m"], bins: int = 40) -> Float64[np.ndarray, " edges"]:
    values = np.concatenate([a, b])
    if not len(values):
        return np.linspace(0, 1, bins + 1)
    low, high = values.min(), values.max()
    return np.linspace(low, high if high > low else low + 1, bins + 1)


def per_event_histogram(
    values: Float64[np.ndarray, " values"],
    event: Float64[np.ndarray, " values"],
    num_events: int,
    edges: Float64[np.ndarray, " edges"],
) -> tuple[Float64[np.ndarray, " bins"], Float64[np.ndarray, " bins"]]:
    """Return counts per event and bin, and their errors: the root of the sum over events of (count in the bin)^2."""
    bins = len(edges) - 1
    index = np.clip(np.searchsorted(edges, values, side="right") - 1, 0, bins - 1)
    cells, counts = np.unique(event.astype(np.int64) * bins + index, return_counts=True)
    squares = np.bincount(cells % bins, counts.astype(np.float64) ** 2, bins)
    return np.bincount(index, minlength=bins) / num_events, np.sqrt(squares) / num_events


def multiplicity_by_energy(truth: EventArrays, generated: EventArrays) -> Figure:
    """Draw median and central 68 % of N against the primary's energy, for each mass, or for all if there are many."""
    groups = _mass_groups(truth)
    figure = Figure(figsize=(11, 3.4 * ((len(groups) + 2) // 3)), layout="constrained")
    axes = figure.subplots((len(groups) + 2) // 3, 3, sharex=True, sharey=True, squeeze=False).ravel()
    for axis, (label, low, high) in zip(axes, groups, strict=False):
        for events, colour, name in _both(truth, generated):
            _draw_band(axis, _with_mass(events, low, high), colour, name)
        axis.set_title(label)
        axis.set_xlabel("primary energy: log$_{10}$(E / GeV)")
    for axis in axes[len(groups) :]:
        axis.set_visible(False)
    for axis in axes[::3]:
        axis.set_ylabel("log$_{10}$(N + 1)")
    axes[0].legend(frameon=False, loc="upper left")
    return figure


def lateral_profile(truth: EventArrays, generated: EventArrays) -> Figure:
    """Draw muons per square metre and event against the distance from the axis (0.3 m to 1 km), with the ratio."""
    edges = np.logspace(-0.5, 3, 36)
    areas = np.pi * np.diff(edges**2)
    labels = ("distance from the axis r / m", "muons per m$^2$ per event")
    return _profile((truth, generated), "log_radius", edges, areas, labels)


def energy_spectrum(truth: EventArrays, generated: EventArrays) -> Figure:
    """Draw muons per event and unit of ln E against the muon energy (3 GeV to 3 PeV), with the ratio."""
    edges = np.logspace(0.5, 6.5, 37)
    widths = np.diff(np.log(edges))
    labels = ("muon energy E / GeV", "muons per event, dN / d ln E")
    return _profile((truth, generated), "log_energy", edges, widths, labels)


def energy_radius_map(truth: EventArrays, generated: EventArrays) -> Figure:
    """Draw muons in the plane of energy and distance: true, generated, and their difference in standard errors."""
    figure = Figure(figsize=(12, 3.8), layout="constrained")
    axes = figure.subplots(1, 3, sharex=True, sharey=True)
    values = [muon_quantities(events) for events in (truth, generated)]
    edges = [_edges(values[0][name], values[1][name], bins=36) for name in ("log_energy", "log_radius")]
    maps = [np.histogram2d(v["log_energy"], v["log_radius"], bins=edges)[0] for v in values]
    densities = [counts / len(events.counts) for counts, events in zip(maps, (truth, generated), strict=True)]
    shown = np.concatenate([density[density > 0] for density in densities])
    norm = LogNorm(shown.min(), shown.max()) if len(shown) else None
    for axis, density, title in zip(axes, densities, ("true", "generated"), strict=False):
        image = axis.pcolormesh(*edges, np.where(density > 0, density, np.nan).T, norm=norm, cmap="viridis")
        axis.set_title(title)
    figure.colorbar(image, ax=list(axes[:2]), label="muons per event per bin")
    nonempty = (maps[0] + maps[1]) > 0
    errors = np.sqrt(maps[0] / len(truth.counts) ** 2 + maps[1] / len(generated.counts) ** 2)
    pull = np.divide(densities[1] - densities[0], errors, out=np.full_like(errors, np.nan), where=nonempty)
    image = axes[2].pcolormesh(*edges, pull.T, cmap="coolwarm", vmin=-5, vmax=5)
    axes[2].set_title("generated − true")
    figure.colorbar(image, ax=axes[2], label="standard errors (muons taken as independent)", extend="both")
    axes[0].set_ylabel("log$_{10}$(r / m)")
    for axis in axes:
        axis.set_xlabel("log$_{10}$(E / GeV)")
    return figure


def event_displays(truth: EventArrays, generated: EventArrays, *, rows: int = 4) -> Figure:
    """Draw true bundles in the plane across the axis, each beside the generated bundle of the most similar primary."""
    pairs = _alike(truth, generated, rows)
    figure = Figure(figsize=(9.5, 4.1 * max(len(pairs), 1)), layout="constrained")
    axes = figure.subplots(max(len(pairs), 1), 2, squeeze=False)
    starts = [np.cumsum(events.counts) - events.counts for events in (truth, generated)]
    for row, pair in zip(axes, pairs, strict=False):
        muons = [e.muons[s[i] : s[i] + e.counts[i]] for e, s, i in zip((truth, generated), starts, pair, strict=True)]
        extent = 1.1 * max(float(np.abs(part[:, 1:3]).max()) for part in muons)
        for axis, part, name, events, i in zip(
            row, muons, ("true", "generated"), (truth, generated), pair, strict=True
        ):
            _draw_event(axis, part, extent)
            energy, zenith, mass, depth = events.primaries[i]
            axis.set_title(
                f"{name}: N = {len(part)}\nE = {energy:.2g} GeV, m = {mass:.3g} GeV, "
                f"{np.degrees(zenith):.0f}°, {depth / 1000:.2f} km",
                fontsize=9,
            )
        figure.colorbar(row[1].collections[0], ax=list(row), label="log$_{10}$(E / GeV)")
    if not pairs:
        axes[0, 0].set_title("no bundle has ten or more muons")
    return figure


def _draw_event(axis: Axes, muons: Float32[np.ndarray, "muons 3"], extent: float) -> None:
    log_energy = np.log10(muons[:, 0])
    axis.scatter(
        muons[:, 1], muons[:, 2], c=log_energy, s=4 + 3 * np.maximum(log_energy, 0), cmap="viridis", vmin=1, vmax=4.5
    )
    axis.set_xlim(-extent, extent)
    axis.set_ylim(-extent, extent)
    axis.set_aspect("equal")
    axis.set_xlabel("x / m")
    axis.set_ylabel("y / m")


def _alike(truth: EventArrays, generated: EventArrays, rows: int) -> list[tuple[int, int]]:
    """Pair true with generated events of ten or more muons and similar primaries, from few muons to many."""
    true_large, large = np.flatnonzero(truth.counts >= 10), np.flatnonzero(generated.counts >= 10)
    if not len(true_large) or not len(large):
        return []
    by_size = true_large[np.argsort(truth.counts[true_large], kind="stable")]
    chosen = np.unique(np.linspace(0.1, 0.98, rows) * (len(by_size) - 1)).astype(int)
    features = primary_features(generated.primaries[large])
    scale = np.maximum(features.std(0), 1e-9)
    pairs = []
    for event in by_size[chosen]:
        distance = (np.abs(features - primary_features(truth.primaries[[event]])) / scale).sum(1)
        pairs.append((int(event), int(large[distance.argmin()])))
    return pairs


def _profile(
    sets: tuple[EventArrays, EventArrays],
    quantity: str,
    edges: Float64[np.ndarray, " edges"],
    widths: Float64[np.ndarray, " bins"],
    labels: tuple[str, str],
) -> Figure:
    figure = Figure(figsize=(7, 5.4), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    histograms = []
    for events in sets:
        event = np.repeat(np.arange(len(events.counts)), events.counts)
        values = 10.0 ** muon_quantities(events)[quantity]
        inside = (values >= edges[0]) & (values < edges[-1])
        histograms.append(per_event_histogram(values[inside], event[inside], len(events.counts), edges))
    draw_ratio_histograms(upper, lower, edges, *histograms, widths=widths)
    log_scale(upper)
    upper.set_xscale("log")
    nonempty = np.flatnonzero(histograms[0][0] + histograms[1][0])
    if len(nonempty):
        upper.set_xlim(edges[nonempty[0]], edges[nonempty[-1] + 1])
    upper.set_ylabel(labels[1])
    lower.set_xlabel(labels[0])
    return figure


def log_scale(axis: Axes) -> None:
    """Use a logarithmic axis unless all densities are 0."""
    if axis.dataLim.ymax > 0:
        axis.set_yscale("log")


def _both(truth: EventArrays, generated: EventArrays) -> list[tuple[EventArrays, str, str]]:
    return [(truth, TRUE_COLOUR, "true"), (generated, GENERATED_COLOUR, "generated")]


def _mass_groups(events: EventArrays) -> list[tuple[str, float, float]]:
    masses = np.unique(events.primaries[:, 2])
    if len(masses) > 6:
        return [("all masses", 0.0, np.inf)]
    return [(f"m = {mass:.3g} GeV", float(mass) * 0.999, float(mass) * 1.001) for mass in masses]


def _with_mass(events: EventArrays, low: float, high: float) -> tuple[np.ndarray, np.ndarray]:
    kept = (events.primaries[:, 2] >= low) & (events.primaries[:, 2] <= high)
    return np.log10(events.primaries[kept, 0].astype(np.float64)), np.log10(events.counts[kept] + 1.0)


def _draw_band(axis: Axes, values: tuple[np.ndarray, np.ndarray], colour: str, name: str) -> None:
    log_energy, log_count = values
    index = np.floor(4 * log_energy).astype(int)
    quarters = [quarter for quarter in np.unique(index) if (index == quarter).sum() >= 20]
    low, middle, high = (
        [np.percentile(log_count[index == quarter], share) for quarter in quarters] for share in (16, 50, 84)
    )
    centres = [(quarter + 0.5) / 4 for quarter in quarters]
    axis.plot(centres, middle, color=colour, marker=".", label=f"{name}: median, 68 %")
    axis.fill_between(centres, low, high, color=colour, alpha=0.25, linewidth=0)
