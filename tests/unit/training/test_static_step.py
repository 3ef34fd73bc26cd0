"""The step of fixed sizes that a GPU captures: what it computes, what may differ between two steps, what it may cost."""

import copy
import math
from collections import Counter
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from crmuons.data.events import EventArrays, slice_events
from crmuons.training import distributed, graphs, losses, packed
from crmuons.training.batch import TrainingBatch
from crmuons.training.packed import Bucket, PackedBatch, Sizes, lay_out
from crmuons.training.trainer import NonFiniteError
from tests.trainers import VARIANTS as COMMON
from tests.trainers import FixedNoise, make_trainer, relative, settings_of

EVENTS = 24
VARIANTS = COMMON | {
    "equal_weights": {"weight_power": 0.0},
    "baseline_one_centred": {"model": {"kind": "predecessor"}, "penalty": {"kind": "one_centred"}},
}


@pytest.fixture(scope="module")
def sample(toy_events):
    return toy_events(100, seed=11)


@pytest.fixture(autouse=True)
def small_buckets(monkeypatch):
    """Round up in small steps: tiny batches would otherwise be dummies for the most part."""
    monkeypatch.setattr(packed, "LEAST_EVENTS", 16)
    monkeypatch.setattr(packed, "LEAST_MUONS", 64)


@pytest.fixture
def make(sample):
    return partial(make_trainer, sample, static=True, events_per_worker=EVENTS)


@pytest.fixture
def batches(toy_events):
    """Batches of one size, with different numbers of muons and of events without any."""
    made = []
    for seed in range(4):
        events = slice_events(toy_events(EVENTS, seed=seed), 0, EVENTS)
        keep = np.ones(EVENTS, bool)
        keep[seed :: 5 + seed] = False
        muons = events.muons[np.repeat(keep, events.counts)]
        made.append(EventArrays(events.ids, events.primaries, np.where(keep, events.counts, 0), muons))
    return made


def weights(trainer):
    networks = (trainer.model, trainer.critic, trainer.averaged)
    return torch.cat([p.detach().flatten().clone() for network in networks for p in network.parameters()])


def forever(items):
    while True:
        yield from items


def step(trainer, batches):
    return trainer.step(forever([trainer.prepare(batch) for batch in batches]))


