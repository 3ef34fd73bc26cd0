"""Keep the first number of a run that is NaN or infinite. All of it stays on the device, so that no step waits."""

import torch
from torch import Tensor


class FirstFault:
    """Step and rank of the first fault. They stay, so that the error does not name the step in which they are read.

    Attributes:
        found: 1 from the first fault on, and 0 before. Fused optimizers take no step while it is 1.
    """

    def __init__(self, device: torch.device) -> None:
        self.found, self._one = torch.zeros((), device=device), torch.ones((), device=device)
        self._step, self._rank = (torch.zeros((), dtype=torch.int64, device=device) for _ in range(2))

    def begin_step(self, step: int) -> None:
        """Name the step of the faults to come."""
        self._step.masked_fill_(self.found == 0, step)

    def blame(self, faults: Tensor) -> None:
        """Name the rank of a fault that `mark` is about to find, given 1 for each rank that sent one [ranks]."""
        # 0 for all where a sum of finite numbers overflows: rank 0 then stands for all.
        self._rank.copy_(torch.where(self.found > 0, self._rank, faults.argmax()))

    def mark(self, values: Tensor, place: Tensor | None = None) -> None:
        """Set `found`, or another place, to 1 if a value is NaN or infinite, and else leave it."""
        found = self.found if place is None else place
        # One kernel, that of gradient scaling; isfinite and all take eight. It multiplies the values too, here by 1.
        torch._amp_foreach_non_finite_check_and_unscale_([values], found, self._one)

    def place(self) -> tuple[int, int] | None:
        """Return step and rank of the first fault; None if there was none. The host waits for the device."""
        return (int(self._step), int(self._rank)) if self.found else None  # device sync
