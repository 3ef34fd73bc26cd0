"""An evaluation as Ray tasks gives the numbers of one process, and the errors too."""

from pathlib import Path

import numpy as np
import pytest
import torch

from crmuons import config
from crmuons.cli import main
from crmuons.data.arrow import to_table, write_events
from crmuons.data.events import EventArrays
from crmuons.evaluation import comparison
from crmuons.evaluation.comparison import EventSample
from crmuons.evaluation.datasets import EventSet
from crmuons.evaluation.headers import EventHeaders
from crmuons.evaluation.metrics.quantities import Sample
from crmuons.evaluation.reference import GENERATED, NEAREST, NULL, PARAMETRIC, EvaluationSettings
from crmuons.evaluation.report.files import to_json
from crmuons.evaluation.request import EvaluationRequest, evaluate_request
from crmuons.evaluation.tasks import in_process
from crmuons.generation.spectrum import Spectrum
from crmuons.models import saved_model
from crmuons.models.bundle_model import BundleModel
from crmuons.models.features import Features
from crmuons.ray_backend.evaluate import _RayExecutor, on_ray

pytestmark = [
    pytest.mark.ray,
    pytest.mark.timeout(900),
    pytest.mark.usefixtures("cluster"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # Ray's own, where it copies its context.
]


def toy_events(number, seed):
    (drawn,) = Spectrum(number, seed=seed)
    rng = np.random.default_rng(seed)
    counts = rng.poisson(5.0, number)
    muons = np.stack([10 ** rng.normal(2.5, 0.5, counts.sum()), *rng.normal(0, 10, (2, counts.sum()))], axis=1)
    return EventArrays(drawn.ids, drawn.values, counts, muons.astype(np.float32))


@pytest.fixture(scope="module")
def request_of_a_model(tmp_path_factory):
    """Two models, 600 events a sample from several files, and events for the baselines."""
    folder = tmp_path_factory.mktemp("evaluate")
    (folder / "data").mkdir()
    for part in range(3):
        write_events(folder / "data" / f"{part}.parquet", [to_table(toy_events(9000, seed=part))])
    models = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        settings = config.Model(width=8, multiplicity_width=8)
        model = BundleModel(settings, Features().fit(toy_events(2000, seed=9)))
        models.append(str(saved_model.save_model(folder / f"model-{seed}", model, {"model": settings.model_dump()})))
    return EvaluationRequest([str(folder / "data")], "validation", models, settings=EvaluationSettings(max_events=600))


def test_tasks_give_the_numbers_of_one_process(request_of_a_model):
    with in_process() as executor:
        local = [to_json(each) for each in evaluate_request(request_of_a_model, executor)]
    with on_ray(num_cpus=2) as executor:
        remote = [to_json(each) for each in evaluate_request(request_of_a_model, executor)]
    assert local == remote
    assert set(local[0]["numbers"]) == {GENERATED, NULL, NEAREST, PARAMETRIC}
    assert local[0]["numbers"][NULL] == local[1]["numbers"][NULL] | {
        name: local[0]["numbers"][NULL][name] for name in ("worst_cell", "pit", "pit_worst_cell")
    }
    assert local[0]["numbers"][GENERATED]["score"] != local[1]["numbers"][GENERATED]["score"]


def test_classifiers_in_tasks_give_the_scores_of_one_process():
    events = [toy_events(1100, seed) for seed in (1, 2)]
    found = []
    for run in (in_process, lambda: on_ray(num_cpus=2)):
        with run() as executor:
            sets = [EventSet(EventHeaders.of(part), executor.put(part)) for part in events]
            quantities = [Sample.of(part, 1100 * number + np.arange(1100)) for number, part in enumerate(events)]
            samples = [EventSample(part, executor.put(each)) for part, each in zip(sets, quantities, strict=True)]
            scores = comparison.classify(executor, *samples, 0)
            found.append({name: executor.get(each).score for name, each in scores.items()})
    assert set(found[0]) == set(comparison.AREAS)
    for name in comparison.AREAS:
        assert (found[0][name] == found[1][name]).all(), name


def test_a_file_that_a_task_of_the_command_cannot_read_is_named(tmp_path, request_of_a_model, monkeypatch, capsys):
    content = Path(request_of_a_model.truth[0], "0.parquet").read_bytes()
    # The driver finds nothing wrong with the footer, which is at the end.
    (tmp_path / "spoilt.parquet").write_bytes(content[:4] + bytes(len(content) // 2) + content[4 + len(content) // 2 :])
    submitted = []
    run = _RayExecutor._submit
    monkeypatch.setattr(_RayExecutor, "_submit", lambda self, *task: submitted.append(task) or run(self, *task))
    words = ["--truth", str(tmp_path / "spoilt.parquet"), "--split", "all", "--model", request_of_a_model.models[0]]
    assert main(["evaluate", *words, "--out", str(tmp_path / "out"), "--workers", "1"]) == 1
    assert submitted
    said = capsys.readouterr().err
    assert "spoilt.parquet" in said.splitlines()[-1]
    assert "Traceback" not in said
