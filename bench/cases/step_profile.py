"""The time of a training step by operation, with each backend of its latent head."""

import bisect
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import DeviceType, ProfilerActivity, profile, record_function

from vaebench.bench.cases import training_step

WARM_UP, MEASURED = 5, 20
SHOWN = 12  # entries; the others are added up
STEP = "one step"


@dataclass(frozen=True)
class Profile:
    """The times of one backend's step, by kernel on a GPU and by operator on a CPU.

    Attributes:
        microseconds: own time in the median step by name, the largest first.
        launches: kernels launched in a step; on a CPU, operators run.
    """

    backend: str
    microseconds: dict[str, float]
    launches: float

    @property
    def total(self) -> float:
        """Return the microseconds of a step."""
        return sum(self.microseconds.values())

    @property
    def largest(self) -> dict[str, float]:
        """Return the largest entries, and the sum of the others."""
        entries = list(self.microseconds.items())
        others = sum(value for _, value in entries[SHOWN:])
        return dict(entries[:SHOWN]) | ({"others": others} if others else {})


def profile_backends(model: str, device: torch.device, folder: Path) -> list[Profile]:
    """Profile a step of a model with each backend that can run."""
    return [
        profile_call(backend, training_step.TrainingStep.prepare(model, device).with_backend(backend), device, folder)
        for backend in training_step.list_backends(device)
    ]


def profile_call(backend: str, step: Callable[[], object], device: torch.device, folder: Path) -> Profile:
    """Profile steps after some that warm up, and save their trace."""
    for _ in range(WARM_UP):
        step()
    on_gpu = device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with profile(activities=activities) as profiler:
        for _ in range(MEASURED):
            with record_function(STEP):
                step()
                if on_gpu:
                    torch.cuda.synchronize()
    profiler.export_chrome_trace(str(folder / f"trace-{backend}.json"))
    return summarise_events(backend, list(profiler.events()), on_gpu)


def summarise_events(backend: str, events: Sequence[FunctionEvent], on_gpu: bool) -> Profile:
    """Return the times of the median step by name: a step that another program interrupted has little effect.

    A GPU's timeline also holds ranges, such as the optimizer's, beside the kernels that they consist of.
    """
    wanted = DeviceType.CUDA if on_gpu else DeviceType.CPU
    starts = sorted(one.time_range.start for one in events if one.name == STEP and one.device_type == DeviceType.CPU)
    times: dict[str, list[float]] = {}
    launches = [0] * len(starts)
    for one in events:
        step = bisect.bisect_right(starts, one.time_range.start) - 1
        if one.device_type == wanted and one.name != STEP and step >= 0 and not (on_gpu and one.is_user_annotation):
            by_step = times.setdefault(one.name, [0.0] * len(starts))
            by_step[step] += one.self_device_time_total if on_gpu else one.self_cpu_time_total
            launches[step] += 1
    medians = {name: statistics.median(values) for name, values in times.items()}
    return Profile(backend, dict(sorted(medians.items(), key=lambda pair: -pair[1])), statistics.median(launches))
