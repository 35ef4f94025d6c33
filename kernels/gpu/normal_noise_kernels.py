# ruff: noqa: ANN001, ANN201
# mypy: disable-error-code="no-untyped-def, untyped-decorator"
"""Standard normals written to memory, as a Triton kernel."""

import triton
import triton.language as tl

from .tiles import draw_noise, in_matrix, pointers, tile_at


@triton.jit(do_not_specialize=["rows", "columns", "rows_per_seed"])
def normal_kernel(
    seed_ptr,  # (rows / rows_per_seed,) of int64, contiguous
    normals_ptr,  # written: (rows, columns) of any float, contiguous
    rows,  # B, or 1 if the whole tensor is one row
    columns,  # K, or B * K if the whole tensor is one row
    rows_per_seed,  # rows that draw from one seed
    ONE_SEED: tl.constexpr,  # all rows draw from one seed
    MASKED: tl.constexpr,  # tiles reach beyond the matrix
    ROW_AXIS: tl.constexpr,  # axis of the grid along the rows: 0 or 1
    ROWS: tl.constexpr,  # rows of a tile
    COLUMNS: tl.constexpr,  # columns of a tile
    VECTOR: tl.constexpr,  # neighbouring columns that a thread writes at once
):
    """Write the normals of one tile."""
    row = tl.program_id(ROW_AXIS) * ROWS
    column = tl.program_id(1 - ROW_AXIS).to(tl.int64) * COLUMNS
    tile = tile_at(row, column, ROWS, COLUMNS)
    normals = draw_noise(seed_ptr, rows, columns, rows_per_seed, tile, ONE_SEED, VECTOR)
    mask = in_matrix(rows, columns, tile, MASKED, VECTOR)
    tl.store(pointers(normals_ptr, columns, tile, VECTOR), normals.to(normals_ptr.dtype.element_ty), mask=mask)
