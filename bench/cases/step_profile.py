"""The time of a training step by part of the model and by operation, with each backend of its latent head."""

import bisect
import contextlib
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import DeviceType, ProfilerActivity, profile, record_function

from vaebench.bench.cases.training_step import TrainingStep, list_backends
from vaebench.kernels import Backend
from vaebench.vae.model import VAE

WARM_UP, MEASURED = 5, 20
SHOWN = 12  # operations; the others are added up
STEP = "one step"
FORWARD = ("encoder", "latent head", "decoder", "likelihood")
OPTIMIZER, OTHERS = "optimizer", "others"
PARTS = (*FORWARD, OPTIMIZER, OTHERS)
BACKWARD, OF_OPTIMIZER = "autograd::engine::evaluate_function", "Optimizer."  # names that torch gives to its ranges


@dataclass(frozen=True)
class Profile:
    """The times of one backend's median step: of kernels on a GPU; on a CPU of operators and of Python around them.

    Attributes:
        parts: microseconds of each part of the model, forward and backward, of the optimizer, and of the others.
        microseconds: own time by kernel or operator, the largest first.
        launches: kernels launched in a step; on a CPU, operators run.
    """

    backend: str
    parts: dict[str, float]
    microseconds: dict[str, float]
    launches: float

    @property
    def total(self) -> float:
        """Return the microseconds of a step."""
        return sum(self.parts.values())

    @property
    def largest(self) -> dict[str, float]:
        """Return the largest entries, and the sum of the others under their number."""
        entries = list(self.microseconds.items())
        others = {f"{len(entries) - SHOWN} others": sum(value for _, value in entries[SHOWN:])}
        return dict(entries[:SHOWN]) | (others if len(entries) > SHOWN else {})


def profile_backends(model: str, device: torch.device, folder: Path) -> list[Profile]:
    """Profile a step of a model with each backend that can run."""
    return [
        profile_call(backend, divide(TrainingStep.prepare(model, device), backend), device, folder)
        for backend in list_backends(device)
    ]


def divide(training: TrainingStep, backend: Backend) -> Callable[[], object]:
    """Return a training step whose forward pass opens a range of the profiler for each part of the model.

    What comes between encoder and decoder is the latent head, and what comes after the decoder is the likelihood.
    """
    model, opened = training.model, contextlib.ExitStack()
    assert isinstance(model, VAE)

    def begin(name: str, *_: object) -> None:
        opened.close()
        opened.enter_context(record_function(name))

    for network, name, following in ((model.encoder, *FORWARD[:2]), (model.decoder, *FORWARD[2:])):
        network.register_forward_pre_hook(partial(begin, name))
        network.register_forward_hook(partial(begin, following))

    def step() -> None:
        with opened:
            loss = training.loss(backend)
        training.descend(loss)

    return step


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
    """Return the times of the median step: a step that another program interrupted has little effect.

    A GPU's timeline also holds ranges, such as the optimizer's, beside the kernels that they consist of.
    """
    wanted = DeviceType.CUDA if on_gpu else DeviceType.CPU
    starts = sorted(one.time_range.start for one in events if one.name == STEP and one.device_type == DeviceType.CPU)
    names: dict[str, list[float]] = defaultdict(lambda: [0.0] * len(starts))
    parts: dict[str, list[float]] = {part: [0.0] * len(starts) for part in PARTS}
    launches, origins = [0] * len(starts), find_origins(events)
    for one in events:
        step = bisect.bisect_right(starts, one.time_range.start) - 1
        if step < 0:
            continue
        if one.device_type == DeviceType.CPU:
            own = sum(kernel.duration for kernel in one.kernels) if on_gpu else one.self_cpu_time_total
            parts[find_part(one, origins)][step] += own
        if one.device_type == wanted and one.name not in (STEP, *PARTS) and not (on_gpu and one.is_user_annotation):
            names[one.name][step] += one.self_device_time_total if on_gpu else one.self_cpu_time_total
            launches[step] += 1
    medians = {name: statistics.median(values) for name, values in names.items()}
    by_part = {part: statistics.median(values) for part, values in parts.items()}
    ordered = dict(sorted(medians.items(), key=lambda pair: -pair[1]))
    return Profile(backend, by_part, ordered, statistics.median(launches))


def find_origins(events: Iterable[FunctionEvent]) -> dict[int, str]:
    """Return the part in which each node of the graph was made, by the node's sequence number.

    Every operator reads the number of the next node, also those that make none: of several, the last one makes it.
    """
    ordered = sorted((one for one in events if one.sequence_nr >= 0), key=lambda one: one.time_range.start)
    return {one.sequence_nr: part for one in ordered if (part := find_part(one, {})) in FORWARD}


def find_part(event: FunctionEvent, origins: dict[int, str]) -> str:
    """Return the part that an event belongs to: by the range around it or, in the backward pass, by its node."""
    ancestor: FunctionEvent | None = event
    while ancestor is not None:
        if ancestor.name in FORWARD:
            return ancestor.name
        if ancestor.name.startswith(OF_OPTIMIZER):
            return OPTIMIZER
        if ancestor.name.startswith(BACKWARD):
            return origins.get(ancestor.sequence_nr, OTHERS)
        ancestor = ancestor.cpu_parent
    return OTHERS
