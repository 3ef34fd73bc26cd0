"""Generated bundles: a seed and an event's number fix the event, counts are honoured, bad primaries are refused."""

import copy
import io
import os
import zipfile

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from crmuons import config
from crmuons.data import schema
from crmuons.data.arrow import to_table
from crmuons.generation.generator import BundleGenerator
from crmuons.generation.load import choose_device, load_generator
from crmuons.models import blocks, formulas, saved_model
from crmuons.models.bundle_model import BundleModel
from crmuons.models.features import Features

EVENTS_PER_BLOCK = blocks.EVENTS_PER_BLOCK["cpu"]


@pytest.fixture(scope="module")
def generator(toy_events):
    torch.manual_seed(0)
    settings = config.Model(width=8, multiplicity_width=8, multiplicity_components=2)
    model = BundleModel(settings, Features().fit(toy_events(300)))
    return BundleGenerator(model.eval().requires_grad_(requires_grad=False), {})


@pytest.fixture(scope="module")
def primaries(toy_events):
    return toy_events(1000, seed=5).primaries  # 3000: two whole blocks and a part of one.


def assert_same(one, other):
    for name in ("ids", "primaries", "counts", "muons"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name), strict=True)


def test_events_are_legal_and_belong_to_their_primaries(generator, primaries):
    events = generator.generate(primaries, seed=1)
    np.testing.assert_array_equal(events.primaries, primaries)
    np.testing.assert_array_equal(events.ids[:, 0], np.arange(len(primaries)))
    assert events.counts.sum() == len(events.muons)
    assert not schema.faults(to_table(events)).any()


def test_the_same_seed_makes_the_same_bundles_however_the_calls_are_cut(generator, primaries):
    whole = generator.generate(primaries, seed=1)
    assert_same(generator.generate(primaries, seed=1), whole)
    start = 0
    for stop in (EVENTS_PER_BLOCK, len(primaries)):
        part = generator.generate(primaries[start:stop], seed=1, first_event=start)
        first, last = whole.counts[:start].sum(), whole.counts[:stop].sum()
        np.testing.assert_array_equal(part.ids, whole.ids[start:stop])
        np.testing.assert_array_equal(part.counts, whole.counts[start:stop])
        np.testing.assert_array_equal(part.muons, whole.muons[first:last])
        start = stop
    assert not np.array_equal(generator.generate(primaries, seed=2).counts, whole.counts)
    with pytest.raises(ValueError, match="first_event 100 is not a multiple of 1024"):
        generator.generate(primaries, seed=1, first_event=100)


def test_blocks_are_independent(generator, primaries):
    alike = np.tile(primaries[:1], (2 * EVENTS_PER_BLOCK, 1))
    counts = generator.generate(alike, seed=1).counts
    assert not np.array_equal(counts[:EVENTS_PER_BLOCK], counts[EVENTS_PER_BLOCK:])


def test_counts_that_are_given_are_honoured(generator, primaries):
    counts = np.arange(40) % 4
    events = generator.generate(primaries[:40], seed=1, counts=counts)
    np.testing.assert_array_equal(events.counts, counts)
    assert len(events.muons) == counts.sum()
    none = generator.generate(primaries[:3], seed=1, counts=np.zeros(3, np.int64))
    assert none.muons.shape == (0, 3)


def test_ids_that_are_given_are_kept(generator, primaries):
    ids = np.array([[2**64 - 1, 5], [7, 2**63]], np.uint64)
    np.testing.assert_array_equal(generator.generate(primaries[:2], seed=1, ids=ids).ids, ids)


def test_no_primaries_are_no_events(generator, primaries):
    events = generator.generate(primaries[:0], seed=1)
    assert (events.ids.shape, events.counts.shape, events.muons.shape) == ((0, 2), (0,), (0, 3))


def test_the_largest_events_are_made_in_pieces_that_are_never_cut(generator, primaries, monkeypatch):
    counts = np.array([0, 5, 700, 0, 3, 90, 1000, 2, 0])
    monkeypatch.setitem(blocks.MUONS_PER_PIECE, "cpu", 100)
    pieces = list(generator.generate_blocks(primaries[:9], seed=1, counts=counts))
    assert len(pieces) > 2
    assert np.concatenate([piece.events.counts for piece in pieces]).tolist() == counts.tolist()
    for piece in pieces:
        assert len(piece.events.muons) == piece.events.counts.sum()
    again = list(generator.generate_blocks(primaries[:9], seed=1, counts=counts))
    for one, other in zip(pieces, again, strict=True):
        assert_same(one.events, other.events)


