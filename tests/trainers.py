"""Trainers of tiny networks for the tests, and one whose noise and gradients can be compared."""

import torch

from crmuons import config
from crmuons.models.features import Features
from crmuons.training.trainer import Trainer

TINY = {"width": 8, "multiplicity_width": 8, "multiplicity_components": 2, "shower_latents": 2, "muon_latents": 2}

# Settings that change what a step computes: those of section train, and `model`.
VARIANTS = {
    "default": {},
    "wasserstein": {"loss": "wasserstein"},
    "sgd": {"optimizer": {"kind": "sgd", "lr": 0.01, "momentum": 0.9}},
    "clipped": {"optimizer": {"max_grad_norm": 0.1}},
    "one_centred": {"penalty": {"kind": "one_centred", "lambda_gp": 10.0}},
    "no_penalty": {"penalty": {"kind": "none"}},
    "part": {"penalty": {"sample_fraction": 0.3, "max_pairs": 3, "every": 2}, "n_critic": 3},
    "one_centred_part": {"penalty": {"kind": "one_centred", "sample_fraction": 0.5}},
    "accumulated": {"grad_accumulation": 3},
    "reused": {"reuse_batch": True, "n_critic": 3, "grad_accumulation": 2},
    "few_muons": {"muons_per_event": 1},
    "all_muons": {"muons_per_event": None},
    "baseline": {"model": {"kind": "predecessor"}},
    "regressor": {"model": {"multiplicity": "regressor"}},
}


def settings_of(model=(), seed=0, **train):
    """Return the settings of tiny networks; `train` are settings of its section."""
    return config.from_dict({"model": TINY | dict(model), "train": {"steps": 100} | train, "run": {"seed": seed}})


def make_trainer(sample, model=(), *, kind=Trainer, seed=0, device="cpu", static=False, **train):
    """Return a trainer of tiny networks with features of the sample; `train` are settings."""
    settings = settings_of(model, seed, **train)
    features = Features(cartesian=settings.model.kind == "predecessor").fit(sample)
    return kind(settings, features, torch.device(device), static=static)


class FixedNoise(Trainer):
    """Its noise is a function of the events, so that an event has it in any batch, padded or not, and on any rank.

    Attributes:
        gradients: name of the network and gradient of each update.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.gradients = []
        self.model.latents = self._noise_of_events
        for name, network in self.networks.items():
            network.step = self._keeping(name, network.step)

    @property
    def first_gradients(self):
        """The gradient of each network's first update, by name."""
        return dict(reversed(self.gradients))

    def critic_terms(self, batch):
        self.batch = batch
        return super().critic_terms(batch)

    def generator_terms(self, batch):
        self.batch = batch
        return super().generator_terms(batch)

    def _noise_of_events(self, ragged, source):
        primaries, generator = self.batch.primaries[self.batch.nonempty], self.model.generator
        shower = primaries[:, :1].log() + primaries[:, 3:] / 1000
        muon = self.batch.muons.sum(1, keepdim=True)
        frequencies = 1 + torch.arange(max(generator.shower_latents, generator.muon_latents))
        return (
            (shower * frequencies[: generator.shower_latents]).sin(),
            (muon * frequencies[: generator.muon_latents]).sin(),
        )

    def _keeping(self, name, move):
        def kept(gradient, skip_step):
            self.gradients.append((name, gradient.clone()))
            return move(gradient, skip_step)

        return kept


def relative(one, other):
    """Return the distance of two tensors as a share of the second one's length."""
    return ((one - other).norm() / other.norm()).item()
