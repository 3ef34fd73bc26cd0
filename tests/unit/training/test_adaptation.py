"""The adaptive critic follows the Wasserstein estimate within bounds, does not circle, and is resumed exactly."""

import copy
import logging
import math
from itertools import pairwise, repeat

import pytest
import torch

from crmuons import config
from crmuons.models.features import Features
from crmuons.training import adaptation
from crmuons.training.adaptation import Adaptation
from crmuons.training.trainer import Trainer

CPU = torch.device("cpu")
TINY = {"width": 8, "multiplicity_width": 8, "multiplicity_components": 2, "shower_latents": 2, "muon_latents": 2}


def settings_of(n_critic=2, lambda_gp=10.0, penalty=(), train=(), **adapt):
    train = {
        "steps": 1000,
        "n_critic": n_critic,
        "penalty": {"lambda_gp": lambda_gp, **dict(penalty)},
        "optimizer": {"warmup_steps": 0},
        "adapt": {"enabled": True, "every": 10, **adapt},
    } | dict(train)
    return config.from_dict({"model": TINY, "train": train})


def follow(estimates, adapted=None, begin=0, **settings):
    """Return what the adaptation chooses after each estimate."""
    adapted = adapted or Adaptation(settings_of(**settings).train, CPU)
    chosen = []
    for step, estimate in enumerate(torch.tensor(estimates, dtype=torch.float32).unbind(), begin + 1):
        adapted.observe(estimate, step)
        chosen.append((adapted.n_critic, adapted.lambda_gp))
    return chosen


def windows(*means):
    return [mean for mean in means for _ in range(10)]


def test_a_rising_estimate_weakens_the_critic_to_its_bounds():
    chosen = follow(windows(1, 2, 4, 8, 16, 32, 64, 128), n_critic=3, lambda_gp=10.0)
    assert chosen[19] == (2, 15.0)  # The second window is twice the first.
    assert chosen[29] == (1, 22.5)
    assert chosen[-1] == (1, 100.0)
    steps, weights = zip(*chosen, strict=True)
    assert list(steps) == sorted(steps, reverse=True)
    assert list(weights) == sorted(weights)


def test_an_estimate_that_falls_from_the_start_is_a_training_that_converges():
    assert set(follow(windows(64, 32, 16, 8, 4, 2, 1, 0.5, -1), n_critic=1)) == {(1, 10.0)}
    assert set(follow(windows(1, -1))) == {(2, 10.0)}


def test_a_fall_after_a_rise_strengthens_the_critic_to_a_tenth_of_the_largest_estimate():
    chosen = follow(windows(1, 8, 2, 1, 0.5, 0.25, -1))
    assert [chosen[end] for end in (9, 19, 29, 39, 69)] == [
        (2, 10.0),
        (1, 15.0),
        (2, 10.0),
        (3, 10 / 1.5),
        (3, 10 / 1.5),
    ]


# Means of 100 steps of real trainings that ended well, from the first step on: their scores were 0.02, 0.04, 0.15 and 0.14.
GOOD = {
    "defaults": [
        0.015,
        0.0041,
        0.0013,
        -0.00026,
        -0.00062,
        1.7e-05,
        -1e-05,
        -0.00019,
        1.4e-05,
        2.3e-05,
        6.6e-06,
        -6.2e-05,
        -0.00013,
    ],
    "256 events": [0.14, 0.0078, 0.0031, 0.0034],
    "64 events": [
        0.061,
        0.0021,
        0.0018,
        0.0015,
        0.00065,
        0.00028,
        0.00014,
        0.00018,
        0.00028,
        -8.6e-05,
        3.3e-05,
        8e-05,
        0.00032,
    ],
    "64 events again": [0.06, 0.0015, 0.00023, 0.00076, 0.0023, 0.0021, 0.0015, 0.0013],
}


@pytest.mark.parametrize("means", GOOD.values(), ids=GOOD)
def test_a_good_run_is_left_alone(means):
    settings = settings_of(train={"optimizer": {"warmup_steps": 10}})
    assert set(follow(windows(*means), Adaptation(settings.train, CPU))) == {(2, 10.0)}
    assert set(follow(windows(*means))) == {(2, 10.0)}  # Without a warm-up, the first window gives the scale.


# Estimates of real runs that ran away, each tenth step: with a penalty of 0.001 in place of 10 (wasserstein, 5 critic steps), and
# with a learning rate of the generator 30 times the default.
WEAK_PENALTY = [1.45, 294, 2300, 2160, 2040, 2520, 2120, 1730, 1940, 1660, 1540, 1460]
FAST_GENERATOR = [-0.0024, -0.009, -0.032, -0.0019, 8.08e5, 2810, 1470]


def test_a_run_that_runs_away_in_its_warm_up_is_seen():
    settings = settings_of(
        lambda_gp=0.001, n_critic=5, lambda_gp_bounds=[1e-4, 100], train={"optimizer": {"warmup_steps": 20}}
    )
    estimates = [value for value in WEAK_PENALTY for _ in range(10)]
    assert follow(estimates, Adaptation(settings.train, CPU))[29] == (4, 0.0015)


