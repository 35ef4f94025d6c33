"""Providers of one case: textbook PyTorch, torch.compile of it, the fused backends of kernels/, and CUDA graphs.

`eager` and `compile` are the peers, as a user writes them (textbook.py); `eager` of kernels/ is their oracle alone.
"""

import os
import shutil
import warnings
from collections.abc import Mapping, Sequence
from functools import cache, partial

import torch

from vaebench import kernels
from vaebench.bench.cases import textbook
from vaebench.bench.cases.kernel_cases import CASES, Case, Function, format_size, forward, forward_backward
from vaebench.bench.timing.harness import Call, Check, GraphReplay, ProviderError, Workload, describe_error, pick_timer
from vaebench.bench.timing.memory import peak_bytes, saved_bytes
from vaebench.kernels import backends

GRAPH = "+graph"
BACKENDS = ("eager", "compile", "numba", "triton", f"eager{GRAPH}", f"compile{GRAPH}", f"triton{GRAPH}")
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


def prepare(
    op: str,
    size: tuple[int, ...],
    dtype: torch.dtype,
    direction: str,
    device: torch.device,
    only: Sequence[str] = BACKENDS,
) -> Workload:
    """Return every backend that can run, with the checks against the definition, and with its bytes and flops."""
    case = CASES[op](size, dtype, device)
    other = cache(partial(CASES[op], size, dtype, device, seed=1))
    providers: dict[str, Call] = {}
    for name in only:
        if why_not(op, name, device) is None:
            providers[name] = _build_or_raise_later(case, name, direction, providers)

    def extra_info(provider: str, call: Call) -> dict[str, str | int | None]:
        is_graph, both = isinstance(call, GraphReplay), direction == "both"
        return {
            "op": op,
            "size": format_size(size),
            "dtype": str(dtype).removeprefix("torch."),
            "direction": direction,
            "input_bytes": sum(x.nbytes for x in case.inputs),
            "model_bytes": sum(case.moved) if both else case.moved[0],
            "model_flops": case.flops if both else None,
            "saved_bytes": saved_bytes(call, case.inputs) if both and not is_graph else None,
            "peak_bytes": None if is_graph else peak_bytes(call, device),
        }

    def renew(_: str) -> Check:
        case.take_inputs(other())
        return other().check

    return Workload(providers, case.check, extra_info, pick_timer(device), renew=renew)


def _build_or_raise_later(case: Case, name: str, direction: str, plain: Mapping[str, Call]) -> Call:
    """Return a provider's call; where it cannot be built, one that raises the reason, so that the others still run."""
    try:
        return GraphReplay(plain[name.removesuffix(GRAPH)]) if name.endswith(GRAPH) else _build(case, name, direction)
    except Exception as error:
        return partial(_raise, describe_error(error))


def _raise(reason: str) -> None:
    raise ProviderError(reason)


def _build(case: Case, backend: str, direction: str) -> Call:
    """Return one call of a backend, forward or both ways."""
    function = _find_function(case, backend)
    call = (
        partial(forward_backward, function, case.inputs, case.upstream)
        if direction == "both"
        else partial(forward, function, case.inputs)
    )
    if backend == "compile":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the compiler, about parts of torch that it uses
            call()
    return call


def _find_function(case: Case, backend: str) -> Function:
    if backend == "compile":
        return _compile(case)
    written: Function = getattr(textbook, case.op)
    return written if backend == "eager" else partial(getattr(kernels, case.op), backend=backend)


def _compile(case: Case) -> Function:
    """Return torch.compile of the textbook function for the shape at hand.

    On a CPU the compiler's own generator is slower than eager's. There the noise is drawn before the compiled function,
    which is the fastest form that a user could write.
    """
    torch.compiler.reset()
    if case.op == "reparam_kl" and case.inputs[0].device.type == "cpu":
        compiled = torch.compile(textbook.reparam_kl_of_noise, dynamic=False)
        return lambda mu, logvar: compiled(mu, logvar, torch.randn_like(mu))
    return torch.compile(getattr(textbook, case.op), dynamic=False)
