"""Two processes train as one would on the union of their events: gradients, exchanges, faults, told numbers."""

import math
from itertools import chain, product, repeat

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing

from crmuons import config
from crmuons.data.events import EventArrays, concat, slice_events
from crmuons.models.features import Features
from crmuons.training import distributed, losses
from crmuons.training.trainer import NonFiniteError, Trainer
from tests.trainers import TINY, FixedNoise

SIZES = {"4/12": (4, 12), "0/16": (0, 16), "empty/16": ("empty", 16)}
PENALTIES = ("zero_centred", "one_centred")


def halves(batch, sizes):
    """What each of two ranks holds: its share of the events; of "empty" ones, events without a muon."""
    first, second = sizes
    if first == "empty":
        bare = EventArrays(batch.ids[:3], batch.primaries[:3], np.zeros(3, np.int64), batch.muons[:0])
        return bare, slice_events(batch, 0, second)
    return slice_events(batch, 0, first), slice_events(batch, first, first + second)


def fixed_trainer(features, penalty, kind=FixedNoise, *, static=False, **train):
    settings = config.from_dict(
        {"model": TINY, "train": {"steps": 9, "n_critic": 2, "penalty": {"kind": penalty}, **train}}
    )
    return kind(settings, features, torch.device("cpu"), static=static)


def fix_interpolates():
    """One share for all events: the random ones differ between ranks, as they should."""
    interpolate = losses.interpolate
    losses.interpolate = lambda real, fake, share, part: interpolate(real, fake, 0 * share + 0.3, part)
    return interpolate


def flat_weights(trainer):
    parameters = chain(trainer.model.parameters(), trainer.critic.parameters(), trainer.averaged.parameters())
    return torch.cat([p.detach().flatten().clone() for p in parameters])


def count_exchanges(calls):
    exchange = dist.all_reduce

    def counted(buffer):
        calls.append(len(buffer))
        return exchange(buffer)

    distributed.dist.all_reduce = counted


def two_ranks(rank, batch, features, directory):
    """Everything that needs two processes, in one start of them; the results go to a file of each rank."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{directory}/ranks", rank=rank, world_size=2)
    calls, result = [], {}
    count_exchanges(calls)
    original = fix_interpolates()
    for name, sizes in SIZES.items():
        for penalty, static in (*product(PENALTIES, [False]), ("zero_centred", True)):
            trainer = fixed_trainer(features, penalty, static=static)
            before = len(calls)
            terms = trainer.step(repeat(trainer.prepare(halves(batch, sizes)[rank])))
            case = "padded" if static else penalty
            result[name, case] = (trainer.gradients, {key: float(value) for key, value in terms.items()})
            result[name, case, "exchanges"] = calls[before:]
    losses.interpolate = original
    result["fault"] = fault(rank, batch, features)
    result["noise"] = noise(batch, features)
    result["told"] = distributed.from_rank_zero([rank + 0.1, math.inf], torch.device("cpu"))
    result["gathered"] = distributed.gather(torch.tensor([rank, 7]))
    result["self"] = (distributed.rank(), distributed.world_size())
    dist.destroy_process_group()
    try:
        trainer.step(repeat(trainer.prepare(batch)))
    except RuntimeError as error:
        result["taken down"] = str(error)
    torch.save(result, f"{directory}/{rank}.pt")


def fault(rank, batch, features):
    """Rank 1 reads a NaN in its second step."""
    trainer = fixed_trainer(features, "zero_centred", kind=Trainer)
    trainer.step(repeat(trainer.prepare(batch)))
    before = flat_weights(trainer)
    muons = batch.muons.copy()
    if rank == 1:
        muons[3, 1] = math.nan
    try:
        trainer.step(repeat(trainer.prepare(EventArrays(batch.ids, batch.primaries, batch.counts, muons))))
    except NonFiniteError as error:
        return str(error), torch.equal(flat_weights(trainer), before)
    return "nothing was raised", False


def noise(batch, features):
    """The first numbers of this rank's noise in a step, and weights after it."""
    trainer = fixed_trainer(features, "zero_centred", kind=Trainer)
    trainer.step(repeat(trainer.prepare(batch)))
    trainer._start_step()
    return torch.rand(3, generator=trainer.noise), flat_weights(trainer)


