"""Paired timing: providers of the same work take turns, so that drift affects all alike; ratios.py reads the samples.

On a CPU the clock is the monotonic one. On a GPU the clock is CUDA events, with the L2 cache overwritten before every
sample: an ordinary call is timed in a queue of calls, launches included; for a call captured in a CUDA graph it is the
time that the GPU is busy with one replay.
"""

import functools
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
BURST_SECONDS = 0.5e-3  # at least
SLOW_SECONDS = 1.0  # a call that takes longer is timed once, not twice, before the first round
SECONDS = 5.0
LEAST_ROUNDS = 9
ROUNDS = {"cpu": 101, "cuda": 31}  # at most; a GPU is calmer, and overwriting its cache takes time
BURSTS, LONG_BURST_SECONDS = 7, 20e-3
HIDING_CYCLES = 250_000  # of the device's clock, some 150 us: longer than the host takes to submit a replay

Call = Callable[[], Any]
Check = Callable[[Any], None]
Timer = Callable[[Call, int], float]


@dataclass(frozen=True)
class Workload:
    """Providers that compute the same result, the baseline first.

    Attributes:
        check: raises AssertionError where the result of a provider is wrong.
        renew: writes other inputs over those that a provider reads, and returns the check of its result from them.
        extra_info: returns what the saved session holds of a provider beside its samples.
        timer: the wall clock by default.
        rounds: at most; by default the number for the device.
    """

    providers: Mapping[str, Call]
    check: Check
    extra_info: Callable[[str, Call], Mapping[str, object]] = lambda provider, call: {}
    timer: Timer | None = None
    rounds: int | None = None
    renew: Callable[[str], Check] | None = None

    def check_providers(self) -> tuple[dict[str, Call], dict[str, str]]:
        """Return the providers whose result is right, and the errors of the others; raise that of the baseline."""
        right: dict[str, Call] = {}
        errors: dict[str, str] = {}
        for name, call in self.providers.items():
            try:
                self.check(call())
                right[name] = call
            except Exception as error:  # of any kind: the provider's own benchmark shows it
                if not right:
                    raise
                errors[name] = describe_error(error)
        return right, errors

    def check_again(self, calls: Mapping[str, Call]) -> dict[str, str]:
        """Return the errors of providers whose result is wrong after they were timed: of other inputs, if there are.

        This finds a provider that returns what it stored, or that spoils its own state.
        """
        errors: dict[str, str] = {}
        for name, call in calls.items():
            try:
                check = self.renew(name) if self.renew else self.check
                check(call())
            except Exception as error:
                errors[name] = f"after it was timed: {describe_error(error)}"
        return errors


TimeInterleaved = Callable[[str, str, Callable[[], Workload]], None]  # the fixture `time_interleaved`


def compare(
    providers: Mapping[str, Call], *, timer: Timer | None = None, rounds: int = ROUNDS["cpu"], seconds: float = SECONDS
) -> Comparison:
    """Time every provider once a round, in an order drawn anew for each round, after calls that warm it up.

    The first provider, the baseline, has two turns a round. A burst repeats the call for at least half a millisecond. A
    sample is the fastest burst of a turn, of seven where bursts are short: other programs only add time. Rounds end
    when `seconds` have passed, but not before the ninth.
    """
    timer = timer or wall_clock
    baseline = next(iter(providers))
    repeats = {name: _count_repeats(call, timer) for name, call in providers.items()}
    repeats[AGAIN] = repeats[baseline]
    turns = dict(providers) | {AGAIN: providers[baseline]}
    samples: dict[str, list[float]] = {name: [] for name in turns}
    order, shuffle = list(turns), random.Random(0).shuffle
    spent = 0.0
    with _pause_garbage_collection():
        while len(samples[AGAIN]) < rounds and (spent < seconds or len(samples[AGAIN]) < LEAST_ROUNDS):
            shuffle(order)
            for name in order:
                bursts = _time_bursts(turns[name], repeats[name], timer)
                samples[name].append(min(bursts))
                spent += sum(bursts) * repeats[name]
    return Comparison(samples)


