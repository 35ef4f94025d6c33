"""mmd2 in tiles of plain PyTorch: memory O((N + M) K), never N x M; every pair of rows is visited once.

With p the rows of x and y together and W_ij the weight of a pair (1 / N^2 or 1 / N(N-1) within x, -1 / NM across),

    MMD^2 = sum_ij W_ij k(d_ij^2),    dMMD^2 / dp_i = 4 sum_j W_ij k'(d_ij^2) (p_i - p_j).

One pass computes the value and the gradient together. Few rows make up a single tile.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from ..shared import torch_library
from ..shared.accumulate import accumulator
from ..shared.autograd import cache_signature, move_to_front, refuse_second_derivative
from ..shared.centre import centre

# Measured: matrix products reach their full speed at this size, and three such tiles stay in a cache of 4 MiB.
_SIDE = 512

# Measured: up to so many pairs of rows, one tile with each pair twice is faster than tiles with each pair once.
_WHOLE = 2**16

# Measured: up to so many pairs of rows, the samples of a vmap are faster together than one after another.
_TOGETHER = 2**22


def mmd2(x: Tensor, y: Tensor, kernel: str, bandwidths: tuple[float, ...], estimator: str) -> Tensor:
    """E k(x, x') + E k(y, y') - 2 E k(x, y)."""
    if not torch.is_grad_enabled():
        x, y = x.detach(), y.detach()  # so that the forward pass computes no gradient
    value: Tensor = _MMD2.apply(x, y, kernel, bandwidths, estimator, x.requires_grad, y.requires_grad)[0]
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
        if g is None:
            return (None,) * 7
        dx, dy = saved
        x_needed, y_needed, *_ = ctx.needs_input_grad
        grad_x = (g[..., None, None] * dx).to(ctx.dtype) if x_needed else None
        grad_y = (g[..., None, None] * dy).to(ctx.dtype) if y_needed else None
        return grad_x, grad_y, None, None, None, None, None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], x: Tensor, y: Tensor, *options: Any) -> tuple[Any, Any]:
        """Evaluate up to _TOGETHER pairs of rows at a time. x and y may already have the axes of an inner vmap.

        Check again which gradients are needed, because inside vmap `requires_grad` is False.
        """
        *settings, x_needed, y_needed = options
        x, y = (move_to_front(z, dim, info.batch_size) for z, dim in zip((x, y), in_dims, strict=False))
        x_needed, y_needed = x_needed or x.requires_grad, y_needed or y.requires_grad
        batch, together = x.shape[:-2], max(1, _TOGETHER // (x.shape[-2] + y.shape[-2]) ** 2)
        parts = [
            _MMD2.apply(some, others, *settings, x_needed, y_needed)
            for some, others in zip(*(z.flatten(0, -3).split(together) for z in (x, y)), strict=True)
        ]
        value, dx, dy = map(torch.cat, zip(*parts, strict=True))
        dx, dy = (d.unflatten(0, batch) if needed else d for d, needed in ((dx, x_needed), (dy, y_needed)))
        return (value.unflatten(0, batch), dx, dy), (0, 0 if x_needed else None, 0 if y_needed else None)


def _evaluate(
    x: Tensor, y: Tensor, kernel: str, bandwidths: list[float], estimator: str, x_needed: bool, y_needed: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Evaluate samples `(N, K)` and `(M, K)`, or V pairs of samples, `(V, N, K)` and `(V, M, K)`."""
    N, M, unbiased = x.shape[-2], y.shape[-2], estimator == "u"
    weights = 1 / (N * (N - unbiased)), -1 / (N * M), 1 / (M * (M - unbiased))
    p = torch.cat((x, y), -2).to(accumulator(x))
    p = p - centre(p)
    if p.shape[:-2].numel() * (N + M) ** 2 <= _WHOLE:
        value, dp = _whole(p, N, weights, kernel, bandwidths, unbiased)
    else:
        value, dp = _tiled(p, N, weights, kernel, bandwidths, unbiased, x_needed, y_needed)
    dx, dy = dp.split((N, M), -2)
    return value.to(p.dtype), dx.clone() if x_needed else dx.new_empty(0), dy.clone() if y_needed else dy.new_empty(0)


def _whole(
    p: Tensor, N: int, weights: tuple[float, float, float], kernel: str, bandwidths: list[float], unbiased: bool
) -> tuple[Tensor, Tensor]:
    """Return the value and its gradient with respect to all rows, from one tile that holds every pair twice."""
    left, right_T = _factors(p)
    d2 = torch.matmul(left, right_T).clamp_min_(0)
    _diagonal(d2).zero_()
    W = p.new_full(d2.shape[-2:], weights[1])
    W[:N, :N], W[N:, N:] = weights[0], weights[2]
    if unbiased:
        W.fill_diagonal_(0)
    k, slope, value = torch.empty_like(d2), torch.zeros_like(d2), d2.new_zeros(d2.shape[:-2], dtype=torch.float64)
    for c in bandwidths:
        _evaluate_kernel(d2, kernel, c, k, slope)
        value += k.mul_(W).sum((-2, -1), dtype=torch.float64)
    slope.mul_(W)
    _diagonal(slope).zero_()  # exactly zero, where the two terms below would leave a rounding error
    dp = slope.sum(-1, keepdim=True) * p - slope @ p
    return value / len(bandwidths), dp * (4 / len(bandwidths))


