"""What every `torch.autograd.Function` here is made with."""

import inspect
from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

import torch
from torch import Tensor

Gradients = tuple[Tensor | None, ...]
Forward = TypeVar("Forward", bound=Callable[..., Any])


def inspected_once(forward: Forward) -> Forward:
    """Return the forward pass with its signature, which `apply` would work out anew in every call: 10 to 30 us."""
    forward.__signature__ = inspect.signature(forward)  # type: ignore[attr-defined]
    return forward


def first_order(backward: Callable[..., Gradients]) -> Callable[..., Gradients]:
    """Return the backward pass of a `torch.autograd.Function`, from what it saved, with a derivative that raises.

    `once_differentiable` of torch raises only where a gradient that comes in has a derivative itself; that of a plain
    sum has none, and a second derivative is then zero, silently. Here what was saved for backward has one: something
    that depends on each input must be saved, the input itself or an output that is not marked as non-differentiable.
    """

    @wraps(backward)
    def and_no_more(ctx: Any, *gradients: Tensor | None) -> Gradients:
        saved = ctx.saved_tensors  # once: under a checkpoint they are unpacked, and cannot be again
        with torch.no_grad():
            results = backward(ctx, saved, *gradients)
        if not torch.is_grad_enabled() or torch.compiler.is_compiling():  # the compiler cannot trace what follows
            return results
        sources = [x for x in (*gradients, *saved) if x is not None]
        return tuple(None if result is None else _Last.apply(result, *sources) for result in results)

    return and_no_more


class _Last(torch.autograd.Function):
    """The first argument, as if it depended on the others in a way that is not known."""

    generate_vmap_rule = True

    @staticmethod
    def forward(result: Tensor, *sources: Tensor) -> Tensor:
        return result.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Gradients:
        raise RuntimeError(
            "kernels: a second derivative was asked for, and backends 'analytic' and 'triton' have the first alone:"
            " choose backend='eager'."
        )
