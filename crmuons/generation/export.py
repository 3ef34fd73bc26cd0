"""Export a model as a directory that needs only torch and numpy, and as ONNX graphs (docs/generation.md)."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from crmuons.generation.generator import BundleGenerator
from crmuons.generation.load import load_generator
from crmuons.models import saved_model
from crmuons.models.bundle_model import BundleModel, members_of
from crmuons.models.bundles import Bundles
from crmuons.models.ensemble import StandaloneEnsemble
from crmuons.models.exported import bundles_source
from crmuons.models.extra import draw_level
from crmuons.models.formulas import RADIUS_OFFSET_M
from crmuons.models.ragged import Ragged
from crmuons.models.standalone import StandaloneModel
from crmuons.storage.atomic import filled_directory
from crmuons.storage.output import Output, folder_at

logger = logging.getLogger(__name__)

# Largest relative difference of energies, of positions (against the radius + 1 mm) and of the distribution of N. Rounding
# gives differences of 7e-7 to 1e-5, more in models with steeper networks, and twice as large ones in a delay, which is a
# square divided by a square. A fault gives more than 1e-3.
TOLERANCE = 1e-4
# Share of muons whose further features may differ: rounding may move a uniform number over the edge between two levels.
MAX_FLIPPED = 1e-3
CHECK_EVENTS, CHECK_MUONS_PER_EVENT = 256, 20
INPUTS = ("primaries", "counts", "event_of_muon", "shower_noise", "muon_noise", "azimuth_rad")
README = """A generator of muon bundles, exported by crmuons.

With Python >= 3.8, torch >= 1.13 and numpy:
    from bundles import Bundles
    counts, muons = Bundles().generate(primaries, seed=1)
or  python bundles.py primaries.csv out.npz
primaries: energy_gev, zenith_rad, mass_gev (proton 0.938), depth_m (slant), one row per event.
muons: energy_gev, x_m, y_m across the shower axis{further}; counts[0] rows of the first event, and so on.
"""
ONNX_README = """
onnx/multiplicity.onnx: primaries [events, 4] -> the distribution of N.
onnx/generator.onnx: primaries [events, 4] of events with muons, counts [events] int64, event_of_muon [muons] int64
    ascending, shower_noise [events, {latents[0]}] and muon_noise [muons, {latents[1]}] standard normal, azimuth_rad
    [muons] uniform in [0, 2 pi){numbers} -> muons [muons, {width}].
