"""The table of backends and operations, the meaning of `auto`, and the error if a backend cannot run."""

from collections.abc import Callable
from typing import Any

import torch

from . import eager, reference
from .analytic.log_aggregate import log_aggregate as analytic_log_aggregate
from .analytic.mmd2 import mmd2 as analytic_mmd2
from .analytic.reparam_kl import reparam_kl as analytic_reparam_kl

Op = Callable[..., Any]

TORCH: dict[tuple[str, str], Op] = {
    ("reparam_kl", "reference"): reference.reparam_kl,
    ("reparam_kl", "eager"): eager.reparam_kl,
    ("reparam_kl", "analytic"): analytic_reparam_kl,
    ("mmd2", "reference"): reference.mmd2,
    ("mmd2", "eager"): eager.mmd2,
    ("mmd2", "analytic"): analytic_mmd2,
    ("log_aggregate", "reference"): reference.log_aggregate,
    ("log_aggregate", "eager"): eager.log_aggregate,
    ("log_aggregate", "analytic"): analytic_log_aggregate,
}


def resolve(op: str, backend: str, device: torch.device) -> Op:
    """Return the function that computes `op` on `device`, or raise an error that names the backends that can."""
    backend = choose(op, backend, device)
    reason = why_not(op, backend, device)
    if reason is not None:
        raise ValueError(
            f"backend {backend!r} cannot run {op}: {reason}; choose from {', '.join(runnable(op, device))}."
        )
    return _load_triton(op) if backend == "triton" else TORCH[op, backend]


def choose(op: str, backend: str, device: torch.device) -> str:
    """Return the named backend. `auto` is triton on a GPU if it can run there, and analytic otherwise."""
    if backend != "auto":
        return backend
    return "triton" if device.type == "cuda" and why_not(op, "triton", device) is None else "analytic"


def runnable(op: str, device: torch.device) -> list[str]:
    """Return the names of the backends that can compute `op` on `device`."""
    names = [name for known, name in TORCH if known == op]
    return [*names, "triton"] if why_not(op, "triton", device) is None else names


def why_not(op: str, backend: str, device: torch.device) -> str | None:
    """Return None if `backend` can compute `op` on `device`, otherwise the reason as a clause."""
    if (op, backend) in TORCH:
        return None
    if backend != "triton" or (op, "eager") not in TORCH:
        return "there is no such backend for it"
    try:
        from .gpu.launch import why_not_on
    except ModuleNotFoundError as error:
        if error.name != "triton":
            raise
        return "it needs the package triton, which is not installed (pip install triton; Linux only)"
    return why_not_on(device)


def _load_triton(op: str) -> Op:
    """Import the Triton function of `op`. torch.compile traces import statements, but not importlib and not caches."""
    if op == "reparam_kl":
        from .gpu.reparam_kl import reparam_kl

        return reparam_kl
    if op == "mmd2":
        from .gpu.mmd2 import mmd2

        return mmd2
    from .gpu.log_aggregate import log_aggregate

    return log_aggregate
