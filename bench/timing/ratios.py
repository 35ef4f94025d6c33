"""Ratios of paired samples with their intervals, and the smallest slowdown that the samples could have shown.

    ratio(a, b) = median over rounds of a_r / b_r,   with the interval of its order statistics

Providers take turns in an order drawn anew for each round. If a and b are the same work, each pair therefore leans
either way with probability 1/2, and the interval excludes 1 in at most 1 of 20 runs, whatever the noise is.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

AGAIN = "again"  # names the baseline's second turn of a round
MISS_RATE = 0.05
MIN_ROUNDS = 6  # with fewer, even the range of all samples covers the median with less than 95 %
POWER_FACTOR = 1 + statistics.NormalDist().inv_cdf(0.9) / statistics.NormalDist().inv_cdf(0.975)


@dataclass(frozen=True)
class Ratio:
    """A median with an interval that covers it with at least 95 %; with fewer than six rounds it is 0 to infinity."""

    median: float
    low: float
    high: float

    @property
    def verdict(self) -> str:
        """Return `slower` or `faster` where the interval excludes 1, else `same`."""
        return "slower" if self.low > 1 else "faster" if self.high < 1 else "same"

    @property
    def bounded(self) -> bool:
        """Return whether there were enough rounds for an interval."""
        return self.high < math.inf

    @property
    def detectable(self) -> float:
        """Return the smallest relative slowdown that an interval of this width finds in 9 of 10 runs.

        For a median that is normally distributed on the log scale: h (1 + z_0.9 / z_0.975), h half the width.
        """
        return math.expm1(POWER_FACTOR * math.log(self.high / self.low) / 2) if self.bounded else math.inf

    def to_json(self) -> dict[str, float | None]:
        """Return the fields, with None as the bounds where there is no interval."""
        low, high = (self.low, self.high) if self.bounded else (None, None)
        return {"median": self.median, "low": low, "high": high}

    @classmethod
    def from_json(cls, fields: Mapping[str, float | None]) -> Self:
        """Return the ratio with these fields; raise ValueError where they are none of a ratio."""
        median, low, high = fields["median"], fields["low"], fields["high"]
        if median is not None and low is None and high is None:
            return cls(float(median), 0.0, math.inf)
        if median is None or low is None or high is None or not 0 < low <= high < math.inf:
            raise ValueError(f"a ratio needs a median and both bounds or none, got {median}, {low} and {high}.")
        return cls(float(median), float(low), float(high))

    def __str__(self) -> str:
        return f"{self.median:.2f} ({f'{self.low:.2f} to {self.high:.2f}' if self.bounded else 'too few rounds'})"


@dataclass(frozen=True)
class Comparison:
    """Samples of providers of the same work: seconds per call, one sample a round, all in the same order of rounds.

    The first provider is the baseline.

    Attributes:
        samples: by provider; those that were just measured include the baseline's second turns, as `again`.
        saved_floor: the noise floor, where samples were read from a file.
    """

    samples: Mapping[str, Sequence[float]]
    saved_floor: Ratio | None = None

    @property
    def baseline(self) -> str:
        """Return the provider that the others are compared with."""
        return next(iter(self.samples))

    @property
    def noise_floor(self) -> Ratio:
        """Return the ratio of the baseline to itself, which should be 1."""
        return self.saved_floor or self.ratio(AGAIN, self.baseline)

    def ratio(self, provider: str, over: str) -> Ratio:
        """Return how many times longer `provider` takes than `over`."""
        return paired_ratio(self.samples[provider], self.samples[over])


def paired_ratio(numerators: Sequence[float], denominators: Sequence[float]) -> Ratio:
    """Return the median of the ratios of pairs, with the interval of their order statistics."""
    ordered = sorted(a / b for a, b in zip(numerators, denominators, strict=True))
    if len(ordered) < MIN_ROUNDS:
        return Ratio(statistics.median(ordered), 0.0, math.inf)
    excluded = count_excluded(len(ordered))
    return Ratio(statistics.median(ordered), ordered[excluded], ordered[-1 - excluded])


def count_excluded(n: int) -> int:
    """Return how many of n ordered values lie beyond each end of the interval: the most that keep 95 %."""
    k, tail = 0, 0.5**n
    while tail + math.comb(n, k + 1) * 0.5**n <= MISS_RATE / 2:
        k += 1
        tail += math.comb(n, k) * 0.5**n
    return k
