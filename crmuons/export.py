"""A model as a directory that generates with torch alone, and as ONNX graphs. docs/generation.md says how to use both."""

import logging
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from crmuons import checkpoint, portable
from crmuons.generate import BundleGenerator, load_generator
from crmuons.portable import Bundles

logger = logging.getLogger(__name__)

TOLERANCE = (
    1e-5  # Of energies, of positions (against the radius + 1 mm) and of the distribution of N; rounding makes 7e-7.
)
CHECK_EVENTS, CHECK_MUONS_PER_EVENT = 256, 20
INPUTS = ("primaries", "counts", "event_of_muon", "shower_noise", "muon_noise", "azimuth_rad")
README = """A generator of muon bundles, exported by crmuons.

With Python >= 3.8, torch >= 1.13 and numpy:
    from bundles import Bundles
    counts, muons = Bundles().generate(primaries, seed=1)
or  python bundles.py primaries.csv out.npz
primaries: energy_gev, zenith_rad, mass_gev (proton 0.938), depth_m (slant), one row per event.
muons: energy_gev, x_m, y_m across the shower axis; counts[0] rows of the first event, and so on.
"""
ONNX_README = """
onnx/multiplicity.onnx: primaries [events, 4] -> the distribution of N.
onnx/generator.onnx: primaries [events, 4] of events with muons, counts [events] int64, event_of_muon [muons] int64 ascending,
    shower_noise [events, {latents[0]}] and muon_noise [muons, {latents[1]}] standard normal, azimuth_rad [muons] uniform in
    [0, 2 pi) -> muons [muons, 3].
"""


