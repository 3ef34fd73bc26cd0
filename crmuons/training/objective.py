"""What critic, generator and multiplicity model minimise on a batch, per event.

- `critic_terms`: the loss of the critic, `losses.critic_loss` plus the weighted gradient penalty.
- `generator_terms`: the losses of generator, multiplicity model and further features.
"""

import math
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

from crmuons import config
from crmuons.models.bundle_model import BundleModel
from crmuons.models.gradients import functions
from crmuons.models.networks import Critic
from crmuons.models.ragged import Ragged
from crmuons.training import losses
from crmuons.training.batch import TrainingBatch
from crmuons.training.terms import LossTerms, spread_penalties

T = TypeVar("T")
MANY_SHOWERS = 2_000  # The noise helps much at 200 showers and little at 600; above, it was not measured (docs/log.md).
# If there are smooth further features, the likelihoods learn from every fourth muon. With all muons they would take as
# long as the rest of the step, and 16,000 muons per step are enough.
FURTHER_EVERY = 4


def condition_noise(of_200_showers: float, showers: int | None) -> float:
    """Return the noise of a run's conditions, in standard deviations; 0 for MANY_SHOWERS or more (None is more)."""
    return 0.0 if showers is None or showers >= MANY_SHOWERS else of_200_showers * min(1.0, math.sqrt(200 / showers))


