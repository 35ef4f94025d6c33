"""Evaluate a function without its intermediate results: backward computes them again from the inputs.

Unlike `torch.utils.checkpoint` it works under `torch.func.grad`, and its backward pass saves inputs alone, too. A
derivative of any order therefore needs no more memory at once than one evaluation. Forward-mode derivatives raise
torch's own error.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

Outputs = Tensor | tuple[Tensor, ...]


def recompute(function: Callable[..., Outputs], *tensors: Tensor) -> Any:
    """Return `function(*tensors)`; the function depends on no other tensor that needs a gradient, and draws nothing."""
    return _Recompute.apply(function, *tensors)


class _Recompute(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(function: Callable[..., Outputs], *tensors: Tensor) -> Outputs:
        with torch.autocast(tensors[0].device.type, enabled=False):  # backward may run outside that of forward
            return function(*tensors)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Outputs) -> None:
        ctx.function, *tensors = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        inputs = ctx.saved_tensors
        places = [place for place, needed in enumerate(ctx.needs_input_grad[1:]) if needed]
        found = recompute(partial(_pull_back, ctx.function, len(inputs), places), *inputs, *gradients)
        by_place = dict(zip(places, found, strict=True))
        return None, *(by_place.get(place) for place in range(len(inputs)))


def _pull_back(function: Callable[..., Outputs], count: int, places: list[int], *tensors: Tensor) -> tuple[Tensor, ...]:
    """Return the gradients of the inputs at some places: the first `count` tensors are the inputs, then upstream's."""
    inputs, gradients = list(tensors[:count]), tensors[count:]

    def of_wanted(*wanted: Tensor) -> Outputs:
        arguments = list(inputs)
        for place, tensor in zip(places, wanted, strict=True):
            arguments[place] = tensor
        return function(*arguments)

    linearised: Any = torch.func.vjp(of_wanted, *(inputs[place] for place in places))
    value, pull = linearised
    found: tuple[Tensor, ...] = pull(gradients if isinstance(value, tuple) else gradients[0])
    return found