def test_one_step_that_jumps_hides_nothing_after_it():
    """8e5 once, as the largest mean, put all that followed below the floor: the run was left alone."""
    quiet, spike, after = FAST_GENERATOR[:4], FAST_GENERATOR[4], FAST_GENERATOR[5:]
    noise = torch.linspace(0.9, 1.1, 10).tolist()
    estimates = [0.2] * 10 + [value * share for value in quiet for share in noise] + [spike, *[0.0] * 9]
    chosen = follow(estimates + [value * share for value in after for share in noise], n_critic=2)
    assert set(chosen[:60]) == {(2, 10.0)}  # The jump itself may be one bad batch.
    assert chosen[69] == (1, 15.0)


def test_a_run_that_recovers_gets_back_what_it_began_with_and_no_stronger_critic():
    """Means of the run with the fast generator: it fell for 200 steps, still ten thousand times above what it had been."""
    assert follow(windows(0.2, -0.0158, 967, 409, 170, 60, 20, 7), n_critic=2)[-1] == (2, 10.0)


def test_a_slow_drift_adds_up_and_the_bounds_may_fix_a_value():
    slow = [1.002**step for step in range(1000)]  # A factor of 7.4 in 1,000 steps, 2 % in a window.
    assert follow(slow, n_critic=5)[-1][0] == 1
    assert {steps for steps, _ in follow(slow, n_critic=2)} == {1, 2}
    settings = settings_of(n_critic=3, train={"adapt": {"enabled": True, "every": 10, "n_critic_bounds": [3, 3]}})
    chosen = follow(slow, Adaptation(settings.train, CPU))
    assert {steps for steps, _ in chosen} == {3}
    assert chosen[-1][1] > 22


def test_no_penalty_leaves_its_weight_alone():
    assert follow(windows(1, 2), penalty={"kind": "none"})[-1] == (1, 10.0)


# Around 0 all sizes of the noise are alike: the adaptation compares estimates with each other.
@pytest.mark.parametrize(
    ("mean", "sigma"), [(1.0, 0.1), (1.0, 1.0), (1.0, 5.0), (0.0, 1.0), (-2.0, 0.1), (-2.0, 1.0), (-2.0, 5.0)]
)
def test_a_noisy_estimate_changes_next_to_nothing(mean, sigma):
    noise = torch.randn(2_000, generator=torch.Generator().manual_seed(1))
    chosen = follow((mean + sigma * noise).tolist())
    changes = sum(one != other for one, other in pairwise(chosen))
    assert changes <= (0 if sigma <= 0.1 * abs(mean) else 3)  # In 200 windows; noise has few turns, then none.


@pytest.mark.parametrize("mean", [1.0, 0.0, -2.0])
def test_a_constant_estimate_changes_nothing(mean):
    assert set(follow([mean] * 400)) == {(2, 10.0)}


def test_an_estimate_that_follows_the_critic_does_not_make_it_circle():
    """Feedback: one more critic step doubles the estimate, so that each change alone would call for its opposite."""
    adaptation, changes = Adaptation(settings_of(n_critic=2).train, CPU), []
    for step in range(1, 4_001):
        drift = 3.0 if step > 500 else 1.0
        before = adaptation.n_critic
        adaptation.observe(torch.tensor(drift * 4.0 ** (adaptation.n_critic - 2)), step)
        if adaptation.n_critic != before:
            changes.append(step)
    assert changes
    assert max(changes) < 1500
    assert len(changes) <= 4


def test_an_estimate_that_swings_for_ever_is_followed_ever_more_rarely():
    chosen = follow(windows(*[1.0, 4.0] * 40))
    changes = [step for step, pair in enumerate(pairwise(chosen)) if pair[0] != pair[1]]
    assert 1 <= len(changes) <= 3
    signs = follow(windows(*[0.1, -0.1] * 40))
    assert sum(one != other for one, other in pairwise(signs)) <= 8


def test_the_warm_up_and_steps_without_muons_count_for_nothing():
    settings = settings_of(train={"optimizer": {"warmup_steps": 20}})
    assert set(follow(windows(1, 50, 7, 7), Adaptation(settings.train, CPU))) == {(2, 10.0)}
    assert set(follow(windows(40, 60, 1, 4), Adaptation(settings.train, CPU))) == {(2, 10.0)}  # Below a tenth of 50.
    broken = windows(1, 2)
    broken[3:9] = [math.nan] * 6
    broken[12] = math.inf
    assert follow(broken)[-1] == (1, 15.0)
    assert set(follow(windows(*[math.nan] * 4))) == {(2, 10.0)}


def test_a_change_is_told_with_its_reason(caplog):
    caplog.set_level(logging.INFO)
    follow(windows(1, 2, 2, 2))
    (record,) = caplog.records
    assert record.getMessage() == (
        "step 20: train.adapt: the Wasserstein estimate rose from 1 to 2: n_critic 1 (was 2), lambda_gp 15 (was 10)"
    )