class Objective:
    """The losses of a trainer's networks.

    Args:
        settings: the training's settings.
        model: features, generator and multiplicity model.
        critic: the critic.
        noise: the generator of the noise.

    Attributes:
        num_critic_updates: updates of the critic so far. The penalty's turn depends on it.
        n_critic: critic updates of a step, from the settings or from the adaptive critic.
        lambda_gp: weight of the penalty, from the settings or from the adaptive critic.
    """

    def __init__(self, settings: config.Train, model: BundleModel, critic: Critic, noise: torch.Generator) -> None:
        self.settings, self.model, self.critic, self.noise = settings, model, critic, noise
        showers = model.features.training_showers
        if showers is None and settings.weight_power_many is not None:
            self.settings = settings.model_copy(update={"weight_power": settings.weight_power_many})
        self.condition_noise = condition_noise(settings.condition_noise, showers)
        self.num_critic_updates = 0
        self.n_critic, self.lambda_gp = settings.n_critic, settings.penalty.lambda_gp
        # Conditions, features and fake muons do not depend on the critic's weights. With train.reuse_batch, all updates
        # on a batch share them. The key is the batch's id() and a name.
        self._shared: dict[tuple[int, str], Any] = {}

    def critic_terms(self, batch: TrainingBatch) -> LossTerms:
        """Return the loss of the critic, with the gradient penalty, and its metrics, per event."""
        # Generator and critic see only events with muons, because an empty event has no muon to judge.
        _, condition = self._conditions(batch)
        real = self._real_muons(batch)
        with torch.no_grad():
            # detach() is needed too: with train.reuse_batch these muons carry the generator's graph.
            fake = self._cached_fake_muons(condition, batch).detach()
        real_scores, fake_scores, penalties = self._score_and_penalise(real, fake, condition, batch)
        loss = losses.critic_loss(real_scores, fake_scores, self.settings.loss)
        terms = {"critic_loss": loss, "wasserstein_estimate": real_scores - fake_scores}
        if penalties is not None:
            # Every n-th update has the penalty with n times the weight, so the mean effect is the same as a penalty in
            # each update.
            weight = self.lambda_gp * self.settings.penalty.every
            terms["critic_loss"] = loss + weight * spread_penalties(penalties, len(loss), batch)
            # The metric has no weight, so that it means the same for every lambda_gp.
            terms["gradient_penalty"] = penalties
        return terms

    def generator_terms(self, batch: TrainingBatch) -> LossTerms:
        """Return the losses of the generator and of the multiplicity model, per event.

        Fake events have the primaries and the numbers of muons of the real ones. Only the multiplicity model sees
        events without muons.
        """
        primaries, condition = self._conditions(batch)
        # Real and fake events have the same primaries and N, so the critic cannot distinguish them by quantities that
        # the generator does not make.
        fake = self._score(self._cached_fake_muons(condition, batch), condition, batch.ragged)
        real = None
        if self.settings.loss == "relativistic":
            with torch.no_grad(), self._precision():  # Real scores need no gradient here.
                real = self.critic(self._real_muons(batch), condition, batch.ragged).float()
        return {
            "generator_loss": losses.generator_loss(real, fake, self.settings.loss),
            "multiplicity_loss": self.model.multiplicity.loss(primaries, batch.counts),
        } | self._further_terms(condition, batch)

    def _further_terms(self, condition: Tensor, batch: TrainingBatch) -> LossTerms:
        """Return the losses of discrete and smooth further features: means over the muons of each event."""
        model, ragged = self.model, batch.ragged
        if model.discrete is None and model.smooth is None:
            return {}
        rows, every = (ragged.muons, 1) if model.smooth is None else (_pairs(ragged), FURTHER_EVERY)
        muons, event = batch.muons.index_select(0, rows), ragged.event_of_muon.index_select(0, rows)
        columns, of_muons = model.features.columns(muons), condition.index_select(0, event)
        taken = {}
        if model.discrete is not None:
            taken["discrete_loss"] = model.discrete.loss(columns, of_muons, model.features.level_numbers(muons))[:, 0]
        if model.smooth is not None:
            first, second = event.chunk(2)
            taken["smooth_loss"] = model.smooth.pair_loss(columns, of_muons, first == second)
        # The other muons get zeros, and a segment sum follows: index_add has no fixed order on a GPU.
        values = every * torch.stack(list(taken.values()), dim=1)
        if batch.real is not None and model.smooth is not None:
            # A last real muon that is paired with a dummy's would share its loss: a batch without dummies has no such pair.
            is_real = batch.real.nonempty.is_real.index_select(0, event.chunk(2)[1])
            values = values * is_real.repeat(2)[:, None]
        everyone = columns.new_zeros(ragged.num_muons, len(taken)).index_copy(0, rows, values)
        return dict(zip(taken, ragged.mean(everyone).unbind(1), strict=True))

    def _score_and_penalise(
        self, real: Tensor, fake: Tensor, condition: Tensor, batch: TrainingBatch
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return the scores of real events and of fake events, from one pass of the critic, and the penalties.

        The penalties may cover only the first events. They are None in an update without a penalty.
        """
        both = self._once(batch, "both", lambda: torch.cat([real, fake]))
        conditions = self._once(batch, "both conditions", lambda: torch.cat([condition, condition]))
        twice = batch.ragged.twice
        due = self._is_penalty_due()
        # All events are penalised at the points that are scored anyway, so one pass gives scores and norms.
        if due and self.settings.penalty.kind == "zero_centred" and batch.penalty_layout is batch.ragged:
            scores, squared_norms = self._scores_and_norms(both, conditions, twice)
            real_norms, fake_norms = squared_norms.chunk(2)
            return *scores.chunk(2), real_norms + fake_norms  # type: ignore[return-value]
        scores = self._score(both, conditions, twice)
        penalties = self._penalties(real, fake, condition, batch.penalty_layout) if due else None
        return *scores.chunk(2), penalties  # type: ignore[return-value]

    def _is_penalty_due(self) -> bool:
        # The updates of the whole run are counted, not of the step: with n_critic=1 and every=2, every second step has
        # a penalty.
        return self.settings.penalty.kind != "none" and self.num_critic_updates % self.settings.penalty.every == 0

    def _penalties(self, real: Tensor, fake: Tensor, condition: Tensor, part: Ragged) -> Tensor:
        """Return the penalties of the first events of a batch. Batches are shuffled, so these are a random sample.

        The zero-centred penalty is the squared gradient norm on real and on fake events (Mescheder et al. 2018,
        arXiv:1801.04406, eqs. 9 and 10). With it the training converges; with the one-centred penalty it can circle
        around its equilibrium.
        """
        # Muons are in the order of their events, so the first events' muons are the first rows.
        real, fake, condition = real[: part.num_muons], fake[: part.num_muons], condition[: len(part.counts)]
        if self.settings.penalty.kind == "one_centred":
            # One share for all muons of an event: the critic judges bundles, so the point lies between two bundles.
            share = torch.rand(len(condition), generator=self.noise, device=self.noise.device)
            points = losses.interpolate(real, fake, share, part)
            return losses.one_centred_penalty(self._scores_and_norms(points, condition, part)[1])
        # One pass over both halves, as for the scores.
        both, conditions = torch.cat([real, fake]), torch.cat([condition, condition])
        real_norms, fake_norms = self._scores_and_norms(both, conditions, part.twice)[1].chunk(2)
        return real_norms + fake_norms

    def _conditions(self, batch: TrainingBatch) -> tuple[Tensor, Tensor]:
        """Return standardised primaries of all events [all, 4], and of nonempty events with log10 N [events, 5]."""

        def compute() -> tuple[Tensor, Tensor]:
            primaries = self.model.features.condition(batch.primaries)
            # index_select and not a boolean mask: with a mask, the host would wait for the number of rows.
            log_counts = self.model.features.log_count(batch.counts.index_select(0, batch.nonempty))
            condition = torch.cat([primaries.index_select(0, batch.nonempty), log_counts], dim=1)
            return primaries, self._with_noise(condition) if self.condition_noise else condition

        return self._once(batch, "conditions", compute)

    def _with_noise(self, condition: Tensor) -> Tensor:
        """Return conditions with noise. A real event and the fake event of the same primary share the noise.

        The model learns p(muons | condition) averaged over the noise (vicinal estimate, Ding et al. 2021,
        arXiv:2011.07466), which varies slowly with the condition. N gets half of the noise, because the kinematics
        depend most strongly on N.
        """
        noise = torch.randn(condition.shape, generator=self.noise, device=condition.device)
        noise[:, 4:] *= 0.5
        return condition + self.condition_noise * noise

    def _real_muons(self, batch: TrainingBatch) -> Tensor:
        return self._once(batch, "real", lambda: self.model.features.muons(batch.muons))

    def _cached_fake_muons(self, condition: Tensor, batch: TrainingBatch) -> Tensor:
        """Return fake muons for a batch. With train.reuse_batch all updates of a step share them and their graph."""
        if not self.settings.reuse_batch:
            return self._fake_muons(condition, batch.ragged)
        # The critic's updates come first and run without gradients, but the generator's update needs this graph.
        with torch.enable_grad():
            return self._once(batch, "fake", lambda: self._fake_muons(condition, batch.ragged))

    def _once(self, batch: TrainingBatch, name: str, compute: Callable[[], T]) -> T:
        """Return what `compute` returns. With train.reuse_batch all updates of a step share it."""
        if not self.settings.reuse_batch:
            return compute()
        # id() identifies the batch: the object lives for the whole step, and comparing tensors would wait for the
        # device.
        key = id(batch), name
        if key not in self._shared:
            self._shared[key] = compute()
        result: T = self._shared[key]
        return result

    def _fake_muons(self, condition: Tensor, ragged: Ragged) -> Tensor:
        noise = self.model.latents(ragged, self.noise)
        with self._precision():
            # float(): losses and penalties are computed in float32, even if the networks run in bfloat16.
            return functions.generator_forward(self.model.generator, condition, *noise, ragged).float()

    def _score(self, features: Tensor, condition: Tensor, ragged: Ragged) -> Tensor:
        with self._precision():
            return functions.scores(self.critic, features, condition, ragged).float()

    def _scores_and_norms(self, features: Tensor, condition: Tensor, ragged: Ragged) -> tuple[Tensor, Tensor]:
        with self._precision():
            scores, squared_norms = functions.scores_and_sq_grad_norms(self.critic, features, condition, ragged)
        return scores.float(), squared_norms

    def _precision(self) -> torch.autocast:
        # bfloat16 has the range of float32, so small gradients do not vanish and no loss scaling is needed.
        return torch.autocast(self.noise.device.type, torch.bfloat16, enabled=self.settings.bf16)


def _pairs(ragged: Ragged) -> Tensor:
    """Return rows of one muon in FURTHER_EVERY: the first muons of pairs of neighbours, then the second ones."""
    first = torch.arange(0, max(ragged.num_muons - 1, 0), 2 * FURTHER_EVERY, device=ragged.counts.device)
    return torch.cat([first, first + 1])
