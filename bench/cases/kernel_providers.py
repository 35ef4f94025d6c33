"""Ways to compute one case: the backends of kernels/, torch.compile of the eager one, and CUDA graphs of each."""

import os
import shutil
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from vaebench import kernels
from vaebench.bench.cases.kernel_cases import CASES, Case, forward, forward_backward, size_id
from vaebench.bench.timing.harness import Contest, RefusedError, Replayed, Work, told
from vaebench.bench.timing.memory import peak_bytes, saved_bytes
from vaebench.kernels import backends

GRAPH = "+graph"
BACKENDS = ("eager", "compile", "analytic", "triton", f"eager{GRAPH}", f"compile{GRAPH}", f"triton{GRAPH}")
DIRECTIONS = ("forward", "both")


def why_not(op: str, backend: str, device: torch.device) -> str | None:
    """Return None where a backend can be timed on the device, and otherwise the reason, as a clause."""
    plain = backend.removesuffix(GRAPH)
    if plain != backend and device.type != "cuda":
        return "CUDA graphs need a GPU"
    if plain == "compile":
        compiler = os.environ.get("CXX", "g++")
        missing = device.type == "cpu" and shutil.which(compiler) is None
        return f"torch.compile needs a C++ compiler, and there is no {compiler}" if missing else None
    if plain == "triton" and device.type == "cpu":
        return "its kernels need a GPU: interpreted on a CPU, they are for tests"
    return backends.why_not(op, plain, device)


def contest(
    op: str,
    size: tuple[int, ...],
    dtype: torch.dtype,
    direction: str,
    device: torch.device,
    only: Sequence[str] = BACKENDS,
) -> Contest:
    """Return every backend that can run, held to the definition, with what it moves, computes and keeps."""
    case = CASES[op](size, dtype, device)
    providers: dict[str, Work] = {}
    for name in only:
        if why_not(op, name, device) is None:
            providers[name] = _made(case, name, direction, providers)

    def facts(name: str, work: Work) -> dict[str, Any]:
        return {
            "op": op,
            "size": size_id(size),
            "dtype": str(dtype).removeprefix("torch."),
            "direction": direction,
            "input_bytes": sum(x.nbytes for x in case.inputs),
            "model_bytes": case.moved[0] if direction == "forward" else sum(case.moved),
            "model_flops": case.flops if direction == "both" else None,
            "saved_bytes": None
            if isinstance(work, Replayed) or direction == "forward"
            else saved_bytes(work, case.inputs),
            "peak_bytes": None if isinstance(work, Replayed) else peak_bytes(work, device),
        }

    return Contest(providers, case.check, facts)


def _made(case: Case, name: str, direction: str, plain: Mapping[str, Work]) -> Work:
    """Return what is timed, or, where it cannot be made, work that raises why: the others go on without it."""
    try:
        return Replayed(plain[name.removesuffix(GRAPH)]) if name.endswith(GRAPH) else _work(case, name, direction)
    except Exception as error:
        return partial(_refuse, told(error))


def _refuse(why: str) -> None:
    raise RefusedError(why)


def _work(case: Case, backend: str, direction: str) -> Work:
    """Return what is timed: one call, forward or both ways."""
    function = _compiled(case) if backend == "compile" else partial(getattr(kernels, case.op), backend=backend)
    called = (
        partial(forward_backward, function, case.inputs, case.upstream)
        if direction == "both"
        else partial(forward, function, case.inputs)
    )
    if backend == "compile":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the compiler's, of parts of torch that it uses
            called()
    return called


def _compiled(case: Case) -> Callable[..., Any]:
    """Return torch.compile of the eager backend for the shape at hand.

    On a CPU the compiler's own generator is slower than eager's, so that there the noise is drawn before the compiled
    function, which is the fastest way for a user to write it.
    """
    torch.compiler.reset()
    if case.op == "reparam_kl" and case.inputs[0].device.type == "cpu":
        step = torch.compile(_reparam_kl_of_noise, dynamic=False)
        return lambda mu, logvar: step(mu, logvar, torch.randn_like(mu))
    return torch.compile(partial(getattr(kernels, case.op), backend="eager"), dynamic=False)


def _reparam_kl_of_noise(mu: Tensor, logvar: Tensor, eps: Tensor) -> tuple[Tensor, Tensor]:
    z = mu + torch.exp(0.5 * logvar) * eps
    kl = -0.5 * (1 + logvar - mu.pow(2) - logvar.exp())
    return z, kl.float().flatten(1).sum(1)