def _tiled(
    p: Tensor,
    N: int,
    weights: tuple[float, float, float],
    kernel: str,
    bandwidths: list[float],
    unbiased: bool,
    x_needed: bool,
    y_needed: bool,
) -> tuple[Tensor, Tensor]:
    """Return the same from tiles that hold every pair once. Gradients that are not needed stay zero."""
    left, right_T = _factors(p)
    batch = p.shape[:-2]
    add_product: Callable[..., Tensor] = torch.Tensor.baddbmm_ if batch else torch.Tensor.addmm_
    sums = p.new_zeros(3, *batch, dtype=torch.float64)
    repulsion, attraction = torch.zeros_like(p[..., :1]), torch.zeros_like(p)
    side = min(_SIDE, max(N, p.shape[-2] - N))
    buffers = [p.new_empty(batch.numel() * side * side) for _ in range(3)]
    for I, J, kind in _tiles(N, p.shape[-2] - N):
        n, m = I.stop - I.start, J.stop - J.start
        d2, k, slope = (buffer[: batch.numel() * n * m].view(*batch, n, m) for buffer in buffers)
        torch.matmul(left[..., I, :], right_T[..., J], out=d2).clamp_min_(0)
        if I == J:
            _diagonal(d2).zero_()
        slope.zero_()
        for c in bandwidths:
            _evaluate_kernel(d2, kernel, c, k, slope)
            if unbiased and I == J:
                _diagonal(k).zero_()
            sums[kind].add_(k.sum((-2, -1)), alpha=1 if I == J else 2)
        if I == J:
            _diagonal(slope).zero_()  # exactly zero, where the two terms below would leave a rounding error
        if x_needed if kind < 2 else y_needed:
            repulsion[..., I, :].add_(slope.sum(-1, keepdim=True), alpha=weights[kind])
            add_product(attraction[..., I, :], slope, p[..., J, :], alpha=weights[kind])
        if I != J and (x_needed if kind < 1 else y_needed):
            repulsion[..., J, :].add_(slope.sum(-2)[..., None], alpha=weights[kind])
            add_product(attraction[..., J, :], slope.mT, p[..., I, :], alpha=weights[kind])
    value = sum(weight * total for weight, total in zip(weights, sums, strict=True))
    return value / len(bandwidths), (repulsion * p - attraction) * (4 / len(bandwidths))


def _evaluate_kernel(d2: Tensor, kernel: str, c: float, k: Tensor, slope: Tensor) -> None:
    """Write k to `k`, and add dk / dd^2 to `slope`."""
    if kernel == "rbf":
        torch.mul(d2, -1 / (c * math.log(2)), out=k).exp2_()
        slope.sub_(k, alpha=1 / c)
    else:
        torch.add(d2, c, out=k).reciprocal_().mul_(c)
        slope.addcmul_(k, k, value=-1 / c)


def _factors(p: Tensor) -> tuple[Tensor, Tensor]:
    """Return two matrices whose product holds the squared distances |p_i|^2 + |p_j|^2 - 2 p_i . p_j."""
    square = p.square().sum(-1, keepdim=True)
    one = torch.ones_like(square)
    return torch.cat((p, square, one), -1), torch.cat((-2 * p, one, square), -1).mT


def _diagonal(x: Tensor) -> Tensor:
    return x.diagonal(dim1=-2, dim2=-1)


def _tiles(N: int, M: int) -> Iterator[tuple[slice, slice, int]]:
    """Yield each pair of blocks of rows once, with its kind: 0 within x, 1 between x and y, 2 within y."""
    blocks = [(slice(i, min(i + _SIDE, N)), 0) for i in range(0, N, _SIDE)]
    blocks += [(slice(i, min(i + _SIDE, N + M)), 1) for i in range(N, N + M, _SIDE)]
    for first, (I, of_y) in enumerate(blocks):
        for J, also_of_y in blocks[first:]:
            yield I, J, of_y + also_of_y


def _fake(x: Tensor, y: Tensor, *options: Any) -> tuple[Tensor, Tensor, Tensor]:
    *_, x_needed, y_needed = options
    value = x.new_empty(x.shape[:-2], dtype=accumulator(x))
    return value, value.new_empty(x.shape if x_needed else 0), value.new_empty(y.shape if y_needed else 0)


_operator = torch_library.define(
    "analytic_mmd2(Tensor x, Tensor y, str kernel, float[] bandwidths, str estimator, bool x_needed, bool y_needed)"
    " -> (Tensor, Tensor, Tensor)",
    _evaluate,
    _fake,
)
