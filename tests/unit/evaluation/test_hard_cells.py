"""Hard cells: many events of rare kinds, chosen by their primaries, with weights that undo the choice."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from sklearn.ensemble import HistGradientBoostingClassifier

from crmuons.data.arrow import to_table, write_events
from crmuons.data.events import EventArrays, take
from crmuons.data.sampler import cut_files
from crmuons.data.selection import Selection
from crmuons.evaluation.hard_cells import figures, judge, kinds
from crmuons.evaluation.hard_cells.figures import CellEvents
from crmuons.evaluation.hard_cells.importance import Importance
from crmuons.evaluation.metrics import distances
from crmuons.evaluation.metrics.distances import Estimate, Missing
from crmuons.evaluation.metrics.quantities import primary_features
from crmuons.evaluation.tasks import in_process
from crmuons.storage.files import list_files
from tests.large_events import IRON, PROTON, large_events

CELL = 1  # N from 1,000 to 10,000


CELLS = kinds.hard_cells(
    np.array([[1e5, 0.3, mass, depth] for mass in (PROTON, IRON) for depth in (1600.0, 2500.0)], np.float32)
)


def everything(events: EventArrays) -> CellEvents:
    return CellEvents.of(events, np.ones(len(events.counts)), CELLS)


def importance(table: CellEvents, wanted: int) -> Importance:
    conditions = primary_features(table.primaries)
    return Importance.fit(CELLS, conditions, table.counts, table.members, total=len(table), wanted=wanted)


@pytest.fixture(scope="module")
def events():
    return large_events(20_000, seed=0)


@pytest.fixture(scope="module")
def table(events):
    return everything(events)


@pytest.fixture(scope="module")
def chosen(table):
    """Probabilities that give each cell 60 events."""
    return importance(table, wanted=60)


@pytest.fixture
def small_classifier(monkeypatch):
    # With weights, scikit-learn finds the edges of bins one by one: 255 for each column take 0.5 CPU-seconds a fold.
    monkeypatch.setattr(figures, "HistGradientBoostingClassifier", partial(HistGradientBoostingClassifier, max_bins=32))
    monkeypatch.setattr(figures, "FOLDS", 2)
    monkeypatch.setattr(figures, "MIN_EFFECTIVE", 300)


def test_members_are_those_that_the_names_say():
    primaries = np.array(
        [
            [1e6, np.deg2rad(75), PROTON, 2000],
            [1e3, np.deg2rad(83), 13.0, 2500],
            [1e6, 0, 60.0, 4000],
            [1e6, 0, IRON, 1600],
        ]
    )
    counts = np.array([1, 2, 0, 1])
    muons = np.array([[2e4, 150, 0], [10, 1, 0], [3e4, 80, 80], [10, 0, 1]])
    table = everything(
        EventArrays(np.zeros((4, 2), np.uint64), primaries.astype(np.float32), counts, muons.astype(np.float32))
    )
    found = {cell.key: table.members[:, number].tolist() for number, cell in enumerate(CELLS)}
    assert found == {
        "n_1": [1, 0, 0, 1],
        "n_1000_to_10000": [0, 0, 0, 0],
        "n_10000_to_100000": [0, 0, 0, 0],
        "muons_beyond_100_m": [1, 1, 0, 0],
        "muons_above_10_tev": [1, 1, 0, 0],
        "primaries_below_10_tev": [0, 1, 0, 0],
        "zenith_70_to_80": [1, 0, 0, 0],
        "zenith_beyond_80": [0, 1, 0, 0],
        "masses_between": [0, 1, 0, 0],
        "masses_beyond": [0, 0, 0, 0],  # The third event has no muon.
        "depths_between": [1, 0, 0, 0],
        "depths_beyond": [0, 0, 0, 0],
    }


def test_large_events_are_cut_into_pieces_with_the_same_quantities(events, monkeypatch):
    some = take(events, np.arange(300))
    whole = everything(some)
    monkeypatch.setattr(figures, "MUONS_AT_ONCE", 500)
    pieces = everything(some)
    assert np.array_equal(whole.members, pieces.members)
    assert np.allclose(whole.bundles, pieces.bundles, equal_nan=True)


def test_a_cell_gets_the_wanted_number_of_events_and_all_if_there_are_fewer(events, table, chosen):
    probability = chosen.of(primary_features(events.primaries))
    members = table.members > 0
    assert members[:, CELL].sum() > 120
    assert 0.95 * 60 < probability[members[:, CELL]].sum() < 125  # Other cells may take more of them.
    assert (probability > 0).all()
    assert probability.max() <= 1
    assert probability.mean() < 0.5
    # Those with about as many muons as the cell has are looked at more often than the others.
    energy = events.primaries[:, 0]
    assert probability[energy > 10**7.2].mean() > 3 * probability[energy < 1e5].mean()
    rare = importance(table, wanted=10**6)
    assert (rare.of(primary_features(events.primaries))[members.any(1)] == 1).all()


def test_the_probability_depends_on_the_primary_alone(chosen):
    few, again = (large_events(2_000, seed=0, factor=factor) for factor in (1.0, 3.0))
    assert np.array_equal(few.primaries, again.primaries)
    assert (again.counts != few.counts).any()
    assert np.array_equal(*(chosen.of(primary_features(e.primaries)) for e in (few, again)))


def test_weights_undo_the_choice_in_averages(table):
    probability = importance(table, wanted=40).of(primary_features(table.primaries))
    table = replace(table, weights=1 / probability)
    means = []
    for seed in range(40):
        kept = table.where(np.random.default_rng(seed).random(len(table)) < probability)
        means.append(figures._mean_and_error(kept, kept.weights * kept.members[:, CELL]))
    true = (table.members[:, CELL] > 0).mean()
    estimates, errors = np.array(means).T
    assert estimates.mean() == pytest.approx(true, rel=0.05)
    unweighted = (probability * (table.members[:, CELL] > 0)).sum() / probability.sum()
    assert unweighted > 1.5 * true
    assert 0.5 < errors.mean() / np.hypot(estimates.std(), np.sqrt(true / len(table))) < 1.5


def test_effective_events_are_fewer_where_weights_differ():
    assert figures.effective(np.ones(10)) == pytest.approx(10)
    assert figures.effective(np.array([9.0, 1, 1, 1])) == pytest.approx(144 / 84)
    assert figures.effective(np.empty(0)) == 0


def test_a_weight_of_two_counts_as_two_values():
    rng = np.random.default_rng(0)
    a, b, twice = rng.normal(size=200), rng.normal(0.3, 1, size=150), rng.integers(1, 4, 150)
    weighted = figures.wasserstein(a, b, np.ones(200), twice.astype(float))
    assert weighted == pytest.approx(distances.wasserstein(a, np.repeat(b, twice)))


def test_a_rate_is_known_better_from_the_same_primaries(table):
    truth = table
    more = everything(large_events(20_000, seed=0, factor=1.2))  # The same gamma factors: N is higher by a fifth.
    other = everything(large_events(20_000, seed=5, first_id=20_000, factor=1.2))
    paired, apart = figures.rate(truth, more, CELL, paired=True), figures.rate(truth, other, CELL, paired=False)
    exact = (more.members[:, CELL] > 0).sum() / (truth.members[:, CELL] > 0).sum()
    assert paired.value == pytest.approx(exact)
    assert exact > 1.1
    assert abs(apart.value - exact) < 3 * apart.error
    assert paired.error < 0.7 * apart.error
    nothing = everything(large_events(2_000, seed=5, factor=0.01))
    assert figures.rate(truth, nothing, CELL, paired=False).error > 0


def test_figures_are_absent_with_the_reason():
    few = everything(large_events(300, seed=0))
    few.members[:, 2] = 0
    assert figures.rate(few, few, 2, paired=True) == Missing("0 true events, 10 needed")
    assert figures.auc_bundles(few, few, 1000, 0) == Missing("300 effective events in one sample, 1,000 needed")
    none = few.where(np.zeros(300, bool))
    assert figures.distances(none, none)["w1"] == Missing("no quantity can be compared")


def test_the_classifier_sees_a_shift_and_nothing_where_there_is_none(small_classifier, monkeypatch):
    monkeypatch.setattr(figures, "TREES", 20)
    of_one = [
        large_events(2_500, seed=seed, first_id=10_000 * seed, brighter=b) for seed, b in ((1, 0), (2, 0), (3, 0.08))
    ]
    truth, same, shifted = (everything(take(part, np.flatnonzero(part.counts > 1))) for part in of_one)
    weights = np.random.default_rng(0).uniform(0.5, 2, len(truth))
    truth = replace(truth, weights=weights)
    alike, apart = (figures.auc_bundles(truth, other, 1_000, 0) for other in (same, shifted))
    assert abs(alike.value - 0.5) < 4 * alike.error
    assert alike.error < 0.05
    assert apart.value > 0.6


def test_bundles_of_one_muon_have_no_spread_and_are_judged_all_the_same(small_classifier, monkeypatch):
    monkeypatch.setattr(figures, "TREES", 10)
    single = [large_events(4_000, seed=seed, first_id=10_000 * seed) for seed in (1, 2)]
    truth, other = (everything(take(part, np.flatnonzero(part.counts == 1))) for part in single)
    assert isinstance(figures.auc_bundles(truth, other, 1_000, 0), Estimate)
    numbers = figures.distances(truth, other)
    assert isinstance(numbers["w1"], Estimate)
    assert numbers["w1_correlation"] == Missing("0 showers have it, 100 needed")
    assert numbers["w1_log_num_muons"] == Missing("all values are the same")


def test_halves_split_showers_evenly_by_their_ids():
    ids = np.stack([np.arange(20_000), np.full(20_000, 3)], axis=1).astype(np.uint64)
    half = judge.second_half(ids, 0)
    assert abs(half.mean() - 0.5) < 0.02
    assert np.array_equal(half[::7], judge.second_half(ids[::7], 0))
    assert abs((half == judge.second_half(ids, 1)).mean() - 0.5) < 0.02


def test_events_of_the_truths_primaries_are_those_of_the_second_half(tmp_path):
    """Compared with true events of the same primaries, they would be too alike."""
    shared = large_events(1_000, seed=1)
    write_events(tmp_path / "made.parquet", [to_table(shared)])
    slices = cut_files(list_files([str(tmp_path)]))
    with in_process() as executor:
        chosen = executor.put(importance(everything(shared), wanted=10**6))
        all_of_them, second = (
            CellEvents.concat(judge._looked_at(executor, slices, Selection(), chosen, 5, half=half))
            for half in (None, 3)
        )
    assert len(all_of_them) == 1_000
    assert np.array_equal(second.ids, all_of_them.ids[judge.second_half(all_of_them.ids, 3)])
