"""Copies of training bundles differ from new bundles, and a sample that is too small has no figure."""

import numpy as np
import pytest

from crmuons.evaluation.baselines import NearestPrimary
from crmuons.evaluation.evaluate import _memorising_warnings
from crmuons.evaluation.metrics.distances import Estimate, Missing
from crmuons.evaluation.metrics.memorising import nearer_to_training
from crmuons.evaluation.metrics.quantities import Sample, shower_numbers


@pytest.fixture(scope="module")
def sets(toy_events):
    training, truth, new = (toy_events(number, seed=seed) for seed, number in enumerate((300, 600, 500)))
    copies = NearestPrimary(training).generate(new.primaries, new.ids)
    parts = {"training": training, "truth": truth, "new": new, "copies": copies}
    return {name: Sample.of(part, shower_numbers(part.ids)[0]) for name, part in parts.items()}


def share(sets, name):
    return nearer_to_training(sets["truth"], sets[name], sets["training"], seed=0)


def test_copies_are_nearer_to_training_and_new_bundles_are_not(sets):
    copies, new = share(sets, "copies"), share(sets, "new")
    assert copies.value == 1
    assert new.value == pytest.approx(0.5, abs=0.08)  # Of about 1,100 bundles; the searched sets fluctuate too.
    assert 0.01 < new.error < 0.03
    other = nearer_to_training(sets["training"], sets["new"], sets["truth"], seed=0)
    assert other.value == pytest.approx(0.5, abs=0.08)  # Whichever of two sets is called training.


def test_half_of_the_bundles_copied_is_seen_and_warned_about(sets):
    copied = np.arange(len(sets["copies"])) % 2 == 0
    mixed = Sample.concat([sets["copies"].where(copied), sets["new"].where(~copied)])
    found = nearer_to_training(sets["truth"], mixed, sets["training"], seed=0)
    assert found.value == pytest.approx(0.75, abs=0.06)
    true = {"nearer_to_training": share(sets, "new")}
    (said,) = _memorising_warnings({"generated": {"nearer_to_training": found}, "truth": true})
    assert "of the generated bundles are nearer to a training bundle than to a held-out one" in said
    assert not _memorising_warnings({"generated": true, "truth": true})


def test_too_few_bundles_or_no_training_events_have_a_reason(sets):
    assert isinstance(nearer_to_training(sets["truth"], sets["new"], None, seed=0), Missing)
    few = sets["training"].where(np.arange(len(sets["training"])) < 60)
    found = nearer_to_training(sets["truth"], sets["new"], few, seed=0)
    assert isinstance(found, Missing)
    assert found.reason.endswith("bundles of three or more muons in one sample, 200 needed")
    assert isinstance(share(sets, "new"), Estimate)
