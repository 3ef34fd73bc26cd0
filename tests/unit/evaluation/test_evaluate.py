"""The protocol: what is compared with what, and what is said about it."""

import numpy as np
import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from crmuons.commands import track_results
from crmuons.data.arrow import to_table, write_events
from crmuons.data.events import NO_EVENTS, EventArrays
from crmuons.data.quarantine import ReadCounts
from crmuons.data.reader import take
from crmuons.evaluation import baselines, breakdown, pairing
from crmuons.evaluation.candidates import data_candidate, refuse_copies
from crmuons.evaluation.datasets import BlockedEvents
from crmuons.evaluation.evaluate import evaluate
from crmuons.evaluation.headers import EventHeaders
from crmuons.evaluation.metrics import regions
from crmuons.evaluation.metrics.distances import Estimate, Missing
from crmuons.evaluation.metrics.quantities import Sample
from crmuons.evaluation.reference import EvaluationSettings, prepare_reference
from crmuons.evaluation.report.criteria import show
from crmuons.evaluation.request import EvaluationRequest, evaluate_request
from crmuons.evaluation.tasks import in_process, run


def toy_events(showers: int, seed: int, *, depths: int = 2, first_id: int = 0) -> EventArrays:
    """Showers at several depths; N grows with the energy."""
    rng = np.random.default_rng(seed)
    log_energy, mass = rng.uniform(4, 7, showers), rng.choice([0.938, 52.0], showers)
    primaries = np.stack([10**log_energy, rng.uniform(0, 1.5, showers), mass, np.full(showers, 2000.0)], axis=1)
    primaries = np.repeat(primaries, depths, axis=0)
    primaries[:, 3] += 100.0 * np.tile(np.arange(depths), showers)
    counts = rng.poisson(np.repeat(10 ** (0.5 * (log_energy - 4)), depths))
    energies, radii = 10 ** rng.normal(2.5, 0.4, counts.sum()), 10 ** rng.normal(1, 0.4, counts.sum())
    azimuth = rng.uniform(0, 2 * np.pi, counts.sum())
    muons = np.stack([energies, radii * np.cos(azimuth), radii * np.sin(azimuth)], axis=1)
    ids = np.repeat(np.stack([np.arange(showers) + first_id, np.full(showers, 7)], axis=1), depths, axis=0)
    return EventArrays(ids.astype(np.uint64), primaries.astype(np.float32), counts, muons.astype(np.float32))


def redrawn(truth: EventArrays, seed: int) -> EventArrays:
    """Other counts and muons for the same primaries and ids."""
    other = toy_events(len(truth.counts), seed, depths=1)
    return EventArrays(truth.ids, truth.primaries, other.counts, other.muons)


def one_block(executor, events):
    block = executor.put(((events,), ReadCounts()))
    return BlockedEvents(EventHeaders.of(events), [block], 0, [len(events.counts)])


def evaluate_arrays(truth, generated, training, settings):
    """Events against events, in this process."""
    with in_process() as executor:
        truth, generated, training = (one_block(executor, events) for events in (truth, generated, training))
        pairs = pairing.pair_data(truth.headers, generated.headers, settings.max_events, settings.seed)
        reference = prepare_reference(executor, truth, training, settings, (pairs.truth, pairs.control))
        return evaluate(executor, reference, data_candidate(executor, reference, truth, generated, pairs))


def evaluated(request):
    """The one evaluation of a request, in this process."""
    with in_process() as executor:
        (found,) = evaluate_request(request, executor)
    return found


def showers_of(events: EventArrays) -> set[bytes]:
    return {row.tobytes() for row in events.ids}


def test_a_task_runs_on_one_thread_and_a_second_one_does_not_look_for_the_pools_again(monkeypatch):
    def threads():
        return {pool["num_threads"] for pool in threadpool_info()}

    with threadpool_limits(2):
        assert run(threads) == {1}
        assert threads() == {2}
        monkeypatch.setattr("crmuons.evaluation.tasks.ThreadpoolController", pytest.fail)  # It takes 7 ms.
        assert run(str, 1) == "1"


def test_halves_are_equal_in_size_and_share_no_shower():
    truth = EventHeaders.of(toy_events(101, seed=0, depths=3))
    first, second = (truth.take(rows) for rows in pairing.halve(truth, 60_000, seed=1))
    assert len(first) == len(second) >= 148
    assert not showers_of(first) & showers_of(second)


def test_halves_are_cut_to_the_wanted_size():
    first, second = pairing.halve(EventHeaders.of(toy_events(100, seed=0)), 50, seed=1)
    assert (len(first), len(second)) == (50, 50)


