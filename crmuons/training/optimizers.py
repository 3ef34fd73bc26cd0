"""Optimizers, learning rates, and the sum of gradients over ranks."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from crmuons import config
from crmuons.models.eager_optimizers import SGD, Adam
from crmuons.training import distributed
from crmuons.training.fault import FirstFault
from crmuons.training.terms import WeightedSum

LIKELIHOODS = ("multiplicity", "discrete", "smooth")  # Networks that a likelihood trains, without an opponent.


class NetworkOptimizer:
    """A module and its optimizer, which takes steps with one flat gradient vector.

    Args:
        parameters: the weights of the network.
        optimizer: the optimizer of its parameters.
        max_grad_norm: limit on the norm of the gradient.
        graphed: keep the learning rate in a tensor, which a CUDA graph reads again at each replay.

    Attributes:
        size: the number of weights.
        current_lr: the learning rate of the next step.
    """

    def __init__(
        self,
        parameters: Sequence[nn.Parameter],
        # A fused optimizer: it needs one kernel for all weights, and only fused ones skip a step by `found_inf`.
        optimizer: torch.optim.Optimizer,
        max_grad_norm: float | None,
        *,
        graphed: bool = False,
    ) -> None:
        self.parameters = parameters
        self.optimizer = optimizer
        self.max_grad_norm = max_grad_norm
        self.lr = self.current_lr = float(optimizer.param_groups[0]["lr"])
        self.sizes = [parameter.numel() for parameter in self.parameters]
        self.size = sum(self.sizes)
        self._lr = torch.full((), self.lr, device=self.parameters[0].device) if graphed else None
        self._set_lr(self.lr)

    def step(self, gradient: Tensor, skip_step: Tensor) -> Tensor:
        """Take one optimizer step unless `skip_step`, and return the gradient norm.

        Args:
            gradient: the flat gradient.
            skip_step: 1 on the device to take no step, otherwise 0; the host does not wait for it.
        """
        norm = gradient.norm()
        if self.max_grad_norm is not None:
            # A factor of 1 below the limit; an `if` would make the host wait for the norm.
            gradient = gradient * (self.max_grad_norm / norm.clamp(min=self.max_grad_norm))
        # Views of the summed vector: nothing is copied back.
        for parameter, part in zip(self.parameters, gradient.split(self.sizes), strict=True):
            parameter.grad = part.view_as(parameter)
        # Fused optimizers skip the step on the device if this flag is set. Gradient scaling of mixed precision uses it.
        self.optimizer.found_inf = skip_step  # type: ignore[attr-defined]
        with self._capturable():
            self.optimizer.step()
        self.optimizer.zero_grad()
        return norm

    def set_lr_share(self, share: float) -> None:
        """Set the learning rate to a share of the configured value."""
        self._set_lr(self.lr * share)

    def _set_lr(self, lr: float) -> None:
        self.current_lr = lr
        if self._lr is not None:
            self._lr.fill_(self.current_lr)
        for group in self.optimizer.param_groups:
            group["lr"] = self.current_lr if self._lr is None else self._lr

    def state_dict(self) -> dict[str, Any]:
        """Return the optimizer's state, with the learning rate as a number."""
        state = self.optimizer.state_dict()
        # A tensor would tie the file to a device, and a run may continue without graphs.
        return state | {"param_groups": [group | {"lr": self.current_lr} for group in state["param_groups"]]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load a saved state. The tensors of the state are replaced: graphs that hold them must be released."""
        self.optimizer.load_state_dict(state)
        self._set_lr(float(state["param_groups"][0]["lr"]))

    @contextmanager
    def _capturable(self) -> Iterator[None]:
        """Set Adam's flag `capturable` during a capture, which requires it. Otherwise Adam warns about the flag."""
        groups = [group for group in self.optimizer.param_groups if "capturable" in group]
        capturing = self._lr is not None and self._lr.is_cuda and torch.cuda.is_current_stream_capturing()
        for group in groups:
            group["capturable"] = capturing
        yield
        for group in groups:
            group["capturable"] = False


def build_optimizers(
    settings: config.Optimizer, modules: Mapping[str, nn.Module], *, frozen: Sequence[str] = (), graphed: bool = False
) -> dict[str, NetworkOptimizer]:
    """Return one optimizer for each of the modules generator, critic, multiplicity, discrete and smooth.

    Networks in `frozen` have a learning rate of 0, which changes no bit of a weight.
    """
    rates = {
        "generator": settings.lr if settings.generator_lr is None else settings.generator_lr,
        "critic": settings.lr if settings.critic_lr is None else settings.critic_lr,
    }
    rates |= dict.fromkeys(LIKELIHOODS, settings.multiplicity_lr) | dict.fromkeys(frozen, 0.0)
    networks = {}
    for name, module in modules.items():
        parameters = list(module.parameters())
        optimizer: torch.optim.Optimizer
        # A likelihood is an ordinary loss without an opponent, so Adam's defaults fit, whichever optimizer the GAN has.
        if name in LIKELIHOODS:
            optimizer = Adam(parameters, rates[name], fused=True)
        elif settings.kind == "sgd":
            optimizer = SGD(parameters, rates[name], momentum=settings.momentum, fused=True)
        else:
            optimizer = Adam(parameters, rates[name], betas=settings.betas, fused=True)
        networks[name] = NetworkOptimizer(parameters, optimizer, settings.max_grad_norm, graphed=graphed)
    return networks


def lr_share(settings: config.Optimizer, step: int, progress: float) -> float:
    """Return the learning rate at a step, as a share of the configured value.

    Args:
        settings: warm-up and decay.
        step: number of steps done; the warm-up depends on it.
        progress: share of the run that is done; the decay depends on it.
    """
    # step + 1, so that the first step learns.
    warm = min(1.0, (step + 1) / settings.warmup_steps) if settings.warmup_steps else 1.0
    # The decay depends on the share that is done and not on steps, so that a run limited in time decays to the end too.
    left = {"none": 1.0, "linear": 1 - progress, "cosine": (1 + math.cos(math.pi * progress)) / 2}[settings.decay]
    return warm * (settings.final_lr_share + (1 - settings.final_lr_share) * left)


def all_reduce_gradients(
    gradients: Sequence[Tensor],
    totals: Mapping[str, WeightedSum],
    fault: FirstFault,
    exchange: Callable[[Tensor], Tensor] = distributed.sum_over_ranks,
) -> tuple[Tensor, Tensor]:
    """Sum gradients and totals over all ranks, in one all-reduce, and mark a non-finite number.

    The gradient of a rank is a sum over its events, and so is the result. Ranks may have different numbers of events,
    or none. `exchange` sums a buffer over all ranks in place.

    Returns:
        The summed gradients as one vector, and the summed totals [totals, 2], each with its number of events.
    """
    numbers = [number[None] for total in totals.values() for number in (total.total, total.events)]
    # Metrics and faults travel with the gradients in one exchange per update, because a small step mostly waits for its
    # latency.
    values = torch.cat([*(gradient.flatten() for gradient in gradients), *numbers])
    if (world := distributed.world_size()) > 1:
        # One slot for each rank, which only that rank fills. A NaN of one rank makes the sums on all ranks NaN. The
        # slots hold only 0 or 1, so they still show which rank had the NaN.
        faults = values.new_zeros(world)
        fault.mark(values, faults[distributed.rank()])
        values, faults = exchange(torch.cat([values, faults])).split([len(values), world])
        fault.blame(faults)
    fault.mark(values)  # The sums are checked too, because a sum of finite numbers can overflow.
    summed, sums = values.split([len(values) - len(numbers), len(numbers)])
    return summed, sums.view(-1, 2)
