"""The training step: what it moves and by how much, for any batch, and what stops it."""

import copy
import math
from functools import partial
from itertools import cycle, repeat

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from crmuons import config
from crmuons.data.events import EventArrays, concat, slice_events
from crmuons.training import distributed, losses
from crmuons.training.trainer import NonFiniteError
from tests.trainers import VARIANTS as COMMON
from tests.trainers import FixedNoise, make_trainer, relative


@pytest.fixture(scope="module")
def sample(toy_events):
    return toy_events(100, seed=11)


@pytest.fixture
def make(sample):
    return partial(make_trainer, sample)


@pytest.fixture
def batch(toy_events):
    return toy_events(8, seed=1)


def weights(trainer):
    modules = {"critic": trainer.critic, "generator": trainer.model.generator, "averaged": trainer.averaged.generator}
    modules |= {"multiplicity": trainer.model.multiplicity, "averaged_multiplicity": trainer.averaged.multiplicity}
    return {name: torch.cat([p.detach().flatten().clone() for p in m.parameters()]) for name, m in modules.items()}


def events_with(counts, first_muon=(300.0, 3.0, 4.0)):
    """Events of one primary with these numbers of muons, all alike."""
    primaries = np.tile([1e6, 0.5, 0.938, 1950.0], (len(counts), 1))
    ids = np.arange(2 * len(counts)).reshape(-1, 2)
    muons = np.tile(first_muon, (sum(counts), 1))
    return EventArrays(
        ids.astype(np.uint64),
        primaries.astype(np.float32),
        np.asarray(counts, np.int64),
        muons.astype(np.float32).reshape(-1, 3),
    )


VARIANTS = COMMON | {
    "bf16": {"bf16": True},
    "bf16_one_centred": {"bf16": True, "penalty": {"kind": "one_centred"}},
    "baseline_reused": {"model": {"kind": "predecessor"}, "reuse_batch": True, "n_critic": 2, "loss": "wasserstein"},
    "baseline_bf16": {"model": {"kind": "predecessor"}, "bf16": True},
    "no_shower_noise": {"model": {"shower_latents": 0}},
}


class Waits(TorchDispatchMode):
    """Counts the operations for which a host waits for its device: those whose result, or its size, it has to read."""

    READING = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "_unique2", "is_nonzero", "equal")

    def __init__(self):
        super().__init__()
        self.seen = []

    @classmethod
    def _should_skip_dynamo(cls):
        return False  # Torch would import torch._dynamo to keep the method from a compiler: 1.8 CPU-seconds.

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        unsized = name == "repeat_interleave" and kwargs.get("output_size") is None
        masks = (
            [index for index in args[1] if index is not None]
            if name.startswith("index") and len(args) > 1 and isinstance(args[1], list | tuple)
            else []
        )
        if name in self.READING or unsized or any(mask.dtype == torch.bool for mask in masks):
            self.seen.append(str(func))
        return func(*args, **kwargs)


def test_waits_for_a_device_are_seen(make, batch):
    ready = make().prepare(batch)
    with Waits() as waits:
        int(ready.counts.sum())
        torch.repeat_interleave(ready.counts, ready.counts)
        ready.counts[ready.counts > 0]
    assert len(waits.seen) == 3


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_step_moves_every_network_to_finite_weights_and_waits_for_its_device_nowhere(
    make, batch, monkeypatch, variant
):
    trainer = make(**VARIANTS[variant])
    before = weights(trainer)
    step(trainer, batch)
    monkeypatch.setattr(trainer, "check_finite", lambda: None)  # On a CPU alone: there is nothing to wait for.
    ready = trainer.prepare(batch)
    with Waits() as waits:
        terms = trainer.step(repeat(ready))
    assert waits.seen == []
    after = weights(trainer)
    for name, was in before.items():
        assert torch.isfinite(after[name]).all(), name
        assert not torch.equal(after[name], was), name
    due = variant not in ("no_penalty", "part")
    expected = {"critic_loss", "generator_loss", "multiplicity_loss", "wasserstein_estimate", "gradient_penalty"}
    expected |= {f"{name}_gradient_norm" for name in ("critic", "generator", "multiplicity")}
    assert set(terms) == expected
    assert all(math.isfinite(value) for name, value in terms.items() if due or name != "gradient_penalty")
    assert (trainer.num_steps, trainer.num_critic_updates) == (2, 2 * trainer.settings.n_critic)
    networks = [trainer.model, trainer.critic, trainer.averaged]
    assert all(p.grad is None for network in networks for p in network.parameters())