def test_blocks_that_pass_through_the_networks_together_draw_what_each_draws_alone(generator, primaries, monkeypatch):
    counts = np.random.default_rng(0).poisson(3.0, len(primaries))
    alone = generator.generate(primaries, seed=1), generator.generate(primaries, seed=1, counts=counts)
    monkeypatch.setitem(blocks.BLOCKS_PER_PASS, "cpu", 2)
    monkeypatch.setitem(blocks.MUONS_PER_PASS, "cpu", 5000)  # A block of 1024 events has 3000 muons.
    assert generator.events_per_block == 2 * EVENTS_PER_BLOCK
    pieces = list(generator.generate_on_device(primaries, seed=1, counts=counts))
    assert [(piece.rows.start, piece.rows.stop) for piece in pieces] == [(0, 1024), (1024, 2048), (2048, 3000)]
    monkeypatch.setitem(blocks.MUONS_PER_PASS, "cpu", 10_000)
    pieces = list(generator.generate_on_device(primaries, seed=1, counts=counts))
    assert [(piece.rows.start, piece.rows.stop) for piece in pieces] == [(0, 2048), (2048, 3000)]
    together = generator.generate(primaries, seed=1), generator.generate(primaries, seed=1, counts=counts)
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_array_equal(one.counts, other.counts)
        np.testing.assert_allclose(one.muons, other.muons, rtol=1e-4, atol=1e-4)
    # A call that begins with the second block makes the same passes as the whole call.
    (second,) = generator.generate_on_device(primaries[2048:], seed=1, counts=counts[2048:], first_event=2048)
    assert torch.equal(second.muons, pieces[1].muons)


def test_events_that_stay_on_the_device_are_the_same(generator, primaries):
    whole = generator.generate(primaries, seed=1, max_muons=3)
    pieces = list(generator.generate_on_device(primaries, seed=1, max_muons=3))
    np.testing.assert_array_equal(np.concatenate([piece.counts for piece in pieces]), whole.counts)
    np.testing.assert_array_equal(torch.cat([piece.muons for piece in pieces]).numpy(), whole.muons)
    assert all(len(piece.muons) == piece.counts.sum() for piece in pieces)


class Reads(TorchDispatchMode):
    """Counts the operations for which a host waits for its device."""

    READING = (
        "_local_scalar_dense", "nonzero", "masked_select", "unique", "_unique2", "is_nonzero", "equal", "multinomial", "_to_copy",
    )  # fmt: skip

    def __init__(self):
        super().__init__()
        self.seen = []

    @classmethod
    def _should_skip_dynamo(cls):
        return False  # Torch would import torch._dynamo to keep the method from a compiler: 1.8 CPU-seconds.

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if name in self.READING and (name != "_to_copy" or "device" in (kwargs or {})):
            self.seen.append(name)
        if name == "repeat_interleave" and (kwargs or {}).get("output_size") is None:
            self.seen.append(name)
        return func(*args, **(kwargs or {}))


def test_drawing_reads_nothing_from_the_device(generator, primaries):
    counts = np.arange(len(primaries)) % 7
    with Reads() as reads:
        drawn = generator.network.draw_counts(primaries, 1)
        list(generator.network.draw_muons(primaries, counts, 1))
    assert reads.seen == []
    with Reads() as reads:  # It does see them.
        torch.multinomial(torch.ones(3), 1).item()
        torch.repeat_interleave(torch.from_numpy(drawn))
    assert reads.seen == ["multinomial", "_local_scalar_dense", "repeat_interleave"]


def test_a_component_is_drawn_as_torch_draws_it():
    log_weights = torch.randn(5000, 4, dtype=torch.float64).log_softmax(1)
    means = torch.arange(4.0, dtype=torch.float64).mul(100).exp().log().expand(5000, 4)
    shapes = torch.full((5000, 4), 1e4, dtype=torch.float64)
    sources = [torch.Generator().manual_seed(3) for _ in range(2)]
    chosen = torch.multinomial(log_weights.exp(), 1, generator=sources[0])
    shape, mean = shapes.gather(1, chosen)[:, 0], means.gather(1, chosen)[:, 0].exp()
    factor = torch._standard_gamma(shape, generator=sources[0]) / shape
    expected = torch.poisson((mean * factor).clamp(max=2.0**53), generator=sources[0]).long()
    assert torch.equal(formulas.sample_mixture(log_weights, means, shapes, sources[1]), expected)


