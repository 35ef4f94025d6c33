"""The machine that benchmarks run on: what it is, how fast it copies, and what the harness itself costs."""

import functools
import importlib.metadata
import os
import statistics
import subprocess
from typing import Any

import torch

from vaebench.bench.timing import harness

COPY_BYTES = {"cpu": 2**27, "cuda": 2**30}
COPY_ROUNDS = 25


def pick_device() -> torch.device:
    """Return the GPU if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@functools.cache
def measure() -> dict[str, Any]:
    """Measure copy bandwidth and the cost of the harness, once in a process.

    `copy_bytes_per_s`: bytes read and written by copying a tensor larger than any cache, over the fastest time, since
    other programs only add to it.
    `floor_seconds`: an empty call under the same clock. `floor_ratio`: the copy over itself, interleaved.
    """
    device = pick_device()
    timer = harness.pick_timer(device)
    source = torch.ones(COPY_BYTES[device.type] // 4, device=device)
    target = torch.empty_like(source)
    copies = harness.compare({"copy": lambda: target.copy_(source)}, timer=timer, rounds=COPY_ROUNDS)
    empty = harness.compare({"empty": lambda: None}, timer=timer, rounds=COPY_ROUNDS)
    return {
        "copy_bytes_per_s": 2 * source.nbytes / min(copies.samples["copy"]),
        "floor_seconds": statistics.median(empty.samples["empty"]),
        "floor_ratio": copies.noise_floor.to_json(),
    }


@functools.cache
def load() -> float:
    """Return the load at the first call, which conftest makes before the benchmarks add to it."""
    return round(os.getloadavg()[0], 1)


def describe() -> dict[str, str | float | None]:
    """Return what machine_info of pytest-benchmark lacks: versions, threads, load, GPU and driver."""
    on_gpu = pick_device().type == "cuda"
    return {
        "torch": torch.__version__,
        "triton": _find_version("triton"),
        "device": torch.cuda.get_device_name() if on_gpu else "CPU",
        "threads": torch.get_num_threads(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "load": load(),
        "allocator_pinned": harness.allocator_is_pinned(),
        **(_describe_gpu() if on_gpu else {}),
    }


def _describe_gpu() -> dict[str, str | float | None]:
    properties = torch.cuda.get_device_properties()
    return {
        "gpu_memory": properties.total_memory,
        "gpu_l2": properties.L2_cache_size,
        "gpu_processors": properties.multi_processor_count,
        "runtime": torch.version.cuda or torch.version.hip,
        "driver": _find_driver(),
    }


def _find_driver() -> str | None:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader", "--id=0"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def _find_version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