@pytest.mark.parametrize("kind", ["zero_centred", "one_centred"])
@pytest.mark.parametrize("model", ["set", "predecessor"])
@pytest.mark.parametrize("counts", [[], [0], [0, 0, 0], [0, 5, 0], [3000, 1]])
def test_any_batch_makes_a_step(make, counts, model, kind):
    # A rank whose batch holds no muon, or no event, still takes part in every exchange.
    trainer = make({"kind": model}, penalty={"kind": kind})
    before = weights(trainer)
    step(trainer, events_with(counts))
    assert all(torch.isfinite(value).all() for value in weights(trainer).values())
    empty = not sum(counts)
    moved = {name: not torch.equal(value, before[name]) for name, value in weights(trainer).items()}
    assert moved == {
        "critic": not empty, "generator": not empty, "averaged": not empty,
        "multiplicity": bool(counts), "averaged_multiplicity": bool(counts),
    }  # fmt: skip


def test_a_huge_event_weighs_as_much_as_a_small_one(make):
    # The unit of loss is the event: with a pooled critic the penalty and the scores are means over its muons.
    trainer = make(muons_per_event=None, penalty={"kind": "none"})
    alike = trainer.critic_terms(trainer.prepare(events_with([2, 2])))
    uneven = trainer.critic_terms(trainer.prepare(events_with([2, 2000])))
    assert len(alike["critic_loss"]) == len(uneven["critic_loss"]) == 2


def step(trainer, *batches):
    """A step on these batches, again and again."""
    return trainer.step(cycle([trainer.prepare(batch) for batch in batches]))


@pytest.mark.parametrize("kind", ["zero_centred", "one_centred"])
def test_accumulated_gradients_are_those_of_one_batch(make, batch, monkeypatch, kind):
    interpolate = losses.interpolate  # The points between real and fake are random; here they are the same.
    monkeypatch.setattr(losses, "interpolate", lambda r, f, share, part: interpolate(r, f, 0 * share + 0.3, part))
    parts = [slice_events(batch, *bounds) for bounds in ((0, 3), (3, 4), (4, len(batch.counts)))]
    single, several = (
        make(kind=FixedNoise, penalty={"kind": kind}),
        make(kind=FixedNoise, grad_accumulation=3, penalty={"kind": kind}),
    )
    one, many = step(single, batch), step(several, *parts)
    for name, gradient in single.first_gradients.items():
        assert relative(several.first_gradients[name], gradient) < (2e-6 if name != "generator" else 1e-3), name
    for name in ("critic_loss", "multiplicity_loss", "wasserstein_estimate", "gradient_penalty"):
        assert many[name].item() == pytest.approx(one[name].item(), rel=1e-4, abs=1e-6), name


def test_gradients_are_of_the_mean_over_events(make, batch):
    # Twice the same events: twice the sum, over twice the number.
    single, double = make(kind=FixedNoise), make(kind=FixedNoise)
    step(single, batch)
    step(double, concat([batch, batch]))
    for name, gradient in single.first_gradients.items():
        assert relative(double.first_gradients[name], gradient) < (2e-6 if name != "generator" else 1e-3), name


def test_an_event_has_the_weight_of_its_muons_as_capped(make):
    given = {"weight_power": 0.5, "muons_per_event": 4}
    assert make(**given).prepare(events_with([0, 1, 2, 100])).weights.tolist() == pytest.approx([1, math.sqrt(2), 2])
    alike, weighed = make(kind=FixedNoise, weight_power=0, muons_per_event=4), make(kind=FixedNoise, **given)
    for trainer in (alike, weighed):
        step(trainer, events_with([0, *[100] * 6]))
    for name, times in (("critic", 2), ("generator", 2), ("multiplicity", 1)):
        assert relative(weighed.first_gradients[name], times * alike.first_gradients[name]) < 1e-3, name


