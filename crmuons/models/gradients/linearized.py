"""Parts of hand-written gradients: weights by name, and LeakyReLU with the slopes of an earlier forward pass."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from crmuons.models.standalone import SLOPE


class Weights:
    """Weights of a network by name, all in one dtype.

    Args:
        named: all weights of the network.
        prefix: name of a submodule and a dot; keys are relative to it.
    """

    def __init__(self, named: Mapping[str, Tensor], prefix: str = "") -> None:
        self.named, self.prefix = named, prefix

    @classmethod
    def from_network(cls, network: nn.Module, dtype: torch.dtype) -> "Weights":
        """Convert a network's weights to a dtype: all at once, since each of thirty casts would cost a GPU as much."""
        named = dict(network.named_parameters())
        if all(parameter.dtype == dtype for parameter in named.values()):
            return cls(named)
        parts = torch.cat([parameter.flatten() for parameter in named.values()]).to(dtype)
        sizes = [parameter.numel() for parameter in named.values()]
        pairs = zip(named.items(), parts.split(sizes), strict=True)
        return cls({name: part.view_as(parameter) for (name, parameter), part in pairs})

    def __getitem__(self, name: str) -> Tensor:
        return self.named[self.prefix + name]

    def submodule(self, name: str) -> "Weights":
        """Return the weights of a submodule, by their names in it."""
        return Weights(self.named, f"{self.prefix}{name}.")


def leaky_relu_grad(values: Tensor, activation: Tensor) -> Tensor:
    """Multiply by LeakyReLU's slope, given its output `activation`, which has the sign of its input."""
    result: Tensor = torch.ops.aten.leaky_relu_backward(values, activation, SLOPE, True)
    return result


def leaky_relu_grad_(values: Tensor, activation: Tensor) -> Tensor:
    """Do the same as `leaky_relu_grad`, in place."""
    torch.ops.aten.leaky_relu_backward.grad_input(values, activation, SLOPE, True, grad_input=values)
    return values
