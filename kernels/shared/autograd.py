"""Helpers for every `torch.autograd.Function` and vmap rule of this package."""

import inspect
from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

import torch
from torch import Tensor

Gradients = tuple[Tensor | None, ...]
Forward = TypeVar("Forward", bound=Callable[..., Any])


def cache_signature(forward: Forward) -> Forward:
    """Store the signature of a forward pass on it. Otherwise `apply` inspects it in every call, in 10 to 30 us."""
    forward.__signature__ = inspect.signature(forward)  # type: ignore[attr-defined]
    return forward


def refuse_second_derivative(backward: Callable[..., Gradients]) -> Callable[..., Gradients]:
    """Turn `backward(ctx, saved_tensors, *gradients)` into a backward pass whose own derivative raises an error.

    torch's `once_differentiable` raises only if an incoming gradient requires a gradient. The gradient of a plain sum
    does not, and a second derivative is then silently zero. Here the results also depend on the saved tensors. Save
    for each input either the input or a differentiable output, so that every second derivative is noticed.
    """

    @wraps(backward)
    def wrapped(ctx: Any, *gradients: Tensor | None) -> Gradients:
        saved = ctx.saved_tensors  # read once: a checkpoint unpacks them once only
        if not torch.is_grad_enabled():
            return backward(ctx, saved, *gradients)
        with torch.no_grad():
            results = backward(ctx, saved, *gradients)
        if torch.compiler.is_compiling():  # the compiler cannot trace the rest
            return results
        sources = [x for x in (*gradients, *saved) if x is not None]
        return tuple(None if result is None else _RefuseBackward.apply(result, *sources) for result in results)

    return wrapped


class _RefuseBackward(torch.autograd.Function):
    """Return the first argument. Its derivative with respect to any argument raises an error."""

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
            "kernels: a second derivative was asked for, and backends 'numba' and 'triton' have the first alone:"
            " choose backend='eager'."
        )


def without_rules(
    function: type[torch.autograd.Function], forward: Callable[..., Any]
) -> type[torch.autograd.Function]:
    """Return an autograd function without the rules of torch.func and the compiler, for calls that are plain.

    It evaluates `forward`, and otherwise does as `function`. The rules take as long as a small kernel.
    """

    class Plain(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *inputs: Any) -> Any:
            output = forward(*inputs)
            function.setup_context(ctx, inputs, output)
            return output

        backward = function.backward

    return Plain


def is_plain(*tensors: Tensor | None) -> bool:
    """Return whether autograd alone looks at a call: no compiler, no torch.func, no mode, no special tensor."""
    return not (
        torch.compiler.is_compiling()
        or torch._C._are_functorch_transforms_active()
        or torch._C._len_torch_dispatch_stack()
        or torch._C._is_torch_function_mode_enabled()
        or any(map(_is_special, tensors))
    )


def _is_special(x: Tensor | None) -> bool:
    """Return whether the numbers of a tensor are not those in its memory: a subclass, a lazy sign, zeros, a batch."""
    return x is not None and (
        type(x) not in (Tensor, torch.nn.Parameter)
        or x.is_neg()
        or x._is_zerotensor()
        or torch._C._functorch.is_legacy_batchedtensor(x)
    )


def move_to_front(x: Tensor, dim: int | None, size: int) -> Tensor:
    """Return x with its vmapped axis in front, or expanded to `size` members if it has none."""
    return x.expand(size, *x.shape) if dim is None else x.movedim(dim, 0)