class DoubleTrainer(FixedNoise):
    """Computes in double precision: what a padded step changes beyond rounding would show."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        for network in (self.model, self.critic, self.averaged):
            network.double()

    def _updates(self, batches):
        return super()._updates(map(self._double, batches))

    def _double(self, batch):
        numbers = {name: getattr(batch, name).double() for name in ("primaries", "muons", "weights")}
        return replace(batch, **numbers)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_padded_step_is_the_step(make, batches, monkeypatch, variant):
    interpolate = losses.interpolate  # The points between real and fake are random; here they are the same.
    monkeypatch.setattr(losses, "interpolate", lambda r, f, share, part: interpolate(r, f, 0 * share + 0.3, part))
    # In single precision the padded sums differ by 1e-7, and Adam enlarges this to 1e-4 where a gradient is tiny.
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    trainers = [make(kind=DoubleTrainer, static=static, **VARIANTS[variant]) for static in (False, True)]
    for _ in range(2):
        plain, static = (step(trainer, batches) for trainer in trainers)
        for name, value in plain.items():
            assert static[name].item() == pytest.approx(value.item(), rel=1e-6, abs=1e-6, nan_ok=True), name
    plain_gradients, static_gradients = (trainer.first_gradients for trainer in trainers)
    for name, gradient in plain_gradients.items():
        assert relative(static_gradients[name], gradient) < 1e-6, name
    assert relative(weights(trainers[1]), weights(trainers[0])) < 1e-6


@pytest.mark.parametrize("penalty", [{}, {"sample_fraction": 0.4}, {"max_pairs": 3}])
@pytest.mark.parametrize("cap", [None, 4])
@pytest.mark.parametrize("counts", [[], [0, 0], [3], [0, 2, 9, 0, 1, 30, 4], [5, 5, 5]])
def test_a_packed_batch_is_the_batch_and_dummy_events_without_weight(penalty, cap, counts):
    settings = settings_of(muons_per_event=cap, penalty=penalty, weight_power=0.5, events_per_worker=EVENTS).train
    random = np.random.default_rng(1)
    number, counts = len(counts), np.asarray(counts, np.int64)
    events = EventArrays(
        np.zeros((number, 2), np.uint64),
        random.uniform(1, 2, (number, 4)).astype(np.float32),
        counts,
        random.uniform(1, 2, (counts.sum(), 3)).astype(np.float32),
    )
    given = PackedBatch.from_events(events, settings, pin_memory=False)
    bucket = Bucket.of([given.sizes, Sizes(5, 4, 100, 2, 50)], given.capacity, all_penalised=not penalty)
    memory = torch.full((bucket.bytes,), 255, dtype=torch.uint8)  # As float32: NaN in all that no batch has written.
    given.copy_into(memory)
    padded, plain = lay_out(memory, bucket, settings), TrainingBatch.from_events(events, settings)
    filled, muons = len(plain.ragged.counts), len(plain.muons)
    assert torch.equal(padded.primaries[:number], plain.primaries)
    assert torch.equal(padded.counts[:number], plain.counts)
    assert padded.real.all.is_real.tolist() == [1.0] * number + [0.0] * (given.capacity - number)
    assert torch.equal(padded.nonempty[:filled], plain.nonempty)
    assert torch.equal(padded.muons[:muons], plain.muons)
    assert torch.equal(padded.ragged.counts[:filled], plain.ragged.counts)
    torch.testing.assert_close(padded.weights[:filled], plain.weights)
    assert padded.weights[filled:].eq(0).all()
    assert torch.isfinite(padded.muons).all()
    assert torch.isfinite(padded.primaries).all()
    layouts = [(padded.ragged, plain.ragged, padded.real.nonempty)]
    layouts += [(padded.penalty_layout, plain.penalty_layout, padded.real.penalised)] if penalty else []
    for layout, expected, real in layouts:
        chosen = len(expected.counts)
        assert torch.equal(layout.counts[:chosen], expected.counts)
        assert int(layout.counts.sum()) == layout.num_muons  # Every muon belongs to an event.
        assert layout.counts[chosen:].max() >= 1  # See Ragged.max.
        assert real.number == chosen == real.is_real[:chosen].sum() == real.is_real.sum()


def test_the_size_of_a_step_depends_on_its_batches_alone(make, batches):
    # The random numbers of a GPU depend on how many are drawn: a resumed run must draw as many.
    settings = make().settings
    sizes = [PackedBatch.from_events(batch, settings, pin_memory=False).sizes for batch in batches]
    both = Bucket.of(sizes[:2], EVENTS, all_penalised=True)
    assert both == Bucket.of(sizes[1::-1], EVENTS, all_penalised=True)
    each = [Bucket.of([size], EVENTS, all_penalised=True) for size in sizes[:2]]
    assert both.muons == max(bucket.muons for bucket in each)
    # 16 steps between powers of two: at most 1/16 of the muons are dummies.
    for muons in (10_000, 27_001, 620_000):
        assert muons < Bucket.of([Sizes(1, 1, muons, 1, muons)], 1, all_penalised=True).muons <= muons * 17 / 16 + 1


# Operations that wait for the device, and one that makes a tensor of a number of Python's: a copy from memory that is
# not page-locked.
READS = {
    "_local_scalar_dense",
    "nonzero",
    "masked_select",
    "_unique2",
    "is_nonzero",
    "equal",
    "multinomial",
    "lift_fresh",
}


class Recording(TorchDispatchMode):
    """Records each operation with the shapes of its tensors and its other arguments: what a CUDA graph bakes in."""

    def __init__(self):
        super().__init__()
        self.operations = []

    @classmethod
    def _should_skip_dynamo(cls):
        return False  # Torch would import torch._dynamo to keep the method from a compiler: 1.8 CPU-seconds.

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        self.operations.append((func, self._described([*args, *kwargs.items()])))
        return func(*args, **kwargs)

    @classmethod
    def _described(cls, value):
        if isinstance(value, torch.Tensor):
            return value.dtype, value.shape, value.stride()
        if isinstance(value, list | tuple):
            return [cls._described(part) for part in value]
        return type(value) if isinstance(value, torch.Generator | torch.ScriptObject) else repr(value)


def recorded(trainer, batches):
    """Return the operations of a step that a graph would repeat."""
    updates, recording = trainer._updates, Recording()

    def recorded_updates(laid_out):
        with recording:
            return updates(laid_out)

    trainer._updates = recorded_updates
    step(trainer, batches)
    trainer._updates = updates
    return recording.operations


@pytest.mark.parametrize(
    "variant",
    [
        "default",
        "sgd",
        "clipped",
        "part",
        "one_centred_part",
        "accumulated",
        "reused",
        "all_muons",
        "baseline",
        "regressor",
    ],
)
def test_two_steps_of_one_size_differ_in_the_numbers_in_tensors_alone_and_read_none(
    make, batches, monkeypatch, variant
):
    largest = Bucket.of
    sizes = Sizes(EVENTS, EVENTS, 1000, EVENTS, 1000)
    monkeypatch.setattr(Bucket, "of", lambda batches, *rest, **how: largest([*batches, sizes], *rest, **how))
    trainer = make(**VARIANTS[variant])
    period = VARIANTS[variant].get("penalty", {}).get("every", 1)  # Steps after which the updates repeat.
    for _ in range(period):
        step(trainer, batches)  # The first step makes the optimizers' states.
    trainer.progress = 0.3
    first = recorded(trainer, batches[:2])
    for _ in range(period - 1):
        step(trainer, batches)
    trainer.progress = 0.6
    second = recorded(trainer, batches[2:])
    assert first == second
    names = {func.overloadpacket.__name__ for func, _ in first}
    assert "mm" in names
    assert not names & READS


# What a GPU launches no kernel for.
FREE = {"view", "_unsafe_view", "expand", "unbind", "split", "split_with_sizes", "t", "transpose", "slice", "select", "detach",
        "alias", "as_strided", "unsqueeze", "squeeze", "permute", "empty", "empty_like", "new_empty", "new_empty_strided",
        "promote_types", "_record_function_enter_new", "_record_function_exit"}  # fmt: skip


@pytest.mark.parametrize(("given", "most"), [
    ({}, 667),
    # 91 for each further critic update, 358 for the generator's and the layout of the batch.
    ({"n_critic": 1, "loss": "wasserstein", "penalty": {"kind": "none"}, "reuse_batch": True}, 449),
    ({"n_critic": 5, "loss": "wasserstein", "penalty": {"kind": "none"}, "reuse_batch": True}, 813),
    ({"n_critic": 5, "loss": "wasserstein", "penalty": {"kind": "none"}, "reuse_batch": True, "bf16": True}, 1123),
])  # fmt: skip
def test_the_number_of_kernels_of_a_step_only_falls(make, batches, given, most):
    # In a graph each costs 1 us at least, and reads and writes memory that a fused one would not touch.
    trainer = make({"multiplicity_components": 2}, **given)
    step(trainer, batches)
    counted = Counter(func.overloadpacket.__name__ for func, _ in recorded(trainer, batches))
    assert sum(number for name, number in counted.items() if name not in FREE) <= most


@pytest.mark.parametrize("kind", ["adam", "sgd"])
def test_a_resumed_trainer_of_fixed_size_is_the_trainer(make, batches, kind):
    trainer = make(optimizer={"kind": kind, "momentum": 0.9})
    for _ in range(3):
        step(trainer, batches)
    state = copy.deepcopy(trainer.state_dict())
    for network in state["optimizers"].values():  # As on a CPU: a file has the same form from either.
        assert all(isinstance(group["lr"], float) and not group.get("capturable") for group in network["param_groups"])
    fresh, plain = (
        make(optimizer={"kind": kind, "momentum": 0.9}),
        make(static=False, optimizer={"kind": kind, "momentum": 0.9}),
    )
    fresh.load_state_dict(copy.deepcopy(state))
    plain.load_state_dict(copy.deepcopy(state))
    for one in (trainer, fresh):
        step(one, batches)
    assert torch.equal(weights(trainer), weights(fresh))
    step(plain, batches)
    back = make(optimizer={"kind": kind, "momentum": 0.9})
    back.load_state_dict(copy.deepcopy(plain.state_dict()))
    step(back, batches)


def test_loading_a_state_forgets_the_graphs_of_the_tensors_that_it_replaces(make, batches):
    trainer = make()
    step(trainer, batches)
    assert trainer.graphs._entries
    trainer.load_state_dict(copy.deepcopy(trainer.state_dict()))
    assert not trainer.graphs._entries


def test_after_a_number_that_is_not_finite_nothing_moves_not_even_the_average(make, batches):
    trainer = make()
    for _ in range(3):
        step(trainer, batches)
    before = weights(trainer)
    poisoned = EventArrays(batches[0].ids, batches[0].primaries, batches[0].counts, batches[0].muons.copy())
    poisoned.muons[0, 0] = math.nan
    step(trainer, [poisoned])
    for _ in range(2):
        step(trainer, batches)
    assert torch.equal(weights(trainer), before)
    with pytest.raises(NonFiniteError, match="step 3: a loss or a gradient on rank 0"):
        trainer.check_finite()


def test_few_entries_are_kept_however_the_sizes_vary(make, batches, monkeypatch):
    monkeypatch.setattr(graphs, "MAX_ENTRIES", 2)
    trainer = make(muons_per_event=None)
    of_size = [slice_events(batches[0], 0, number) for number in (2, 10, 24, 2)]
    for events in of_size:
        step(trainer, [events])
    assert len(trainer.graphs._entries) == 2
    first, last = trainer.graphs._entries  # The one used last is the last.
    assert last[0].muons < first[0].muons


def test_a_recording_ends_a_graph_at_each_exchange_of_several_ranks(make, monkeypatch):
    # The exchange itself needs a GPU; here is that it happens between graphs, in order, and in none of them.
    done = []

    class Graph(graphs._Recording):
        def begin(self):
            done.append("begin")
            self.graphs.append(self)

        def end(self):
            done.append("end")

    trainer = make()
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    monkeypatch.setattr(distributed, "sum_over_ranks", lambda buffer: done.append(len(buffer)) or buffer)
    recording = trainer.graphs._current = Graph(None, trainer.noise)
    recording.begin()
    for number in (3, 5):
        trainer.graphs.exchange(torch.zeros(number))
    recording.end()
    trainer.graphs._current = None
    assert done == ["begin", "end", "begin", "end", "begin", "end"]
    assert [len(buffer) for buffer in recording.buffers] == [3, 5]
    trainer.graphs.exchange(torch.zeros(7))
    assert done[-1] == 7


@pytest.mark.parametrize("begins", [True, False])
def test_a_step_that_cannot_be_recorded_continues_without_graphs_and_says_so_once(
    make, batches, monkeypatch, caplog, begins
):
    message = "operation not permitted when stream is capturing\nand a long explanation"

    class Graph:
        def register_generator_state(self, noise):
            pass

        def capture_begin(self, **_):
            if not begins:
                raise RuntimeError(message)

        def capture_end(self):
            msg = "invalidated"
            raise RuntimeError(msg)

    for name in ("synchronize", "empty_cache"):
        monkeypatch.setattr(torch.cuda, name, lambda *_: None)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    eager, trainer = make(), make()
    updates = trainer._updates

    def fails_in_a_recording(laid_out):
        if trainer.graphs._current is None:
            return updates(laid_out)
        trainer.num_critic_updates += 1
        trainer.critic.requires_grad_(False)
        raise RuntimeError(message)

    trainer._updates = fails_in_a_recording
    trainer.graphs.captures = True
    for _ in range(4):
        step(eager, batches)
        step(trainer, batches)
    assert torch.equal(weights(trainer), weights(eager))
    assert trainer.num_critic_updates == eager.num_critic_updates
    (record,) = caplog.records
    assert (
        "cannot be recorded as a CUDA graph (operation not permitted when stream is capturing)" in record.getMessage()
    )


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a GPU")
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_replayed_step_is_the_eager_step(sample, batches, variant, caplog):
    given = {key: value for key, value in VARIANTS[variant].items() if key != "model"}
    model = VARIANTS[variant].get("model", {}) | {"width": 64}
    eager, replayed, resumed = (
        make_trainer(sample, model, device="cuda", static=None, events_per_worker=EVENTS, **given) for _ in range(3)
    )
    eager.graphs.captures = False
    for _ in range(8):
        for trainer in (eager, replayed):
            trainer.step(forever([trainer.prepare(batch).to(trainer.device, non_blocking=True) for batch in batches]))
    assert any(entry.recording is not None for entry in replayed.graphs._entries.values())
    assert not caplog.records
    assert relative(weights(replayed), weights(eager)) < 1e-6
    resumed.load_state_dict(copy.deepcopy(replayed.state_dict()))
    for _ in range(4):
        for trainer in (resumed, replayed):
            step(trainer, batches)
    assert relative(weights(replayed), weights(resumed)) < 1e-6