@pytest.mark.parametrize(
    ("adapt", "message"),
    [
        ({"n_critic_bounds": [5, 1]}, r"train.adapt.n_critic_bounds: .*the bounds \[5,1\] cross"),
        ({"lambda_gp_bounds": [20.0, 2.0]}, r"train.adapt.lambda_gp_bounds: .*the bounds \[20,2\] cross"),
        ({"n_critic_bounds": [0, 3]}, "train.adapt.n_critic_bounds"),
        ({"lambda_gp_bounds": [0, 3]}, "train.adapt.lambda_gp_bounds"),
        ({"n_critic_bounds": [3, 4]}, r"train.n_critic = 2 is outside train.adapt.n_critic_bounds = \[3,4\]"),
        (
            {"lambda_gp_bounds": [1, 5]},
            r"train.penalty.lambda_gp = 10 is outside train.adapt.lambda_gp_bounds = \[1,5\]",
        ),
    ],
)
def test_bounds_that_cross_or_leave_out_the_start_are_refused(adapt, message):
    train = {"steps": 1, "n_critic": 2, "adapt": {"enabled": True, **adapt}}
    with pytest.raises(ValueError, match=message):
        config.from_dict({"train": train})


def test_without_it_the_digest_of_the_settings_is_as_before_and_with_it_another():
    def digest(**adapt):
        return config.from_dict({"train": {"steps": 1, "adapt": adapt}}).digest()

    assert digest() == digest(band=3.0) == "11918a4a"
    assert len({digest(), digest(enabled=True), digest(enabled=True, band=3.0)}) == 3


@pytest.fixture
def make(toy_events):
    features = Features().fit(toy_events(300, seed=11))

    def trainer(settings, **how):
        return Trainer(settings, copy.deepcopy(features), CPU, **how)

    return trainer


def take(trainer, events, steps):
    return [trainer.step(repeat(trainer.prepare(events))) for _ in range(steps)]


def used_in(terms):
    """Return the critic steps and the penalty's weight of each step."""
    return [(float(each["n_critic"]), float(each["lambda_gp"])) for each in terms]


def tensors(trainer):
    return [*trainer.model.state_dict().values(), *trainer.critic.state_dict().values()]


# A band this narrow lets tiny networks change something within a few windows.
LIVELY = {"enabled": True, "every": 10, "band": 0.01, "n_critic_bounds": (1, 4)}


@pytest.fixture
def lively(make, monkeypatch):
    """Make a trainer that takes falls into account from the start, and at any size."""
    monkeypatch.setattr(adaptation, "FLOOR", 0.0)

    def trainer(settings, **how):
        made = make(settings, **how)
        made.adaptation.state.direction = -1
        return made

    return trainer


@pytest.mark.parametrize("static", [False, True])
def test_a_resumed_adaptation_is_the_unbroken_one_also_in_the_middle_of_a_window(lively, toy_events, static):
    events = toy_events(20, seed=2)
    settings = settings_of(n_critic=2, train={"adapt": LIVELY})
    whole, again = (lively(settings, static=static) for _ in range(2))
    used = used_in(take(whole, events, 17))
    state = copy.deepcopy(whole.state_dict())
    used += used_in(take(whole, events, 4))
    assert len(set(used[17:])) > 1  # At step 20, of a window that began before the state was saved.
    again.load_state_dict(state)
    assert used_in(take(again, events, 4)) == used[17:]
    assert again.num_critic_updates == whole.num_critic_updates == sum(steps for steps, _ in used)
    assert all(torch.equal(*pair) for pair in zip(tensors(whole), tensors(again), strict=True))
    assert whole.adaptation.state == again.adaptation.state
    if static:  # A graph for each pair of numbers.
        variants = {variant for _, variant in whole.graphs._entries}
        assert {steps for _, steps, _ in variants} == {steps for steps, _ in used}
        assert all(len(entry.inputs) == variant[1] + 1 for (_, variant), entry in whole.graphs._entries.items())


def test_bounds_without_room_give_the_training_without_it_bitwise(make, toy_events):
    events = toy_events(20, seed=1)
    fixed = {"enabled": True, "every": 10, "band": 0.01, "n_critic_bounds": (1, 1), "lambda_gp_bounds": (10.0, 10.0)}
    plain, held = (make(settings_of(n_critic=1, train={"adapt": adapt})) for adapt in ({"enabled": False}, fixed))
    told = take(plain, events, 21)[-1]
    take(held, events, 21)
    assert "n_critic" not in told
    assert "adaptation" not in plain.state_dict()
    assert all(torch.equal(*pair) for pair in zip(tensors(plain), tensors(held), strict=True))


def test_a_trial_that_goes_on_with_other_settings_begins_again_at_them():
    donor = Adaptation(settings_of(n_critic=3).train, CPU)
    follow(windows(1, 2), donor)
    assert donor.n_critic == 2
    same, other = Adaptation(settings_of(n_critic=3).train, CPU), Adaptation(settings_of(n_critic=4).train, CPU)
    for adapted in (same, other):
        adapted.load_state_dict(donor.state_dict())
    assert (same.n_critic, other.n_critic) == (2, 4)
