"""Which backend computes which operation, what `auto` means, and the one error when a backend cannot run."""

from collections.abc import Callable
from typing import Any

import torch

from . import eager, reference
from .analytic import log_aggregate as analytic_aggregate
from .analytic import mmd2 as analytic_mmd
from .analytic import reparam_kl as analytic

Op = Callable[..., Any]

TORCH: dict[tuple[str, str], Op] = {
    ("reparam_kl", "reference"): reference.reparam_kl,
    ("reparam_kl", "eager"): eager.reparam_kl,
    ("reparam_kl", "analytic"): analytic.reparam_kl,
    ("mmd2", "reference"): reference.mmd2,
    ("mmd2", "eager"): eager.mmd2,
    ("mmd2", "analytic"): analytic_mmd.mmd2,
    ("log_aggregate", "reference"): reference.log_aggregate,
    ("log_aggregate", "eager"): eager.log_aggregate,
    ("log_aggregate", "analytic"): analytic_aggregate.log_aggregate,
}


def _fused_reparam_kl() -> Op:
    from .gpu.reparam_kl import reparam_kl

    return reparam_kl


def _fused_mmd2() -> Op:
    from .gpu.mmd2 import mmd2

    return mmd2


def _fused_log_aggregate() -> Op:
    from .gpu.log_aggregate import log_aggregate

    return log_aggregate


# Loaded when first asked for, by import statements: torch.compile follows these and stops at importlib and at caches.
FUSED: dict[str, Callable[[], Op]] = {
    "reparam_kl": _fused_reparam_kl,
    "mmd2": _fused_mmd2,
    "log_aggregate": _fused_log_aggregate,
}


def resolve(op: str, backend: str, device: torch.device) -> Op:
    """Return the function that computes `op` on `device`, or raise one sentence that says what can run."""
    backend = choose(op, backend, device)
    reason = why_not(op, backend, device)
    if reason is not None:
        raise ValueError(
            f"backend {backend!r} cannot run {op}: {reason}; choose from {', '.join(runnable(op, device))}."
        )
    return FUSED[op]() if backend == "triton" else TORCH[op, backend]


def choose(op: str, backend: str, device: torch.device) -> str:
    """Return the backend that was named, or, for `auto`, triton on a GPU where it can run, else analytic."""
    if backend != "auto":
        return backend
    return "triton" if device.type == "cuda" and why_not(op, "triton", device) is None else "analytic"


def runnable(op: str, device: torch.device) -> list[str]:
    """Return the names of the backends that can compute `op` on `device`."""
    names = [name for known, name in TORCH if known == op]
    return [*names, "triton"] if why_not(op, "triton", device) is None else names


def why_not(op: str, backend: str, device: torch.device) -> str | None:
    """Return None where `backend` can compute `op` on `device`, and otherwise the reason, as a clause."""
    if (op, backend) in TORCH:
        return None
    if backend != "triton" or op not in FUSED:
        return "there is no such backend for it"
    try:
        from .gpu.launch import why_not_on
    except ModuleNotFoundError as error:
        if error.name != "triton":
            raise
        return "it needs the package triton, which is not installed (pip install triton; Linux only)"
    return why_not_on(device)