def export(model: Path, out: Path, *, onnx: bool = False) -> Path:
    """Write a model as a directory that needs this package no more, after checking that it generates the same.

    Args:
        model: a run, a checkpoint or a model directory.
        out: new directory.
        onnx: write ONNX graphs too, and check them in onnxruntime.

    Raises:
        FileNotFoundError: if there is no model.
        ValueError: if the directory holds something, or if what was written generates something else.
        ImportError: if ONNX is asked for and its packages are not installed.
    """
    generator = load_generator(model)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        msg = f"{out} is not empty; name a new directory with --out, or remove what the old one holds"
        raise ValueError(msg)
    partial = out.with_name(f".{out.name}.exporting")
    try:
        checkpoint.save_model(partial, generator.model, generator.about)
        shutil.copyfile(portable.__file__, partial / "bundles.py")
        bundles = Bundles(partial)
        (partial / "README.txt").write_text(README + (ONNX_README.format(latents=bundles.latents) if onnx else ""))
        primaries = _primaries(generator)
        _check_portable(generator, bundles, primaries)
        if onnx:
            _write_onnx(bundles, primaries, partial / "onnx")
        if out.exists():
            out.rmdir()
        partial.rename(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return out


class MultiplicityGraph(nn.Module):
    """Primaries to the distribution of N."""

    def __init__(self, bundles: Bundles) -> None:
        super().__init__()
        self.bundles = bundles
        regressor = bundles.settings["multiplicity"] == "regressor"
        self.outputs = ("log10_num_muons_plus_1",) if regressor else ("log_weights", "log_means", "shapes")

    def forward(self, primaries: Tensor) -> tuple[Tensor, ...]:
        if len(self.outputs) == 1:
            return (self.bundles.log_counts(primaries),)
        return self.bundles.mixture(primaries)


class GeneratorGraph(nn.Module):
    """Primaries, N and noise to muons."""

    outputs = ("muons",)

    def __init__(self, bundles: Bundles) -> None:
        super().__init__()
        self.bundles = bundles

    def forward(  # noqa: PLR0917  # ONNX's inputs are positional
        self,
        primaries: Tensor,
        counts: Tensor,
        event_of_muon: Tensor,
        shower_noise: Tensor,
        muon_noise: Tensor,
        azimuth_rad: Tensor,
    ) -> Tensor:
        return self.bundles.muons_of(primaries, counts, event_of_muon, (shower_noise, muon_noise, azimuth_rad))


def worst_difference(muons: np.ndarray, wanted: np.ndarray) -> float:
    """The largest relative difference of energies, and of positions against the radius + 1 mm [muons, 3]."""
    muons, wanted = muons.astype(np.float64), wanted.astype(np.float64)
    energy = np.abs(muons[:, 0] / wanted[:, 0] - 1)
    distance = np.hypot(*(muons - wanted)[:, 1:].T) / (np.hypot(*wanted[:, 1:].T) + portable.RADIUS_OFFSET_M)
    return float(np.max(np.concatenate([energy, distance]), initial=0.0))


def _primaries(generator: BundleGenerator) -> np.ndarray:
    """Primaries over the trained range."""
    low, high = np.array(list(generator.training_ranges.values()), np.float32).T
    share = np.random.default_rng(0).random((CHECK_EVENTS, 4), np.float32)
    return low + share * (high - low)


def _check_portable(generator: BundleGenerator, bundles: Bundles, primaries: np.ndarray) -> None:
    wanted = generator.bundles(primaries, seed=0)
    counts, _ = bundles.generate(primaries, seed=0)
    _require(np.array_equal(counts, wanted.counts), "the exported model draws other numbers of muons")
    given = np.full(CHECK_EVENTS, CHECK_MUONS_PER_EVENT)
    wanted = generator.bundles(primaries, seed=0, counts=given)
    _compare("the exported model", worst_difference(bundles.generate(primaries, seed=0, counts=given)[1], wanted.muons))


def _write_onnx(bundles: Bundles, primaries: np.ndarray, folder: Path) -> None:
    folder.mkdir()
    graph, values = MultiplicityGraph(bundles), torch.from_numpy(primaries)
    found = _run_onnx(graph, {"primaries": values}, folder / "multiplicity.onnx")
    wanted = [values.numpy() for values in graph(values)]
    worst = max(float(np.abs(x - y).max() / max(1.0, np.abs(y).max())) for x, y in zip(found, wanted, strict=True))
    _compare("multiplicity.onnx", worst)
    inputs = _inputs(bundles, values)
    (muons,) = _run_onnx(GeneratorGraph(bundles), inputs, folder / "generator.onnx")
    _compare("generator.onnx", worst_difference(muons, GeneratorGraph(bundles)(*inputs.values()).numpy()))


def _inputs(bundles: Bundles, primaries: Tensor) -> dict[str, Tensor]:
    source = torch.Generator().manual_seed(0)
    counts = torch.randint(1, 2 * CHECK_MUONS_PER_EVENT, (len(primaries),), generator=source)
    event = torch.repeat_interleave(torch.arange(len(primaries)), counts)
    shower = torch.randn(len(primaries), bundles.latents[0], generator=source)
    noise = torch.randn(len(event), bundles.latents[1], generator=source)
    azimuth = 2 * torch.pi * torch.rand(len(event), generator=source)
    return dict(zip(INPUTS, (primaries, counts, event, shower, noise, azimuth), strict=True))


def _run_onnx(graph: MultiplicityGraph | GeneratorGraph, inputs: dict[str, Tensor], path: Path) -> list[np.ndarray]:
    """Write a graph, and run it in onnxruntime."""
    try:
        import onnxruntime  # noqa: PLC0415  # an extra
        import onnxscript  # noqa: F401, PLC0415  # what torch.onnx works with
    except ImportError as error:
        msg = f"ONNX needs packages that are not installed ({error}): pip install 'crmuons[onnx]'"
        raise ImportError(msg) from error
    dims = {name: torch.export.Dim(name) for name in ("events", "muons")}
    of_muons = {"event_of_muon", "muon_noise", "azimuth_rad"}
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
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1  # With more, the scatter-add over muons loses updates (docs/generation.md).
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    given: dict[str, Any] = {name: values.numpy() for name, values in inputs.items()}
    found: list[np.ndarray] = session.run(list(graph.outputs), given)
    return found


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's talk of its steps, of torchvision, and of inputs that share a dimension."""
    for name in ("torch.onnx", "onnxscript", "onnx_ir"):
        logging.getLogger(name).setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "# The axis name", UserWarning)
        warnings.filterwarnings("ignore", r"`isinstance\(treespec", FutureWarning)  # Torch's own code, in 2.13.
        yield


def _compare(what: str, worst: float) -> None:
    _require(worst <= TOLERANCE, f"{what} differs by {worst:.1e} from the model, more than {TOLERANCE:g}")
    logger.info("%s agrees with the model to %.1e", what, worst)


def _require(holds: bool, message: str) -> None:
    if not holds:
        msg = (
            f"{message}: nothing was exported; this is a fault of crmuons.portable or of the exporter, not of the model"
        )
        raise ValueError(msg)