@pytest.fixture(scope="module")
def events(toy_events):
    """A batch of 16 events, and features."""
    return slice_events(toy_events(20, seed=4), 0, 16), Features().fit(toy_events(200))


@pytest.fixture(scope="module")
def ranks(events, tmp_path_factory):
    directory = tmp_path_factory.mktemp("ranks")
    torch.multiprocessing.spawn(two_ranks, (*events, str(directory)), nprocs=2)
    return [torch.load(directory / f"{rank}.pt", weights_only=False) for rank in range(2)]


@pytest.mark.parametrize(("sizes", "penalty"), list(product(SIZES, (*PENALTIES, "padded"))))
def test_gradients_equal_those_of_one_process_on_the_union(ranks, events, sizes, penalty, monkeypatch):
    batch, features = events
    monkeypatch.setattr(losses, "interpolate", losses.interpolate)  # Put back what the next line changes.
    fix_interpolates()
    single = fixed_trainer(features, "zero_centred" if penalty == "padded" else penalty)
    terms = single.step(repeat(single.prepare(concat(halves(batch, SIZES[sizes])))))
    assert [name for name, _ in single.gradients] == ["critic", "critic", "generator", "multiplicity"]
    for result in ranks:
        gradients, told = result[sizes, penalty]
        for (name, one), (_, expected) in zip(gradients[:1], single.gradients[:1], strict=True):
            assert (one - expected).norm() / expected.norm() < 1e-6, name
        # From the second update on, Adam divides gradients' rounding by their size; the generator sees both.
        for (name, one), (_, expected) in zip(gradients[1:], single.gradients[1:], strict=True):
            assert (one - expected).norm() / expected.norm() < 1e-3, name
        for key, value in terms.items():
            assert told[key] == pytest.approx(value.item(), rel=1e-3, abs=1e-5), key


def test_ranks_hold_the_same_gradients_to_the_bit(ranks):
    for case in (case for case in ranks[0] if case[-1] in (*PENALTIES, "padded")):
        for (_, one), (_, other) in zip(ranks[0][case][0], ranks[1][case][0], strict=True):
            assert torch.equal(one, other)


def test_every_step_exchanges_n_critic_plus_one_times_on_every_rank(ranks):
    for result in ranks:
        exchanges = [calls for case, calls in result.items() if case[-1] == "exchanges"]
        assert len(exchanges) == len(SIZES) * (len(PENALTIES) + 1)
        assert {len(calls) for calls in exchanges} == {3}  # n_critic = 2
        assert len({tuple(calls) for calls in exchanges}) == 1  # Of the same lengths, whatever the data.


def test_a_nan_on_one_rank_stops_both_and_moves_nothing(ranks):
    for message, unmoved in (result["fault"] for result in ranks):
        assert "step 1: a loss or a gradient on rank 1 is NaN or infinite" in message
        assert unmoved


def test_ranks_draw_different_noise_and_hold_the_same_weights(ranks):
    (one, weights), (other, same) = (result["noise"] for result in ranks)
    assert not torch.equal(one, other)
    assert torch.equal(weights, same)


def test_what_ranks_tell_each_other(ranks):
    for rank, result in enumerate(ranks):
        assert result["self"] == (rank, 2)
        assert result["told"] == [0.1, math.inf]
        assert result["gathered"].tolist() == [[0, 7], [1, 7]]


def test_no_rank_goes_on_alone_when_the_group_is_taken_down(ranks):
    for result in ranks:
        assert "process group of this worker was destroyed while it trained" in result["taken down"]
