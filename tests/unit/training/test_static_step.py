"""The step of fixed sizes that a GPU captures: what it computes, what may differ between two steps, what it may cost."""

import numpy as np
import pytest
import torch

from crmuons import config
from crmuons.data.events import EventArrays, slice_events
from crmuons.models.features import Features
from crmuons.training import losses
from crmuons.training.packed import Bucket, PackedBatch, lay_out
from crmuons.training.trainer import Trainer

TINY = {"width": 8, "multiplicity_width": 8, "multiplicity_components": 2, "shower_latents": 2, "muon_latents": 2}
CPU = torch.device("cpu")
VARIANTS = {
    "default": {},
    "wasserstein": {"loss": "wasserstein"},
    "sgd": {"optimizer": {"kind": "sgd", "lr": 0.01, "momentum": 0.9}},
    "clipped": {"optimizer": {"max_grad_norm": 0.1}},
    "one_centred": {"penalty": {"kind": "one_centred", "lambda_gp": 10.0}},
    "no_penalty": {"penalty": {"kind": "none"}},
    "part": {"penalty": {"sample_fraction": 0.3, "max_pairs": 30, "every": 2}, "n_critic": 3},
    "one_centred_part": {"penalty": {"kind": "one_centred", "sample_fraction": 0.5}},
    "accumulated": {"grad_accumulation": 3},
    "reused": {"reuse_batch": True, "n_critic": 3, "grad_accumulation": 2},
    "few_muons": {"muons_per_event": 1},
    "all_muons": {"muons_per_event": None},
    "equal_weights": {"weight_power": 0.0},
    "baseline": {"model": {"kind": "predecessor"}},
    "baseline_one_centred": {"model": {"kind": "predecessor"}, "penalty": {"kind": "one_centred"}},
    "regressor": {"model": {"multiplicity": "regressor"}},
}


class Fixed(Trainer):
    """Its noise is a function of the events, so that a padded batch has the noise of the batch."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.model.latents = self._noise_of_events

    def critic_terms(self, batch):
        self.batch = batch
        return super().critic_terms(batch)

    def generator_terms(self, batch):
        self.batch = batch
        return super().generator_terms(batch)

    def _noise_of_events(self, ragged, source):
        primaries = self.batch.primaries[self.batch.nonempty]
        frequencies = 1 + torch.arange(64)
        generator = self.model.generator
        shower = primaries[:, :1].log() + primaries[:, 3:] / 1000
        muon = self.batch.muons.sum(1, keepdim=True)
        return (
            (shower * frequencies[: generator.shower_latents]).sin(),
            (muon * frequencies[: generator.muon_latents]).sin(),
        )


@pytest.fixture(scope="module")
def sample(toy_events):
    return toy_events(300, seed=11)


@pytest.fixture
def make(sample):
    def trainer(model=(), *, kind=Trainer, static=True, **train):
        settings = config.from_dict(
            {"model": TINY | dict(model), "train": {"steps": 100, "events_per_worker": 64} | train}
        )
        features = Features(cartesian=settings.model.kind == "predecessor").fit(sample)
        return kind(settings, features, CPU, static=static)

    return trainer


@pytest.fixture
def batches(toy_events):
    """Batches of one size, with different numbers of muons and of events without any."""
    with_empty = []
    for seed in range(4):
        events = slice_events(toy_events(64, seed=seed), 0, 64)
        keep = np.ones(64, bool)
        keep[seed :: 5 + seed] = False
        counts = np.where(keep, events.counts, 0)
        muons = events.muons[np.repeat(keep, events.counts)]
        with_empty.append(EventArrays(events.ids, events.primaries, counts, muons))
    return with_empty


def weights(trainer):
    networks = (trainer.model, trainer.critic, trainer.averaged)
    return torch.cat([p.detach().flatten().clone() for network in networks for p in network.parameters()])


def relative(one, other):
    return ((one - other).norm() / other.norm()).item()


def step(trainer, batches):
    return trainer.step(repeat_all(trainer.prepare(batch) for batch in batches))


def repeat_all(prepared):
    prepared = list(prepared)
    while True:
        yield from prepared


def padded(events, settings):
    packed = PackedBatch.from_events(events, settings, pin_memory=False)
    bucket = Bucket.of([packed.sizes], packed.capacity, all_penalised=True)
    memory = torch.full((bucket.bytes,), 255, dtype=torch.uint8)  # As float32: NaN in all that no batch has written.
    packed.copy_into(memory)
    return lay_out(memory, bucket, settings), bucket


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_padded_step_is_the_step(make, batches, monkeypatch, variant):
    interpolate = losses.interpolate  # The points between real and fake are random; here they are the same.
    monkeypatch.setattr(losses, "interpolate", lambda r, f, share, part: interpolate(r, f, 0 * share + 0.3, part))
    trainers = [make(kind=Fixed, static=static, **VARIANTS[variant]) for static in (False, True)]
    for _ in range(2):
        plain, static = (step(trainer, batches) for trainer in trainers)
        for name, value in plain.items():
            assert static[name].item() == pytest.approx(value.item(), rel=1e-4, abs=1e-5, nan_ok=True), name
    # Adam divides by the size of a gradient, and so enlarges the rounding of the smallest ones.
    assert relative(weights(trainers[1]), weights(trainers[0])) < 2e-5


def keep_gradients(trainer):
    """Return a dictionary that gets the gradient of each network's first update."""
    found = {}

    def keeping(name, move):
        def kept(gradient, skip_step):
            found.setdefault(name, gradient.double())
            return move(gradient, skip_step)

        return kept

    for name, network in trainer.networks.items():
        network.step = keeping(name, network.step)
    return found


@pytest.mark.parametrize("variant", VARIANTS)
def test_padded_gradients_are_the_gradients(make, batches, monkeypatch, variant):
    interpolate = losses.interpolate
    monkeypatch.setattr(losses, "interpolate", lambda r, f, share, part: interpolate(r, f, 0 * share + 0.3, part))
    gradients = []
    for static in (False, True):
        trainer = make(kind=Fixed, static=static, **VARIANTS[variant])
        gradients.append(keep_gradients(trainer))
        step(trainer, batches)
    for name, gradient in gradients[0].items():
        # The generator's gradient is taken after the critic moved.
        assert relative(gradients[1][name], gradient) < (1e-6 if name != "generator" else 1e-4), name
