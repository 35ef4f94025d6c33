"""The operations of kernels/: every backend of the machine on the same inputs, forward alone and with backward.

Without --full: float32, with backward, the sizes marked `smoke` and `session`.
"""

import itertools
from collections.abc import Callable
from functools import partial

import pytest
import torch

from vaebench.bench.cases import kernel_providers
from vaebench.bench.cases.kernel_cases import format_size
from vaebench.bench.timing.harness import TimeInterleaved

Size = tuple[int, ...]
Measure = Callable[[str, Size, str, str, str], None]

MARKS = {"smoke": (), "session": (pytest.mark.session,), "full": (pytest.mark.full,)}
SIZES: dict[str, dict[str, list[Size]]] = {
    "reparam_kl": {
        "smoke": [(128, 32)],
        "session": [(512, 10), (512, 128), (8, 4, 64, 64), (4096, 512), (16384, 1024)],
        "full": [(65536, 512), (65536, 1024), (1048576, 64), (64, 1048576)],
    },
    "mmd2": {"smoke": [(64, 64, 8)], "session": [(512, 512, 32), (4096, 4096, 64)], "full": [(8192, 8192, 64)]},
    "log_aggregate": {
        "smoke": [(64, 64, 8)],
        "session": [(64, 1439, 8), (512, 2048, 32)],
        "full": [(1024, 4096, 32), (64, 50000, 32)],
    },
}


def parametrize(op: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Return the decorator that runs a benchmark at every size and mode of an operation, by every backend."""
    sizes = [
        pytest.param(size, marks=MARKS[scale], id=format_size(size))
        for scale, members in SIZES[op].items()
        for size in members
    ]
    modes = [
        pytest.param(*mode, marks=MARKS["smoke" if mode == ("float32", "both") else "full"], id="-".join(mode))
        for mode in itertools.product(("float32", "bfloat16"), kernel_providers.DIRECTIONS)
    ]

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        by_size = pytest.mark.parametrize("size", sizes)(function)
        by_mode = pytest.mark.parametrize(("dtype", "direction"), modes)(by_size)
        return pytest.mark.parametrize("backend", kernel_providers.BACKENDS)(by_mode)

    return decorate


@parametrize("reparam_kl")
def bench_reparam_kl(measure: Measure, size: Size, dtype: str, direction: str, backend: str) -> None:
    measure("reparam_kl", size, dtype, direction, backend)


@parametrize("mmd2")
def bench_mmd2(measure: Measure, size: Size, dtype: str, direction: str, backend: str) -> None:
    measure("mmd2", size, dtype, direction, backend)


@parametrize("log_aggregate")
def bench_log_aggregate(measure: Measure, size: Size, dtype: str, direction: str, backend: str) -> None:
    measure("log_aggregate", size, dtype, direction, backend)


@pytest.fixture
def measure(time_interleaved: TimeInterleaved, device: torch.device) -> Measure:
    """Return a function that times one operation at one size, in one mode, by every backend that can run."""

    def run(op: str, size: Size, dtype: str, direction: str, backend: str) -> None:
        reason = kernel_providers.why_not(op, backend, device)
        if reason is not None:
            pytest.skip(f"{backend}: {reason}")
        prepare = partial(kernel_providers.prepare, op, size, getattr(torch, dtype), direction, device)
        time_interleaved(f"{op} {format_size(size)} {dtype} {direction}", backend, prepare)

    return run
