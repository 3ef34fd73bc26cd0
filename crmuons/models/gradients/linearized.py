"""Parts of passes by hand: a network's weights by name, and LeakyReLUs whose slopes are frozen."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from crmuons.models.networks import SLOPE


class Weights:
    """A network's weights by name, in one dtype; those of a part of it by the names they have there."""

    def __init__(self, named: Mapping[str, Tensor], prefix: str = "") -> None:
        self.named, self.prefix = named, prefix

    @classmethod
    def of(cls, network: nn.Module, dtype: torch.dtype) -> "Weights":
        """Those of a network."""
        return cls({name: parameter.to(dtype) for name, parameter in network.named_parameters()})

    def __getitem__(self, name: str) -> Tensor:
        return self.named[self.prefix + name]

    def part(self, name: str) -> "Weights":
        """Those of the part of that name."""
        return Weights(self.named, f"{self.prefix}{name}.")


def leaky_relu_grad(values: Tensor, activation: Tensor) -> Tensor:
    """Times the slope that LeakyReLU had where it gave this activation."""
    result: Tensor = torch.ops.aten.leaky_relu_backward(values, activation, SLOPE, True)
    return result


def leaky_relu_grad_(values: Tensor, activation: Tensor) -> Tensor:
    """Likewise, in place."""
    torch.ops.aten.leaky_relu_backward.grad_input(values, activation, SLOPE, True, grad_input=values)
    return values
