"""Torch's optimizers without the import of its compiler."""

import inspect

import torch


class _Eager(torch.optim.Optimizer):
    """An optimizer that is never compiled.

    Torch decorates these methods for torch.compile. The first call of a decorated one imports torch._dynamo, which
    takes 1.8 CPU-seconds in each process that trains; nothing here is compiled.
    """

    add_param_group = inspect.unwrap(torch.optim.Optimizer.add_param_group)
    state_dict = inspect.unwrap(torch.optim.Optimizer.state_dict)
    load_state_dict = inspect.unwrap(torch.optim.Optimizer.load_state_dict)
    zero_grad = inspect.unwrap(torch.optim.Optimizer.zero_grad)


class Adam(_Eager, torch.optim.Adam):
    """Torch's Adam, never compiled."""

    step = torch.no_grad()(inspect.unwrap(torch.optim.Adam.step))


class SGD(_Eager, torch.optim.SGD):
    """Torch's SGD, never compiled."""

    step = torch.no_grad()(inspect.unwrap(torch.optim.SGD.step))
