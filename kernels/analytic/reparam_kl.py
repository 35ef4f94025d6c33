"""reparam_kl in plain PyTorch with a hand-derived gradient and few temporaries: the default on a CPU."""

from typing import Any

import torch
from torch import Tensor

from ..shared.accumulate import accumulator, reduce_kl
from ..shared.autograd import cache_signature, move_to_front, refuse_second_derivative
from ..shared.expm1 import expm1_minus_identity, half_difference
from ..shared.noise import Generators, draw_like

# Measured: tiles of 128 Ki to 512 Ki elements are equally fast. Smaller tiles cost more calls, and the nine arrays of
# larger ones do not fit the cache.
_TILE = 262_144

# Measured: up to so many elements autograd's own nodes cost up to a third less than one custom function in Python.
_SMALL = 16_384

Outputs = tuple[Tensor, Tensor, Tensor, Tensor]


def reparam_kl(
    mu: Tensor, logvar: Tensor, seed: Tensor | None, generator: Generators | None, reduction: str
) -> tuple[Tensor, Tensor]:
    """z = mu + exp(logvar / 2) * eps and kl = (mu^2 + expm1(logvar) - logvar) / 2."""
    eps = draw_like(mu, accumulator(mu), seed, generator)
    if mu.numel() <= _SMALL:
        z, terms = _compose(mu, logvar, eps)
        return z, reduce_kl(terms, reduction) * 0.5
    z, kl, _, _ = _ReparamKL.apply(mu, logvar, eps, reduction in ("none", "dim"))
    if reduction == "dim":
        return z, kl.mean(0)
    return z, kl.mean() if reduction == "batch" else kl


def _compose(mu: Tensor, logvar: Tensor, eps: Tensor) -> tuple[Tensor, Tensor]:
    """Return z and twice the kl of each element, for autograd to differentiate."""
    dtype = accumulator(mu)
    if mu.dtype != dtype:
        z, terms = _compose(mu.to(dtype), logvar.to(dtype), eps)
        return z.to(mu.dtype), terms
    return torch.addcmul(mu, torch.exp(logvar * 0.5), eps), torch.addcmul(expm1_minus_identity(logvar), mu, mu)


class _ReparamKL(torch.autograd.Function):
    """Return z, kl (of each element or each row), noise and slope.

    With g the gradient of z and w the gradient of each element's kl,

        dmu = g + w * mu,    dlogvar = g * noise / 2 + w * slope,

    where noise = exp(logvar / 2) * eps and slope = expm1(logvar) / 2. Noise is saved, because z - mu would cancel. Both
    are saved in the dtype of sums, because half precision would round the gradient twice and overflow in the slope.
    """

    @staticmethod
    @cache_signature
    def forward(mu: Tensor, logvar: Tensor, eps: Tensor, elementwise: bool) -> Outputs:
        if mu.numel() > _TILE and not torch.compiler.is_compiling():
            return _evaluate_in_tiles(mu, logvar, eps, elementwise)
        dtype = accumulator(mu)
        z, noise, slope, terms = _evaluate(mu.to(dtype), logvar.to(dtype), eps)
        kl = terms if elementwise or mu.ndim == 1 else terms.flatten(1).sum(1)
        if mu.dtype != dtype:
            z = z.to(mu.dtype)
        # torch 2.11 compiles a Function that ends in an in-place operation, or in a `to` that does nothing, to one
        # whose gradients are zero.
        return z, kl, noise, slope

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Outputs) -> None:
        mu, _, _, ctx.elementwise = inputs
        _, _, noise, slope = output
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(mu, noise, slope)

    @staticmethod
    @refuse_second_derivative
    def backward(
        ctx: Any, saved: tuple[Tensor, ...], g: Tensor | None, w: Tensor | None, *_: None
    ) -> tuple[Tensor | None, ...]:
        mu, noise, slope = saved
        if w is None:
            return g, None if g is None else (g * noise * 0.5).to(mu.dtype), None, None
        if not ctx.elementwise:
            w = w.reshape(-1, *[1] * (mu.ndim - 1))
        dmu = w * mu if g is None else torch.addcmul(g, w, mu)
        dlogvar = w * slope if g is None else torch.addcmul(w * slope, g, noise, value=0.5)
        return dmu.to(mu.dtype), dlogvar.to(mu.dtype), None, None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *inputs: Any) -> tuple[Outputs, tuple[int, ...]]:
        """Fold the vmapped axis into the rows."""
        *tensors, elementwise = inputs
        front = [move_to_front(x, dim, info.batch_size) for x, dim in zip(tensors, in_dims, strict=False)]
        outputs = _ReparamKL.apply(*(x.flatten(0, 1) for x in front), elementwise)
        z, kl, noise, slope = (x.unflatten(0, front[0].shape[:2]) for x in outputs)
        return (z, kl, noise, slope), (0, 0, 0, 0)


def _evaluate(
    mu: Tensor,
    logvar: Tensor,
    eps: Tensor,
    z: Tensor | None = None,
    noise: Tensor | None = None,
    slope: Tensor | None = None,
    terms: Tensor | None = None,
) -> Outputs:
    """Return z, noise, slope and the kl of each element, in the given tensors or in new ones."""
    half = torch.mul(logvar, 0.5, out=terms)
    std = torch.exp(half, out=noise)
    z = torch.addcmul(mu, std, eps, out=z)
    noise = torch.mul(std, eps, out=noise)
    slope = torch.mul(torch.expm1(logvar, out=slope), 0.5, out=slope)
    difference = half_difference(logvar, half, slope, out=terms)
    return z, noise, slope, torch.addcmul(difference, mu, mu, value=0.5, out=terms)


def _evaluate_in_tiles(mu: Tensor, logvar: Tensor, eps: Tensor, elementwise: bool) -> Outputs:
    dtype = accumulator(mu)
    z, noise, slope = (mu.new_empty(mu.shape, dtype=d) for d in (mu.dtype, dtype, dtype))
    kl = mu.new_empty(mu.shape if elementwise else _TILE, dtype=dtype)
    mu_tiles = _tiles(mu)
    kl_tiles = _tiles(kl) if elementwise else [kl[: m.numel()].view(m.shape) for m in mu_tiles]
    sums = []
    for m, v, e, *out in zip(mu_tiles, *map(_tiles, (logvar, eps, z, noise, slope)), kl_tiles, strict=True):
        *_, terms = _evaluate(m.to(dtype), v.to(dtype), e, *out)
        sums.append(terms.sum(1))
    return z, kl if elementwise else torch.cat(sums).view(mu.shape[0], -1).sum(1), noise, slope


def _tiles(x: Tensor) -> list[Tensor]:
    """Split a tensor into matrices of at most a tile's size: several whole rows, or parts of one row."""
    matrix = x.flatten(1) if x.ndim > 1 else x[:, None]
    K = matrix.shape[1]
    rows = matrix.split(max(1, _TILE // K))
    return list(rows) if K <= _TILE else [part for row in rows for part in row.split(_TILE, 1)]
