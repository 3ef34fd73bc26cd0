"""The training step: `n_critic` updates of the critic, then one of the generator and the multiplicity model.

- The losses are in `Objective.critic_terms` and `Objective.generator_terms` (objective.py).
- `Trainer.state_dict` is the step's part of a checkpoint: the weights of the model (features, generator, multiplicity
  and further densities), of its average and of the critic, the optimizer states, the numbers of steps and critic
  updates, and the state of the adaptive critic.

On an NVIDIA GPU (train.cuda_graph) a step is *static*: batches have fixed sizes (packed.py), what changes from step to
step is a tensor, and `graphs.py` replays the operations of `Trainer._updates`. This module uses torch only: no Ray and
no files.
"""

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
from crmuons.models.networks import build_networks
from crmuons.training import distributed, optimizers
from crmuons.training.adaptation import Adaptation
from crmuons.training.batch import TrainingBatch
from crmuons.training.fault import FirstFault
from crmuons.training.graphs import StepGraphs
from crmuons.training.objective import Objective
from crmuons.training.packed import PackedBatch
from crmuons.training.terms import LossTerms, WeightedSum, accumulate, weights_of

PreparedBatch = TrainingBatch | PackedBatch  # A PackedBatch is for a static step.


class NonFiniteError(RuntimeError):
    """A loss or a gradient became NaN or infinite. No optimizer step was taken from then on."""


