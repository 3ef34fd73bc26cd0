"""One step of the training: n_critic critic updates, then one of generator and multiplicity. Torch alone: no Ray, no files."""

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import cycle, islice
from typing import Any

import torch
from torch import Tensor, nn

from crmuons import config
from crmuons.data.events import EventArrays
from crmuons.models.bundle_model import BundleModel
from crmuons.models.features import Features
from crmuons.models.gradients import functions
from crmuons.models.networks import build_networks
from crmuons.models.ragged import Ragged
from crmuons.training import distributed, losses, optimizers
from crmuons.training.batch import TrainingBatch
from crmuons.training.optimizers import WeightedSum

LossTerms = dict[str, Tensor]  # A loss or metric -> its value for each event. "critic_loss" is what moves the critic.


class NonFiniteError(RuntimeError):
    """A loss or a gradient became NaN or infinite; no optimizer has moved since."""


class Trainer:
    """Networks, optimizers and the step. Everything that resume needs is in `state_dict`.

    Args:
        settings: the run's settings.
        features: fitted on training data.
        device: where the networks live.
    """

    def __init__(self, settings: config.Config, features: Features, device: torch.device) -> None:
        torch.manual_seed(settings.run.seed)  # Every rank starts from the same weights.
        self.settings, self.seed, self.device = settings.train, settings.run.seed, device
        self.model = BundleModel(settings.model, features).to(device)
        self.critic = build_networks(settings.model, features.num_muon_features)[1].to(device)
        self.averaged = copy.deepcopy(self.model).requires_grad_(requires_grad=False)
        modules = {"generator": self.model.generator, "multiplicity": self.model.multiplicity, "critic": self.critic}
        self.networks = optimizers.build_optimizers(settings.train.optimizer, modules)
        self.noise = torch.Generator(device)
        self.num_steps = 0
        self.num_critic_updates = 0
        self.newest_penalty = torch.full((), math.nan, device=device)  # A metric; it is not taken in every update.
        self.progress = 0.0  # Share of the run that is done; the learning rates follow it.
        self.nonfinite = torch.full((2,), -1, device=device)  # Step and rank of the first non-finite number.
        self._drawn: dict[int, Tensor] = {}  # Of the step's batches, by their identity, with train.reuse_batch.

    def step(self, batches: Iterator[TrainingBatch]) -> LossTerms:
        """One WGAN step (Gulrajani et al. 2017, arXiv:1704.00028, Alg. 1).

        Args:
            batches: endless, made by `prepare`; (n_critic + 1) x grad_accumulation of them are taken, with
                train.reuse_batch grad_accumulation.

        Returns:
            Metrics, means over all ranks' events, as tensors on the device: reading one waits for the device.

        Raises:
            NonFiniteError: on a CPU at once. On a GPU `check_finite` raises it; the optimizers stand still until then.
        """
        self._start_step()
        if self.settings.reuse_batch:
            batches = cycle([replace(sets) for sets in islice(batches, self.settings.grad_accumulation)])
        for _ in range(self.settings.n_critic):
            critic = self._update(self.critic_terms, batches, "critic")
            if self._is_penalty_due():
                self.newest_penalty = critic["gradient_penalty"]
            self.num_critic_updates += 1
        self.critic.requires_grad_(requires_grad=False)  # The generator's loss must leave no gradient in the critic.
        generator = self._update(self.generator_terms, batches, "generator", "multiplicity")
        self.critic.requires_grad_(requires_grad=True)
        self._average()
        self.num_steps += 1
        return critic | generator | {"gradient_penalty": self.newest_penalty}

    def prepare(self, batch: EventArrays) -> TrainingBatch:
        """What `step` takes, made of a batch on the host; meant for the thread that reads."""
        sets = TrainingBatch.from_events(batch, self.settings)
        return sets.pin_memory() if self.device.type == "cuda" else sets

    def critic_terms(self, sets: TrainingBatch) -> LossTerms:
        """Loss of the critic, with its penalty."""
        _, condition = self._conditions(sets)
        real = self.model.features.muons(sets.muons)
        with torch.no_grad():
            fake = self._cached_fake_muons(condition, sets).detach()
        real_scores, fake_scores, penalties = self._score_and_penalise(real, fake, condition, sets)
        loss = losses.critic_loss(real_scores, fake_scores, self.settings.loss)
        if len(penalties):
            loss = loss + self.settings.penalty.lambda_gp * self.settings.penalty.every * _for_all(penalties, len(loss))
        return {
            "critic_loss": loss,
            "wasserstein_estimate": real_scores - fake_scores,
            "gradient_penalty": penalties,
        }

    def generator_terms(self, sets: TrainingBatch) -> LossTerms:
        """Losses of the generator, whose muons take the real events' primaries and numbers of muons, and of the
        multiplicity model, which alone sees the empty events."""
        primaries, condition = self._conditions(sets)
        fake = self._score(self._cached_fake_muons(condition, sets), condition, sets.ragged)
        real = None
        if self.settings.loss == "relativistic":
            with torch.no_grad(), self._precision():  # Of the real scores the value alone is needed.
                real = self.critic(self.model.features.muons(sets.muons), condition, sets.ragged).float()
        return {
            "generator_loss": losses.generator_loss(real, fake, self.settings.loss),
            "multiplicity_loss": self.model.multiplicity.loss(primaries, sets.counts),
        }

    def _update(
        self, terms_of: Callable[[TrainingBatch], LossTerms], batches: Iterator[TrainingBatch], *names: str
    ) -> LossTerms:
        """Move some networks by their loss's mean gradient over all events of all batches and all ranks, each with its weight."""
        totals: dict[str, WeightedSum] = {}
        for _ in range(self.settings.grad_accumulation):
            sets = next(batches)
            terms = terms_of(sets)
            torch.stack([_weigh(terms[f"{name}_loss"], name, sets) for name in names]).sum().backward()
            _accumulate(totals, terms)
        networks = [self.networks[name] for name in names]
        gradients, totals, faults = optimizers.all_reduce_gradients(networks, totals)
        self._record_nonfinite(faults)
        norms = {
            f"{name}_gradient_norm": self.networks[name].step(
                gradient / totals[f"{name}_loss"].events.clamp(min=1), frozen=self.nonfinite[0] >= 0
            )
            for name, gradient in zip(names, gradients, strict=True)
        }
        return norms | {name: total.mean for name, total in totals.items()}

    def _score_and_penalise(
        self, real: Tensor, fake: Tensor, condition: Tensor, sets: TrainingBatch
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Scores of real and fake events, from one pass of the critic, and penalties of those that are penalised."""
        both, conditions, twice = torch.cat([real, fake]), torch.cat([condition, condition]), sets.ragged.twice
        due = self._is_penalty_due()
        if due and self.settings.penalty.kind == "zero_centred" and sets.penalty_layout is sets.ragged:
            scores, squared_norms = self._scores_and_norms(both, conditions, twice)
            real_norms, fake_norms = squared_norms.chunk(2)
            return *scores.chunk(2), real_norms + fake_norms  # type: ignore[return-value]
        scores = self._score(both, conditions, twice)
        penalties = self._penalties(real, fake, condition, sets.penalty_layout) if due else scores.new_zeros(0)
        return *scores.chunk(2), penalties  # type: ignore[return-value]

    def _is_penalty_due(self) -> bool:
        return self.settings.penalty.kind != "none" and self.num_critic_updates % self.settings.penalty.every == 0

    def _penalties(self, real: Tensor, fake: Tensor, condition: Tensor, part: Ragged) -> Tensor:
        """Penalties of the first events: a random sample, since batches are shuffled.

        The zero-centred one is the squared norm itself, on real and on fake events (Mescheder et al. 2018, arXiv:1801.04406, eqs.
        9 and 10): with it the training converges where the one-centred penalty circles its equilibrium.
        """
        real, fake, condition = real[: part.num_muons], fake[: part.num_muons], condition[: len(part.counts)]
        if self.settings.penalty.kind == "one_centred":
            share = torch.rand(len(condition), generator=self.noise, device=self.device)
            points = losses.interpolate(real, fake, share, part)
            return losses.one_centred_penalty(self._scores_and_norms(points, condition, part)[1])
        both, conditions = torch.cat([real, fake]), torch.cat([condition, condition])
        real_norms, fake_norms = self._scores_and_norms(both, conditions, part.twice)[1].chunk(2)
        return real_norms + fake_norms

    def _conditions(self, sets: TrainingBatch) -> tuple[Tensor, Tensor]:
        """Standardised primaries of all events [all, 4]; with log10 N, what the networks know of the nonempty ones [events, 5]."""
        primaries = self.model.features.condition(sets.primaries)
        log_counts = self.model.features.log_count(sets.counts.index_select(0, sets.nonempty))
        return primaries, torch.cat([primaries.index_select(0, sets.nonempty), log_counts], dim=1)

    def _cached_fake_muons(self, condition: Tensor, sets: TrainingBatch) -> Tensor:
        """Muons for a batch; with train.reuse_batch those of the step's first update on it, ready for the generator's own."""
        if not self.settings.reuse_batch:
            return self._fake_muons(condition, sets.ragged)
        if id(sets) not in self._drawn:
            with torch.enable_grad():
                self._drawn[id(sets)] = self._fake_muons(condition, sets.ragged)
        return self._drawn[id(sets)]

    def _fake_muons(self, condition: Tensor, ragged: Ragged) -> Tensor:
        noise = self.model.latents(ragged, self.noise)
        with self._precision():
            return functions.generator_forward(self.model.generator, condition, *noise, ragged).float()

    def _score(self, features: Tensor, condition: Tensor, ragged: Ragged) -> Tensor:
        with self._precision():
            return functions.scores(self.critic, features, condition, ragged).float()

    def _scores_and_norms(self, features: Tensor, condition: Tensor, ragged: Ragged) -> tuple[Tensor, Tensor]:
        with self._precision():
            scores, squared_norms = functions.scores_and_sq_grad_norms(self.critic, features, condition, ragged)
        return scores.float(), squared_norms

    def _precision(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.settings.bf16)

    def _start_step(self) -> None:
        self._drawn = {}
        # The noise depends on (seed, step, rank) alone: no generator state to save, and resume is exact.
        self.noise.manual_seed(((self.seed * 1_000_003 + self.num_steps) * 65_537 + distributed.rank()) % 2**63)
        share = optimizers.lr_share(self.settings.optimizer, self.num_steps, self.progress)
        for network in self.networks.values():
            network.set_lr_share(share)

    @torch.no_grad()
    def _average(self) -> None:
        """Move the averaged model; at the start it follows faster, so that it forgets the initial weights."""
        decay = min(self.settings.ema_decay, (1 + self.num_steps) / (10 + self.num_steps))
        torch._foreach_lerp_(list(self.averaged.parameters()), list(self.model.parameters()), 1 - decay)

    def _record_nonfinite(self, faults: Tensor) -> None:
        here = torch.stack([torch.full_like(self.nonfinite[0], self.num_steps), faults.argmax()])
        self.nonfinite = torch.where((self.nonfinite[0] < 0) & (faults.max() > 0), here, self.nonfinite)
        if self.device.type == "cpu":
            self.check_finite()

    def check_finite(self) -> None:
        """Stop if a loss or a gradient has been NaN or infinite.

        Raises:
            NonFiniteError: with the step and the rank where it was seen first.
        """
        step, rank = self.nonfinite.tolist()  # device sync
        if step >= 0:
            msg = (
                f"step {step}: a loss or a gradient on rank {rank} is NaN or infinite; nothing was moved by it. "
                "Try a lower train.optimizer.lr, or train.optimizer.max_grad_norm"
            )
            raise NonFiniteError(msg)

    def state_dict(self) -> dict[str, Any]:
        """Everything that resume needs of the step."""
        return {
            "model": self.model.state_dict(),
            "averaged": self.averaged.state_dict(),
            "critic": self.critic.state_dict(),
            "optimizers": {name: network.optimizer.state_dict() for name, network in self.networks.items()},
            "num_steps": self.num_steps,
            "num_critic_updates": self.num_critic_updates,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a saved state; a missing or surplus entry is an error."""
        self.model.load_state_dict(state["model"])
        self.averaged.load_state_dict(state["averaged"])
        self.critic.load_state_dict(state["critic"])
        for name, network in self.networks.items():
            network.optimizer.load_state_dict(state["optimizers"][name])
        self.num_steps, self.num_critic_updates = state["num_steps"], state["num_critic_updates"]


def _weigh(losses_of_events: Tensor, name: str, sets: TrainingBatch) -> Tensor:
    """A network's loss, summed over events with their weights; the multiplicity model takes all events alike."""
    return losses_of_events.sum() if name == "multiplicity" else losses_of_events @ sets.weights


def _for_all(penalties: Tensor, num_events: int) -> Tensor:
    """The penalties of the first events, scaled so that their sum stands for that of all; the other events carry none."""
    return nn.functional.pad(penalties * (num_events / len(penalties)), (0, num_events - len(penalties)))


def _accumulate(totals: dict[str, WeightedSum], terms: LossTerms) -> None:
    for name, values in terms.items():
        total, events = values.detach().sum().float(), values.new_full((), len(values), dtype=torch.float32)
        if name in totals:
            total, events = total + totals[name].total, events + totals[name].events
        totals[name] = WeightedSum(total, events)