@pytest.mark.parametrize("kind", ["zero_centred", "one_centred"])
@pytest.mark.parametrize(("given", "chosen"), [
    ({}, 15), ({"sample_fraction": 0.5}, 8), ({"max_pairs": 4}, 4), ({"sample_fraction": 0.1, "max_pairs": 4}, 2),
])  # fmt: skip
def test_a_sample_of_the_penalties_has_the_weight_of_all(make, kind, given, chosen):
    events = events_with([0, 0, *range(1, 16)])
    trainer = make(loss="wasserstein", penalty={"kind": kind, "lambda_gp": 7.0, **given})
    terms = trainer.critic_terms(trainer.prepare(events))
    assert len(terms["gradient_penalty"]) == chosen
    added = terms["critic_loss"] + terms["wasserstein_estimate"]  # fake - real is minus the estimate.
    # Each of the sample carries its own penalty, 15 / chosen times: the sum stands for all 15 events.
    expected = 7.0 * 15 / chosen * terms["gradient_penalty"]
    torch.testing.assert_close(added, torch.cat([expected, torch.zeros(15 - chosen)]), rtol=1e-4, atol=1e-5)


def test_a_penalty_every_third_update_is_three_times_as_heavy(make, batch):
    trainer = make(loss="wasserstein", penalty={"lambda_gp": 2.0, "every": 3})
    weight = []
    for _ in range(7):
        terms = trainer.critic_terms(trainer.prepare(batch))
        added = (terms["critic_loss"] + terms["wasserstein_estimate"]).mean().item()
        weight.append(added / terms["gradient_penalty"].mean().item() if "gradient_penalty" in terms else added)
        trainer.num_critic_updates += 1
    assert weight == pytest.approx([6, 0, 0, 6, 0, 0, 6], abs=1e-4)  # 2 on average, but for the last.


def test_the_penalty_is_told_also_by_steps_whose_last_update_had_none(make, batch):
    trainer = make(n_critic=2, penalty={"every": 2})  # Updates 0, 2, 4: never the second of a step.
    for _ in range(2):
        assert math.isfinite(step(trainer, batch)["gradient_penalty"].item())


def test_the_penalty_of_a_zero_centred_critic_is_taken_on_real_and_on_fake(make, batch):
    trainer = make(penalty={"lambda_gp": 1.0})
    full = trainer.critic_terms(trainer.prepare(batch))["gradient_penalty"]
    trainer.noise.manual_seed(0)
    partly = make(penalty={"lambda_gp": 1.0, "max_pairs": 3})
    partly.noise.manual_seed(0)
    trainer.noise.manual_seed(0)
    full, some = (one.critic_terms(one.prepare(batch))["gradient_penalty"] for one in (trainer, partly))
    torch.testing.assert_close(some, full[:3])  # Both ways of computing it.


def test_the_kinematics_see_few_muons_but_the_events_own_number(make):
    trainer = make(muons_per_event=4)
    sets = trainer.prepare(events_with([0, 2, 100]))
    assert sets.ragged.counts.tolist() == [2, 4]
    assert len(sets.muons) == 6
    expected = trainer.model.condition(sets.primaries[1:], torch.tensor([2, 100]))
    assert torch.equal(trainer._conditions(sets)[1], expected)


def test_the_generators_loss_leaves_no_gradient_in_the_critic(make, batch):
    trainer = make(n_critic=1)
    step(trainer, batch)
    alone = make(n_critic=1, kind=FixedNoise)
    alone.load_state_dict(copy.deepcopy(trainer.state_dict()))
    both = make(n_critic=1, kind=FixedNoise)
    step(both, batch)
    both.gradients.clear()
    both.load_state_dict(copy.deepcopy(trainer.state_dict()))
    for one in (alone, both):
        step(one, batch)
    assert torch.equal(alone.first_gradients["critic"], both.first_gradients["critic"])


