"""Record where the first NaN or infinity of a run occurred. The record stays on the device, so that no step waits."""

import torch
from torch import Tensor


class FirstFault:
    """Step and rank of the first fault. Later steps do not change them, because they are read only at log steps.

    Attributes:
        found: 0 before the first fault, and 1 afterwards. Fused optimizers take no step while it is 1.
    """

    def __init__(self, device: torch.device) -> None:
        self.found, self._one = torch.zeros((), device=device), torch.ones((), device=device)
        self._step, self._rank = (torch.zeros((), dtype=torch.int64, device=device) for _ in range(2))

    def begin_step(self, step: int) -> None:
        """Record the step that begins, unless a fault was found before."""
        self._step.masked_fill_(self.found == 0, step)

    def blame(self, faults: Tensor) -> None:
        """Record the rank of a fault that `mark` will find next. `faults` is 1 for each rank that sent one [ranks]."""
        # If a sum of finite numbers overflows, `faults` is 0 for all ranks, and rank 0 is recorded.
        self._rank.copy_(torch.where(self.found > 0, self._rank, faults.argmax()))

    def mark(self, values: Tensor, place: Tensor | None = None) -> None:
        """Set `found`, or another place, to 1 if a value is NaN or infinite. Otherwise leave it as it is."""
        found = self.found if place is None else place
        # Gradient scaling's check is one kernel; isfinite and all take eight. It also multiplies the values, here by 1.
        torch._amp_foreach_non_finite_check_and_unscale_([values], found, self._one)

    def place(self) -> tuple[int, int] | None:
        """Return step and rank of the first fault; None if there was none. The host waits for the device."""
        return (int(self._step), int(self._rank)) if self.found else None  # device sync
