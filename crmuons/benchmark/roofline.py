"""The time of a computation if every operation ran at the machine's limit."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import addmm_flop, flop_registry

FORMULAS = {**flop_registry, torch.ops.aten.addmm_: addmm_flop}


@dataclass(frozen=True)
class StepWork:
    """The work of one call.

    Attributes:
        flops: floating-point operations of matrix products.
        bytes: bytes read and written by all operations, counted as if nothing stayed in a cache.
    """

    flops: int
    bytes: int

    def seconds(self, flops_per_second: float, bytes_per_second: float) -> float:
        """Return the time for the arithmetic or for the memory traffic, whichever is longer."""
        return max(self.flops / flops_per_second, self.bytes / bytes_per_second)


def work(run: Callable[[], object]) -> StepWork:
    """Count the work of a call."""
    with _Counter() as counter:
        run()
    return StepWork(counter.flops, counter.bytes)


class _Counter(TorchDispatchMode):
    """Sum of the operations' arithmetic, by torch's own formulas, and of their tensors' bytes. Views move no bytes."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.flops = self.bytes = 0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # Torch would import torch._dynamo to keep the method from a compiler: 1.8 CPU-seconds.

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        formula = FORMULAS.get(func.overloadpacket)
        if formula is not None:
            self.flops += formula(*args, **kwargs, out_val=result)
        if not func.is_view:
            self.bytes += sum(leaf.nbytes for leaf in tree_leaves((args, kwargs, result)) if torch.is_tensor(leaf))
        return result
