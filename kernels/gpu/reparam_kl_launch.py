"""Plans of reparam_kl's launches: tensors as matrices, vector widths, tiles and grids.

Each plan takes the tensors of a call and returns a `Launch`, which holds everything that compiles and runs a kernel.
"""

import functools
import math
from typing import Any, Literal, NamedTuple

import torch
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


def plan_forward(mu: Tensor, logvar: Tensor, seed: Tensor, z: Tensor, reduction: str) -> tuple[Launch, Tensor]:
    """Return the forward launch, and the tensor that it writes: the terms of the KL, or one row of sums per strip."""
    summed: Summed = "none" if reduction == "none" else "rows" if reduction == "dim" else "columns"
    matrices = _matrices([mu, logvar, z], reduction, seed)
    mu_rows, logvar_rows, z_rows = matrices
    rows, columns = mu_rows.shape
    tiling = choose_tiling((rows, columns), mu.element_size(), _longest_stride(matrices), summed)
    shape = {"none": (rows, columns), "columns": (tiling.strips[1], rows), "rows": (tiling.strips[0], columns)}[summed]
    kl = mu.new_empty(shape, dtype=accumulator(mu))
    arguments = {
        **_shared_arguments(mu_rows, logvar_rows, seed, mu.shape[0]),
        "z_ptr": z_rows,
        "kl_ptr": kl,
        "steps": tiling.steps,
    }
    constants = {
        **_shared_constants(matrices, tiling, reduction, seed),
        "SUMMED": summed,
        "WALK": tiling.steps > 1,
    }
    return Launch(forward_kernel, tiling.grid, arguments, constants, fuse_multiply_add=False), kl


def plan_backward(
    dz: Tensor, dkl: Tensor, mu: Tensor, logvar: Tensor, seed: Tensor, gradients: Tensor, reduction: str
) -> Launch:
    """Return the backward launch, which fills `gradients`, `(2, B, ...)`, with dmu and dlogvar."""
    tensors = [dz, mu, logvar, gradients[0], gradients[1]] + ([dkl] if reduction == "none" else [])
    matrices = _matrices(tensors, reduction, seed)
    dz_rows, mu_rows, logvar_rows, dmu_rows, dlogvar_rows = matrices[:5]
    if reduction == "none":
        dkl = matrices[5]
    elif reduction == "dim":
        dkl = dkl.reshape(-1).contiguous()
    rows, columns = mu_rows.shape
    tiling = choose_tiling((rows, columns), mu.element_size(), _longest_stride(matrices), "none")
    arguments = {
        **_shared_arguments(mu_rows, logvar_rows, seed, mu.shape[0]),
        "dz_ptr": dz_rows,
        "dkl_ptr": dkl,
        "dmu_ptr": dmu_rows,
        "dlogvar_ptr": dlogvar_rows,
        "dz_stride": dz_rows.stride(0),
        "dkl_stride": dkl.stride(0) if dkl.ndim > 0 else 0,
        "gradient_stride": dmu_rows.stride(0),
    }
    constants = {
        **_shared_constants(matrices, tiling, reduction, seed),
        "PER_ROW": reduction in ("none", "sample"),
        "PER_COLUMN": reduction in ("none", "dim"),
    }
    return Launch(backward_kernel, tiling.grid, arguments, constants, fuse_multiply_add=False)


def _shared_arguments(mu: Tensor, logvar: Tensor, seed: Tensor, batch: int) -> dict[str, Any]:
    """Return the arguments that both kernels have, from matrices mu and logvar."""
    rows, columns = mu.shape
    return {
        "mu_ptr": mu,
        "logvar_ptr": logvar,
        "seed_ptr": seed.contiguous(),  # vmap expands one seed, with a stride of 0
        "rows": rows,
        "columns": columns,
        "mu_stride": mu.stride(0),
        "logvar_stride": logvar.stride(0),
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


def kl_shape(shape: torch.Size, reduction: str) -> torch.Size:
    """Return the shape of the KL of a `(B, ...)` tensor."""
    return {"none": shape, "sample": shape[:1], "dim": shape[1:], "batch": shape[:0]}[reduction]


def new_gradients(mu: Tensor, logvar: Tensor) -> Tensor:
    """Return an empty `(2, B, ...)` for dmu and dlogvar, interleaved like mu and logvar if these are halves of rows."""
    columns = math.prod(mu.shape[1:])
    halves = mu.stride(0) == logvar.stride(0) == 2 * columns and mu[:1].is_contiguous() and logvar[:1].is_contiguous()
    if halves:
        return mu.new_empty((mu.shape[0], 2, *mu.shape[1:])).movedim(1, 0)
    return mu.new_empty((2, *mu.shape))


def _matrices(tensors: list[Tensor], reduction: str, seed: Tensor) -> list[Tensor]:
    """Return each `(B, ...)` as `(B, K)` with adjacent columns, or as `(1, B * K)` where rows do not matter."""
    rows, columns = tensors[0].shape[0], math.prod(tensors[0].shape[1:])
    matrices = [tensor.reshape(rows, columns) for tensor in tensors]
    matrices = [m if m.stride(1) == 1 or columns == 1 else m.contiguous() for m in matrices]
    rows_matter = reduction in ("sample", "dim") or seed.numel() > 1
    if not rows_matter and columns % 4 == 0 and all(m.is_contiguous() for m in matrices):
        return [m.view(1, -1) for m in matrices]
    return matrices


def _longest_stride(matrices: list[Tensor]) -> int:
    return max(m.stride(0) for m in matrices)
