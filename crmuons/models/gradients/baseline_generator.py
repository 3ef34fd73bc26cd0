"""The baseline generator without gradients, as the critic's updates need it: the layers around its normalisation in one product.

With x the hidden numbers and 1, the context is z = W x, and LayerNorm makes of it g (z - mean z) / sqrt(|z - mean z|^2 / 256 + eps) + b.
Both the centred z, which the first layer of the muons multiplies again, and its norm are linear in x: V g C x and |C x| = |R x|, C being
W with centred columns and C = Q R. So one product [events x 128] by [128 x 257] takes the place of two by 128 x 256.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, relu_

from crmuons.models.networks import PredecessorGenerator
from crmuons.models.ragged import Ragged


def draw(generator: PredecessorGenerator, given: Tensor, muon_noise: Tensor, ragged: Ragged) -> Tensor:
    """The muon features that the generator makes.

    Args:
        generator: its weights.
        given: condition and noise of the showers [events, 37].
        muon_noise: noise of the muons [muons, 16].
        ragged: which muon belongs to which event.
    """
    wide, norm = generator.context[2], generator.context[3]
    assert isinstance(wide, nn.Linear)
    assert isinstance(norm, nn.LayerNorm)
    weight, bias = generator.local[0].parameters()
    of_context, of_noise = weight.split([len(norm.weight), muon_noise.shape[1]], dim=1)
    rows = linear(relu_(generator.context[:1](given)), *_both(wide, norm, of_context))
    rows, centred = rows.tensor_split([len(of_noise)], dim=1)
    scale = torch.rsqrt(centred.square().sum(dim=1, keepdim=True) / len(norm.weight) + norm.eps)
    rows = rows * scale + linear(norm.bias, of_context, bias)
    hidden = relu_(ragged.broadcast(rows) + linear(muon_noise, of_noise))
    hidden = relu_(generator.local[2](hidden))
    result: Tensor = generator.local[4](hidden)
    return result


def _both(wide: nn.Linear, norm: nn.LayerNorm, of_context: Tensor) -> tuple[Tensor, Tensor]:
    """V g C and R below each other, as weight and bias."""
    with torch.autocast(wide.weight.device.type, enabled=False):
        columns = torch.cat([wide.weight, wide.bias[:, None]], dim=1)
        centred = columns - columns.mean(dim=0)
        both = torch.cat([(of_context * norm.weight) @ centred, torch.linalg.qr(centred, mode="r").R])
    return both[:, :-1], both[:, -1]
