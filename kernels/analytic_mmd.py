"""mmd2 tile by tile in plain PyTorch: memory O((N + M) K), never N x M, and every pair of rows visited once.

With p the rows of x and y together and W_ij the weight of a pair (1 / N^2 or 1 / N(N-1) within x, -1 / NM across),

    MMD^2 = sum_ij W_ij k(d_ij^2),    dMMD^2 / dp_i = 4 sum_j W_ij k'(d_ij^2) (p_i - p_j).

One pass gives both, so the gradient of the scalar is formed together with its value.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from . import operators
from .eager import accumulator

# Measured: matrix products reach their full speed at this size, and three such tiles stay in a cache of 4 MiB.
_SIDE = 512

# Measured: up to here the tiles of all members of vmap together are faster than those of one after another.
_SIDE_BY_SIDE = 2**20


def mmd2(x: Tensor, y: Tensor, kernel: str, bandwidths: tuple[float, ...], estimator: str) -> Tensor:
    """E k(x, x') + E k(y, y') - 2 E k(x, y)."""
    value: Tensor = _MMD2.apply(x, y, kernel, bandwidths, estimator, x.requires_grad, y.requires_grad)[0]
    return value


class _MMD2(torch.autograd.Function):
    """The value and its gradients to x and to y, each empty where it is not needed."""

    @staticmethod  # named one by one: the compiler of torch 2.11 cannot follow *inputs
    def forward(
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
        ctx.mark_non_differentiable(dx, dy)
        ctx.save_for_backward(dx, dy)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        dx, dy = ctx.saved_tensors
        x_needed, y_needed, *_ = ctx.needs_input_grad
        grad_x = (g[..., None, None] * dx).to(ctx.dtype) if x_needed else None
        grad_y = (g[..., None, None] * dy).to(ctx.dtype) if y_needed else None
        return grad_x, grad_y, None, None, None, None, None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], x: Tensor, y: Tensor, *options: Any) -> tuple[Any, Any]:
        """Evaluate small samples side by side, large ones one after another.

        Whether a gradient is needed is asked again: inside vmap a tensor does not know it.
        """
        V, (*settings, x_needed, y_needed) = info.batch_size, options
        x, y = (z.expand(V, *z.shape) if i is None else z.movedim(i, 0) for z, i in zip((x, y), in_dims, strict=False))
        needed = x_needed or x.requires_grad, y_needed or y.requires_grad
        if V * (x.shape[1] + y.shape[1]) ** 2 <= _SIDE_BY_SIDE:
            return _MMD2.apply(x, y, *settings, *needed), (0, 0, 0)
        members = [_MMD2.apply(one, other, *settings, *needed) for one, other in zip(x, y, strict=True)]
        return tuple(map(torch.stack, zip(*members, strict=True))), (0, 0, 0)


def _evaluate(
    x: Tensor, y: Tensor, kernel: str, bandwidths: list[float], estimator: str, x_needed: bool, y_needed: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Evaluate samples `(N, K)` and `(M, K)`, or V pairs of them, `(V, N, K)` and `(V, M, K)`, side by side."""
    N, M, alone = x.shape[-2], y.shape[-2], estimator == "u"
    p = torch.cat((x, y), -2).to(accumulator(x))
    p = p - centre(p)
    left, right_T = _factors(p)
    pairs = (N * (N - alone), N * M, M * (M - alone))
    batch = p.shape[:-2]
    add_product: Callable[..., Tensor] = torch.Tensor.baddbmm_ if batch else torch.Tensor.addmm_
    sums = p.new_zeros(3, *batch, dtype=torch.float64)
    repulsion, attraction = torch.zeros_like(p[..., :1]), torch.zeros_like(p)
    side = min(_SIDE, max(N, M))
    buffers = [p.new_empty(batch.numel() * side * side) for _ in range(3)]
    for I, J, kind in _tiles(N, M):
        n, m = I.stop - I.start, J.stop - J.start
        d2, k, slope = (buffer[: batch.numel() * n * m].view(*batch, n, m) for buffer in buffers)
        torch.matmul(left[..., I, :], right_T[..., J], out=d2).clamp_min_(0)
        if I == J:
            _diagonal(d2).zero_()
        total = _sum_kernel(d2, kernel, bandwidths, k, slope, without_diagonal=alone and I == J)
        if I == J:
            _diagonal(slope).zero_()  # its two terms below cancel, but only to the rounding of the largest k
        sums[kind].add_(total, alpha=1 if kind == 1 or I == J else 2)
        weight = (-4 if kind == 1 else 4) / pairs[kind]
        if x_needed if kind < 2 else y_needed:
            repulsion[..., I, :].add_(slope.sum(-1, keepdim=True), alpha=weight)
            add_product(attraction[..., I, :], slope, p[..., J, :], alpha=weight)
        if I != J and (x_needed if kind < 1 else y_needed):
            repulsion[..., J, :].add_(slope.sum(-2)[..., None], alpha=weight)
            add_product(attraction[..., J, :], slope.mT, p[..., I, :], alpha=weight)
    within_x, across, within_y = (total / count for total, count in zip(sums, pairs, strict=True))
    dx, dy = (repulsion * p - attraction).split((N, M), -2)
    value = (within_x + within_y - 2 * across).to(p.dtype)
    return value, dx.clone() if x_needed else dx.new_empty(0), dy.clone() if y_needed else dy.new_empty(0)