@pytest.mark.parametrize("model", ["set", "predecessor"])
def test_a_reused_batch_is_read_and_drawn_once_and_moves_the_networks_as_it_would_again_and_again(make, batch, model):
    parts = [slice_events(batch, 0, 3), slice_events(batch, 3, len(batch.counts))]
    # The recorder's noise is that of the events: a plain step on the same batches draws the same muons each time.
    plain, reusing = (
        make(
            {"kind": model},
            kind=FixedNoise,
            n_critic=3,
            grad_accumulation=2,
            reuse_batch=reuse,
            optimizer={"kind": "sgd"},
        )
        for reuse in (False, True)
    )
    drawn = []
    for trainer in (plain, reusing):
        generate = trainer._fake_muons
        trainer._fake_muons = lambda *given, trainer=trainer, generate=generate: (
            drawn.append(trainer) or generate(*given)
        )
    batches = cycle([plain.prepare(part) for part in parts])
    first = plain.step(batches)
    once = iter([reusing.prepare(part) for part in parts])
    second = reusing.step(once)
    assert next(once, None) is None
    assert [drawn.count(trainer) for trainer in (plain, reusing)] == [2 * (3 + 1), 2]
    for name, was in weights(plain).items():
        assert relative(weights(reusing)[name], was) < 1e-6, name
    for name, value in first.items():
        assert second[name].item() == pytest.approx(value.item(), rel=1e-4, abs=1e-6), name


@pytest.mark.parametrize("counts", [[3, 1], [0], []])
@pytest.mark.parametrize(("n_critic", "accumulation"), [(1, 1), (3, 2)])
def test_a_step_exchanges_once_per_update_whatever_the_data(make, monkeypatch, counts, n_critic, accumulation):
    calls = []
    monkeypatch.setattr(distributed, "world_size", lambda: 2)  # One alone has nothing to exchange.
    monkeypatch.setattr(distributed, "sum_over_ranks", lambda buffer: calls.append(len(buffer)) or buffer)
    step(make(n_critic=n_critic, grad_accumulation=accumulation), events_with(counts))
    assert len(calls) == n_critic + 1
    assert len(set(calls)) == 2  # Critic with multiplicity, and the generator: the same lengths on every rank.


@pytest.mark.parametrize("where", ["muon", "primary"])
def test_a_number_that_is_not_finite_stops_before_anything_moves(make, batch, where):
    trainer = make(n_critic=1)
    step(trainer, batch)
    before, states = weights(trainer), [str(n.optimizer.state_dict()["state"]) for n in trainer.networks.values()]
    poisoned = EventArrays(batch.ids, batch.primaries.copy(), batch.counts, batch.muons.copy())
    (poisoned.muons if where == "muon" else poisoned.primaries)[0, 0] = math.nan
    with pytest.raises(NonFiniteError, match="step 1: a loss or a gradient on rank 0 is NaN"):
        step(trainer, poisoned)
    assert all(torch.equal(value, before[name]) for name, value in weights(trainer).items())
    assert [str(n.optimizer.state_dict()["state"]) for n in trainer.networks.values()] == states


def test_the_fault_is_kept_for_a_device_that_is_asked_later(make, batch):
    # On a GPU nothing waits for the flag: the weights do not change, and the next log step reports the first fault.
    trainer = make(n_critic=1)
    trainer.fault.begin_step(3)
    trainer.fault.blame(torch.tensor([0.0, 1.0]))
    trainer.fault.mark(torch.tensor([math.inf]))
    trainer.num_steps = 5
    before = weights(trainer)
    with pytest.raises(NonFiniteError, match="step 3: a loss or a gradient on rank 1"):
        step(trainer, batch)
    assert all(torch.equal(value, before[name]) for name, value in weights(trainer).items())


def test_the_averaged_model_in_closed_form(make, batch):
    trainer = make(ema_decay=0.2, optimizer={"lr": 0.05, "warmup_steps": 0})
    expected = weights(trainer)["generator"]
    for done in range(3):
        step(trainer, batch)
        decay = min(0.2, (1 + done) / (10 + done))  # 0.1, 0.1818, 0.2: it forgets the initial weights at first.
        expected = decay * expected + (1 - decay) * weights(trainer)["generator"]
        torch.testing.assert_close(weights(trainer)["averaged"], expected)


