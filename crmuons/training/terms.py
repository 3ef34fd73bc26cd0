"""Sums and means of per-event losses and metrics. The dummy events of a padded batch have weight 0."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from crmuons.training.batch import TrainingBatch

# Name of a loss or metric -> its value for each event. A network NAME is trained on "NAME_loss".
LossTerms = dict[str, Tensor]


@dataclass
class WeightedSum:
    """A quantity summed over events, of one rank or of all."""

    total: Tensor
    events: Tensor


def weights_of(network: str, losses: Tensor, batch: TrainingBatch) -> Tensor:
    """Return the weights of a network's losses over the events of a batch: the gradient of the sum that it minimises."""
    # The gradient of a sum, not of a mean: gradients of several batches and ranks can be added, and are divided once by
    # the number of all events.
    if network != "multiplicity":
        return batch.weights
    # The multiplicity model weights all events equally. Dummy events of a padded batch have weight 0, as in `weights`.
    return torch.ones_like(losses) if batch.real is None else batch.real.all.is_real.to(losses.dtype)


def spread_penalties(penalties: Tensor, num_events: int, batch: TrainingBatch) -> Tensor:
    """Return penalties of all events: the first ones scaled so that the sum is right for all, the others zero."""
    if batch.real is None:
        # The first events stand for all: the batch is shuffled, so the scaled sum has the right mean.
        scaled = penalties * (num_events / max(1, len(penalties)))
    else:
        penalised = batch.real.penalised
        # The same ratio, but of the numbers of real events, which are tensors in a padded batch.
        scaled = penalties * (penalised.is_real * (batch.real.nonempty.number / penalised.number.clamp(min=1)))
    return nn.functional.pad(scaled, (0, num_events - len(penalties)))


def accumulate(totals: dict[str, WeightedSum], terms: LossTerms, batch: TrainingBatch) -> None:
    """Add the terms of a batch, summed over its events, to totals."""
    for name, term in terms.items():
        values, real = term.detach(), batch.real_events_of(name)
        # A step without a penalty has a term of no values; NaN, its mean, is left out of the metrics.
        if real is None or not len(values):
            total, events = values.sum().float(), values.new_full((), len(values), dtype=torch.float32)
        elif values.dtype == torch.float32:
            # One kernel instead of a product and a sum.
            total, events = values @ real.is_real, real.number
        else:
            total, events = (values * real.is_real).sum().float(), real.number
        if name in totals:
            total, events = total + totals[name].total, events + totals[name].events
        totals[name] = WeightedSum(total, events)
