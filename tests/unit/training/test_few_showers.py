"""What few training showers change: what a run says before it begins, the noise of its conditions, and its weights."""

import pytest
import torch

from crmuons import config
from crmuons.training import setup
from crmuons.training.setup import set_up_run
from tests.trainers import make_trainer


def said(caplog, folder, *words):
    set_up_run(config.load(None, ["train.steps=1", f"data.train={folder}", *words]))
    lines = [
        record.getMessage() for record in caplog.records if "the score that selects the model" in record.getMessage()
    ]
    caplog.clear()
    return lines


def test_few_showers_that_validate_are_counted_with_the_share_that_holds_back_more(
    toy_events, write_toy, tmp_path, caplog
):
    write_toy(tmp_path / "a.parquet", toy_events(1200, mean=30.0))
    (line,) = said(caplog, tmp_path)
    # A hash chooses about 60 of 1,200 showers (5 %), with three events each; 100 of 1,200 are 8.3 %.
    words = line.split()
    showers = int(words[words.index("showers") - 1])
    assert 40 <= showers <= 80
    assert f"({3 * showers} events), so chance alone gives about {1.8 / showers**0.5:.2f} sigma" in line
    assert line.endswith("data.validation_share=0.09 holds back about 100")
    assert not said(caplog, tmp_path, "data.validation_share=0.15")


def test_where_no_share_is_enough_other_showers_are_asked_for(toy_events, write_toy, tmp_path, caplog):
    write_toy(tmp_path / "train" / "a.parquet", toy_events(200, mean=30.0))
    (line,) = said(caplog, tmp_path / "train", "data.validation_share=0.3", "train.validation_events=1000")
    assert "more would leave too few of" in line
    write_toy(tmp_path / "validation" / "a.parquet", toy_events(60, seed=1, mean=30.0))
    (line,) = said(caplog, tmp_path / "train", f"data.validation={tmp_path / 'validation'}")
    assert "comes from 60 showers (180 events)" in line
    assert line.endswith("give more showers in data.validation")


def test_a_validation_that_is_as_large_as_asked_for_is_not_called_small(toy_events, write_toy, tmp_path, caplog):
    write_toy(tmp_path / "a.parquet", toy_events(1200, mean=30.0))
    assert not said(caplog, tmp_path, "train.validation_events=100")


def test_a_run_knows_its_training_showers_unless_a_sample_cannot_hold_them(
    toy_events, write_toy, tmp_path, monkeypatch
):
    write_toy(tmp_path / "a.parquet", toy_events(300))
    settings = config.load(None, ["train.steps=1", f"data.train={tmp_path}", "data.test_share=0"])
    showers = set_up_run(settings)[1].training_showers
    assert showers == 300 - len({tuple(ids) for ids in set_up_run(settings)[2].ids})
    monkeypatch.setattr(setup, "FEATURE_EVENTS", 120)
    assert set_up_run(settings)[1].training_showers is None


def trainer_of(sample, showers, **train):
    def kind(settings, features, *args, **kwargs):
        features.training_showers = showers
        return make_trainer.__kwdefaults__["kind"](settings, features, *args, **kwargs)

    return make_trainer(sample, kind=kind, **train)


@pytest.mark.parametrize(("showers", "noise"), [(50, 0.4), (200, 0.4), (800, 0.2), (2_000, 0), (None, 0)])
def test_the_conditions_of_few_showers_have_noise(toy_events, showers, noise):
    sample = toy_events(2_000)
    noisy, exact = (trainer_of(sample, showers, condition_noise=given) for given in (0.4, 0.0))
    batch = noisy.prepare(sample)
    primaries, condition = noisy._conditions(batch)
    true_primaries, true_condition = exact._conditions(batch)
    assert torch.equal(primaries, true_primaries)  # The multiplicity model sees them as they are.
    spread = (condition - true_condition).std(0)
    torch.testing.assert_close(spread, noise * torch.tensor([1.0, 1.0, 1.0, 1.0, 0.5]), rtol=0.08, atol=0)


def test_large_events_weigh_more_where_there_are_many_showers(toy_events):
    sample = toy_events(120)
    given = {"weight_power": 0.25, "weight_power_many": 0.6}
    for showers, power in ((500, 0.25), (None, 0.6)):
        batch = trainer_of(sample, showers, **given).prepare(sample)
        assert torch.equal(batch.weights, batch.ragged.counts.float() ** power)
        # What lays out the batches of a captured step has the same power.
        assert trainer_of(sample, showers, static=True, **given).graphs.settings.weight_power == power
    batch = trainer_of(sample, None, weight_power=0.25).prepare(sample)
    assert torch.equal(batch.weights, batch.ragged.counts.float() ** 0.25)
