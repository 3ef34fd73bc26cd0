"""Generation and simulation on Ray give what one process gives; a killed run goes on; ONNX graphs give what torch gives."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from crmuons import config
from crmuons.data import features
from crmuons.data.events import EventArrays
from crmuons.generation import writer
from crmuons.generation.export import check_muons, export
from crmuons.generation.load import load_generator
from crmuons.generation.request import GenerationOptions
from crmuons.generation.spectrum import Spectrum
from crmuons.models import blocks, saved_model
from crmuons.models.bundle_model import BundleModel
from crmuons.models.bundles import Bundles
from crmuons.models.features import Features
from crmuons.ray_backend import generate
from crmuons.ray_backend import simulate as ray_simulate
from crmuons.simulation import simulate
from crmuons.storage.output import Output

EVENTS_PER_BLOCK = blocks.EVENTS_PER_BLOCK["cpu"]


def toy_events():
    """Enough to fit features: radii of metres, energies of hundreds of GeV."""
    rng = np.random.default_rng(0)
    (drawn,) = Spectrum(2000)
    counts = rng.poisson(5.0, 2000)
    muons = np.stack([10 ** rng.normal(2.5, 0.5, counts.sum()), *rng.normal(0, 10, (2, counts.sum()))], axis=1)
    return EventArrays(drawn.ids, drawn.values, counts, muons.astype(np.float32))


FEATURES = features.parse(["dir_x", "charge", "t_ns", "dir_y"])


def with_features(events):
    """Add a direction, a charge and a delay to the muons, in another order than the networks have them."""
    rng, number = np.random.default_rng(1), len(events.muons)
    x, y = rng.normal(0, 0.01, (2, number))
    further = np.stack([x, rng.choice([-1, 1], number), rng.gamma(2, 1, number), y], axis=1).astype(np.float32)
    return replace(events, muons=np.concatenate([events.muons, further], axis=1))


@pytest.fixture(scope="module", params=["set", "predecessor", "features"])
def any_model(tmp_path_factory, request):
    return save(tmp_path_factory.mktemp("any"), request.param)


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory):
    return save(tmp_path_factory.mktemp("run"), "set")


def save(folder, kind):
    torch.manual_seed(3)
    settings = config.Model(
        kind="set" if kind == "features" else kind, multiplicity="regressor" if kind == "predecessor" else "mixture"
    )
    events, extra = (with_features(toy_events()), FEATURES) if kind == "features" else (toy_events(), ())
    model = BundleModel(settings, Features(cartesian=kind == "predecessor", extra=extra).fit(events))
    return saved_model.save_model(folder / "model", model, {"model": settings.model_dump()})


def contents(folder):
    return {path.name: pq.read_table(path) for path in sorted(folder.glob("*.parquet"))}


@pytest.mark.ray
@pytest.mark.usefixtures("cluster")
def test_tasks_write_the_same_shards_as_one_process_and_keep_finished_ones(model_dir, tmp_path):
    generator, source = load_generator(model_dir), Spectrum(6 * EVENTS_PER_BLOCK - 100)
    options = GenerationOptions(seed=3, counts=30, events_per_shard=EVENTS_PER_BLOCK)
    here = writer.plan_generation(Output.at(tmp_path / "here"), generator, source, options)
    there = writer.plan_generation(Output.at(tmp_path / "there"), generator, source, options)
    kept = writer.write_output_shard(there.out, there.request, generator, next(writer.pending_shards(source, there)))
    first = there.out.folder / "events-00000.parquet"
    stamp = first.stat().st_mtime_ns
    there = writer.plan_generation(there.out, generator, source, options)
    assert there.done == {0: kept}
    assert writer.generate(generator, source, here) == generate.generate(generator, source, there)
    assert contents(here.out.folder) == contents(there.out.folder)
    assert len(contents(here.out.folder)) == 6
    assert first.stat().st_mtime_ns == stamp


def test_the_job_goes_on_after_a_kill_with_the_same_events(model_dir, tmp_path):
    """1.2 million muons a shard, killed once the first is finished: nothing half-written bears a shard's name."""
    out = tmp_path / "out"
    words = [
        sys.executable, "-m", "jobs.generate", "--model", model_dir, "--out", out, "--counts", "300", "--seed", "1",
        "--spectrum", "events=28000", "--events-per-shard", "4096",
    ]  # fmt: skip
    with subprocess.Popen(words, start_new_session=True, stderr=subprocess.DEVNULL) as running:
        deadline = time.monotonic() + 200
        while not list(out.glob("*.parquet")) and running.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        os.killpg(running.pid, signal.SIGKILL)
    finished = contents(out)
    assert 0 < len(finished) < 7
    subprocess.run(words, check=True)
    found = contents(out)
    assert not list(out.glob(".*"))
    assert sum(table.num_rows for table in found.values()) == 28_000
    assert all(found[name] == table for name, table in finished.items())
    generator, source = load_generator(model_dir), Spectrum(28_000, seed=1)
    work = writer.plan_generation(
        Output.at(tmp_path / "one"), generator, source, GenerationOptions(1, 300, events_per_shard=4096)
    )
    *_, last = writer.pending_shards(source, work)
    writer.write_output_shard(work.out, work.request, generator, last)
    assert contents(work.out.folder)["events-00006.parquet"] == found["events-00006.parquet"]


