"""log_aggregate in tiles of plain PyTorch: memory O((B + N) K), never B x N x K nor B x N.

shared/log2_aggregate.py has the formulas. Tiles are (b, K, n), so that the sums over n, the longest, run along memory.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from ..shared import log2_aggregate
from ..shared.accumulate import accumulator
from ..shared.log2_aggregate import LOG2_E, Inputs, base2_parameters, clamp_logvar, convert_to_nats

# Measured: a tile of 512 Ki elements, in three buffers of 2 MiB, is a fifth faster than one of 256 Ki, and larger tiles
# leave the cache. Rows of fewer than 128 posteriors are slow; tiles of few codes add to dmu and dlogvar too often.
_TILE, _SHORTEST, _CODES = 524_288, 128, 16

# Measured: up to this B * N * K the whole broadcast costs less than the calls that avoid it.
_SMALL = 65_536


def log_aggregate(z: Tensor, mu: Tensor, logvar: Tensor, log_weights: Tensor | None) -> tuple[Tensor, Tensor]:
    """logsumexp over n of w_bn + log N(z_b; mu_n, exp(logvar_n)), jointly and per latent, in the direct form."""
    function = _compose if z.numel() * mu.shape[0] <= _SMALL else _evaluate_in_tiles
    return function(z, mu, logvar, log_weights)


def _compose(z: Tensor, mu: Tensor, logvar: Tensor, log_weights: Tensor | None) -> tuple[Tensor, Tensor]:
    """Compute the same for autograd to differentiate, with the whole broadcast (B, K, N) in memory."""
    dtype = accumulator(z)
    # The flat view makes the gradients contiguous. Without it they would be transposed, too.
    mu_KN, logvar_KN = (x.to(dtype).reshape(-1).view(x.shape).T.contiguous() for x in (mu, logvar))
    s_KN = math.sqrt(0.5) * torch.exp(-0.5 * clamp_logvar(logvar_KN, dtype))
    peak_KN = -0.5 * (logvar_KN + math.log(2 * math.pi))
    log_q_BKN = peak_KN - ((z.to(dtype)[:, :, None] - mu_KN) * s_KN).square()
    log_q_BN = log_q_BKN.sum(1)
    if log_weights is None:
        log_N = math.log(mu.shape[0])
        return torch.logsumexp(log_q_BN, 1) - log_N, torch.logsumexp(log_q_BKN, 2) - log_N
    w_BN = log_weights.to(dtype).expand(z.shape[0], mu.shape[0])
    return torch.logsumexp(log_q_BN + w_BN, 1), torch.logsumexp(log_q_BKN + w_BN[:, None, :], 2)


class _Tile(NamedTuple):
    """Codes `rows` against posteriors `columns`."""

    rows: slice
    columns: slice
    v: Tensor  # (b, K, n)
    log_q: Tensor  # log2 N, (b, K, n)
    space: Tensor  # uninitialised, (b, K, n)
    log_w: Tensor | None  # log2 of the weights, (b, 1, n)

    def log_joint(self) -> Tensor:
        """Return w_bn + sum_k log2 N_bnk, `(b, 1, n)`."""
        log_q = self.log_q.sum(1, keepdim=True)
        return log_q if self.log_w is None else log_q + self.log_w

    def log_marginals(self) -> Tensor:
        """Return w_bn + log2 N_bnk, `(b, K, n)`, and overwrite log2 N_bnk with it."""
        return self.log_q if self.log_w is None else self.log_q.add_(self.log_w)


def _tiles(z: Tensor, mu: Tensor, logvar: Tensor, log_weights: Tensor | None) -> Iterator[_Tile]:
    """Yield all tiles. They use the same buffers in turn."""
    (B, K), N, dtype = z.shape, mu.shape[0], accumulator(z)
    mu_KN, s_KN, peak_KN = (x.T.contiguous() for x in base2_parameters(mu, logvar))
    log_w_BN = None if log_weights is None else (LOG2_E * log_weights.double()).to(dtype).expand(B, N)
    n = min(N, max(_SHORTEST, _TILE // max(_CODES * K, 1)))
    b = max(1, _TILE // max(n * K, 1))
    buffers = [mu_KN.new_empty(min(b, B) * K * n) for _ in range(3)]
    for rows in (slice(i, min(i + b, B)) for i in range(0, B, b)):
        z_bK1 = z[rows, :, None].to(dtype)
        for columns in (slice(i, min(i + n, N)) for i in range(0, N, n)):
            shape = z_bK1.shape[0], K, columns.stop - columns.start
            v, log_q, space = (buffer[: math.prod(shape)].view(shape) for buffer in buffers)
            torch.sub(z_bK1, mu_KN[:, columns], out=v).mul_(s_KN[:, columns])
            torch.addcmul(peak_KN[:, columns], v, v, value=-1, out=log_q)
            yield _Tile(rows, columns, v, log_q, space, None if log_w_BN is None else log_w_BN[rows, None, columns])


def _forward(z: Tensor, mu: Tensor, logvar: Tensor, log_weights: Tensor | None) -> tuple[Tensor, Tensor]:
    joint = z.new_full((z.shape[0], 1), -math.inf, dtype=torch.float64)
    marginals = z.new_full(z.shape, -math.inf, dtype=torch.float64)
    for tile in _tiles(z, mu, logvar, log_weights):
        for total, part in ((joint, tile.log_joint()), (marginals, tile.log_marginals())):
            total[tile.rows] = torch.logaddexp2(total[tile.rows], _logsumexp2_(part))
    return joint.squeeze(1), marginals


def _logsumexp2_(x: Tensor) -> Tensor:
    """Return log2(sum(2^x)) over the last axis in float64. x is overwritten."""
    peak = x.amax(-1, keepdim=True)
    peak.masked_fill_(peak.isinf(), 0)
    return x.sub_(peak).exp2_().sum(-1).double().log2_().add_(peak.squeeze(-1))


def _backward(
    g_joint: Tensor | None, g_marginals: Tensor | None, joint: Tensor, marginals: Tensor, *inputs: *Inputs
) -> tuple[Tensor, Tensor, Tensor]:
    z, mu, logvar, _ = inputs
    dtype = accumulator(z)
    marginals = marginals.to(dtype)
    _, s_NK, _ = base2_parameters(mu, logvar)
    s_KN = s_NK.T.contiguous()
    dz = z.new_zeros(z.shape, dtype=dtype)
    dmu_KN, dlogvar_KN = (dz.new_zeros(mu.shape[1], mu.shape[0]) for _ in range(2))
    for tile in _tiles(*inputs):
        rows, columns, v, h, hv, _ = tile
        h_joint = dz.new_zeros(())
        if g_joint is not None:
            weights = (tile.log_joint() - joint[rows, None, None]).exp2_()
            h_joint = (weights * g_joint[rows, None, None]).to(dtype)
        if g_marginals is not None:
            weights = tile.log_marginals().sub_(marginals[rows, :, None]).exp2_()
            torch.addcmul(h_joint, weights, g_marginals[rows, :, None].to(dtype), out=h)
        else:
            h.copy_(h_joint)
        torch.mul(h, v, out=hv)
        dmu_KN[:, columns] += hv.sum(0)
        dlogvar_KN[:, columns] += h.mul_(-LOG2_E / 2).addcmul_(hv, v).sum(0)
        dz[rows] -= hv.mul_(s_KN[:, columns]).sum(2)
    dmu, dlogvar = dmu_KN.T * s_NK * 2, dlogvar_KN.T
    return (dz * 2).to(z.dtype), dmu.to(mu.dtype).contiguous(), dlogvar.to(mu.dtype).contiguous()


_evaluate_in_tiles = log2_aggregate.define("analytic_log_aggregate", *convert_to_nats(_forward, _backward))