def centre(p: Tensor) -> Tensor:
    """Return a point amid the rows, `(..., N, K) -> (..., 1, K)`, near which their distances round least.

    A median, since far rows shift a mean; by sorting, since torch's own has no deterministic version on a GPU.
    """
    some = p[..., :: max(1, p.shape[-2] // 256), :]
    middle = some.shape[-2] // 2
    return some.sort(-2).values[..., middle : middle + 1, :]


def _factors(p: Tensor) -> tuple[Tensor, Tensor]:
    """Return two matrices whose product is |p_i|^2 + |p_j|^2 - 2 p_i . p_j, the squared distances."""
    square = p.square().sum(-1, keepdim=True)
    one = torch.ones_like(square)
    return torch.cat((p, square, one), -1), torch.cat((-2 * p, one, square), -1).mT


def _diagonal(x: Tensor) -> Tensor:
    return x.diagonal(dim1=-2, dim2=-1)


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
    """Return the sum of k over each tile of squared distances and leave dk / dd^2 in `slope`; `k` is working space."""
    total = d2.new_zeros(d2.shape[:-2])
    slope.zero_()
    for c in bandwidths:
        if kernel == "rbf":
            torch.mul(d2, -1 / (c * math.log(2)), out=k).exp2_()
            slope.sub_(k, alpha=1 / (c * len(bandwidths)))
        else:
            torch.add(d2, c, out=k).reciprocal_().mul_(c)
            slope.addcmul_(k, k, value=-1 / (c * len(bandwidths)))
        total += k.sum((-2, -1)) - _diagonal(k).sum(-1) if without_diagonal else k.sum((-2, -1))
    return total / len(bandwidths)


def _fake(
    x: Tensor, y: Tensor, kernel: str, bandwidths: list[float], estimator: str, x_needed: bool, y_needed: bool
) -> tuple[Tensor, Tensor, Tensor]:
    value = x.new_empty(x.shape[:-2], dtype=accumulator(x))
    return value, value.new_empty(x.shape if x_needed else 0), value.new_empty(y.shape if y_needed else 0)


_operator = operators.define(
    "analytic_mmd2(Tensor x, Tensor y, str kernel, float[] bandwidths, str estimator, bool x_needed, bool y_needed)"
    " -> (Tensor, Tensor, Tensor)",
    _evaluate,
    _fake,
)