@pytest.mark.ray
@pytest.mark.usefixtures("cluster")
def test_an_error_in_a_task_is_the_error_itself(model_dir, tmp_path):
    generator, source = load_generator(model_dir), Spectrum(2 * EVENTS_PER_BLOCK)
    work = writer.plan_generation(
        Output.at(tmp_path / "out"), generator, source, GenerationOptions(counts=1, events_per_shard=EVENTS_PER_BLOCK)
    )
    (tmp_path / "out" / "events-00001.parquet").mkdir()  # A name that no file can take.
    with pytest.raises(
        OSError, match=r"events-00001\.parquet could not be written .*the same command continues"
    ) as error:
        generate.generate(generator, source, work)
    assert "Traceback" not in str(error.value)


@pytest.mark.ray
@pytest.mark.usefixtures("cluster")
def test_ray_tasks_write_the_same_files_as_one_process(tmp_path):
    settings = simulate.SimulationSettings(energy_gev=(1e4, 1e6))
    arguments = {"num_events": 120_000, "seed": 11}
    simulate.simulate(settings, out=tmp_path / "process", **arguments)
    ray_simulate.simulate(settings, out=tmp_path / "tasks", **arguments)
    names = sorted(path.name for path in (tmp_path / "process").iterdir())
    assert len(names) == 3
    assert sorted(path.name for path in (tmp_path / "tasks").iterdir()) == names
    assert all((tmp_path / "tasks" / name).read_bytes() == (tmp_path / "process" / name).read_bytes() for name in names)


@pytest.fixture(scope="module")
def exported(any_model, tmp_path_factory):
    pytest.importorskip("onnxruntime")
    out = tmp_path_factory.mktemp("onnx") / "exported"
    export(any_model, out, onnx=True)
    return out


def session(exported, name, threads):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(str(exported / "onnx" / name), options, providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_the_onnx_generator_gives_what_torch_gives_on_any_number_of_threads(exported, threads):
    network, graph = Bundles(exported).network, session(exported, "generator.onnx", threads)
    pairs = []
    for counts in ([1], [1, 1, 1], [10_000], [1, 10_000, 3, 1, 9_999, 200], [50] * 200):
        number = torch.tensor(counts)
        (drawn,) = Spectrum(len(counts), seed=2)
        primaries, event = torch.from_numpy(drawn.values), torch.repeat_interleave(number)
        noise = network.noise(len(counts), len(event), torch.Generator().manual_seed(5))
        names = [each.name for each in graph.get_inputs()]  # Those of drawn features only where there are some.
        given = dict(zip(names, (primaries, number, event, *noise), strict=True))
        expected = network.muons_of(primaries, number, event, noise).numpy()
        for _ in range(3):  # Lost updates would come and go.
            (found,) = graph.run(None, {name: values.numpy() for name, values in given.items()})
            pairs.append((found, expected))
    # Together, because a single muon has no scale for a direction near 0.
    check_muons("the graph", network, *(np.concatenate(part) for part in zip(*pairs, strict=True)))


def test_the_onnx_multiplicity_gives_what_torch_gives(exported):
    network, graph = Bundles(exported).network, session(exported, "multiplicity.onnx", 2)
    for num_events in (1, 300):
        (drawn,) = Spectrum(num_events, seed=2)
        primaries = torch.from_numpy(drawn.values)
        expected = network.mixture(primaries) if network.components else (network.log_counts(primaries),)
        for one, other in zip(graph.run(None, {"primaries": drawn.values}), expected, strict=True):
            np.testing.assert_allclose(one, other.numpy(), rtol=1e-5, atol=1e-5)
