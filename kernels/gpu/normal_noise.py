"""normal_noise on a GPU: one launch, as an operator of PyTorch."""

from typing import Any

import torch
from torch import Tensor

from ..shared import torch_library
from ..shared.autograd import move_to_front
from .launch import Launch
from .normal_noise_kernels import normal_kernel
from .reparam_kl_launch import as_matrices, choose_tiling, widest_vector


def normal(seed: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Return the normals of `kernels.normal_noise`; seed is `(G,)`, G divides `shape[0]`."""
    normals: Tensor = _operator(seed, shape, dtype)
    return normals


def plan_normal(seed: Tensor, normals: Tensor) -> Launch:
    """Return the launch that fills `normals`, `(B, ...)`, contiguous and not empty."""
    (matrix,) = as_matrices([normals], "none", seed)
    rows, columns = matrix.shape
    tiling = choose_tiling((rows, columns), normals.element_size(), matrix.stride(0), "none")
    arguments = {
        "seed_ptr": seed.contiguous(),
        "normals_ptr": matrix,
        "rows": rows,
        "columns": columns,
        "rows_per_seed": rows // seed.numel(),
    }
    constants = {
        "ONE_SEED": seed.numel() == 1,
        "MASKED": tiling.masked,
        "ROW_AXIS": int(tiling.strips[0] < tiling.strips[1]),
        "ROWS": tiling.rows,
        "COLUMNS": tiling.columns,
        "VECTOR": widest_vector([matrix]),
    }
    return Launch(normal_kernel, tiling.grid, arguments, constants, fuse_multiply_add=False)


def _normal(seed: Tensor, shape: list[int], dtype: torch.dtype) -> Tensor:
    normals = _empty(seed, shape, dtype)
    if normals.numel() > 0:
        plan_normal(seed, normals).run()
    return normals


def _empty(seed: Tensor, shape: list[int], dtype: torch.dtype) -> Tensor:
    return seed.new_empty(shape, dtype=dtype)


def _vmap(
    info: Any, in_dims: tuple[int | None, ...], seed: Tensor, shape: list[int], dtype: torch.dtype
) -> tuple[Tensor, int]:
    """Fold the vmapped axis of the seeds into the rows."""
    seeds = move_to_front(seed, in_dims[0], info.batch_size)
    members, rows, *rest = info.batch_size, *shape
    return normal(seeds.flatten(), (members * rows, *rest), dtype).unflatten(0, (members, rows)), 0


_operator = torch_library.define(
    "normal_noise(Tensor seed, SymInt[] shape, ScalarType dtype) -> Tensor", _normal, _empty, _vmap
)