def test_large_events_are_added_up_in_parts(generator):
    counts = torch.tensor([1, 128, 129, 5000, 3])
    sums = blocks.partial_sums(counts, 1 + 1 + 2 + 40 + 1)
    muons = torch.randn(int(counts.sum()), 6, dtype=torch.float64)
    expected = torch.stack([part.mean(0) for part in muons.split(counts.tolist())])
    torch.testing.assert_close(generator.network.mean(muons, counts, sums), expected)
    assert sums[0].diff().max() == blocks.MUONS_PER_SUM
    event, primaries = torch.repeat_interleave(counts), torch.tensor([[1e6, 0.3, 1.0, 2000.0]]).expand(5, 4)
    noise = generator.network.noise(5, len(event), torch.Generator().manual_seed(1))
    muons = [generator.network.muons_of(primaries, counts, event, noise, parts) for parts in (None, sums)]
    torch.testing.assert_close(*muons, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(sums[1], [0, 1, 2, 4, 44])


@pytest.mark.parametrize(
    ("column", "value", "reason"),
    [(0, -1.0, "energy_gev is not positive"), (1, 2.0, "zenith_rad is outside"), (2, 0.0, "mass_gev is not positive"),
     (3, 1.95, "looks like kilometres"), (0, np.nan, "NaN or infinity")],
)  # fmt: skip
def test_primaries_that_are_not_legal_are_refused_with_row_and_reason(generator, primaries, column, value, reason):
    bad = primaries[:10].copy()
    bad[7, column] = value
    with pytest.raises(ValueError, match=rf"primary 7 is \[.*\]: .*{reason}"):
        generator.generate(bad, seed=1)


def test_primaries_far_outside_the_training_ranges_are_told(generator, primaries, toy_events):
    assert not generator.outside_training(toy_events(300).primaries).any()
    odd = np.tile(primaries[:1], (4, 1))
    odd[0, 0], odd[1, 2], odd[2, 3] = 1e12, 1000.0, 20_000.0
    assert generator.outside_training(odd).tolist() == [True, True, True, False]
    assert set(generator.training_ranges) == set(schema.PRIMARY_FEATURES)
    assert generator.training_ranges["depth_m"] == (1500.0, 2450.0)


def test_n_beyond_all_integers_is_refused_or_capped(generator, primaries, monkeypatch):
    far = primaries[:3].copy()
    far[1, 0] = 1e38
    monkeypatch.setitem(generator.network.weights, "features.primary_std", torch.full((4,), 1e-4))
    with pytest.raises(ValueError, match=r"event \d with primary .* muons, expected 0 to 2097152: limit them"):
        generator.generate(far, seed=1)
    assert all(len(piece.events.muons) <= 30 for piece in generator.generate_blocks(far, seed=1, max_muons=10))


def test_a_damaged_model_is_said_to_be_one(generator, tmp_path):
    about = {"model": config.Model(width=8, multiplicity_width=8, multiplicity_components=2).model_dump()}
    directory = saved_model.save_model(tmp_path / "model", generator.model, about)
    weights = directory / "weights.pt"
    whole = weights.read_bytes()
    for content in (b"", whole[: len(whole) // 2], b"x" * 1000):
        weights.write_bytes(content)
        with pytest.raises(ValueError, match=r"model.weights\.pt is damaged or cut short"):
            load_generator(directory)


class Code:
    """What runs a command when a pickle of it is loaded."""

    def __init__(self, made):
        self.made = made

    def __reduce__(self):
        return os.system, (f"touch {self.made}",)


def test_a_strangers_model_runs_no_code_and_fills_no_memory(generator, tmp_path):
    about = {"model": config.Model(width=8, multiplicity_width=8, multiplicity_components=2).model_dump()}
    directory = saved_model.save_model(tmp_path / "model", generator.model, about)
    weights = directory / "weights.pt"
    whole = weights.read_bytes()
    torch.save({"a": Code(tmp_path / "made")}, weights)
    with pytest.raises(
        ValueError, match=r"weights\.pt holds other things than tensors, perhaps code, which is never run; take"
    ) as caught:
        load_generator(directory)
    assert "weights_only" not in str(caught.value)  # torch's own text advises to switch it off.
    assert not (tmp_path / "made").exists()
    with zipfile.ZipFile(io.BytesIO(whole)) as given, zipfile.ZipFile(weights, "w", zipfile.ZIP_DEFLATED) as bomb:
        for entry in given.namelist():
            bomb.writestr(entry, given.read(entry) + bytes(10**6))
    with pytest.raises(ValueError, match=r"weights\.pt is damaged or cut short \(its part .* is compressed, which"):
        load_generator(directory)
    settings = directory / "model.json"
    settings.write_text(settings.read_text().replace('"width": 8', '"width": 1000000000'))
    with pytest.raises(ValueError, match=r"model\.json is damaged.*width: Input should be less.* \(got 1000000000\)"):
        load_generator(directory)


def test_the_device_is_one_that_there_is():
    assert choose_device("auto", elsewhere=False) == ("cuda" if torch.cuda.is_available() else "cpu")
    assert choose_device("cuda", elsewhere=True) == "cuda"
    with pytest.raises(ValueError, match="--device mps: Apple's GPUs have no double precision"):
        choose_device("mps", elsewhere=False)
    with pytest.raises(ValueError, match="--device tpu: expected auto, cpu or cuda"):
        choose_device("tpu", elsewhere=False)


@pytest.mark.parametrize("multiplicity", ["mixture", "regressor"])
def test_a_model_with_nan_or_of_weights_too_large_is_said(multiplicity, toy_events):
    settings = config.Model(width=8, multiplicity_width=8, multiplicity=multiplicity)
    model = BundleModel(settings, Features().fit(toy_events(50)))
    primaries = toy_events(50).primaries
    with torch.no_grad():
        model.multiplicity.network[-1].weight.fill_(3e38)
        model.multiplicity.network[-1].weight[:, ::2] *= -1  # Infinity minus infinity.
        if multiplicity == "regressor":
            model.multiplicity.network[-1].bias.fill_(torch.inf).neg_().nan_to_num_()
            model.multiplicity.network[2].weight.fill_(1e30)
    with pytest.raises(ValueError, match="the multiplicity model gives NaN as the mean of N"):
        BundleGenerator(copy.deepcopy(model), {}).draw_counts(primaries, seed=0)
    with torch.no_grad():
        model.generator.get_parameter(next(name for name, _ in model.generator.named_parameters()))[0] = torch.nan
    with pytest.raises(ValueError, match=r"the model's weights are NaN or infinite \(generator\..*earlier checkpoint"):
        BundleGenerator(model, {})


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_missing_is_said():
    with pytest.raises(ValueError, match=r"--device cuda: torch .* sees no GPU here; use --device cpu"):
        choose_device("cuda", elsewhere=False)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_a_gpu_makes_the_same_bundles_however_calls_are_cut(generator, toy_events):
    there = BundleGenerator(copy.deepcopy(generator.model), {}, "cuda")
    block = there.events_per_block
    primaries = np.tile(toy_events(300).primaries, (block // 100, 1))[: 2 * block]
    there.generate(primaries, seed=1)  # What torch loads and allocates at first waits for the device.
    counts = np.arange(len(primaries)) % 300
    torch.cuda.set_sync_debug_mode("error")
    try:
        made = list(there.network.draw_muons(primaries, counts, 1))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    kept = torch.cat([muons for _, muons in made]).cpu().numpy()
    np.testing.assert_array_equal(kept, there.generate(primaries, seed=1, counts=counts).muons)
    whole, second = there.generate(primaries, seed=1), there.generate(primaries[block:], seed=1, first_event=block)
    np.testing.assert_array_equal(second.counts, whole.counts[block:])
    np.testing.assert_array_equal(second.muons, whole.muons[whole.counts[:block].sum() :])
    network, here = there.network, generator.network
    counts = torch.tensor([1, 5000, 30])
    noise = here.noise(3, 5031, torch.Generator().manual_seed(0))
    given = (torch.from_numpy(primaries[:3]), counts, torch.repeat_interleave(counts), noise)
    expected = here.muons_of(*given)
    found = network.muons_of(*(part.cuda() for part in given[:3]), tuple(part.cuda() for part in noise))
    torch.testing.assert_close(found.cpu(), expected, rtol=1e-4, atol=1e-4)
