"""Find out why a loss or a gradient was NaN or infinite: damaged weights, data out of range, or a step too large."""

import torch

from crmuons.training.packed import PackedBatch
from crmuons.training.trainer import PreparedBatch, Trainer

# Features are standardised: 99.99 % of the values lie within 10, and far beyond this float32 overflows in a penalty.
MAX_FEATURE = 1e4


def cause_of_nonfinite(trainer: Trainer, batch: PreparedBatch | None, first_step: int) -> str:
    """Return the most likely cause and its remedy, in a sentence.

    Args:
        trainer: the training step, after its failure; no optimizer has used the bad gradient.
        batch: the last batch of the step.
        first_step: number of steps done when this attempt began; 0 for a new run.
    """
    weights = {
        **trainer.model.state_dict(),
        **{f"averaged.{k}": v for k, v in trainer.averaged.state_dict().items()},
        **{f"critic.{k}": v for k, v in trainer.critic.state_dict().items()},
    }
    bad = [name for name, value in weights.items() if value.is_floating_point() and not torch.isfinite(value).all()]
    if bad:
        place = trainer.fault.place()
        if first_step and place is not None and place[0] == first_step:  # No step has changed the weights since.
            return (
                f"The checkpoint of step {first_step} holds NaN or infinity ({bad[0]}): remove its directory, and "
                "run.resume=auto continues from the checkpoint before it"
            )
        return f"The weights themselves are NaN or infinite ({bad[0]}). Try a lower train.optimizer.lr"
    if batch is not None and (largest := _largest_feature(trainer, batch)) is not None:
        return (
            f"The data are the likely cause: a value of the last batch is {largest:.3g} standard deviations from the mean. "
            "`crmuons inspect` shows the ranges of the data; remove such events"
        )
    return "Try a lower train.optimizer.lr, or train.optimizer.max_grad_norm"


def _largest_feature(trainer: Trainer, batch: PreparedBatch) -> float | None:
    """Return the largest feature of a batch if it exceeds MAX_FEATURE, None otherwise."""
    features = trainer.model.features
    primaries, muons = batch.values() if isinstance(batch, PackedBatch) else (batch.primaries, batch.muons)
    primaries, muons = primaries.to(trainer.device), muons.to(trainer.device)
    values = torch.cat([features.columns(muons).flatten(), features.condition(primaries).flatten()]).abs()
    largest = float(values.nan_to_num(nan=torch.inf).max()) if len(values) else 0.0
    return largest if largest > MAX_FEATURE else None