"""


def export(model: str | Path, out: str | Path, *, onnx: bool = False) -> None:
    """Write a model as a directory that works without this package, and check that it generates the same muons.

    Args:
        model: a run, a checkpoint or a model directory.
        out: new directory, as a path or a URL.
        onnx: also write ONNX graphs, and check them in onnxruntime.

    Raises:
        FileNotFoundError: if there is no model.
        HeldError: if another process writes there.
        ValueError: if the directory is not empty, or if the exported model generates other muons.
        PermissionError: if the directory cannot be written. This is checked first.
        ImportError: if `onnx` is set and its packages are not installed.
    """
    generator, output = load_generator(model), Output.at(out)
    if onnx and generator.members:
        msg = f"--onnx: {model} is an ensemble, and a graph holds one model; export each of its members, or leave --onnx out"
        raise ValueError(msg)
    with folder_at(output.url) as folder:
        if output.names():
            msg = f"{output} is not empty; name a new directory with --out, or remove the files in it"
            raise ValueError(msg)
        _export(generator, folder, onnx=onnx)


def _export(generator: BundleGenerator, out: Path, *, onnx: bool) -> None:
    with filled_directory(out, last=saved_model.SETTINGS_FILE) as partial:
        saved_model.write_model_files(partial, generator.model, generator.metadata)
        (partial / "bundles.py").write_text(bundles_source(), encoding="utf-8")
        network, primaries = Bundles(partial).network, _primaries_in_range(generator)
        members = network.members if isinstance(network, StandaloneEnsemble) else [network]
        (partial / "README.txt").write_text(_readme(members[0], onnx=onnx), encoding="utf-8")
        for model, member in zip(members_of(generator.model), members, strict=True):
            _check_standalone(model, member, primaries)
        if onnx:
            _write_onnx(members[0], primaries, partial / "onnx")


def _readme(network: StandaloneModel, *, onnx: bool) -> str:
    further = "".join(f", {name}" for name in network.extra.names)
    if not onnx:
        return README.format(further=further)
    drawing = network.drawing
    numbers = f", uniform [muons, {len(drawing.levels) + drawing.smooth}] in [0, 1)" if drawing.noise else ""
    if drawing.smooth:
        numbers += f", normal [muons, {drawing.smooth}] and shared [events, {drawing.smooth}] standard normal"
    onnx_readme = ONNX_README.format(latents=network.latents, numbers=numbers, width=network.width)
    return README.format(further=further) + onnx_readme


class _OnnxNetwork(StandaloneModel):
    """The networks in operators for which onnxruntime gives the same results on any number of threads."""

    def mean(self, muons: Tensor, counts: Tensor, sums: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """Return the means as differences of running sums: onnxruntime's scatter-add loses updates on several threads.

        With 10^6 muons before an event, the error of its mean in double precision is 1e-10.
        """
        del sums  # They only make a GPU faster.
        ends = counts.cumsum(0)
        running = torch.nn.functional.pad(muons.double().cumsum(0), (0, 0, 1, 0))
        return ((running[ends] - running[ends - counts]) / counts[:, None]).float()


class MultiplicityGraph(nn.Module):
    """The graph from primaries to the distribution of N."""

    def __init__(self, network: StandaloneModel) -> None:
        super().__init__()
        self.network = network
        self.outputs = ("log_weights", "log_means", "shapes") if network.components else ("log10_num_muons_plus_1",)

    def forward(self, primaries: Tensor) -> tuple[Tensor, ...]:
        return self.network.mixture(primaries) if self.network.components else (self.network.log_counts(primaries),)


class GeneratorGraph(nn.Module):
    """The graph from primaries, N and noise to muons."""

    outputs = ("muons",)

    def __init__(self, network: StandaloneModel) -> None:
        super().__init__()
        self.network = network

    def forward(  # noqa: PLR0917  # ONNX's inputs are positional
        self,
        primaries: Tensor,
        counts: Tensor,
        event_of_muon: Tensor,
        shower_noise: Tensor,
        muon_noise: Tensor,
        azimuth_rad: Tensor,
        uniform: Tensor | None = None,
        normal: Tensor | None = None,
        shared: Tensor | None = None,
    ) -> Tensor:
        further = (values for values in (uniform, normal, shared) if values is not None)
        noise = (shower_noise, muon_noise, azimuth_rad, *further)
        return self.network.muons_of(primaries, counts, event_of_muon, noise)


def worst_difference(muons: np.ndarray, expected: np.ndarray) -> float:
    """Return the largest relative difference of energies, and of positions against the radius + 1 mm."""
    muons, expected = muons.astype(np.float64), expected.astype(np.float64)
    energy = np.abs(muons[:, 0] / expected[:, 0] - 1)
    distance = np.hypot(*(muons - expected)[:, 1:3].T) / (np.hypot(*expected[:, 1:3].T) + RADIUS_OFFSET_M)
    return float(np.max(np.concatenate([energy, distance]), initial=0.0))


def check_muons(what: str, network: StandaloneModel, muons: np.ndarray, expected: np.ndarray) -> None:
    """Compare muons with the model's muons, for the same random numbers.

    The difference of a further feature is relative to its value, or to the root of its mean square if that is larger.

    Raises:
        ValueError: if an energy or a position differs by more than TOLERANCE, or if a further feature does so for more than
            MAX_FLIPPED of the muons.
    """
    _compare(what, worst_difference(muons, expected))
    for at, name in enumerate(network.extra.names, 3):
        others = expected[:, at].astype(np.float64)
        # Delays reach twenty times their root mean square, and their rounding is proportional to their size.
        limit = TOLERANCE * np.maximum(np.abs(others), max(float(np.sqrt(np.square(others).mean())), 1e-30))
        differ = ~(np.abs(muons[:, at] - others) <= limit)  # NaN counts as different.
        _require(differ.mean() <= MAX_FLIPPED, f"{name} of {differ.mean():.1%} of the muons of {what} differs")


def _primaries_in_range(generator: BundleGenerator) -> np.ndarray:
    """Draw primaries uniformly in the trained range, for the check."""
    low, high = np.array(list(generator.training_ranges.values()), np.float32).T
    return low + np.random.default_rng(0).random((CHECK_EVENTS, 4), np.float32) * (high - low)


def _check_standalone(model: BundleModel, network: StandaloneModel, primaries: np.ndarray) -> None:
    """Compare an exported model with the trained networks, for the same random numbers."""
    values = torch.from_numpy(primaries)
    counts = network.sample_counts(values, torch.Generator().manual_seed(0))
    expected = model.sample_counts(values, torch.Generator().manual_seed(0))
    _require(torch.equal(counts, expected), "the exported model draws other numbers of muons")
    inputs = _inputs(network, values)
    ragged = Ragged.from_counts(inputs["counts"])
    condition = model.condition(values, ragged.counts)
    features = model.generator(condition, inputs["shower_noise"], inputs["muon_noise"], ragged)
    exported, of_muons = GeneratorGraph(network)(*inputs.values()), ragged.broadcast(condition)
    if model.smooth is not None:
        uniform, shared = inputs["uniform"][:, len(network.drawing.levels) :], ragged.broadcast(inputs["shared"])
        features = model.smooth.draw(features, of_muons, uniform, inputs["normal"], shared)
    trained = torch.empty_like(exported)
    smooth = [0, 1, 2, *(3 + at for at in network.extra.smooth)]
    trained[:, smooth] = model.features.to_muons(features, inputs["azimuth_rad"])
    if model.discrete is not None:
        logits = model.discrete.network(torch.cat([of_muons, features], dim=1))
        for number, part in enumerate(logits.split(model.discrete.levels, dim=1)):
            drawn = draw_level(part.t(), network.drawing.levels[number], inputs["uniform"][:, number])
            trained[:, 3 + network.extra.discrete[number]] = drawn
    check_muons("the exported model", network, exported.numpy(), trained.numpy())


def _write_onnx(network: StandaloneModel, primaries: np.ndarray, folder: Path) -> None:
    folder.mkdir()
    onnx_network, values = _OnnxNetwork(network.weights), torch.from_numpy(primaries)
    graph = MultiplicityGraph(onnx_network)
    outputs = _run_onnx(graph, {"primaries": values}, folder / "multiplicity.onnx")
    expected = [values.numpy() for values in graph(values)]
    worst = max(float(np.abs(x - y).max() / max(1.0, np.abs(y).max())) for x, y in zip(outputs, expected, strict=True))
    _compare("multiplicity.onnx", worst)
    inputs = _inputs(network, values)
    (muons,) = _run_onnx(GeneratorGraph(onnx_network), inputs, folder / "generator.onnx")
    check_muons("generator.onnx", network, muons, GeneratorGraph(network)(*inputs.values()).numpy())


def _inputs(network: StandaloneModel, primaries: Tensor) -> dict[str, Tensor]:
    """Draw the inputs of a generator graph."""
    source = torch.Generator().manual_seed(0)
    counts = torch.randint(1, 2 * CHECK_MUONS_PER_EVENT, (len(primaries),), generator=source)
    event = torch.repeat_interleave(counts)
    noise = network.noise(len(primaries), len(event), source)
    return dict(zip((*INPUTS, *network.drawing.noise), (primaries, counts, event, *noise), strict=True))


def _run_onnx(graph: MultiplicityGraph | GeneratorGraph, inputs: dict[str, Tensor], path: Path) -> list[np.ndarray]:
    """Write a graph, and return its outputs in onnxruntime."""
    try:
        import onnxruntime  # noqa: PLC0415  # an extra
        import onnxscript  # noqa: F401, PLC0415  # torch.onnx needs it
    except ImportError as error:
        msg = f"ONNX needs packages that are not installed ({error}): pip install 'crmuons[onnx]'"
        raise ImportError(msg) from error
    dims = {name: torch.export.Dim(name) for name in ("events", "muons")}
    of_muons = {"event_of_muon", "muon_noise", "azimuth_rad", "uniform", "normal"}
    shapes = tuple({0: dims["muons" if name in of_muons else "events"]} for name in inputs)
    with _quiet():
        torch.onnx.export(
            graph.eval(),
            tuple(inputs.values()),
            path,
            dynamo=True,
            input_names=list(inputs),
            output_names=list(graph.outputs),
            dynamic_shapes=shapes,
            external_data=False,
            verbose=False,
        )
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    arrays: dict[str, Any] = {name: values.numpy() for name, values in inputs.items()}
    outputs: list[np.ndarray] = session.run(list(graph.outputs), arrays)
    return outputs


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporter's messages: about its steps, about torchvision, and about inputs that share a dimension."""
    for name in ("torch.onnx", "onnxscript", "onnx_ir"):
        logging.getLogger(name).setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "# The axis name", UserWarning)
        warnings.filterwarnings("ignore", r"`isinstance\(treespec", FutureWarning)  # torch 2.13 itself causes it.
        yield


def _compare(what: str, worst: float) -> None:
    _require(worst <= TOLERANCE, f"{what} differs by {worst:.1e} from the model, more than {TOLERANCE:g}")
    logger.info("%s agrees with the model to %.1e", what, worst)


def _require(condition: bool, message: str) -> None:
    if not condition:
        msg = (
            f"{message}: nothing was exported. This is a bug of crmuons.models.standalone or of the exporter; report it"
        )
        raise ValueError(msg)
