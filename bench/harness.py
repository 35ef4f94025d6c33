"""Paired timing: providers of the same work take turns, so that drift hits all alike, and ratios come from pairs.

    ratio(a, b) = median over rounds of a_r / b_r,   with the interval of its order statistics

The first provider runs a second time in every round under the name "again": the ratio of the two, which should be 1, is
the noise floor of the run.
"""

import math
import os
import random
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

PINNED = {"MALLOC_MMAP_THRESHOLD_": str(2**32), "MALLOC_TRIM_THRESHOLD_": str(2**32)}
AGAIN = "again"
LEAST_SECONDS = 0.5e-3

Work = Callable[[], object]
Timer = Callable[[Work, int], float]


@dataclass(frozen=True)
class Ratio:
    """A median of paired ratios with its interval, which covers the median with at least 95 %."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.low:.2f} to {self.high:.2f})"


@dataclass(frozen=True)
class Comparison:
    """Seconds a call of each provider, one sample a round, all in the same order of rounds."""

    samples: Mapping[str, Sequence[float]]

    def median(self, name: str) -> float:
        """Return the median seconds a call."""
        return statistics.median(self.samples[name])

    def ratio(self, name: str, over: str) -> Ratio:
        """Return how many times longer `name` takes than `over`."""
        pairs = sorted(a / b for a, b in zip(self.samples[name], self.samples[over], strict=True))
        cut = _binomial_quantile(len(pairs))
        return Ratio(statistics.median(pairs), pairs[cut], pairs[-1 - cut])

    def floor(self) -> Ratio:
        """Return the ratio of the first provider to itself."""
        return self.ratio(AGAIN, next(iter(self.samples)))


def compare(providers: Mapping[str, Work], *, rounds: int = 25, timer: Timer | None = None) -> Comparison:
    """Time every provider once a round, in an order drawn anew for each round, after one call to warm it up.

    Short work is repeated within a sample until it takes half a millisecond.
    """
    timer = timer or wall_clock
    turns = dict(providers) | {AGAIN: next(iter(providers.values()))}
    repeats = {name: _repeats(work, timer) for name, work in turns.items()}
    samples: dict[str, list[float]] = {name: [] for name in turns}
    order, shuffle = list(turns), random.Random(0).shuffle
    for _ in range(rounds):
        shuffle(order)
        for name in order:
            samples[name].append(timer(turns[name], repeats[name]))
    return Comparison(samples)


def wall_clock(work: Work, repeats: int) -> float:
    """Return the seconds a call takes, by the monotonic clock."""
    started = time.perf_counter()
    for _ in range(repeats):
        work()
    return (time.perf_counter() - started) / repeats


def allocator_is_pinned() -> bool:
    """Whether glibc keeps freed blocks of every size, instead of giving them back to be faulted in again."""
    return all(os.environ.get(name) == value for name, value in PINNED.items())


def restart_with_pinned_allocator() -> None:
    """Replace this process by itself with the allocator pinned: it reads these variables only at its start."""
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], os.environ | PINNED)


def _repeats(work: Work, timer: Timer) -> int:
    work()
    return max(1, math.ceil(LEAST_SECONDS / max(timer(work, 1), 1e-9)))


def _binomial_quantile(n: int) -> int:
    """Return the largest k such that the k-th smallest and largest of n values enclose the median with 95 %."""
    k, tail = 0, 0.5**n
    while tail + math.comb(n, k + 1) * 0.5**n <= 0.025:
        k += 1
        tail += math.comb(n, k) * 0.5**n
    return k