class Trainer(Objective):
    """Networks, optimizers and the training step. `state_dict` holds everything that resume needs.

    Args:
        settings: the run's settings.
        features: features fitted on training data.
        device: device of the networks.
        static: take steps of fixed sizes, which can be captured; None: on a GPU with train.cuda_graph.
    """

    def __init__(
        self, settings: config.Config, features: Features, device: torch.device, *, static: bool | None = None
    ) -> None:
        torch.manual_seed(settings.run.seed)  # Every rank starts from the same weights.
        self.seed, self.device = settings.run.seed, device
        self.pin_memory = device.type == "cuda" and settings.data.pin_memory
        model = BundleModel(settings.model, features).to(device)
        critic = build_networks(settings.model, features.num_muon_features)[1].to(device)
        # A separate generator, seeded again at each step, so that no other draw of numbers shifts the training's noise.
        super().__init__(settings.train, model, critic, torch.Generator(device))
        # Generation uses this average, because the weights of a GAN keep moving around the equilibrium.
        self.averaged = copy.deepcopy(self.model).requires_grad_(requires_grad=False)
        modules: dict[str, nn.Module] = {
            "generator": self.model.generator,
            "multiplicity": self.model.multiplicity,
            "critic": self.critic,
        }
        further = {"discrete": self.model.discrete, "smooth": self.model.smooth}
        modules |= {name: module for name, module in further.items() if module is not None}
        self._with_generator = tuple(name for name in modules if name != "critic")
        is_static = device.type == "cuda" and settings.train.cuda_graph if static is None else static
        self.graphs = StepGraphs(self.settings, device, self._recover) if is_static else None
        self.networks = optimizers.build_optimizers(
            settings.train.optimizer, modules, frozen=settings.train.frozen, graphed=is_static
        )
        self.num_steps = 0
        self.adaptation = Adaptation(settings.train, device) if settings.train.adapt.enabled else None
        self._updates_before = 0  # Critic updates before the step being taken.
        # The penalty is reported at each step, but not computed in each.
        self.newest_penalty = torch.full((), math.nan, device=device)
        self.progress = 0.0  # Share of the run that is done; the learning rates depend on it.
        self.fault = FirstFault(device)
        # 1 - decay of the average in the current step, as a tensor that a graph reads.
        self._average_weight = torch.zeros((), device=device)

    def step(self, batches: Iterator[PreparedBatch]) -> LossTerms:
        """Take one WGAN step (Gulrajani et al. 2017, arXiv:1704.00028, Alg. 1).

        Args:
            batches: endless batches from `prepare`. A step takes (n_critic + 1) x grad_accumulation batches, or
                grad_accumulation with train.reuse_batch.

        Returns:
            Metrics: means over the events of all ranks, as tensors on the device. Reading one waits for the device.

        Raises:
            NonFiniteError: on a CPU at once. On a GPU `check_finite` raises it; optimizer steps are skipped until then.
        """
        # With False, the context manager would turn off anomaly detection that a user has turned on around the call.
        if not self.settings.detect_anomaly:
            return self._step(batches)
        with torch.autograd.set_detect_anomaly(True):
            return self._step(batches)

    def _step(self, batches: Iterator[PreparedBatch]) -> LossTerms:
        done = self._updates_before = self.num_critic_updates
        if self.graphs is None:
            self._start_step()
            terms = self._updates(batches)  # type: ignore[arg-type]
        else:
            # The step takes all its batches at once, because their sizes choose the bucket before the first operation.
            number = self.settings.grad_accumulation * (1 if self.settings.reuse_batch else self.n_critic + 1)
            packed: list[PackedBatch] = list(islice(batches, number))  # type: ignore[arg-type]
            phase = done % self.settings.penalty.every  # It decides which updates have a penalty.
            # A graph repeats these numbers, so each combination of them has its own graph.
            variant = phase, self.n_critic, self.lambda_gp
            terms = self.graphs.run(packed, variant, self._start_step, self._updates)
        self.num_critic_updates = done + self.n_critic
        self.num_steps += 1
        return terms if self.adaptation is None else self._adapt(self.adaptation, terms)

    def _adapt(self, adaptation: Adaptation, terms: LossTerms) -> LossTerms:
        """Take the step's estimate into account; add the numbers of this step to its metrics."""
        used = {"n_critic": float(self.n_critic), "lambda_gp": self.lambda_gp}
        adaptation.observe(terms["wasserstein_estimate"], self.num_steps)
        self.n_critic, self.lambda_gp = adaptation.n_critic, adaptation.lambda_gp
        return terms | {name: torch.full((), value, device=self.device) for name, value in used.items()}

    def _updates(self, batches: Iterator[TrainingBatch]) -> LossTerms:
        """Take the updates of a step; return its metrics."""
        self._shared.clear()
        if self.settings.reuse_batch:
            # Copies, because `_once` knows a batch by its identity: the same object given twice would count as one.
            batches = cycle([replace(batch) for batch in islice(batches, self.settings.grad_accumulation)])
        for _ in range(self.n_critic):
            # The updates of the critic come first (Alg. 1): the generator then learns from a critic that knows its
            # muons.
            critic = self._update(self.critic_terms, batches, "critic")
            if self._is_penalty_due():
                self.newest_penalty.copy_(critic["gradient_penalty"])
            self.num_critic_updates += 1
        self.critic.requires_grad_(requires_grad=False)  # The generator's loss must leave no gradient in the critic.
        generator = self._update(self.generator_terms, batches, *self._with_generator)
        self.critic.requires_grad_(requires_grad=True)
        self._average()
        return critic | generator | {"gradient_penalty": self.newest_penalty.clone()}

    def prepare(self, events: EventArrays) -> PreparedBatch:
        """Return the input of `step` for a batch on the host. The thread that reads data calls it."""
        if self.graphs is not None:
            return PackedBatch.from_events(events, self.settings, pin_memory=self.pin_memory)
        batch = TrainingBatch.from_events(events, self.settings)
        return batch.pin_memory() if self.pin_memory else batch

    def _update(
        self, terms_of: Callable[[TrainingBatch], LossTerms], batches: Iterator[TrainingBatch], *names: str
    ) -> LossTerms:
        """Update networks by the mean gradient of their losses over the events of all batches and ranks.

        Returns:
            The mean terms and the gradient norms.
        """
        totals: dict[str, WeightedSum] = {}
        gradients: tuple[Tensor, ...] = ()
        for _ in range(self.settings.grad_accumulation):
            batch = next(batches)
            terms = terms_of(batch)
            of_batch = self._gradients(terms, names, batch)
            # This must not be in place: weights that add to the same numbers share one gradient.
            gradients = torch._foreach_add(gradients, of_batch) if gradients else of_batch
            accumulate(totals, terms, batch)
        summed, sums = optimizers.all_reduce_gradients(gradients, totals, self.fault, self._exchange)
        if self.device.type == "cpu" and self.graphs is None:
            self.check_finite()
        # NaN, 0 / 0, if no event contributed.
        means = dict(zip(totals, (sums[:, 0] / sums[:, 1]).unbind(), strict=True))
        # The number of events of all ranks; at least 1, for a step in which no event has muons.
        events = dict(zip(totals, sums[:, 1].clamp(min=1).unbind(), strict=True))
        parts = summed.split([self.networks[name].size for name in names])
        norms = {
            f"{name}_gradient_norm": self.networks[name].step(part / events[f"{name}_loss"], self.fault.found)
            for name, part in zip(names, parts, strict=True)
        }
        return norms | means

    def _gradients(self, terms: LossTerms, names: tuple[str, ...], batch: TrainingBatch) -> tuple[Tensor, ...]:
        """Return the gradients of the networks' weighted losses, summed over the events, in the order of the weights."""
        losses = [terms[f"{name}_loss"] for name in names]
        weights = [weights_of(name, loss, batch) for name, loss in zip(names, losses, strict=True)]
        parameters = [parameter for name in names for parameter in self.networks[name].parameters]
        try:
            # Weights that a batch does not reach get zeros, so that the gradients of all ranks have the same layout.
            return torch.autograd.grad(losses, parameters, weights, allow_unused=True, materialize_grads=True)
        except RuntimeError as error:
            if not (self.settings.detect_anomaly and "returned nan values" in str(error)):
                raise
            msg = (
                f"step {self.num_steps}: the first NaN on rank {distributed.rank()} came from an operation's gradient: "
                f"{str(error).rstrip('.')} (the warning before shows where it was called); no optimizer used it."
            )
            raise NonFiniteError(msg) from error

    def _exchange(self, buffer: Tensor) -> Tensor:
        return distributed.sum_over_ranks(buffer) if self.graphs is None else self.graphs.exchange(buffer)

    def _start_step(self) -> torch.Generator:
        """Set what differs between two steps, in place; return the generator of the noise."""
        # The noise depends only on (seed, step, rank), so resume is exact without saving a generator state.
        self.noise.manual_seed(((self.seed * 1_000_003 + self.num_steps) * 65_537 + distributed.rank()) % 2**63)
        share = optimizers.lr_share(self.settings.optimizer, self.num_steps, self.progress)
        for network in self.networks.values():
            network.set_lr_share(share)
        # These tensors are filled in place, because a graph holds their addresses.
        self.fault.begin_step(self.num_steps)
        self._average_weight.fill_(self._weight_of_step())
        return self.noise

    def _recover(self) -> None:
        """Undo what an unfinished step has set. The noise generator is replaced: a failed capture makes it unusable."""
        self.noise = torch.Generator(self.device)
        self.num_critic_updates = self._updates_before
        self.critic.requires_grad_(requires_grad=True)
        for network in self.networks.values():
            network.optimizer.zero_grad()

    def _weight_of_step(self) -> float:
        """Return the weight of the model in its average: larger in the first steps, to forget the initial weights."""
        if self.settings.init_from is not None:  # The initial weights are the parent's, which need not be forgotten.
            return 1 - self.settings.ema_decay
        return 1 - min(self.settings.ema_decay, (1 + self.num_steps) / (10 + self.num_steps))

    @torch.no_grad()
    def _average(self) -> None:
        """Update the averaged model."""
        averaged: list[Tensor] = list(self.averaged.parameters())
        model: list[Tensor] = list(self.model.parameters())
        if self.device.type == "cpu" and self.graphs is None:
            torch._foreach_lerp_(averaged, model, self._weight_of_step())
            return
        # lerp takes its weight as a number on the host, so a graph would repeat the recorded number.
        moves = torch._foreach_sub(model, averaged)
        # Like the optimizers, the average does not move after a number that is not finite.
        weight = torch.addcmul(self._average_weight, self._average_weight, self.fault.found, value=-1)
        torch._foreach_mul_(moves, weight)
        torch._foreach_add_(averaged, moves)

    def check_finite(self) -> None:
        """Raise an error if a loss or a gradient was NaN or infinite.

        Raises:
            NonFiniteError: naming the first step and rank with such a number.
        """
        if (place := self.fault.place()) is not None:
            step, rank = place
            msg = f"step {step}: a loss or a gradient on rank {rank} is NaN or infinite; no optimizer used it."
            raise NonFiniteError(msg)

    def state_dict(self) -> dict[str, Any]:
        """Return everything that resume needs of the step (see the module's docstring)."""
        return {
            "model": self.model.state_dict(),
            "averaged": self.averaged.state_dict(),
            "critic": self.critic.state_dict(),
            "optimizers": {name: network.state_dict() for name, network in self.networks.items()},
            "num_steps": self.num_steps,
            "num_critic_updates": self.num_critic_updates,
        } | ({} if self.adaptation is None else {"adaptation": self.adaptation.state_dict()})

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load a saved state. A missing or surplus weight is an error."""
        self.model.load_state_dict(state["model"])
        self.averaged.load_state_dict(state["averaged"])
        self.critic.load_state_dict(state["critic"])
        for name, network in self.networks.items():
            network.load_state_dict(state["optimizers"][name])
        self.num_steps, self.num_critic_updates = state["num_steps"], state["num_critic_updates"]
        if self.adaptation is not None and "adaptation" in state:  # A trial of a sweep may continue one without it.
            self.adaptation.load_state_dict(state["adaptation"])
            self.n_critic, self.lambda_gp = self.adaptation.n_critic, self.adaptation.lambda_gp
        self.release_graphs()  # They hold the optimizers' old tensors.

    def begin_from(self, model: dict[str, Any], critic: dict[str, Any] | None) -> None:
        """Take the weights of another model of the same architecture, and of its critic if there is one.

        Features, optimizers and step counts stay as in a new run.
        """
        # The run's own statistics: train.refit_features may have fitted them to its data (training/parent.py).
        features = {name: value for name, value in self.model.state_dict().items() if name.startswith("features.")}
        self.model.load_state_dict(model | features)
        self.averaged.load_state_dict(model | features)
        if critic is not None:
            self.critic.load_state_dict(critic)

    def release_graphs(self) -> None:
        """Free the CUDA graphs. It must happen before the process group ends."""
        if self.graphs is not None:
            self.graphs.release()
