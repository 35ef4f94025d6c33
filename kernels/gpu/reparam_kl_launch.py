"""Plans of reparam_kl's launches: tensors as matrices, vector widths, tiles and grids.

Each plan takes the tensors of a call and returns a `Launch`, which holds everything that compiles and runs a kernel.
"""

import functools
import math
from typing import Any, Literal, NamedTuple

import triton
from torch import Tensor

from ..shared.accumulate import accumulator
from .launch import Launch
from .reparam_kl_kernels import backward_kernel, forward_kernel

TILE_BYTES = 4096
WARP_BYTES = 512
LINE_BYTES = 128
LONGEST_UNCUT_WALK = 8
ENOUGH_PROGRAMS = 2048

Summed = Literal["none", "columns", "rows"]


class Tiling(NamedTuple):
    """How a kernel covers a matrix."""

    rows: int  # of a tile
    columns: int  # of a tile
    steps: int  # tiles of a program
    strips: tuple[int, int]  # programs along the rows and along the columns
    masked: bool  # whether tiles reach beyond the matrix

    @property
    def grid(self) -> tuple[int, int]:
        """The grid. Its first axis has room for 2^31 programs, its second for 2^16, so the longer one comes first."""
        return max(self.strips), min(self.strips)


def plan_forward(
    mu: Tensor, spread: Tensor, prior: list[Tensor], seed: Tensor, z: Tensor, scale: str, reduction: str
) -> tuple[Launch, Tensor]:
    """Return the forward launch, and the tensor that it writes: the terms of the KL, or one row of sums per strip.

    `prior` holds its mean and its logvar, or nothing.
    """
    summed: Summed = "none" if reduction == "none" else "rows" if reduction == "dim" else "columns"
    matrices = as_matrices([mu, spread, z, *prior], reduction, seed)
    mu_rows, spread_rows, z_rows, *prior_rows = matrices
    rows, columns = mu_rows.shape
    tiling = choose_tiling((rows, columns), mu.element_size(), _longest_stride(matrices), summed)
    shape = {"none": (rows, columns), "columns": (tiling.strips[1], rows), "rows": (tiling.strips[0], columns)}[summed]
    kl = mu.new_empty(shape, dtype=accumulator(mu))
    arguments = {
        **_shared_arguments(mu_rows, spread_rows, prior_rows, seed, mu.shape[0]),
        "z_ptr": z_rows,
        "kl_ptr": kl,
        "steps": tiling.steps,
    }
    constants = {
        **_shared_constants(matrices, tiling, reduction, seed),
        "SCALE": scale,
        "PRIOR": bool(prior),
        "SUMMED": summed,
        "WALK": tiling.steps > 1,
    }
    return Launch(forward_kernel, tiling.grid, arguments, constants, fuse_multiply_add=False), kl


def plan_backward(
    dz: Tensor,
    dkl: Tensor,
    mu: Tensor,
    spread: Tensor,
    prior: list[Tensor],
    seed: Tensor,
    gradients: list[Tensor],
    scale: str,
    reduction: str,
) -> Launch:
    """Return the backward launch. It fills `gradients`: `(2, B, ...)` of mu and spread, and another of the prior."""
    written = [x for pair in gradients for x in pair]
    elementwise = [dkl] if reduction == "none" else []
    matrices = as_matrices([dz, mu, spread, *prior, *written, *elementwise], reduction, seed)
    dz_rows, mu_rows, spread_rows, *others = matrices
    prior_rows, others = others[: len(prior)], others[len(prior) :]
    if reduction == "none":
        dkl = matrices[-1]
    elif reduction == "dim":
        dkl = dkl.reshape(-1).contiguous()
    rows, columns = mu_rows.shape
    tiling = choose_tiling((rows, columns), mu.element_size(), _longest_stride(matrices), "none")
    arguments = {
        **_shared_arguments(mu_rows, spread_rows, prior_rows, seed, mu.shape[0]),
        "dz_ptr": dz_rows,
        "dkl_ptr": dkl,
        "dmu_ptr": others[0],
        "dspread_ptr": others[1],
        "dprior_mu_ptr": others[2] if prior else None,
        "dprior_logvar_ptr": others[3] if prior else None,
        "dz_stride": dz_rows.stride(0),
        "dkl_stride": dkl.stride(0) if dkl.ndim > 0 else 0,
        "gradient_stride": others[0].stride(0),
    }
    constants = {
        **_shared_constants(matrices, tiling, reduction, seed),
        "SCALE": scale,
        "PRIOR": bool(prior),
        "PER_ROW": reduction in ("none", "sample"),
        "PER_COLUMN": reduction in ("none", "dim"),
    }
    return Launch(backward_kernel, tiling.grid, arguments, constants, fuse_multiply_add=False)