def test_a_frozen_network_keeps_every_bit_and_the_others_move(make, batch):
    trainer = make(init_from="parent", frozen=["multiplicity"])
    before = {name: [w.clone() for w in network.parameters] for name, network in trainer.networks.items()}
    averaged = [w.clone() for w in trainer.averaged.multiplicity.parameters()]
    for _ in range(2):
        step(trainer, batch, batch)
    for name, network in trainer.networks.items():
        same = [torch.equal(old, new) for old, new in zip(before[name], network.parameters, strict=True)]
        assert all(same) if name == "multiplicity" else not any(same), name
    assert all(
        torch.equal(old, new) for old, new in zip(averaged, trainer.averaged.multiplicity.parameters(), strict=True)
    )
    with pytest.raises(ValueError, match=r"frozen=.* goes with train\.init_from"):
        config.Train(steps=1, frozen=["generator"])
    with pytest.raises(ValueError, match=r"frozen weights belong to the parent's features"):
        config.Train(steps=1, init_from="parent", frozen=["generator"], refit_features=True)


def test_the_learning_rate_follows_steps_and_progress(make, batch):
    trainer = make(optimizer={"lr": 0.01, "critic_lr": 0.02, "warmup_steps": 2, "decay": "linear", "final_lr_share": 0})
    trainer.progress = 0.25
    rates = []
    for _ in range(3):
        step(trainer, batch)
        rates.append([trainer.networks[name].optimizer.param_groups[0]["lr"] for name in ("generator", "critic")])
    assert rates == [pytest.approx([0.01 * x, 0.02 * x]) for x in (0.375, 0.75, 0.75)]


def test_seeds_make_weights_and_noise(make, batch):
    runs = []
    for seed in (1, 1, 2, 2**62 + 7):
        trainer = make(seed=seed)
        step(trainer, batch)
        runs.append(weights(trainer)["generator"])
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])
    assert torch.isfinite(runs[3]).all()


def test_noise_differs_between_steps(make, batch):
    trainer, seen = make(), []
    noise = trainer.model.latents
    trainer.model.latents = lambda ragged, source: seen.append(noise(ragged, source)) or seen[-1]
    for _ in range(2):
        step(trainer, batch)
    assert len({tuple(muon[0].tolist()) for _, muon in seen}) == len(seen)


def test_the_state_makes_the_same_trainer(make, batch):
    trainer = make()
    for _ in range(3):
        step(trainer, batch)
    again = make()
    again.load_state_dict(copy.deepcopy(trainer.state_dict()))  # A state holds the tensors themselves.
    for one in (trainer, again):
        step(one, batch)
    assert all(torch.equal(value, weights(trainer)[name]) for name, value in weights(again).items())


@pytest.mark.parametrize("part", ["model", "averaged", "critic", "optimizers", "num_steps", "num_critic_updates"])
def test_a_state_that_lacks_something_is_refused(make, part):
    state = make().state_dict()
    del state[part]
    with pytest.raises(KeyError, match=part):
        make().load_state_dict(state)


def test_a_state_of_another_width_or_with_surplus_weights_is_refused(make, batch):
    other = make({"width": 9}).state_dict()
    with pytest.raises(RuntimeError, match="size mismatch"):
        make().load_state_dict(other)
    trainer = make()
    step(trainer, batch)
    surplus = trainer.state_dict()
    surplus["critic"] = surplus["critic"] | {"extra": torch.ones(1)}
    with pytest.raises(RuntimeError, match="extra"):
        make().load_state_dict(surplus)


def test_metrics_are_means_over_events(make):
    trainer = make(loss="wasserstein", penalty={"kind": "none"}, kind=FixedNoise)
    events = events_with([0, 2, 5])
    terms = trainer.critic_terms(trainer.prepare(events))
    told = step(make(loss="wasserstein", penalty={"kind": "none"}, kind=FixedNoise), events)
    assert told["wasserstein_estimate"].item() == pytest.approx(terms["wasserstein_estimate"].mean().item(), rel=1e-5)
    assert told["critic_loss"].item() == pytest.approx(-told["wasserstein_estimate"].item(), rel=1e-5)
    likelihood = trainer.generator_terms(trainer.prepare(events))["multiplicity_loss"]
    assert len(likelihood) == 3  # The empty event is one of them.
    assert told["multiplicity_loss"].item() == pytest.approx(likelihood.mean().item(), rel=1e-5)
