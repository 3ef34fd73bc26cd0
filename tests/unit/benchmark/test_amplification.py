"""What few showers are worth: the copier is worth its own showers, and subsets are nested."""

import math
from dataclasses import replace

import numpy as np
import pytest

from crmuons.benchmark.amplification import report
from crmuons.benchmark.amplification.curve import Curve, amplification
from crmuons.benchmark.amplification.results import MEASURES, Measure, Results
from crmuons.benchmark.amplification.showers import Pool, copied_sizes, digest_of, read_pool
from crmuons.cli import main
from crmuons.data.events import take
from crmuons.evaluation.metrics.distances import Estimate, Missing
from crmuons.evaluation.metrics.quantities import shower_numbers


def power_law(showers, power=0.5):
    return 2.0 * showers**-power


SIZES = (200, 600, 2_000, 6_000, 20_000)
COPIED = {size: [power_law(size)] for size in SIZES}


def test_a_copier_is_worth_the_showers_that_it_copies():
    for size in SIZES:
        found = amplification(size, COPIED[size], COPIED, floor=1e-6)
        assert (found.value, found.bound) == (pytest.approx(1), "")


def test_another_copier_of_as_many_showers_is_worth_one_within_its_error():
    rng = np.random.default_rng(0)
    draws = {size: power_law(size) * np.exp(rng.normal(0, 0.05, 20)) for size in SIZES}
    copied = {size: values[:10] for size, values in draws.items()}
    for size in SIZES[1:-1]:  # At an end of the curve a figure may be off it.
        found = amplification(size, draws[size][10:], copied, floor=1e-6)
        # An error of 0.05 in the logarithm of a figure is 0.1 in that of the showers (power 1/2), and 10 seeds divide it
        # by 3.2; the difference of two such means has 0.045.
        assert abs(math.log(found.value)) < 4 * 0.045
        assert 1.01 < found.factor < 1.1


def test_between_sizes_the_number_of_showers_is_that_of_the_power_law_and_falls_with_the_figure():
    curve = Curve.fit({size: power_law(size) for size in SIZES}, floor=1e-6)
    showers = np.geomspace(200, 20_000, 50)
    found = [curve.showers_for(power_law(number)).showers for number in showers]
    assert found == pytest.approx(showers)
    rng = np.random.default_rng(1)
    noisy = Curve.fit({size: power_law(size) * rng.lognormal(0, 0.5) for size in SIZES}, floor=0.03)
    values = np.geomspace(1.0, 0.001, 200)
    assert np.all(np.diff([noisy.showers_for(value).showers for value in values]) >= 0)
    assert np.all(np.diff(noisy.log_values) <= 0)


def test_outside_of_the_curve_and_at_the_floor_there_is_a_limit():
    curve = Curve.fit({size: power_law(size) for size in SIZES}, floor=power_law(6_000))
    assert (curve.showers_for(1.0).showers, curve.showers_for(1.0).bound) == (pytest.approx(200), "less than")
    # Copies of 20,000 showers look no better than those of 6,000, and so does the truth.
    assert (curve.showers_for(0.001).showers, curve.showers_for(0.001).bound) == (pytest.approx(6_000), "more than")
    above = Curve.fit({size: power_law(size) for size in SIZES}, floor=1e-6)
    assert (above.showers_for(0.001).showers, above.showers_for(0.001).bound) == (pytest.approx(20_000), "more than")
    assert str(amplification(200, [0.001], COPIED, floor=1e-6)) == "more than 100"
    assert amplification(200, [0.1, 0.001], {n: values * 2 for n, values in COPIED.items()}, floor=1e-6).factor is None


def test_subsets_are_nested_whole_showers_of_the_same_ids_in_any_order(toy_events):
    events = toy_events(50)
    pool = Pool(events, shower_numbers(events.ids)[0])
    shuffled = take(events, np.random.default_rng(0).permutation(len(events.counts)))
    again = Pool(shuffled, shower_numbers(shuffled.ids)[0])
    few, more, other = pool.first(10, 0), pool.first(30, 0), pool.first(10, 1)
    rows = [{tuple(row) for row in part.ids} for part in (few, more, other, again.first(10, 0))]
    assert rows[0] < rows[1]
    assert rows[0] == rows[3] != rows[2]
    assert (len(few.counts), len(more.counts), len(pool.first(50, 2).counts)) == (30, 90, 150)  # Three depths each.
    assert digest_of(events) == digest_of(shuffled) != digest_of(few)


