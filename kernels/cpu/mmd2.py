"""mmd2 on a CPU: the operator and autograd. One pass computes the value and the gradients that are needed."""

from array import array
from typing import Any

import torch
from torch import Tensor

from ..shared import torch_library
from ..shared.accumulate import accumulator
from ..shared.autograd import cache_signature, is_plain, move_to_front, refuse_second_derivative, without_rules
from ..shared.centre import MOST_ROWS, row_stride
from .blocks import KINDS, ZEROS, locate
from .mmd2_kernels import mmd2_kernel
from .mmd2_points import SIDE


def mmd2(x: Tensor, y: Tensor, kernel: str, bandwidths: tuple[float, ...], estimator: str) -> Tensor:
    """E k(x, x') + E k(y, y') - 2 E k(x, y). The gradients with respect to x and y are saved in their place."""
    if not torch.is_grad_enabled():
        x, y = x.detach(), y.detach()  # so that the forward pass computes no gradient
    function = _PlainMMD2 if is_plain(x, y) else _MMD2
    value: Tensor = function.apply(x, y, kernel, bandwidths, estimator, x.requires_grad, y.requires_grad)[0]
    return value


class _MMD2(torch.autograd.Function):
    """Return the value and its gradients with respect to x and y. A gradient that is not needed is empty."""

    @staticmethod
    @cache_signature
    def forward(  # no *inputs: the compiler of torch 2.11 cannot trace them
        x: Tensor,
        y: Tensor,
        kernel: str,
        bandwidths: tuple[float, ...],
        estimator: str,
        x_needed: bool,
        y_needed: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        outputs: tuple[Tensor, Tensor, Tensor] = _operator(x, y, kernel, bandwidths, estimator, x_needed, y_needed)
        return outputs

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
        _, dx, dy = output
        ctx.dtype = inputs[0].dtype
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(dx, dy)

    @staticmethod
    @refuse_second_derivative
    def backward(ctx: Any, saved: tuple[Tensor, ...], g: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
        gradients: list[Tensor | None] = [None, None]
        for place, (gradient, needed) in enumerate(zip(saved, ctx.needs_input_grad, strict=False)):
            if needed and g is not None:
                scaled = gradient * g
                gradients[place] = scaled if scaled.dtype == ctx.dtype else scaled.to(ctx.dtype)
        return *gradients, None, None, None, None, None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], x: Tensor, y: Tensor, *options: Any) -> tuple[Any, Any]:
        """Evaluate one member after another; each may have the axes of an inner vmap.

        Check again which gradients are needed, because inside vmap `requires_grad` is False.
        """
        *settings, x_needed, y_needed = options
        x, y = (move_to_front(z, dim, info.batch_size) for z, dim in zip((x, y), in_dims, strict=False))
        needed = x_needed or x.requires_grad, y_needed or y.requires_grad
        members = [_MMD2.apply(*pair, *settings, *needed) for pair in zip(x, y, strict=True)]
        return tuple(map(torch.stack, zip(*members, strict=True))), (0, 0, 0)


def _evaluate(
    x: Tensor, y: Tensor, kernel: str, bandwidths: list[float], estimator: str, x_needed: bool, y_needed: bool
) -> tuple[Tensor, Tensor, Tensor]:
    value, dx, dy = outputs = _fake(x, y, kernel, bandwidths, estimator, x_needed, y_needed)
    (N, K), M, c = x.shape, y.shape[0], array("d", bandwidths)
    rows, stride = (MOST_ROWS, row_stride(N + M)) if N + M > MOST_ROWS else (N + M, 1)
    mmd2_kernel(
        *(locate(x), locate(y)),
        *((N, M, K), KINDS[x.dtype], rows, stride),
        *(c.buffer_info()[0], len(c), kernel == "rbf", estimator == "u"),
        *(value.data_ptr(), dx.data_ptr() if x_needed else 0, dy.data_ptr() if y_needed else 0),
        ZEROS[value.dtype],
        most_threads=1 if N + M <= 2 * SIDE else 2**31,  # to start several takes as long as so few pairs
    )
    return outputs


def _fake(x: Tensor, y: Tensor, *options: Any) -> tuple[Tensor, Tensor, Tensor]:
    *_, x_needed, y_needed = options
    value = x.new_empty((), dtype=accumulator(x))
    return value, value.new_empty(x.shape if x_needed else 0), value.new_empty(y.shape if y_needed else 0)


_operator = torch_library.define(
    "numba_mmd2(Tensor x, Tensor y, str kernel, float[] bandwidths, str estimator, bool x_needed, bool y_needed)"
    " -> (Tensor, Tensor, Tensor)",
    _evaluate,
    _fake,
)
_PlainMMD2 = without_rules(_MMD2, _evaluate)
