"""The two halves of a tensor, joined again in the backward pass without a copy."""

from typing import Any

import torch
from torch import Tensor


def halves(h: Tensor, dim: int = -1) -> tuple[Tensor, Tensor]:
    """Return `h.chunk(2, dim)`, without a copy in the backward pass where both gradients lie side by side in memory.

    The fused kernel writes dmu and dlogvar into one buffer laid out like h; the backward of `chunk` would copy them.
    """
    if h.shape[dim] % 2:
        raise ValueError(f"h must have an even number of entries along dim {dim}, got {h.shape[dim]}.")
    # torch.func needs a setup_context, which makes every other call three times as slow (17 us to 57 us).
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        first, second = h.chunk(2, dim)
    else:
        first, second = _Halves.apply(h, dim)
    return first, second


class _Halves(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, h: Tensor, dim: int) -> tuple[Tensor, Tensor]:
        ctx.shape, ctx.dim = h.shape, dim
        first, second = h.chunk(2, dim)
        return first, second

    @staticmethod
    def backward(ctx: Any, first: Tensor, second: Tensor) -> tuple[Tensor, None]:
        # A view from `first` over the memory of `second` hides the latter from autograd and from second derivatives.
        view = None if torch.is_grad_enabled() else _view_of_both(first, second, ctx.shape, ctx.dim)
        return torch.cat([first, second], ctx.dim) if view is None else view, None


def _view_of_both(first: Tensor, second: Tensor, shape: torch.Size, dim: int) -> Tensor | None:
    """Return one tensor of this shape over the memory of its two halves, or None where they are not adjacent."""
    strides = torch.empty(shape, device="meta").stride()
    try:
        adjacent = (
            first.stride() == second.stride() == strides
            and first.untyped_storage().data_ptr() == second.untyped_storage().data_ptr()
            and second.storage_offset() - first.storage_offset() == strides[dim] * (shape[dim] // 2)
        )
    except NotImplementedError:  # batched gradients, as in torch.func.vmap, have no storage
        return None
    return first.as_strided(shape, strides) if adjacent else None
