"""The operations of kernels/: every backend of the machine on the same inputs, forward and both ways.

Without --full: float32, both ways, the sizes below that carry no mark, and those of a session.
"""

from functools import partial

import pytest
import torch

from vaebench.bench.cases import kernel_providers
from vaebench.bench.cases.kernel_cases import size_id

SIZES = {
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


def sizes(op):
    """Return the sizes of an operation as parameters, each with the mark of its scale."""
    marks = {"smoke": (), "session": pytest.mark.session, "full": pytest.mark.full}
    return [
        pytest.param(size, marks=marks[scale], id=size_id(size))
        for scale, members in SIZES[op].items()
        for size in members
    ]


def modes():
    """Return dtype and direction as parameters."""
    chosen = [(dtype, direction) for dtype in ("float32", "bfloat16") for direction in kernel_providers.DIRECTIONS]
    return [
        pytest.param(*mode, marks=() if mode == ("float32", "both") else pytest.mark.full, id="-".join(mode))
        for mode in chosen
    ]


@pytest.mark.parametrize("backend", kernel_providers.BACKENDS)
@pytest.mark.parametrize(("dtype", "direction"), modes())
@pytest.mark.parametrize("size", sizes("reparam_kl"))
def bench_reparam_kl(measure, size, dtype, direction, backend):
    measure("reparam_kl", size, dtype, direction, backend)


@pytest.mark.parametrize("backend", kernel_providers.BACKENDS)
@pytest.mark.parametrize(("dtype", "direction"), modes())
@pytest.mark.parametrize("size", sizes("mmd2"))
def bench_mmd2(measure, size, dtype, direction, backend):
    measure("mmd2", size, dtype, direction, backend)


@pytest.mark.parametrize("backend", kernel_providers.BACKENDS)
@pytest.mark.parametrize(("dtype", "direction"), modes())
@pytest.mark.parametrize("size", sizes("log_aggregate"))
def bench_log_aggregate(measure, size, dtype, direction, backend):
    measure("log_aggregate", size, dtype, direction, backend)


@pytest.fixture
def measure(interleaved, device, timer):
    """Return a function that times one operation at one size, in one mode, by every backend that can run."""

    def run(op, size, dtype, direction, backend):
        reason = kernel_providers.why_not(op, backend, device)
        if reason is not None:
            pytest.skip(f"{backend}: {reason}")
        prepare = partial(kernel_providers.contest, op, size, getattr(torch, dtype), direction, device)
        interleaved(f"{op} {size_id(size)} {dtype} {direction}", backend, prepare, timer=timer)

    return run