def test_one_shower_cannot_be_held_against_itself():
    with pytest.raises(ValueError, match="2 true events of 1 shower are too few"):
        pairing.halve(EventHeaders.of(toy_events(1, seed=0)), 50, seed=1)


def test_generated_events_of_the_same_primaries_are_compared_with_other_showers():
    events = toy_events(100, seed=0)
    generated = EventHeaders.of(
        redrawn(take(events, np.random.default_rng(0).permutation(200)), seed=2)
    )  # In another order.
    truth = EventHeaders.of(events)
    pairs = pairing.pair_data(truth, generated, 60_000, seed=1)
    control, candidate = truth.take(pairs.control), generated.take(pairs.generated)
    assert not showers_of(truth.take(pairs.truth)) & showers_of(candidate)
    assert showers_of(control) == showers_of(candidate)
    of_truth, of_generated = pairs.paired
    assert (truth.primaries[of_truth] == generated.primaries[of_generated]).all()
    assert len(of_truth) == len(pairs.truth) + len(pairs.control)


def test_independent_events_with_the_same_ids_are_not_taken_for_paired_ones():
    pairs = pairing.pair_data(
        EventHeaders.of(toy_events(100, seed=0)), EventHeaders.of(toy_events(100, seed=5)), 60_000, seed=1
    )
    assert pairs.paired is None
    assert len(pairs.generated) == len(pairs.truth)


def test_other_primaries_are_said_and_equal_ones_are_not():
    truth = EventHeaders.of(toy_events(2000, seed=0))
    higher = EventHeaders(truth.ids, truth.primaries * np.float32([3, 1, 1, 1]), truth.counts)
    (warning,) = pairing.range_warnings(truth, higher)
    assert "differ from the true ones in energy_gev" in warning
    assert pairing.range_warnings(truth, EventHeaders.of(toy_events(2000, seed=1))) == []


def test_cell_ratio_is_the_factor_by_which_counts_were_multiplied():
    truth = toy_events(3000, seed=0)
    tripled = EventArrays(truth.ids, truth.primaries, 3 * truth.counts, np.repeat(truth.muons, 3, axis=0))
    cells = regions.cells(Sample.of(truth), Sample.of(tripled), paired=True)
    assert len(cells) == 6  # Two masses, three decades.
    assert all(cell.ratio == Estimate(pytest.approx(3), pytest.approx(0, abs=1e-9)) for cell in cells)
    worst, _ = breakdown.worst_cell(cells, seed=0)
    assert worst.value == pytest.approx(2)


def test_chance_alone_explains_the_worst_cell_of_a_perfect_generator():
    rng = np.random.default_rng(0)
    cells = [regions.Cell("", "", 100, 1.0, Estimate(1 + 0.02 * rng.normal(), 0.02)) for _ in range(25)]
    worst, chance = breakdown.worst_cell(cells, seed=0)
    assert abs(worst.value - chance.value) < 4 * chance.error


def test_regions_of_a_quantity_hold_each_event_once():
    conditions = Sample.of(toy_events(500, seed=0)).conditions
    held = {}
    for region in regions.regions(conditions):
        held[region.quantity] = held.get(region.quantity, 0) + region.holds(conditions).astype(int)
    assert set(held) == {"energy", "mass", "cos zenith", "depth"}
    assert all((times == 1).all() for times in held.values())


def test_a_case_of_muons_counts_these_muons_alone():
    events = toy_events(300, seed=0)
    case = next(case for case in regions.hard_cases(None) if case.name == "muons beyond 100 m")
    far = np.hypot(events.muons[:, 1], events.muons[:, 2]) > 100
    sample = Sample.of(events)
    part = case.part(sample)
    assert case.weight(sample).sum() == far.sum() == part.counts.sum() > 0
    energies = np.bincount(np.repeat(np.arange(len(events.counts)), events.counts), events.muons[:, 0] * far)
    assert 10 ** part.bundles["log_total_energy"] == pytest.approx(energies[energies > 0], rel=1e-5)


def test_muons_of_the_lowest_primaries_are_a_case_of_their_own():
    events = toy_events(300, seed=0)
    energy = events.primaries[:, 0]
    energy[:200] = np.float32(3e3)
    energy[200:] = np.float32(3e4)
    case = next(case for case in regions.hard_cases(None) if case.name == "muons from primaries below 10 TeV")
    sample = Sample.of(events)
    assert case.weight(sample).sum() == (events.counts[energy < 1e4] > 0).sum() > 0
    assert (10 ** case.part(sample).conditions[:, 0] < 1e4).all()


