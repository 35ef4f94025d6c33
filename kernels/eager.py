"""Textbook PyTorch: the baseline of every benchmark.

Under autocast its matrix products are rounded to half precision, as in any PyTorch code. The other backends compute as
without autocast, and are held to the accuracy that these functions have without it.

Where a matrix of pairs would pass MOST_BYTES, it is taken in blocks of rows, which backward computes again: without
autocast, and without forward-mode derivatives. vmap holds one block of every member, and torch.compile unrolls the
blocks.
"""

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from .shared.accumulate import accumulator, reduce_kl
from .shared.recompute import recompute

MOST_BYTES = 2**28  # that a matrix of pairs may have, and the blocks of a larger one


def reparam_kl(
    mu: Tensor,
    spread: Tensor,
    prior_mu: Tensor | None,
    prior_logvar: Tensor | None,
    eps: Tensor,
    scale: str,
    reduction: str,
) -> tuple[Tensor, Tensor]:
    """The step of every VAE tutorial. Its KL loses digits to cancellation if mu and logvar are small."""
    std, logvar = _std_and_logvar(spread, scale)
    z = mu + eps.to(mu.dtype) * std
    if prior_mu is None or prior_logvar is None:
        kl = -0.5 * (1 + logvar - mu.pow(2) - std.pow(2))
    else:
        kl = -0.5 * (1 + logvar - prior_logvar - ((mu - prior_mu).pow(2) + std.pow(2)) / prior_logvar.exp())
    return z, reduce_kl(kl.to(accumulator(mu)), reduction)


def _std_and_logvar(spread: Tensor, scale: str) -> tuple[Tensor, Tensor]:
    if scale == "logvar":
        return torch.exp(0.5 * spread), spread
    return (spread, 2 * spread.log()) if scale == "std" else (spread.sqrt(), spread.log())


def mmd2(x: Tensor, y: Tensor, kernel: str, bandwidths: tuple[float, ...], estimator: str) -> Tensor:
    """MMD^2 from distances in the form |x|^2 + |y|^2 - 2 x.y, with every N x M matrix in memory if it fits."""
    dtype = accumulator(x)
    x, y = x.to(dtype), y.to(dtype)
    gram = partial(_gram, kernel=kernel, bandwidths=bandwidths)
    longest = max(x.shape[0], y.shape[0])
    if longest * longest * dtype.itemsize > MOST_BYTES:
        rows = _rows_per_block(longest, dtype, 5 + 2 * len(bandwidths))
        return _mmd2_by_rows(x, y, gram, estimator, rows)

    def mean_within(a: Tensor) -> Tensor:
        k, n = gram(a, a), a.shape[0]
        return k.mean() if estimator == "v" else (k.sum() - k.diagonal().sum()) / (n * (n - 1))

    return mean_within(x) + mean_within(y) - 2 * gram(x, y).mean()


def log_aggregate(z: Tensor, mu: Tensor, logvar: Tensor, log_weights: Tensor | None) -> tuple[Tensor, Tensor]:
    """The equations as one broadcast, with B x N x K elements in memory if they fit."""
    dtype = accumulator(z)
    z, mu, logvar = z.to(dtype), mu.to(dtype), logvar.to(dtype)
    if log_weights is None:
        log_weights = z.new_full((mu.shape[0],), -math.log(mu.shape[0]))
    w_BN = log_weights.to(dtype).expand(z.shape[0], mu.shape[0])
    if z.shape[0] * mu.numel() * dtype.itemsize <= MOST_BYTES:
        return _log_aggregate_of_rows(z, mu, logvar, w_BN)
    rows = _rows_per_block(mu.numel(), dtype, 10)
    blocks = zip(z.split(rows), w_BN.split(rows), strict=True)
    parts = [recompute(_log_aggregate_of_rows, block, mu, logvar, w) for block, w in blocks]
    joint, marginals = zip(*parts, strict=True)
    return torch.cat(joint), torch.cat(marginals)


def _gram(a: Tensor, b: Tensor, kernel: str, bandwidths: tuple[float, ...]) -> Tensor:
    d2 = (a.pow(2).sum(1)[:, None] + b.pow(2).sum(1)[None, :] - 2 * a @ b.T).clamp_min(0)
    members = [torch.exp(-d2 / c) if kernel == "rbf" else c / (c + d2) for c in bandwidths]
    return sum(members[1:], members[0]) / len(members)


def _mmd2_by_rows(x: Tensor, y: Tensor, gram: Callable[..., Tensor], estimator: str, rows: int) -> Tensor:
    """MMD^2 from sums over blocks of rows of each matrix, which backward computes again."""

    def mean(a: Tensor, b: Tensor, *, skip_diagonal: bool = False) -> Tensor:
        pairs = a.shape[0] * b.shape[0] - (a.shape[0] if skip_diagonal else 0)
        starts = range(0, a.shape[0], rows)
        sums = [
            recompute(partial(_sum_of_rows, gram, start if skip_diagonal else None), block, b)
            for start, block in zip(starts, a.split(rows), strict=True)
        ]
        return torch.stack(sums).sum() / pairs

    skip = estimator == "u"
    return mean(x, x, skip_diagonal=skip) + mean(y, y, skip_diagonal=skip) - 2 * mean(x, y)


def _sum_of_rows(gram: Callable[..., Tensor], first_row: int | None, a: Tensor, b: Tensor) -> Tensor:
    """Sum the kernel over pairs; if the rows of a are those of b from the first one on, leave out pairs of a row."""
    k = gram(a, b)
    return k.sum() if first_row is None else k.sum() - k.diagonal(first_row).sum()


def _log_aggregate_of_rows(z: Tensor, mu: Tensor, logvar: Tensor, w_BN: Tensor) -> tuple[Tensor, Tensor]:
    log_q_BNK = -0.5 * ((z[:, None, :] - mu).pow(2) / logvar.exp() + logvar + math.log(2 * math.pi))
    return torch.logsumexp(w_BN + log_q_BNK.sum(-1), 1), torch.logsumexp(w_BN[:, :, None] + log_q_BNK, 1)


def _rows_per_block(columns: int, dtype: torch.dtype, tensors: int) -> int:
    """Return how many rows so many tensors of a block may have, to be MOST_BYTES together."""
    return max(1, MOST_BYTES // (tensors * columns * dtype.itemsize))
