"""What the benchmark counts and divides; times themselves are never asserted."""

import json

import numpy as np
import pytest
import torch

from crmuons.benchmark import events, figures, read, reference, roofline, step, timing, train
from crmuons.benchmark.figures import Figure
from crmuons.benchmark.timing import Times
from crmuons.runs.directory import Run
from crmuons.training.summary import RunSummary


def test_a_figure_is_work_over_seconds_and_the_ratio_is_taken_round_by_round():
    ours, theirs = np.array([1.0, 2.0, 4.0]), np.array([10.0, 40.0, 20.0])
    figure = Figure("a b", "events", 100, Times(ours, ours), "plain", 50, Times(theirs, 2 * theirs), {"gflop": 3.0})
    values = figure.values()
    # 100, 50, 25 a second against 5, 1.25, 2.5: ratios 20, 40, 10.
    assert (values["per_second"], values["per_second_q1"], values["per_second_q3"]) == (50, 37.5, 75)
    assert (values["ratio"], values["ratio_q1"], values["ratio_q3"]) == (20, 15, 30)
    assert values["ratio_of_cpu_seconds"] == 40  # Twice the wall time of the reference.
    assert "ratio_of_cpu_seconds" not in Figure("a", "b", 1, Times(ours), "plain", 1, Times(theirs)).values()
    assert figures.figure_metrics([figure])["a_b/gflop"] == 3.0
    assert "20.00" in figures.figure_table([figure])
    told = json.loads(json.dumps(figures.as_json("step", {"cores": 2}, [figure])))
    assert told["figures"][0]["seconds"] == [1, 2, 4]


def test_rivals_take_turns_and_the_first_round_does_not_count():
    seen = []
    times = timing.alternate({"a": lambda: seen.append("a"), "b": lambda: seen.append("b")}, 2)
    assert "".join(seen) == "ababab"
    assert [len(one.wall) for one in times.values()] == [2, 2]


def test_work_is_counted_forwards_and_backwards():
    x, weight = torch.randn(30, 10), torch.randn(10, 20, requires_grad=True)
    counted = roofline.work(lambda: (x @ weight).sum().backward())
    assert counted.flops == 2 * (2 * 30 * 10 * 20)  # The product, and the weight's gradient.
    assert roofline.work(lambda: torch.zeros(4, 20).addmm_(x[:4], weight.detach())).flops == 2 * 4 * 10 * 20
    copied = torch.empty(1000)
    assert roofline.work(lambda: copied.add_(1.0)).bytes == 2 * 4000  # Read and written.
    assert roofline.StepWork(flops=100, bytes=10).seconds(50, 1) == 10


def test_events_have_the_mean_asked_for_and_are_legal():
    drawn = events.draw(20_000, 0.36, seed=0)
    # The variance of N is m + 2 m^2 = 0.62, its mean's error sqrt(0.62 / 20,000) = 0.006.
    assert drawn.counts.mean() == pytest.approx(0.36, abs=0.025)
    assert (drawn.counts == 0).mean() > 0.7
    assert (drawn.muons[:, 0] > 0).all()


@pytest.mark.parametrize("lambda_gp", [0.0, 10.0])
def test_the_reference_step_moves_both_networks(lambda_gp):
    torch.manual_seed(0)
    stepping = reference.ReferenceStep(lambda_gp, 2, torch.device("cpu"))
    networks = stepping.generator, stepping.critic
    before = [torch.cat([p.detach().flatten() for p in network.parameters()]) for network in networks]
    drawn = events.draw(30, 2.0)
    losses = stepping(torch.randn(30, 4), torch.from_numpy(drawn.counts), torch.randn(len(drawn.muons), 3))
    assert len(losses) == 3
    assert all(np.isfinite(losses))
    for network, was in zip(networks, before, strict=True):
        assert not torch.equal(torch.cat([p.detach().flatten() for p in network.parameters()]), was)


def test_the_reference_critic_takes_the_maximum_and_zero_for_an_empty_event():
    critic = reference.ReferenceCritic()
    primaries, muons, event = torch.randn(3, 4), torch.randn(4, 3), torch.tensor([0, 0, 0, 2])
    local = critic.muon(torch.cat([primaries[event], muons], dim=1))
    highest = torch.stack([local[:3].amax(0), torch.zeros(128), local[3]])
    expected = critic.decision(torch.cat([highest, primaries], dim=1))[:, 0]
    torch.testing.assert_close(critic(primaries, muons, event), expected)


def test_the_suites_step_and_read_give_figures_with_references(toy_events, write_toy, tmp_path):
    figure = step.compare_step((20, 2.0, True), 1, torch.device("cpu"), rates=(1e11, 1e10))
    assert figure.name == "step, 20 x 2 with penalty, default settings"
    assert figure.details["gflop"] > 0
    assert figure.values()["ratio"] > 0
    toy = toy_events(50)
    file = write_toy(tmp_path / "data" / "a.parquet", toy)
    of_events, of_muons, of_shards = read.run(1, [file.url], tmp_path / "shards")
    assert (of_events.amount, of_muons.amount, of_shards.amount) == (len(toy.counts), len(toy.muons), len(toy.counts))
    assert of_shards.reference_times is of_events.times


def test_the_suite_read_takes_raw_files_and_no_more_than_it_needs(toy_events, write_toy, tmp_path, monkeypatch):
    urls = [write_toy(tmp_path / "data" / name, toy_events(50)).url for name in ("a.parquet", "b.parquet")]
    assert [file.url for file in read.raw_files(urls)] == urls
    monkeypatch.setattr(read, "MAX_BYTES", 1)
    assert [file.url for file in read.raw_files(urls)] == urls[:1]
    read.run(1, urls, tmp_path / "shards")
    with pytest.raises(ValueError, match="is prepared: give the suite read raw files"):
        read.raw_files([str(tmp_path / "shards")])


def test_threads_are_those_of_all_workers_together(tmp_path):
    given = {"events": 64, "threads": 5}
    shares = [
        train.settings_of(1, ["d"], tmp_path, workers=n, **given).scaling.threads_per_worker for n in (0, 1, 2, 8)
    ]
    assert shares == [5, 5, 2, 1]


def test_an_interrupted_run_gives_no_speed(tmp_path):
    settings = train.settings_of(1, ["d"], tmp_path, workers=0, threads=1, events=64)
    with pytest.raises(KeyboardInterrupt):
        train.run(1, settings, lambda _: RunSummary(Run(tmp_path), "interrupted", settings.train))
