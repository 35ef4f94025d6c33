"""The bytes that a call keeps for its backward pass, and the most bytes that it holds at once."""

import json
import tempfile
from collections.abc import Iterable
from itertools import accumulate
from pathlib import Path

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from vaebench.bench.timing.harness import Call


def saved_bytes(call: Call, inputs: Iterable[Tensor]) -> int:
    """Return the bytes that autograd keeps for backward beside the inputs, each storage counted once."""
    kept: list[Tensor] = []

    def pack(x: Tensor) -> Tensor:
        kept.append(x.detach())
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        call()
    storages = {x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in kept}
    of_inputs = {x.untyped_storage().data_ptr() for x in inputs}
    return sum(size for address, size in storages.items() if address not in of_inputs)


def peak_bytes(call: Call, device: torch.device) -> int:
    """Return the most bytes held at once during a call, beyond the bytes held before it.

    CUDA counts them itself. On a CPU torch's profiler does: it sees torch's allocator, but no buffers of libraries.
    """
    if device.type != "cuda":
        return max(accumulate(_list_allocations(call), initial=0))
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def _list_allocations(call: Call) -> list[int]:
    """Return the sizes of allocations and, as negative numbers, of releases, in their order."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as profiler:
        call()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        events = json.loads(path.read_text())["traceEvents"]
    memory = [event for event in events if event["name"] == "[memory]"]
    return [event["args"]["Bytes"] for event in sorted(memory, key=lambda event: event["ts"])]
