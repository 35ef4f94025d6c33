"""mmd2 tile by tile in plain PyTorch: memory O((N + M) K), never N x M, and every pair of rows visited once.

With p the rows of x and y together and W_ij the weight of a pair (1 / N^2 or 1 / N(N-1) within x, -1 / NM across),

    MMD^2 = sum_ij W_ij k(d_ij^2),    dMMD^2 / dp_i = 4 sum_j W_ij k'(d_ij^2) (p_i - p_j).

One pass gives both, so the gradient of the scalar is formed together with its value.
"""

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from . import operators
from .eager import accumulator

# Measured: matrix products reach their full speed at this size, and three such tiles stay in a cache of 4 MiB.
_SIDE = 512


def mmd2(x: Tensor, y: Tensor, kernel: str, bandwidths: tuple[float, ...], estimator: str) -> Tensor:
    """E k(x, x') + E k(y, y') - 2 E k(x, y)."""
    value: Tensor = _MMD2.apply(x, y, kernel, bandwidths, estimator, x.requires_grad, y.requires_grad)[0]
    return value


class _MMD2(torch.autograd.Function):
    """The value and its gradients to x and to y, each empty where it is not needed."""

    generate_vmap_rule = True

    @staticmethod
    def forward(*inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
        outputs: tuple[Tensor, Tensor, Tensor] = _operator(*inputs)
        return outputs

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
        _, dx, dy = output
        ctx.dtype = inputs[0].dtype
        ctx.mark_non_differentiable(dx, dy)
        ctx.save_for_backward(dx, dy)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        dx, dy = ctx.saved_tensors
        x_needed, y_needed, *_ = ctx.needs_input_grad
        grad_x = (g * dx).to(ctx.dtype) if x_needed else None
        grad_y = (g * dy).to(ctx.dtype) if y_needed else None
        return grad_x, grad_y, None, None, None, None, None


def _evaluate(
    x: Tensor, y: Tensor, kernel: str, bandwidths: list[float], estimator: str, x_needed: bool, y_needed: bool
) -> tuple[Tensor, Tensor, Tensor]:
    N, M, alone = x.shape[0], y.shape[0], estimator == "u"
    p = torch.cat((x, y)).to(accumulator(x))
    p = p - centre(p)
    left, right_T = _factors(p)
    pairs = (N * (N - alone), N * M, M * (M - alone))
    sums = p.new_zeros(3, dtype=torch.float64)
    repulsion, attraction = p.new_zeros(N + M, 1), torch.zeros_like(p)
    buffers = [p.new_empty(_SIDE * _SIDE) for _ in range(3)]
    for I, J, kind in _tiles(N, M):
        n, m = I.stop - I.start, J.stop - J.start
        d2, k, slope = (buffer[: n * m].view(n, m) for buffer in buffers)
        torch.mm(left[I], right_T[:, J], out=d2).clamp_min_(0)
        if I == J:
            d2.fill_diagonal_(0)
        total = _sum_kernel(d2, kernel, bandwidths, k, slope, without_diagonal=alone and I == J)
        if I == J:
            slope.fill_diagonal_(0)  # its two terms below cancel, but only to the rounding of the largest k
        sums[kind].add_(total, alpha=1 if kind == 1 or I == J else 2)
        weight = (-4 if kind == 1 else 4) / pairs[kind]
        if x_needed if kind < 2 else y_needed:
            repulsion[I].add_(slope.sum(1, keepdim=True), alpha=weight)
            attraction[I].addmm_(slope, p[J], alpha=weight)
        if I != J and (x_needed if kind < 1 else y_needed):
            repulsion[J].add_(slope.sum(0)[:, None], alpha=weight)
            attraction[J].addmm_(slope.T, p[I], alpha=weight)
    within_x, across, within_y = (total / count for total, count in zip(sums, pairs, strict=True))
    dx, dy = (repulsion * p - attraction).split((N, M))
    value = (within_x + within_y - 2 * across).to(p.dtype)
    return value, dx.clone() if x_needed else dx.new_empty(0), dy.clone() if y_needed else dy.new_empty(0)


def centre(p: Tensor) -> Tensor:
    """Return a point amid the rows, near which their distances round least: a median, since far rows shift a mean.

    By sorting, since torch's own median has no deterministic version on a GPU.
    """
    some = p[:: max(1, p.shape[0] // 256)]
    return some.sort(0).values[some.shape[0] // 2]


def _factors(p: Tensor) -> tuple[Tensor, Tensor]:
    """Return two matrices whose product is |p_i|^2 + |p_j|^2 - 2 p_i . p_j, the squared distances."""
    square, one = p.square().sum(1, keepdim=True), p.new_ones(p.shape[0], 1)
    return torch.cat((p, square, one), 1), torch.cat((-2 * p, one, square), 1).T


def _tiles(N: int, M: int) -> Iterator[tuple[slice, slice, int]]:
    """Yield each pair of blocks of rows once; kind 0 lies within x, 1 across, 2 within y."""
    blocks = [(slice(i, min(i + _SIDE, N)), 0) for i in range(0, N, _SIDE)]
    blocks += [(slice(i, min(i + _SIDE, N + M)), 1) for i in range(N, N + M, _SIDE)]
    for first, (I, of_y) in enumerate(blocks):
        for J, also_of_y in blocks[first:]:
            yield I, J, of_y + also_of_y


def _sum_kernel(
    d2: Tensor, kernel: str, bandwidths: list[float], k: Tensor, slope: Tensor, without_diagonal: bool
) -> Tensor:
    """Return the sum of k over a tile of squared distances and leave dk / dd^2 in `slope`; `k` is working space."""
    total = d2.new_zeros(())
    slope.zero_()
    for c in bandwidths:
        if kernel == "rbf":
            torch.mul(d2, -1 / (c * math.log(2)), out=k).exp2_()
            slope.sub_(k, alpha=1 / (c * len(bandwidths)))
        else:
            torch.add(d2, c, out=k).reciprocal_().mul_(c)
            slope.addcmul_(k, k, value=-1 / (c * len(bandwidths)))
        total += k.sum() - k.diagonal().sum() if without_diagonal else k.sum()
    return total / len(bandwidths)


def _fake(
    x: Tensor, y: Tensor, kernel: str, bandwidths: list[float], estimator: str, x_needed: bool, y_needed: bool
) -> tuple[Tensor, Tensor, Tensor]:
    value = x.new_empty((), dtype=accumulator(x))
    return value, value.new_empty(x.shape if x_needed else 0), value.new_empty(y.shape if y_needed else 0)


_operator = operators.define(
    "analytic_mmd2(Tensor x, Tensor y, str kernel, float[] bandwidths, str estimator, bool x_needed, bool y_needed)"
    " -> (Tensor, Tensor, Tensor)",
    _evaluate,
    _fake,
)
