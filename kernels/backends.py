"""The table of backends and operations, the meaning of `auto`, and the error if a backend cannot run."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from . import eager, reference
from .shared import noise
from .shared.accumulate import accumulator

Op = Callable[..., Any]

OPERATIONS = ("reparam_kl", "mmd2", "log_aggregate")
NAMES = ("reference", "eager", "numba", "triton")


_found: dict[tuple[str, str, str], Op] = {}


def resolve(op: str, backend: str, device: torch.device) -> Op:
    """Return the function that computes `op` on `device`, or raise an error that names the backends that can."""
    if torch.compiler.is_compiling():
        return _resolve(op, backend, device)
    key = op, backend, device.type
    if key not in _found:
        _found[key] = _resolve(op, backend, device)
    return _found[key]


def _resolve(op: str, backend: str, device: torch.device) -> Op:
    backend = choose(op, backend, device)
    reason = why_not(op, backend, device)
    if reason is not None:
        raise ValueError(
            f"backend {backend!r} cannot run {op}: {reason}; choose from {', '.join(runnable(op, device))}."
        )
    return _load(op, backend)


def choose(op: str, backend: str, device: torch.device) -> str:
    """Return the named backend. `auto` is triton on a GPU and numba on a CPU if it can run there, otherwise eager."""
    if backend != "auto":
        return backend
    fused = "triton" if device.type == "cuda" else "numba"
    return fused if why_not(op, fused, device) is None else "eager"


def runnable(op: str, device: torch.device) -> list[str]:
    """Return the names of the backends that can compute `op` on `device`."""
    return [name for name in NAMES if why_not(op, name, device) is None]


def why_not(op: str, backend: str, device: torch.device) -> str | None:
    """Return None if `backend` can compute `op` on `device`, otherwise the reason as a clause."""
    if op not in OPERATIONS or backend not in NAMES:
        return "there is no such backend for it"
    if backend in ("reference", "eager"):
        return None
    if backend == "numba" and device.type != "cpu":
        return f"its kernels are for CPUs, not for {device.type}"
    try:
        if backend == "numba":
            from .cpu import threads  # noqa: F401

            return None
        from .gpu.launch import why_not_on
    except ModuleNotFoundError as error:
        if error.name != backend:
            raise
        only = "; Linux only" if backend == "triton" else ""
        return f"it needs the package {backend}, which is not installed (pip install {backend}{only})"
    return why_not_on(device)


def draw_normals(seed: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Return the noise stream, from a kernel where one can run."""
    backend = choose("reparam_kl", "auto", seed.device)
    if backend == "numba":
        from .cpu.reparam_kl import normal_noise

        return normal_noise(seed, shape, dtype)
    if backend == "triton":
        from .gpu.normal_noise import normal

        return normal(seed, shape, dtype)
    return noise.normal(seed, shape, dtype)


def _load(op: str, backend: str) -> Op:
    """Import the function of `op`. torch.compile traces import statements, but not importlib and not caches."""
    if backend in ("reference", "eager"):
        function: Op = getattr(reference if backend == "reference" else eager, op)
        return partial(_draw_first, function) if op == "reparam_kl" else function
    return _load_numba(op) if backend == "numba" else _load_triton(op)


def _draw_first(
    function: Op,
    mu: Tensor,
    spread: Tensor,
    prior_mu: Tensor | None,
    prior_logvar: Tensor | None,
    seed: Tensor,
    *settings: str,
) -> tuple[Tensor, Tensor]:
    """Call a reparam_kl that takes the noise in place of the seed."""
    eps = draw_normals(seed, tuple(mu.shape), accumulator(mu))
    z, kl = function(mu, spread, prior_mu, prior_logvar, eps, *settings)
    return z, kl


def _load_numba(op: str) -> Op:
    if op == "reparam_kl":
        from .cpu.reparam_kl import reparam_kl

        return reparam_kl
    if op == "mmd2":
        from .cpu.mmd2 import mmd2

        return mmd2
    from .cpu.log_aggregate import log_aggregate

    return log_aggregate


def _load_triton(op: str) -> Op:
    if op == "reparam_kl":
        from .gpu.reparam_kl import reparam_kl

        return reparam_kl
    if op == "mmd2":
        from .gpu.mmd2 import mmd2

        return mmd2
    from .gpu.log_aggregate import log_aggregate

    return log_aggregate