class ProviderError(Exception):
    """A provider could not be built; the message is `describe_error` of the cause."""


def describe_error(error: Exception) -> str:
    """Return an error and its traceback as text; the error object would keep every tensor in its frames alive."""
    if isinstance(error, ProviderError):
        return str(error)
    return f"{type(error).__name__}: {error}\n\n{''.join(traceback.format_exception(error))}"


def wall_clock(call: Call, repeats: int) -> float:
    """Return the seconds a call takes, by the monotonic clock."""
    started = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - started) / repeats


class GraphReplay:
    """A call captured once in a CUDA graph; calling it replays the graph and returns the tensors that this fills."""

    def __init__(self, call: Call) -> None:
        _warm_up(call)
        self.graph = torch.cuda.CUDAGraph()
        with _separate_generator_state(), torch.cuda.graph(self.graph):
            self.result = call()

    def __call__(self) -> Any:
        self.graph.replay()
        return self.result


class CudaTimer:
    """Times a call in seconds by CUDA events, with a cold L2 cache.

    A graph's replay is queued while the device overwrites the cache and then sleeps, so that its submission costs
    nothing. The time includes the kernels that seed the graph's generator, which a replay launches before the graph.
    Other calls start once the cache is overwritten, so that their time includes their launches.
    """

    def __init__(self) -> None:
        properties = torch.cuda.get_device_properties()
        self.scratch = torch.empty(3 * properties.L2_cache_size, dtype=torch.uint8, device="cuda")

    def __call__(self, call: Call, repeats: int) -> float:
        if isinstance(call, GraphReplay):
            spans = [self._time_span(call, 1) for _ in range(repeats)]
        else:
            spans = [self._time_span(call, repeats, idle=True)]
        torch.cuda.synchronize()
        return sum(start.elapsed_time(end) for start, end in spans) / 1e3 / repeats

    def _time_span(self, call: Call, repeats: int, *, idle: bool = False) -> tuple[torch.cuda.Event, torch.cuda.Event]:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self.scratch.zero_()
        if idle:
            torch.cuda.synchronize()
        else:
            torch.cuda._sleep(HIDING_CYCLES)
        start.record()
        for _ in range(repeats):
            call()
        end.record()
        return start, end


@functools.cache
def pick_timer(device: torch.device) -> Timer:
    """Return the timer for calls on a device."""
    return CudaTimer() if device.type == "cuda" else wall_clock


def allocator_is_pinned() -> bool:
    """Return whether glibc keeps freed blocks of every size; otherwise large ones are faulted in again each time."""
    return all(os.environ.get(name) == value for name, value in PINNED.items())


def restart_with_pinned_allocator() -> None:
    """Start this process again with the allocator pinned: glibc reads these variables only at the start."""
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], os.environ | PINNED)


def _count_repeats(call: Call, timer: Timer) -> int:
    """Return the calls of a burst, by the time of a call that follows one for warming up."""
    first = timer(call, 1)
    seconds = first if first > SLOW_SECONDS else timer(call, 1)
    return max(1, math.ceil(BURST_SECONDS / max(seconds, 1e-9)))


def _time_bursts(call: Call, repeats: int, timer: Timer) -> list[float]:
    """Return the seconds per call of each burst of a turn."""
    first = timer(call, repeats)
    count = 1 if first * repeats > LONG_BURST_SECONDS else BURSTS
    return [first, *(timer(call, repeats) for _ in range(count - 1))]


def _warm_up(call: Call) -> None:
    """Call on a stream beside the current one, as CUDA requires before a capture."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(side)


@contextmanager
def _separate_generator_state() -> Iterator[None]:
    """Capture with a copy of the default generator's state; afterwards restore that state and the stream.

    Where a capture fails, torch may raise before it ends the capture of the generator's state, from which nothing can
    be drawn any more, and may leave the capture's stream the current one.
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
def _pause_garbage_collection() -> Iterator[None]:
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