def test_copies_go_on_from_the_trained_numbers_to_all_showers():
    assert copied_sizes([200, 600], 20_000) == [200, 600, 1897, 6000, 20_000]
    assert copied_sizes([200], 200) == [200]


def test_true_showers_are_not_trained_on(toy_events, write_toy, tmp_path, caplog):
    events = toy_events(50)
    write_toy(tmp_path / "a.parquet", events)
    pool = read_pool([str(tmp_path)], events.ids[:30], vertical=False, max_quarantined_share=0.01)
    assert pool.num_showers == 40
    assert "10 of 50 showers of --data are in the truth" in caplog.text


@pytest.fixture(scope="module")
def data(tmp_path_factory, toy_events, write_toy):
    folder = tmp_path_factory.mktemp("data")
    pool, truth = toy_events(80, seed=1, mean=20.0), toy_events(500, seed=2, mean=20.0)
    write_toy(folder / "pool" / "a.parquet", pool)
    write_toy(folder / "truth" / "a.parquet", replace(truth, ids=truth.ids + np.uint64(1000)))
    return folder


def words(data, out, *more):
    small = (
        "train.steps=2 train.events_per_worker=32 model.width=8 model.multiplicity_width=8 data.validation_share=0.2"
    )
    return [
        "benchmark", "amplification", "--data", str(data / "pool"), "--truth", str(data / "truth"), "--out", str(out),
        "--threads", "1", "--minutes", "1", "--sample-events", "750", *more, "--settings", *small.split(),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        (["--showers", "20,x"], "--showers: 20,x: expected numbers of showers"),
        (["--showers", "5"], "--showers: 5: expected numbers of showers"),
        (["--showers", ""], "--showers: "),
        (["--showers", "20,500"], "--showers 500: --data has 80 showers that are not in the truth"),
        (["--truth"], "--truth: expected at least one argument"),
        (["--minutes", "0"], "--minutes: 0: expected a number above 0"),
        (["--settings", "run.seed=3"], "--settings run.seed: the benchmark chooses it"),
        (
            ["--settings", "data.validation_share=0"],
            "--showers 20: none of the showers of seed 0 are for validation, with data",
        ),
        (["--data", "/nowhere"], "nothing to read at '/nowhere'"),
    ],
)
def test_bad_input_is_one_sentence(more, reason, data, tmp_path, capsys, monkeypatch):  # noqa: PLR0917
    monkeypatch.setattr("crmuons.benchmark.amplification.measure.Bench.floor", lambda _: {})
    option = more[0]
    given = words(data, tmp_path / "out", "--showers", "20", "--seeds", "1")[:-5]
    given = given[: given.index("--settings")]
    if option in given:  # The option in place of the good one.
        at = given.index(option)
        given = given[:at] + given[at + 2 :]
    try:
        code = main([*given, *more])
    except SystemExit as end:
        code = end.code
    assert code in {1, 2}
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("crmuons benchmark")]
    assert len(said) == 1
    assert reason in said[0]


def test_a_directory_with_something_else_is_refused(data, tmp_path, capsys):
    (tmp_path / "photos").mkdir()
    assert main(words(data, tmp_path, "--showers", "20")) == 1
    assert "is not empty, and holds no amplification; name a new directory with --out" in capsys.readouterr().err


def test_data_without_truth_is_refused(data, tmp_path, capsys):
    assert main(["benchmark", "amplification", "--data", str(data / "pool"), "--out", str(tmp_path / "out")]) == 1
    assert "--data is given without --truth; give both" in capsys.readouterr().err


def test_the_table_gives_amplifications_and_reasons():
    copied = {n: [{measure.name: Estimate(measure.perfect + power_law(n)) for measure in MEASURES}] for n in SIZES}
    ours = {
        200: [{"auc_bundles": Estimate(0.5 + power_law(2_000)), "auc_muons": Missing("why"), "score": Estimate(9.0)}]
    }
    floor = {measure.name: Estimate(measure.perfect, 0.001) for measure in MEASURES}
    results = Results({"model": ours, "nearest primary": copied, "parametric": {200: copied[200]}}, floor, [200])
    text = report.table(results).splitlines()
    assert text[1].split()[-1] == "10"
    assert text[2].endswith("absent")
    assert text[3].endswith("less than 1")
    assert text[-1] == "set classifier's AUC is absent: model, 200 showers: why"
    assert report.metrics(results)[200]["auc_bundles/amplification"] == pytest.approx(10)
    assert len(report.draw(results).axes) == len(MEASURES)
    assert isinstance(results.excess(Measure("auc_muons", "", 0.5), "model"), Missing)
