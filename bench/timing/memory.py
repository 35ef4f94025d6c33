"""Bytes that work keeps for its backward pass, and the most that it holds at once."""

import json
import tempfile
from collections.abc import Iterable
from itertools import accumulate
from pathlib import Path

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from vaebench.bench.timing.harness import Work


def saved_bytes(work: Work, inputs: Iterable[Tensor]) -> int:
    """Return the bytes that autograd keeps for backward beside the inputs, each storage counted once."""
    kept: list[Tensor] = []

    def pack(x: Tensor) -> Tensor:
        kept.append(x.detach())
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        work()
    storages = {x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in kept}
    given = {x.untyped_storage().data_ptr() for x in inputs}
    return sum(size for address, size in storages.items() if address not in given)


def peak_bytes(work: Work, device: torch.device) -> int:
    """Return the most bytes held at once beyond those held before: CUDA's own count, on a CPU torch's profiler's.

    The profiler sees what goes through torch's allocator, which leaves out buffers inside of library calls.
    """
    if device.type != "cuda":
        return max(accumulate(_allocations(work), initial=0))
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    work()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def _allocations(work: Work) -> list[int]:
    """Return the sizes of allocations, and negative ones of releases, in their order."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as recorded:
        work()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        recorded.export_chrome_trace(str(path))
        events = json.loads(path.read_text())["traceEvents"]
    memory = [event for event in events if event["name"] == "[memory]"]
    return [event["args"]["Bytes"] for event in sorted(memory, key=lambda event: event["ts"])]
