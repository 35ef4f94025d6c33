"""reparam_kl on a CPU: plans of the kernels' calls, and the noise alone."""

import math
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..shared import torch_library
from ..shared.accumulate import accumulator
from ..shared.reparam_kl import define, new_gradients
from . import reparam_kl_kernels as kernels
from .blocks import KINDS, ZEROS, Matrix, locate
from .gaussians import LOGVAR, STD, VAR
from .reparam_kl_kernels import BLOCK, COLUMN_SUMS, ROW_SUMS, TERMS, WIDE_ROW_SUMS

SCALES = {"logvar": LOGVAR, "std": STD, "var": VAR}
SUMMED = {"none": TERMS, "sample": ROW_SUMS, "batch": WIDE_ROW_SUMS, "dim": COLUMN_SUMS}
WORK = 4096  # elements, at least, for which another thread pays
MEANS = "dim", "batch"
STRIPS = 64  # at most; each has K partial sums for a mean over the batch


class Plan(NamedTuple):
    """How the kernels cover a matrix. It depends on the shapes and the settings of a call alone."""

    columns: int
    parts: tuple[int, ...]  # the shape of the KL, or of the sums that add up to it
    number: torch.dtype  # of these
    strides: tuple[int, int]  # of `parts` as a matrix
    forward: tuple[Any, ...]  # the last arguments of the forward kernel
    dkl_strides: tuple[int, int]  # of the gradient of the KL as a matrix of the gradients of its terms
    backward: tuple[Any, ...]  # the last arguments of the backward kernel
    most_threads: int


@lru_cache(maxsize=4096)
def _plan(shape: torch.Size, seeds: int, dtype: torch.dtype, scale: str, reduction: str, has_prior: bool) -> Plan:
    rows, columns = shape[0], math.prod(shape[1:])
    rows_per_seed, block_rows, summed, strip_length = rows // seeds, _rows_of_block(columns), SUMMED[reduction], 1
    row_blocks, column_blocks = seeds * -(-rows_per_seed // block_rows), -(-columns // BLOCK)
    parts: tuple[int, ...] = shape
    strides = columns, 1
    if summed in (ROW_SUMS, WIDE_ROW_SUMS):
        parts = (rows, column_blocks) if column_blocks > 1 else (rows,)
        strides = column_blocks, 1
    elif summed == COLUMN_SUMS:
        strip_length = -(-row_blocks // STRIPS)
        parts = (-(-row_blocks // strip_length), *shape[1:])
    sizes = rows, columns, rows_per_seed, block_rows
    weight = 1 / rows if reduction in MEANS else 1.0
    kind, zero = (KINDS[dtype], SCALES[scale], has_prior), ZEROS.get(dtype, ZEROS[torch.float32])
    threads = max(1, rows * columns // WORK)
    dkl_strides = {"none": (columns, 1), "sample": (1, 0), "dim": (0, 1), "batch": (0, 0)}[reduction]
    forward = *sizes, strip_length, weight, *kind, summed, zero
    number = torch.float64 if reduction == "batch" or dtype == torch.float64 else torch.float32
    return Plan(columns, parts, number, strides, forward, dkl_strides, (*sizes, *kind, zero), threads)


def _forward(
    mu: Tensor,
    spread: Tensor,
    prior_mu: Tensor | None,
    prior_logvar: Tensor | None,
    seed: Tensor,
    scale: str,
    reduction: str,
) -> tuple[Tensor, Tensor]:
    plan = _plan(mu.shape, seed.numel(), mu.dtype, scale, reduction, prior_mu is not None)
    z, kl = mu.new_empty(mu.shape), mu.new_empty(plan.parts, dtype=plan.number)
    inputs = [_flatten(x) for x in (mu, spread, prior_mu, prior_logvar)]
    seed = seed.contiguous()
    written = (z.data_ptr(), plan.columns, 1), (kl.data_ptr(), *plan.strides)
    kernels.forward(*map(locate, inputs), seed.data_ptr(), *written, *plan.forward, most_threads=plan.most_threads)
    return z, _add_up(kl, reduction, mu)


def _add_up(parts: Tensor, reduction: str, mu: Tensor) -> Tensor:
    """Return the KL from the sums that the kernel wrote. A mean may be finite where a sum in float32 is not."""
    if reduction == "none":
        return parts
    if reduction == "sample":
        return parts.sum(1) if parts.ndim > 1 else parts
    if reduction == "dim":
        return parts.sum(0)
    return (parts.sum() / mu.shape[0]).to(accumulator(mu))


def _backward(
    dz: Tensor,
    dkl: Tensor,
    mu: Tensor,
    spread: Tensor,
    prior_mu: Tensor | None,
    prior_logvar: Tensor | None,
    seed: Tensor,
    scale: str,
    reduction: str,
) -> list[Tensor]:
    plan = _plan(mu.shape, seed.numel(), mu.dtype, scale, reduction, prior_mu is not None)
    gradients = new_gradients(mu, spread, prior_mu)
    inputs = [_flatten(x) for x in (dz, mu, spread, prior_mu, prior_logvar)]
    dkl, seed = (dkl / mu.shape[0] if reduction in MEANS else dkl).contiguous(), seed.contiguous()
    upstream = dkl.data_ptr(), *plan.dkl_strides
    written = *_locate_pair(gradients[0]), *_locate_pair(gradients[-1])
    kernels.backward(
        upstream, *map(locate, inputs), seed.data_ptr(), *written, *plan.backward, most_threads=plan.most_threads
    )
    return gradients


def _rows_of_block(columns: int) -> int:
    return max(1, BLOCK // (-(-columns // 4) * 4))


def _flatten(x: Tensor | None) -> Tensor | None:
    """Return `(B, ...)` as `(B, K)`."""
    return x if x is None or x.ndim <= 2 else x.flatten(1)


def _locate_pair(pair: Tensor) -> tuple[Matrix, Matrix]:
    """Return the two matrices of a tensor `(2, B, ...)`."""
    first, (between, row_stride, *_) = pair.data_ptr(), pair.stride()
    return (first, row_stride, 1), (first + between * pair.element_size(), row_stride, 1)


def _draw(seed: Tensor, shape: list[int]) -> Tensor:
    normals = torch.empty(shape, dtype=torch.float32)
    if normals.numel() > 0:
        rows, columns = shape[0], math.prod(shape[1:])
        seed = seed.contiguous()
        sizes = rows, columns, rows // seed.numel(), _rows_of_block(columns)
        kernels.draw(seed.data_ptr(), (normals.data_ptr(), columns, 1), *sizes, ZEROS[torch.float32])
    return normals


reparam_kl = define("numba_reparam_kl", _forward, _backward)
_draw_operator = torch_library.define(
    "numba_normal_noise(Tensor seed, SymInt[] shape) -> Tensor",
    _draw,
    lambda seed, shape: torch.empty(shape, dtype=torch.float32),
)


def normal_noise(seed: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Return the same numbers as `shared.noise.normal`, up to 2e-6."""
    normals: Tensor = _draw_operator(seed, shape)
    return normals.to(dtype)
