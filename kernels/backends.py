"""Which backend computes which operation, what `auto` means, and the one error when a backend cannot run."""

from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch

from . import analytic, analytic_aggregate, analytic_mmd, eager, reference

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


def _fused_reparam_kl() -> ModuleType:
    from . import fused_reparam_kl_op

    return fused_reparam_kl_op


def _fused_mmd2() -> ModuleType:
    from . import fused_mmd_op

    return fused_mmd_op


def _fused_log_aggregate() -> ModuleType:
    from . import fused_aggregate_op

    return fused_aggregate_op


# Loaded when first asked for, by import statements: torch.compile follows these and stops at importlib and at caches.
FUSED: dict[str, Callable[[], ModuleType]] = {
    "reparam_kl": _fused_reparam_kl,
    "mmd2": _fused_mmd2,
    "log_aggregate": _fused_log_aggregate,
}


def resolve(op: str, backend: str, device: torch.device) -> Op:
    """Return the function that computes `op` on `device`, or raise one sentence that says what can run."""
    if backend == "auto":
        backend = "triton" if device.type == "cuda" and why_not(op, "triton", device) is None else "analytic"
    reason = why_not(op, backend, device)
    if reason is not None:
        raise ValueError(
            f"backend {backend!r} cannot run {op}: {reason}; choose from {', '.join(runnable(op, device))}."
        )
    if backend == "triton":
        fused: Op = getattr(FUSED[op](), op)
        return fused
    return TORCH[op, backend]


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
        module = FUSED[op]()
    except ModuleNotFoundError as error:
        if error.name != "triton":
            raise
        return "it needs the package triton, which is not installed (pip install triton; Linux only)"
    reason: str | None = module.why_not_on(device)
    return reason
