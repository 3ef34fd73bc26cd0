"""Weights of a network by name, for hand-written gradients."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn


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
        """Convert a network's weights to a dtype, all at once: on a GPU, each of thirty casts would take the same time."""
        named = dict(network.named_parameters())
        if all(parameter.dtype == dtype for parameter in named.values()):
            return cls(named)
        parts = torch.cat([parameter.flatten() for parameter in named.values()]).to(dtype)
        sizes = [parameter.numel() for parameter in named.values()]
        # Views of one tensor: nothing is copied again.
        pairs = zip(named.items(), parts.split(sizes), strict=True)
        return cls({name: part.view_as(parameter) for (name, parameter), part in pairs})

    def __getitem__(self, name: str) -> Tensor:
        return self.named[self.prefix + name]

    def submodule(self, name: str) -> "Weights":
        """Return the weights of a submodule, by their names in it."""
        return Weights(self.named, f"{self.prefix}{name}.")
