"""Paired timing: providers of the same work take turns, so that drift hits all alike; ratios.py reads the samples.

On a CPU the clock is the monotonic one. On a GPU it is the device's own events, with the L2 cache overwritten before
every sample: for ordinary work the time a call takes in a queue of them, launches included, and for work captured in a
CUDA graph the time that the GPU is busy with one replay.
"""

import gc
import math
import os
import random
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from vaebench.bench.timing.ratios import AGAIN, Comparison

PINNED = {"MALLOC_MMAP_THRESHOLD_": str(2**32), "MALLOC_TRIM_THRESHOLD_": str(2**32)}
LEAST_SECONDS = 0.5e-3
SLOW = 1.0
SECONDS = 5.0
LEAST_ROUNDS = 9
ROUNDS = {"cpu": 101, "cuda": 31}  # at most; a GPU is calmer, and overwriting its cache takes time
BURSTS, LONG_BURST = 7, 20e-3
HIDING_CYCLES = 250_000  # of the device's clock, some 150 us: longer than the host takes to submit a replay

Work = Callable[[], Any]
Timer = Callable[[Work, int], float]


@dataclass(frozen=True)
class Contest:
    """Providers of the same work, the baseline first.

    Attributes:
        check: raises AssertionError where what a provider returned is wrong.
        facts: what else there is to know of a provider, by its name and its work.
    """

    providers: Mapping[str, Work]
    check: Callable[[Any], None] = lambda result: None
    facts: Callable[[str, Work], Mapping[str, Any]] = lambda name, work: {}


def compare(
    providers: Mapping[str, Work], *, timer: Timer | None = None, rounds: int = ROUNDS["cpu"], seconds: float = SECONDS
) -> Comparison:
    """Time every provider once a round, in an order drawn anew for each round, after calls that warm it up.

    The first provider, the baseline, has two turns a round. Work is repeated until that takes half a millisecond, a
    burst, and a sample is the fastest of the bursts of a turn, seven where they are short: what else runs on a machine
    only ever adds time. Rounds end when all this has taken `seconds`, but not before the ninth.
    """
    timer = timer or wall_clock
    baseline = next(iter(providers))
    repeats = {name: _repeats(work, timer) for name, work in providers.items()}
    repeats[AGAIN] = repeats[baseline]
    turns = dict(providers) | {AGAIN: providers[baseline]}
    samples: dict[str, list[float]] = {name: [] for name in turns}
    order, shuffle = list(turns), random.Random(0).shuffle
    spent = 0.0
    with _no_garbage_collection():
        while len(samples[AGAIN]) < rounds and (spent < seconds or len(samples[AGAIN]) < LEAST_ROUNDS):
            shuffle(order)
            for name in order:
                bursts = _bursts(turns[name], repeats[name], timer)
                samples[name].append(min(bursts))
                spent += sum(bursts) * repeats[name]
    return Comparison(samples)


class RefusedError(Exception):
    """Work could not be made; the message is what `told` says of the reason."""


def told(error: Exception) -> str:
    """Return what an error says, and where, as text: the error itself keeps alive every tensor that it passed."""
    if isinstance(error, RefusedError):
        return str(error)
    return f"{type(error).__name__}: {error}\n\n{''.join(traceback.format_exception(error))}"


def wall_clock(work: Work, repeats: int) -> float:
    """Return the seconds a call takes, by the monotonic clock."""
    started = time.perf_counter()
    for _ in range(repeats):
        work()
    return (time.perf_counter() - started) / repeats


class Replayed:
    """Work captured once in a CUDA graph; a call replays it, and returns the tensors that the replay fills."""

    def __init__(self, work: Work) -> None:
        _warm_up(work)
        self.graph = torch.cuda.CUDAGraph()
        with _state_of_its_own(), torch.cuda.graph(self.graph):
            self.result = work()

    def __call__(self) -> Any:
        self.graph.replay()
        return self.result


class DeviceClock:
    """Seconds a call takes by CUDA events, with a cold L2 cache.

    While the cache is overwritten, and the device then sleeps, the host queues the replay of a graph behind it: its
    submission costs nothing. A replay includes the kernels that seed its generator, which replaying one launches before
    the graph. Other work waits until the cache is overwritten, and is launched then: it costs what launching it costs.
    """

    def __init__(self) -> None:
        properties = torch.cuda.get_device_properties()
        self.scratch = torch.empty(3 * properties.L2_cache_size, dtype=torch.uint8, device="cuda")

    def __call__(self, work: Work, repeats: int) -> float:
        if isinstance(work, Replayed):
            spans = [self._span(work, 1) for _ in range(repeats)]
        else:
            spans = [self._span(work, repeats, idle=True)]
        torch.cuda.synchronize()
        return sum(start.elapsed_time(end) for start, end in spans) / 1e3 / repeats

    def _span(self, work: Work, repeats: int, *, idle: bool = False) -> tuple[torch.cuda.Event, torch.cuda.Event]:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self.scratch.zero_()
        if idle:
            torch.cuda.synchronize()
        else:
            torch.cuda._sleep(HIDING_CYCLES)
        start.record()
        for _ in range(repeats):
            work()
        end.record()
        return start, end


def clock(device: torch.device) -> Timer:
    """Return the clock for work on a device."""
    return DeviceClock() if device.type == "cuda" else wall_clock


def allocator_is_pinned() -> bool:
    """Whether glibc keeps freed blocks of every size, instead of giving them back to be faulted in again."""
    return all(os.environ.get(name) == value for name, value in PINNED.items())


def restart_with_pinned_allocator() -> None:
    """Replace this process by itself with the allocator pinned: it reads these variables only at its start."""
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], os.environ | PINNED)


def _repeats(work: Work, timer: Timer) -> int:
    """Return the calls of a sample, after one that warms up; work that is slow even then needs no second look."""
    first = timer(work, 1)
    seconds = first if first > SLOW else timer(work, 1)
    return max(1, math.ceil(LEAST_SECONDS / max(seconds, 1e-9)))


def _bursts(work: Work, repeats: int, timer: Timer) -> list[float]:
    """Return the seconds a call of each burst of a turn."""
    first = timer(work, repeats)
    count = 1 if first * repeats > LONG_BURST else BURSTS
    return [first, *(timer(work, repeats) for _ in range(count - 1))]


def _warm_up(work: Work) -> None:
    """Do the work beside the current stream, as a capture asks for."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            work()
    torch.cuda.current_stream().wait_stream(side)


@contextmanager
def _state_of_its_own() -> Iterator[None]:
    """Capture with a copy of the default generator's state, and give back the state and the stream.

    Before torch counts captures one by one, the end of one that fails raises before the generator's state has left it,
    and nothing can be drawn from that any more; the stream of the capture may stay the current one.
    """
    generator, stream = torch.cuda.default_generators[torch.cuda.current_device()], torch.cuda.current_stream()
    state = generator.graphsafe_get_state()
    generator.graphsafe_set_state(generator.clone_state())
    try:
        yield
    finally:
        generator.graphsafe_set_state(state)
        torch.cuda.set_stream(stream)


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
