"""Several models as one: who draws which event, what is on disk, and what is refused."""

import importlib.util
import json

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

import crmuons
from crmuons import config
from crmuons.data.selection import Selection, in_split
from crmuons.generation import writer
from crmuons.generation.ensemble import write_ensemble
from crmuons.generation.export import export
from crmuons.generation.load import is_model, load_generator
from crmuons.generation.primaries import PrimaryFiles
from crmuons.generation.request import GenerationOptions
from crmuons.models import saved_model
from crmuons.models.bundle_model import BundleModel
from crmuons.models.features import Features
from crmuons.storage.output import Output

K = 3


def save(directory, events, seed, **values):
    torch.manual_seed(seed)
    settings = config.Model(width=16, multiplicity_width=8)
    model = BundleModel(settings, Features().fit(events))
    about = {"model": settings.model_dump(), "step": 7, "config": {"data": {"test_share": 0.05} | values}}
    return saved_model.save_model(directory, model, about)


@pytest.fixture(scope="module")
def members(tmp_path_factory, events):
    folder = tmp_path_factory.mktemp("members")
    return [save(folder / str(seed), events, seed) for seed in range(K)]


@pytest.fixture(scope="module")
def ensemble(tmp_path_factory, members):
    out = tmp_path_factory.mktemp("ensemble") / "all"
    write_ensemble(members, out)
    return out


def test_members_draw_equal_shares_of_all_events_and_of_every_depth(ensemble):
    chosen = load_generator(ensemble).members_of(30_000, seed=1)
    # 10,000 of each member within 5 binomial errors of 82; and of each residue, as depths in turn are.
    assert np.abs(np.bincount(chosen, minlength=K) - 10_000).max() < 5 * 82
    assert np.abs(np.bincount(chosen[::K], minlength=K) - 3_333).max() < 5 * 47


def test_the_member_of_an_event_depends_on_seed_and_number_alone(ensemble):
    generator = load_generator(ensemble)
    whole = generator.members_of(5_000, seed=1)
    assert (whole[2_048:] == generator.members_of(2_952, seed=1, first_event=2_048)).all()
    assert 0.5 < (whole != generator.members_of(5_000, seed=2)).mean() < 0.8  # 2/3 by chance.


def test_events_are_the_same_in_one_call_and_in_two(ensemble, events):
    generator, primaries = load_generator(ensemble), np.tile(events.primaries, (3, 1))[:3_000]
    whole = generator.generate(primaries, seed=5)
    parts = [
        generator.generate(primaries[rows], seed=5, first_event=rows.start)
        for rows in (slice(0, 2_048), slice(2_048, 3_000))
    ]
    assert (whole.counts == np.concatenate([part.counts for part in parts])).all()
    assert (whole.muons == np.concatenate([part.muons for part in parts])).all()


def test_each_event_has_the_muons_of_its_member(ensemble, events):
    # Members whose energies are 10^3 apart, so that a muon shows who made it.
    generator = load_generator(ensemble)
    for number, member in enumerate(generator.network.members):
        member.weights["features.knots"][0] += 3 * number - member.weights["features.knots"][0].mean()
    made = generator.generate(events.primaries, seed=5, counts=np.full(len(events.primaries), 4))
    of_muon = np.repeat(generator.members_of(len(events.primaries), seed=5), 4)
    centres = [np.median(np.log10(made.muons[of_muon == number, 0])) for number in range(K)]
    assert np.diff(centres) == pytest.approx([3, 3], abs=0.7)


def test_a_data_set_names_the_member_and_the_spread_outside_the_trained_range(ensemble, events, tmp_path, write_toy):
    primaries = events.primaries[:300].copy()
    primaries[::3, 0] = 1e12  # GeV
    far = type(events)(events.ids[:300], primaries, np.zeros(300, np.int64), events.muons[:0])
    source = PrimaryFiles([write_toy(tmp_path / "p.parquet", far).url])
    generator, options = load_generator(ensemble), GenerationOptions(seed=4)
    work = writer.plan_generation(Output.at(tmp_path / "out"), generator, source, options)
    writer.generate(generator, source, work)
    table = pq.read_table(tmp_path / "out" / "events-00000.parquet")
    assert (table["member"].to_numpy() == generator.members_of(300, seed=4)).all()
    spread = table["spread_log_num_muons"].to_pylist()
    assert [value is not None for value in spread] == table["outside_training"].to_pylist()
    means = [member.network.draw_counts(np.tile(primaries[:1], (4_000, 1)), 1).mean() for member in generator.members]
    # The mean of 4,000 draws is known to a few per cent.
    assert spread[0] == pytest.approx(np.std(np.log10(means), ddof=1), abs=0.1)