def _shared_arguments(mu: Tensor, spread: Tensor, prior: list[Tensor], seed: Tensor, batch: int) -> dict[str, Any]:
    """Return the arguments that both kernels have, from matrices mu, spread and those of the prior."""
    rows, columns = mu.shape
    prior_mu, prior_logvar = prior or (None, None)
    return {
        "mu_ptr": mu,
        "spread_ptr": spread,
        "prior_mu_ptr": prior_mu,
        "prior_logvar_ptr": prior_logvar,
        "seed_ptr": seed.contiguous(),  # vmap expands one seed, with a stride of 0
        "rows": rows,
        "columns": columns,
        "mu_stride": mu.stride(0),
        "spread_stride": spread.stride(0),
        "prior_mu_stride": 0 if prior_mu is None else prior_mu.stride(0),
        "prior_logvar_stride": 0 if prior_logvar is None else prior_logvar.stride(0),
        "rows_per_seed": rows // seed.numel(),
        "batch": batch,
    }


def _shared_constants(matrices: list[Tensor], tiling: Tiling, reduction: str, seed: Tensor) -> dict[str, Any]:
    return {
        "MEAN": reduction in ("dim", "batch"),
        "ONE_SEED": seed.numel() == 1,
        "MASKED": tiling.masked,
        "ROW_AXIS": int(tiling.strips[0] < tiling.strips[1]),
        "ROWS": tiling.rows,
        "COLUMNS": tiling.columns,
        "VECTOR": widest_vector(matrices),
    }


@functools.lru_cache(maxsize=4096)
def choose_tiling(shape: tuple[int, int], itemsize: int, stride: int, summed: Summed) -> Tiling:
    """Choose the tiling of a matrix whose KL is summed along an axis or not at all.

    A tile is as wide as one read of a warp. It is narrower, down to a cache line, where that pads the rows less, and
    wider if the matrix has few rows. The tiles along the summed axis belong to one program. They are cut into strips if
    they are many and programs are few.
    """
    rows, columns = shape
    elements = TILE_BYTES // itemsize
    row_width = max(8, triton.next_power_of_2(columns))
    widest = min(WARP_BYTES // itemsize, row_width)
    halvings = max(0, (widest * itemsize // LINE_BYTES).bit_length() - 1)
    width = min((widest >> n for n in range(halvings + 1)), key=lambda w: triton.cdiv(columns, w) * w)
    height = min(elements // width, triton.next_power_of_2(rows))
    while height > 1 and height * stride >= 2**31:
        height //= 2
    width = min(elements // height, row_width) if height < elements // width else width
    tiles = triton.cdiv(rows, height), triton.cdiv(columns, width)
    if summed == "none":
        return Tiling(height, width, 1, tiles, (tiles[0] * height, tiles[1] * width) != shape)
    along, across = tiles if summed == "rows" else tiles[::-1]
    strips = 1 if along <= LONGEST_UNCUT_WALK else min(along, triton.cdiv(ENOUGH_PROGRAMS, across))
    steps = triton.cdiv(along, strips)
    strips = triton.cdiv(along, steps)
    if summed == "rows":
        return Tiling(height, width, steps, (strips, across), (strips * steps * height, across * width) != shape)
    return Tiling(height, width, steps, (across, strips), (across * height, strips * steps * width) != shape)


def widest_vector(matrices: list[Tensor]) -> int:
    """Return how many neighbouring columns one read can take: at most 16 bytes, aligned in every row."""
    vector = 16 // matrices[0].element_size()
    while not all(
        m.shape[1] % vector == 0
        and (m.shape[0] == 1 or m.stride(0) % vector == 0)
        and m.data_ptr() % (vector * m.element_size()) == 0
        for m in matrices
    ):
        vector //= 2
    return vector


def as_matrices(tensors: list[Tensor], reduction: str, seed: Tensor) -> list[Tensor]:
    """Return each `(B, ...)` as `(B, K)` with adjacent columns, or as `(1, B * K)` where rows do not matter."""
    rows, columns = tensors[0].shape[0], math.prod(tensors[0].shape[1:])
    matrices = [_as_matrix(tensor, rows, columns) for tensor in tensors]
    rows_matter = reduction in ("sample", "dim") or seed.numel() > 1
    if not rows_matter and columns % 4 == 0 and all(m.is_contiguous() for m in matrices):
        return [m.view(1, -1) for m in matrices]
    return matrices


def _as_matrix(tensor: Tensor, rows: int, columns: int) -> Tensor:
    """Return `(B, K)` with adjacent columns. A row that serves for all, as that of a prior `(K,)`, is not repeated."""
    if tensor.stride(0) == 0:
        return tensor[:1].reshape(1, columns).contiguous().expand(rows, columns)
    matrix = tensor.reshape(rows, columns)
    return matrix if matrix.stride(1) == 1 or columns == 1 else matrix.contiguous()


def _longest_stride(matrices: list[Tensor]) -> int:
    return max(m.stride(0) for m in matrices)
