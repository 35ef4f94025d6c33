"""How the fused kernels are launched: matrices instead of tensors, vector widths, tiles, grids.

Each plan takes the tensors of a call and returns a `Launch`, which holds all that a kernel is compiled and run with.
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
    """How a kernel covers a matrix: `(rows, columns)` of a tile, `steps` of a program, `strips` along each axis."""

    rows: int
    columns: int
    steps: int
    strips: tuple[int, int]


def plan_forward(mu: Tensor, logvar: Tensor, seed: Tensor, z: Tensor, reduction: str) -> tuple[Launch, Tensor]:
    """Return the forward launch, and what it writes of the KL: its terms, or one row of sums per strip."""
    summed: Summed = "none" if reduction == "none" else "rows" if reduction == "dim" else "columns"
    mu_rows, logvar_rows, z_rows = _matrices([mu, logvar, z], _ignores_rows(reduction, seed))
    rows, columns = mu_rows.shape
    tiling = choose_tiling((rows, columns), mu.element_size(), _pitch([mu_rows, logvar_rows, z_rows]), summed)
    shape = {"none": (rows, columns), "columns": (tiling.strips[1], rows), "rows": (tiling.strips[0], columns)}[summed]
    kl = mu.new_empty(shape, dtype=accumulator(mu))
    arguments = {
        "mu_ptr": mu_rows,
        "logvar_ptr": logvar_rows,
        "seed_ptr": seed,
        "z_ptr": z_rows,
        "kl_ptr": kl,
        "rows": rows,
        "columns": columns,
        "mu_pitch": mu_rows.stride(0),
        "logvar_pitch": logvar_rows.stride(0),
        "rows_per_seed": rows // seed.numel(),
        "batch": mu.shape[0],
        "steps": tiling.steps,
    }
    constants = {
        "SUMMED": summed,
        "WALK": tiling.steps > 1,
        "VECTOR": widest_vector([mu_rows, logvar_rows, z_rows]),
        **_shared_constants((rows, columns), tiling, summed, reduction, seed),
    }
    return Launch(forward_kernel, _grid(tiling), arguments, constants, fuses=False), kl


def plan_backward(
    dz: Tensor, dkl: Tensor, mu: Tensor, logvar: Tensor, seed: Tensor, gradients: Tensor, reduction: str
) -> Launch:
    """Return the backward launch, which fills `gradients`, dmu and dlogvar."""
    tensors = [dz, mu, logvar, gradients[0], gradients[1]] + ([dkl] if reduction == "none" else [])
    matrices = _matrices(tensors, _ignores_rows(reduction, seed))
    dz_rows, mu_rows, logvar_rows, dmu_rows, dlogvar_rows = matrices[:5]
    rows, columns = mu_rows.shape
    if reduction == "none":
        dkl = matrices[5]
    elif reduction == "dim":
        dkl = dkl.reshape(columns).contiguous()
    tiling = choose_tiling((rows, columns), mu.element_size(), _pitch(matrices), "none")
    arguments = {
        "dz_ptr": dz_rows,
        "dkl_ptr": dkl,
        "mu_ptr": mu_rows,
        "logvar_ptr": logvar_rows,
        "seed_ptr": seed,
        "dmu_ptr": dmu_rows,
        "dlogvar_ptr": dlogvar_rows,
        "rows": rows,
        "columns": columns,
        "dz_pitch": dz_rows.stride(0),
        "dkl_pitch": dkl.stride(0) if dkl.ndim > 0 else 0,
        "mu_pitch": mu_rows.stride(0),
        "logvar_pitch": logvar_rows.stride(0),
        "gradient_pitch": dmu_rows.stride(0),
        "rows_per_seed": rows // seed.numel(),
        "batch": mu.shape[0],
    }
    constants = {
        "PER_ROW": reduction in ("none", "sample"),
        "PER_COLUMN": reduction in ("none", "dim"),
        "VECTOR": widest_vector(matrices),
        **_shared_constants((rows, columns), tiling, "none", reduction, seed),
    }
    return Launch(backward_kernel, _grid(tiling), arguments, constants, fuses=False)


@functools.lru_cache(maxsize=4096)
def choose_tiling(shape: tuple[int, int], itemsize: int, pitch: int, summed: Summed) -> Tiling:
    """Choose the tiling of a matrix whose KL is summed along an axis or not at all.

    A tile is as wide as a warp reads at once, or narrower, down to a cache line, where that pads rows less; a matrix of
    few rows gets wider tiles. A walk along the summed axis is cut into strips where it is long and programs are few.
    """
    rows, columns = shape
    elements = TILE_BYTES // itemsize
    row_width = max(8, triton.next_power_of_2(columns))
    widest = min(WARP_BYTES // itemsize, row_width)
    halvings = max(0, (widest * itemsize // LINE_BYTES).bit_length() - 1)
    width = min((widest >> n for n in range(halvings + 1)), key=lambda w: triton.cdiv(columns, w) * w)
    height = min(elements // width, triton.next_power_of_2(rows))
    while height > 1 and height * pitch >= 2**31:
        height //= 2
    width = min(elements // height, row_width) if height < elements // width else width
    tiles = triton.cdiv(rows, height), triton.cdiv(columns, width)
    if summed == "none":
        return Tiling(height, width, 1, tiles)
    along, across = tiles if summed == "rows" else tiles[::-1]
    strips = 1 if along <= LONGEST_UNCUT_WALK else min(along, triton.cdiv(ENOUGH_PROGRAMS, across))
    steps = triton.cdiv(along, strips)
    strips = triton.cdiv(along, steps)
    return Tiling(height, width, steps, (strips, across) if summed == "rows" else (across, strips))


def widest_vector(matrices: list[Tensor]) -> int:
    """Return how many neighbouring columns can be read at once: at most 16 bytes, and aligned in every row."""
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
    """Return an empty `(2, B, ...)` for dmu and dlogvar, side by side where mu and logvar are halves of rows."""
    columns = math.prod(mu.shape[1:])
    halves = mu.stride(0) == logvar.stride(0) == 2 * columns and mu[:1].is_contiguous() and logvar[:1].is_contiguous()
    if halves:
        return mu.new_empty((mu.shape[0], 2, *mu.shape[1:])).movedim(1, 0)
    return mu.new_empty((2, *mu.shape))


@functools.lru_cache(maxsize=4096)
def _covers(tiling: Tiling, shape: tuple[int, int], summed: Summed) -> bool:
    """Return whether the tiles end where the matrix ends."""
    steps = (tiling.steps if summed == "rows" else 1, tiling.steps if summed == "columns" else 1)
    return (tiling.strips[0] * steps[0] * tiling.rows, tiling.strips[1] * steps[1] * tiling.columns) == shape


def _shared_constants(
    shape: tuple[int, int], tiling: Tiling, summed: Summed, reduction: str, seed: Tensor
) -> dict[str, Any]:
    return {
        "MEAN": reduction in ("dim", "batch"),
        "ONE_SEED": seed.numel() == 1,
        "MASKED": not _covers(tiling, shape, summed),
        "ROW_AXIS": int(tiling.strips[0] < tiling.strips[1]),
        "ROWS": tiling.rows,
        "COLUMNS": tiling.columns,
    }


def _grid(tiling: Tiling) -> tuple[int, int]:
    """Return the grid: its first axis, the longer one, has room for 2^31 programs, its second for 2^16."""
    return max(tiling.strips), min(tiling.strips)


def _ignores_rows(reduction: str, seed: Tensor) -> bool:
    return reduction in ("none", "batch") and seed.numel() == 1


def _matrices(tensors: list[Tensor], flatten: bool) -> list[Tensor]:
    """Return each `(B, ...)` as `(B, K)` with adjacent columns, or, if asked and able, all as `(1, B * K)`."""
    rows, columns = tensors[0].shape[0], math.prod(tensors[0].shape[1:])
    matrices = [tensor.reshape(rows, columns) for tensor in tensors]
    matrices = [m if m.stride(1) == 1 or columns == 1 else m.contiguous() for m in matrices]
    if flatten and columns % 4 == 0 and all(m.is_contiguous() for m in matrices):
        return [m.view(1, -1) for m in matrices]
    return matrices


def _pitch(matrices: list[Tensor]) -> int:
    return max(m.stride(0) for m in matrices)