def test_every_door_takes_an_ensemble(ensemble, members, events, tmp_path):
    primaries, generator = events.primaries[:50], load_generator(ensemble)
    expected = generator.generate(primaries, seed=3)
    assert is_model(str(ensemble))
    assert (crmuons.load(ensemble).generate(primaries, seed=3).to_numpy() == expected.muons).all()
    export(ensemble, tmp_path / "exported")
    spec = importlib.util.spec_from_file_location("bundles_of_ensemble", tmp_path / "exported" / "bundles.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    counts, muons = module.Bundles().generate(primaries, seed=3)
    assert (counts == expected.counts).all()
    assert (muons == expected.muons).all()
    assert [one.metadata["place"] for one in generator.members] == [str(place) for place in members]


def test_a_member_with_other_weights_than_recorded_is_refused(ensemble, tmp_path):
    weights = torch.load(ensemble / "weights.pt", weights_only=True)
    swapped = {name.replace("members.0.", "x.").replace("members.1.", "members.0.").replace("x.", "members.1."): values
               for name, values in weights.items()}  # fmt: skip
    saved_model.write_tensors(tmp_path / "weights.pt", swapped)
    (tmp_path / "model.json").write_text((ensemble / "model.json").read_text())
    with pytest.raises(ValueError, match="the weights of member 0 have the digest"):
        load_generator(tmp_path)


def test_a_missing_member_is_damage(ensemble, tmp_path):
    weights = torch.load(ensemble / "weights.pt", weights_only=True)
    saved_model.write_tensors(
        tmp_path / "weights.pt", {name: values for name, values in weights.items() if "members.2." not in name}
    )
    (tmp_path / "model.json").write_text((ensemble / "model.json").read_text())
    with pytest.raises(ValueError, match="member 2"):
        load_generator(tmp_path)
    about = json.loads((ensemble / "model.json").read_text())
    del about["members"][2]
    (tmp_path / "model.json").write_text(json.dumps(about))
    saved_model.write_tensors(tmp_path / "weights.pt", weights)
    with pytest.raises(ValueError, match=r"weights\.pt is damaged"):
        load_generator(tmp_path)


def test_what_makes_no_ensemble_is_refused(ensemble, members, events, tmp_path):
    other = save(tmp_path / "other", events, 9, test_share=0.1)
    same = save(tmp_path / "same", events, 0)
    for models, message in (
        (members[:1], "an ensemble of 1"),
        ([members[0], members[0]], "given twice"),
        ([members[0], same], "the same weights"),
        ([members[0], ensemble], "is an ensemble of 3 models itself"),
        ([members[0], other], "data.test_share=0.1"),
        ([members[0], tmp_path / "none"], "no model at"),
    ):
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            write_ensemble(models, tmp_path / "out")
    with pytest.raises(ValueError, match="not empty"):
        write_ensemble(members, ensemble)
    with pytest.raises(ValueError, match="--onnx"):
        export(ensemble, tmp_path / "exported", onnx=True)
    with pytest.raises(ValueError, match="is an ensemble of 3 models, and one model is needed"):
        saved_model.load_model(ensemble)


def test_folds_share_out_all_showers_but_those_of_the_test():
    ids = np.stack([np.arange(4_000), np.zeros(4_000)], 1).astype(np.uint64)
    test = in_split(ids, Selection("test", test_share=0.1))
    held = np.array([in_split(ids, Selection("validation", 0.05, 0.1, fold=(k, 4))) for k in range(4)])
    trained = np.array([in_split(ids, Selection("train", 0.05, 0.1, fold=(k, 4))) for k in range(4)])
    assert (held.sum(0) == ~test).all()  # Each once.
    assert (trained == (~held & ~test)).all()
    assert held.sum(1) == pytest.approx([900] * 4, abs=5 * 26)
