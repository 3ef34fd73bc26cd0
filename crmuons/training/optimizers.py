"""Moving networks: optimizers, learning rates, and the exchange of gradients between ranks."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from crmuons import config
from crmuons.training import distributed


class NetworkOptimizer:
    """A module and the optimizer that moves it by one flat gradient."""

    def __init__(self, module: nn.Module, optimizer: torch.optim.Optimizer, max_grad_norm: float | None) -> None:
        self.parameters = list(module.parameters())
        self.optimizer = optimizer
        self.max_grad_norm = max_grad_norm
        self.lr = float(optimizer.param_groups[0]["lr"])
        self.sizes = [parameter.numel() for parameter in self.parameters]

    def pop_flat_gradient(self) -> Tensor:
        """The accumulated gradient as one vector; zero where no event of this rank contributed."""
        parts = [torch.zeros_like(p) if p.grad is None else p.grad for p in self.parameters]
        self.optimizer.zero_grad()
        return torch.cat([part.flatten() for part in parts])

    def step(self, gradient: Tensor, frozen: Tensor) -> Tensor:
        """Take one optimizer step, unless `frozen` (on the device, so that nothing waits for it); returns the norm."""
        norm = gradient.norm()
        if self.max_grad_norm is not None:
            gradient = gradient * (self.max_grad_norm / norm.clamp(min=self.max_grad_norm))
        for parameter, part in zip(self.parameters, gradient.split(self.sizes), strict=True):
            parameter.grad = part.view_as(parameter)
        # Fused optimizers skip the step on the device where this flag is set (it is how gradient scaling does it).
        self.optimizer.found_inf = frozen.float()  # type: ignore[attr-defined]
        self.optimizer.step()
        self.optimizer.zero_grad()
        return norm

    def set_lr_share(self, share: float) -> None:
        """Set the learning rate to a share of the configured one."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr * share


def build_optimizers(settings: config.Optimizer, modules: Mapping[str, nn.Module]) -> dict[str, NetworkOptimizer]:
    """One Network for each of generator, critic and multiplicity."""
    rates = {
        "generator": settings.lr if settings.generator_lr is None else settings.generator_lr,
        "critic": settings.lr if settings.critic_lr is None else settings.critic_lr,
    }
    networks = {}
    for name, module in modules.items():
        parameters = list(module.parameters())
        optimizer: torch.optim.Optimizer
        if name == "multiplicity":
            optimizer = torch.optim.Adam(parameters, settings.multiplicity_lr, fused=True)
        elif settings.kind == "sgd":
            optimizer = torch.optim.SGD(parameters, rates[name], momentum=settings.momentum, fused=True)
        else:
            optimizer = torch.optim.Adam(parameters, rates[name], betas=settings.betas, fused=True)
        networks[name] = NetworkOptimizer(module, optimizer, settings.max_grad_norm)
    return networks


def lr_share(settings: config.Optimizer, step: int, progress: float) -> float:
    """The learning rate at a step, as a share of the highest.

    Args:
        settings: warm-up and decay.
        step: steps done, which the warm-up counts.
        progress: share of the run that is done, which the decay follows.
    """
    warm = min(1.0, (step + 1) / settings.warmup_steps) if settings.warmup_steps else 1.0
    left = {"none": 1.0, "linear": 1 - progress, "cosine": (1 + math.cos(math.pi * progress)) / 2}[settings.decay]
    return warm * (settings.final_lr_share + (1 - settings.final_lr_share) * left)


@dataclass
class WeightedSum:
    """A quantity summed over events: of one rank, or after the exchange of all."""

    total: Tensor
    events: Tensor

    @property
    def mean(self) -> Tensor:
        """NaN where no event contributed."""
        return self.total / self.events


def all_reduce_gradients(
    networks: Sequence[NetworkOptimizer], totals: Mapping[str, WeightedSum]
) -> tuple[list[Tensor], dict[str, WeightedSum], Tensor]:
    """Add up gradients and totals over all ranks, in one all-reduce.

    A rank's gradient is a sum over its events, and so is the result: ranks may hold unequal numbers of events, or none.

    Returns:
        The gradient sums, the totals, and for each rank a number above 0, highest for a rank that sent what is not finite.
    """
    gradients = [network.pop_flat_gradient() for network in networks]
    pairs = [torch.stack([total.total, total.events]) for total in totals.values()]
    local = torch.cat([*gradients, *pairs])
    faults = local.new_zeros(distributed.world_size())
    faults[distributed.rank()] = (~torch.isfinite(local)).any().float()
    buffer = distributed.sum_over_ranks(torch.cat([local, faults]))
    sizes = [len(gradient) for gradient in gradients] + [2] * len(pairs) + [len(faults)]
    *parts, faults = buffer.split(sizes)
    # Sums of finite numbers can overflow: then no rank is to blame, and all are named.
    faults = faults + (~torch.isfinite(buffer[: len(local)])).any()
    summed = {name: WeightedSum(*part.unbind()) for name, part in zip(totals, parts[len(gradients) :], strict=True)}
    return parts[: len(gradients)], summed, faults
