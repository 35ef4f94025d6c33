"""log_aggregate on a CPU: how the pairs are cut into chunks, strips and groups, and operators.

The results of a pass, and its scratch of O((B + N) K), are allocated here.
"""

import math
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from ..shared import log2_aggregate
from ..shared.accumulate import accumulator
from ..shared.log2_aggregate import LOG2_E, Inputs
from . import log_aggregate_gradients as gradients
from . import log_aggregate_kernels as kernels
from .blocks import ZEROS, locate
from .log_aggregate_kernels import ABSENT, CODES, SINGLE, WIDE

CHUNK_BYTES = 1024  # of a chunk in one column: what a tile needs of one column then fits a cache of 48 KiB
VECTOR_BYTES = 64
TASKS = 32  # at least, where there are so many tiles and chunks; strips and groups cost memory


class Cut(NamedTuple):
    """How codes and posteriors are divided. It depends on the sizes alone, and so do the bits of the results."""

    chunk: int  # posteriors of a chunk
    chunks: int
    strip_length: int  # chunks of a strip
    strips: int
    group_length: int  # tiles of a group
    groups: int


@lru_cache(4096)
def cut_forward(codes: int, posteriors: int, number: torch.dtype) -> Cut:
    """Divide posteriors into strips only where there are few tiles of codes."""
    chunk, chunks = _cut_chunks(posteriors, number)
    tiles = -(-codes // CODES)
    return Cut(chunk, chunks, *_divide(chunks, -(-TASKS // tiles)), 1, tiles)


@lru_cache(4096)
def cut_backward(codes: int, posteriors: int, number: torch.dtype) -> Cut:
    """Balance strips, each with a share of dz, and groups, each with two shares of the size of the posteriors."""
    chunk, chunks = _cut_chunks(posteriors, number)
    strip_length, strips = _divide(chunks, min(TASKS, round(math.sqrt(2 * TASKS * posteriors / codes))))
    return Cut(chunk, chunks, strip_length, strips, *_divide(-(-codes // CODES), -(-TASKS // strips)))


def _cut_chunks(posteriors: int, number: torch.dtype) -> tuple[int, int]:
    """Return the length of a chunk, in whole vectors, and the number of chunks."""
    chunks = -(-posteriors * number.itemsize // CHUNK_BYTES)
    lanes = VECTOR_BYTES // number.itemsize
    length = -(-posteriors // (chunks * lanes)) * lanes
    return length, -(-posteriors // length)


def _divide(items: int, parts: int) -> tuple[int, int]:
    """Return the items of a part, and the number of parts: at most `parts`, but at least one."""
    length = -(-items // max(parts, 1))
    return length, -(-items // length)


def _forward(
    z: Tensor, mu: Tensor, logvar: Tensor, log_weights: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    if z.numel() == 0:
        return _evaluate_empty(z, mu, log_weights)
    (B, K), N, number = z.shape, mu.shape[0], accumulator(z)
    z, mu, logvar, weights = _convert(z, mu, logvar, log_weights)
    cut = cut_forward(B, N, number)
    scratch, (prepared, sums) = _allocate(
        z, cut.chunks * K * 3 * cut.chunk * number.itemsize, cut.strips * B * (K + 1) * 2 * 8
    )
    joint, marginals, log2_joint, log2_marginals = (x.new_empty(size) for x in (z, scratch) for size in (B, (B, K)))
    kernels.forward(
        *(locate(z), locate(mu), locate(logvar), _locate_weights(weights), prepared, sums),
        *((joint.data_ptr(), marginals.data_ptr()), (log2_joint.data_ptr(), log2_marginals.data_ptr())),
        *((B, N, K, cut.chunk), cut.strip_length, ZEROS[number]),
    )
    return joint, marginals, log2_joint, log2_marginals


def _evaluate_empty(z: Tensor, mu: Tensor, log_weights: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the results without codes, or without columns: then every density is 1."""
    log_N = math.log(mu.shape[0]) if log_weights is None else 0.0
    weights = z.new_zeros(mu.shape[0], dtype=torch.float64) if log_weights is None else log_weights.double()
    joint = torch.logsumexp(weights.expand(z.shape[0], -1), 1)
    marginals = joint.new_empty(z.shape)
    nats = (joint - log_N).to(accumulator(z)), marginals.to(accumulator(z), copy=True)
    return *nats, joint * LOG2_E, marginals


def _backward(
    g_joint: Tensor | None, g_marginals: Tensor | None, log2_joint: Tensor, log2_marginals: Tensor, *inputs: *Inputs
) -> tuple[Tensor, Tensor, Tensor]:
    z, mu, logvar, weights = inputs
    if z.numel() == 0:
        return z.new_zeros(z.shape), mu.new_zeros(mu.shape), mu.new_zeros(mu.shape)
    (B, K), N, dtype, number = z.shape, mu.shape[0], z.dtype, accumulator(z)
    z, mu, logvar, weights = _convert(z, mu, logvar, weights)
    cut = cut_backward(B, N, number)
    chunks_size = cut.chunks * K * cut.chunk
    _scratch, shares = _allocate(
        z, chunks_size * 3 * number.itemsize, cut.strips * B * K * 8, cut.groups * chunks_size * 2 * 8
    )
    dz, dmu, dlogvar = (z.new_empty(rows, K) for rows in (B, N, N))
    gradients.backward(
        *(locate(g_joint), locate(g_marginals), locate(log2_joint), locate(log2_marginals)),
        *((g_joint is not None, g_marginals is not None, weights is not None),),
        *(locate(z), locate(mu), locate(logvar), _locate_weights(weights), *shares),
        *(dz.data_ptr(), (dmu.data_ptr(), dlogvar.data_ptr()), (B, N, K, cut.chunk)),
        *(cut.strip_length, cut.group_length, ZEROS[number]),
    )
    return (dz, dmu, dlogvar) if dtype == number else (dz.to(dtype), dmu.to(dtype), dlogvar.to(dtype))


def _convert(
    z: Tensor, mu: Tensor, logvar: Tensor, log_weights: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Return the inputs in dtypes that compiled code has, and the weights of each code."""
    number = accumulator(z)
    if z.dtype != number:
        z, mu, logvar = z.to(number), mu.to(number), logvar.to(number)
    if log_weights is not None:
        log_weights = log_weights if log_weights.dtype in ZEROS else log_weights.float()
        log_weights = log_weights.expand(z.shape[0], -1)
    return z, mu, logvar, log_weights


def _allocate(like: Tensor, *sizes: int) -> tuple[Tensor, list[int]]:
    """Return a tensor to keep until the kernel has run, and the addresses in it of scratches of so many bytes."""
    scratch = like.new_empty(sum(sizes) // 8, dtype=torch.float64)
    starts = [scratch.data_ptr()]
    for size in sizes[:-1]:
        starts.append(starts[-1] + size)
    return scratch, starts


def _locate_weights(weights: Tensor | None) -> tuple[int, int, int, int]:
    return *locate(weights), ABSENT if weights is None else WIDE if weights.dtype == torch.float64 else SINGLE


log_aggregate = log2_aggregate.define("numba_log_aggregate", _forward, _backward)