def test_only_masses_inside_the_trained_range_are_between_them():
    events = toy_events(3, seed=0, depths=1)
    masses = np.array([0.938, 13.0, 60.0], np.float32)
    events = EventArrays(
        events.ids,
        np.column_stack([events.primaries[:, :2], masses, events.primaries[:, 3]]),
        events.counts,
        events.muons,
    )
    case = regions.hard_cases(np.array([0.938, 52.0]))[-1]
    assert case.weight(Sample.of(events)).tolist() == [0, 1, 0]


def test_nearest_primary_copies_the_bundle_of_the_training_event_at_hand():
    training = toy_events(50, seed=0, depths=1)
    copied = baselines.NearestPrimary(training).generate(training.primaries, training.ids)
    assert (copied.counts == training.counts).all()
    assert (copied.muons == training.muons).all()


def test_parametric_sampler_reproduces_mean_and_overdispersion():
    rng = np.random.default_rng(0)
    training = toy_events(20_000, seed=0, depths=1)
    counts = rng.poisson(20 * rng.gamma(2, 0.5, 20_000))  # Negative binomial: mean 20, variance 20 + 400 / 2.
    muons = np.tile(np.array([[100, 10, 0]], np.float32), (counts.sum(), 1))
    training = EventArrays(training.ids, training.primaries, counts, muons)
    drawn = baselines.ParametricSampler.fit(training, 0).generate(training.primaries, training.ids, (1,))
    assert drawn.counts.mean() == pytest.approx(20, rel=0.02)
    assert drawn.counts.var() == pytest.approx(220, rel=0.05)
    assert np.median(drawn.muons[:, 0]) == pytest.approx(100, rel=0.01)


def test_numbers_are_shown_to_two_digits_of_their_error():
    assert show(Estimate(0.50931, 0.00213)) == "0.5093 ± 0.0021"
    assert show(Estimate(1.2345, 0.21)) == "1.23 ± 0.21"
    assert show(Missing("why")) == "absent"


def test_a_truth_without_muons_is_refused():
    truth = toy_events(10, seed=0)
    empty = EventArrays(truth.ids, truth.primaries, 0 * truth.counts, truth.muons[:0])
    with pytest.raises(ValueError, match="has a muon"):
        evaluate_arrays(empty, truth, NO_EVENTS, EvaluationSettings())


def test_a_sample_that_is_the_truth_itself_is_refused(tmp_path):
    """Other ids and another order hide nothing; other muons for the same primaries are what is evaluated."""
    truth = toy_events(300, seed=0)
    order = np.random.default_rng(1).permutation(len(truth.counts))
    renumbered = EventArrays(truth.ids + np.uint64(10_000), truth.primaries, truth.counts, truth.muons)
    copies = {"same": truth, "shuffled": take(truth, order), "renumbered": renumbered}
    for name, events in (copies | {"other": redrawn(truth, seed=3)}).items():
        write_events(tmp_path / f"{name}.parquet", [to_table(events)])
    settings = EvaluationSettings(max_events=200)
    for name in copies:
        request = EvaluationRequest(
            [str(tmp_path / "same.parquet")],
            generated=[str(tmp_path / f"{name}.parquet")],
            split="all",
            settings=settings,
        )
        with pytest.raises(
            ValueError, match=r"the truth and the generated sample are the same rows: \d+ of \d+ generated muons"
        ):
            evaluated(request)
    with in_process() as executor:
        same, other = (one_block(executor, events) for events in (truth, redrawn(truth, seed=3)))
        refuse_copies(executor, same, other, pairing.pair_data(same.headers, other.headers, 200, 0))


def test_an_empty_split_says_what_to_do(tmp_path):
    write_events(tmp_path / "few.parquet", [to_table(toy_events(1, seed=0))])
    with pytest.raises(ValueError, match="--split says which showers"):
        evaluated(EvaluationRequest([str(tmp_path)], generated=[str(tmp_path)]))


def test_an_evaluation_of_another_users_run_ends_well(tmp_path, monkeypatch, capsys):
    (tmp_path / "tracking").mkdir()
    (tmp_path / "tracking" / "journal.jsonl").touch()
    monkeypatch.setattr("crmuons.storage.files.os.access", lambda *words: False)  # Root may write anywhere.
    track_results(tmp_path, {}, 1, tmp_path / "report")
    assert "MLflow does not get these results: " in (said := capsys.readouterr().err)
    assert "no permission to write" in said
    assert [path.name for path in tmp_path.rglob("*")] == ["tracking", "journal.jsonl"]
