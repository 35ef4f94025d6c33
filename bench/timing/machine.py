"""The machine under the figures: what it is, how fast it copies, and what the harness itself costs."""

import functools
import importlib.metadata
import os
import subprocess
from typing import Any

import torch

from vaebench.bench.timing import harness, ratios

COPY_BYTES = {"cpu": 2**27, "cuda": 2**30}
COPY_ROUNDS = 25


def device() -> torch.device:
    """Return where benchmarks run: the GPU if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@functools.cache
def measured() -> dict[str, Any]:
    """Measure, once in a process, copy bandwidth and the floor of the harness.

    `copy_bytes_per_s`: bytes read and written by copying a tensor that no cache holds, over the fastest time, since
    what else runs only adds to it.
    `floor_seconds`: an empty call under the same clock; `floor_ratio`: of the copy to itself, interleaved.
    """
    timer = harness.clock(device())
    source = torch.ones(COPY_BYTES[device().type] // 4, device=device())
    target = torch.empty_like(source)
    copies = harness.compare({"copy": lambda: target.copy_(source)}, timer=timer, rounds=COPY_ROUNDS)
    empty = harness.compare({"empty": _nothing}, timer=timer, rounds=COPY_ROUNDS)
    return {
        "copy_bytes_per_s": 2 * source.nbytes / min(copies.samples["copy"]),
        "floor_seconds": ratios.median(empty.samples["empty"]).median,
        "floor_ratio": copies.floor().plain,
    }


@functools.cache
def load() -> float:
    """Return the load when this was first asked, which is before the benchmarks add theirs."""
    return round(os.getloadavg()[0], 1)


def describe() -> dict[str, Any]:
    """Return what machine_info of pytest-benchmark does not know: versions, threads, load, GPU and driver."""
    return {
        "torch": torch.__version__,
        "triton": _version("triton"),
        "device": torch.cuda.get_device_name() if device().type == "cuda" else "CPU",
        "threads": torch.get_num_threads(),
        "cores": len(os.sched_getaffinity(0)),
        "load": load(),
        "allocator_pinned": harness.allocator_is_pinned(),
        **(_gpu() if device().type == "cuda" else {}),
    }


def _gpu() -> dict[str, Any]:
    properties = torch.cuda.get_device_properties()
    return {
        "gpu_memory": properties.total_memory,
        "gpu_l2": properties.L2_cache_size,
        "gpu_processors": properties.multi_processor_count,
        "runtime": torch.version.cuda or torch.version.hip,
        "driver": _driver(),
    }


def _driver() -> str | None:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader", "--id=0"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _nothing() -> None:
    """Do nothing: what timing it shows is the harness."""
