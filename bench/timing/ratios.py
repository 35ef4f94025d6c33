"""What paired samples say: a ratio with its interval, and the smallest slowdown that they would have shown.

    ratio(a, b) = median over rounds of a_r / b_r,   with the interval of its order statistics

Providers take turns in an order drawn anew for each round. If a and b are the same work, a pair therefore leans either
way with probability 1/2, and the interval leaves 1 out in at most 1 of 20 runs, whatever the noise is.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

AGAIN = "again"
MISSES = 0.05
FEWEST = 6  # rounds: below, even the range of all covers the median with less than 95 %
POWER_FACTOR = 1 + statistics.NormalDist().inv_cdf(0.9) / statistics.NormalDist().inv_cdf(0.975)


@dataclass(frozen=True)
class Ratio:
    """A median with its interval, which covers it with at least 95 %: of fewer than six rounds, from 0 to infinity."""

    median: float
    low: float
    high: float

    @property
    def verdict(self) -> str:
        """Return `slower` or `faster` where the interval leaves 1 out, else `same`."""
        return "slower" if self.low > 1 else "faster" if self.high < 1 else "same"

    @property
    def bounded(self) -> bool:
        """Return whether there were rounds enough for an interval."""
        return self.high < math.inf

    @property
    def detectable(self) -> float:
        """Return the smallest relative slowdown that an interval of this width finds in 9 of 10 runs.

        For a median that is normally distributed on the log scale: h (1 + z_0.9 / z_0.975), h half the width.
        """
        return math.expm1(POWER_FACTOR * math.log(self.high / self.low) / 2) if self.bounded else math.inf

    @property
    def plain(self) -> dict[str, float | None]:
        """Return the fields as JSON knows them, without the bounds where there is no interval."""
        bounds = (self.low, self.high) if self.bounded else (None, None)
        return dict(zip(("median", "low", "high"), (self.median, *bounds), strict=True))

    @classmethod
    def of(cls, plain: Mapping[str, float | None]) -> Self:
        """Return the ratio whose fields these are, as JSON knows them."""
        middle, low, high = plain["median"], plain["low"], plain["high"]
        if middle is not None and low is None and high is None:
            return cls(float(middle), 0.0, math.inf)
        if middle is None or low is None or high is None or not 0 < low <= high < math.inf:
            raise ValueError(f"a ratio needs a median and both bounds or none, got {middle}, {low} and {high}.")
        return cls(float(middle), float(low), float(high))

    def __str__(self) -> str:
        return f"{self.median:.2f} ({f'{self.low:.2f} to {self.high:.2f}' if self.bounded else 'too few rounds'})"


@dataclass(frozen=True)
class Comparison:
    """Seconds a call of each provider, one sample a round, all in the same order of rounds.

    The first provider is the baseline; it ran a second time in every round, as `again`.
    """

    samples: Mapping[str, Sequence[float]]

    @property
    def baseline(self) -> str:
        """Return the name of the provider that the others are held against."""
        return next(iter(self.samples))

    def ratio(self, name: str, over: str) -> Ratio:
        """Return how many times longer `name` takes than `over`."""
        return paired(self.samples[name], self.samples[over])

    def floor(self) -> Ratio:
        """Return the ratio of the baseline to itself, which should be 1: the noise floor."""
        return self.ratio(AGAIN, self.baseline)


def paired(over: Sequence[float], under: Sequence[float]) -> Ratio:
    """Return the median of the ratios of pairs, with its interval."""
    return median([a / b for a, b in zip(over, under, strict=True)])


def median(samples: Sequence[float]) -> Ratio:
    """Return the median of independent samples with the interval of their order statistics."""
    ordered = sorted(samples)
    if len(ordered) < FEWEST:
        return Ratio(statistics.median(ordered), 0.0, math.inf)
    cut = left_out(len(ordered))
    return Ratio(statistics.median(ordered), ordered[cut], ordered[-1 - cut])


def left_out(n: int) -> int:
    """Return how many of n ordered values each end of the interval leaves out: the most that keep 95 %."""
    k, tail = 0, 0.5**n
    while tail + math.comb(n, k + 1) * 0.5**n <= MISSES / 2:
        k += 1
        tail += math.comb(n, k) * 0.5**n
    return k
