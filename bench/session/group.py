"""A group: providers timed on the same work, in the running session or read from a saved one."""

import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from vaebench.bench.timing.ratios import AGAIN, Comparison, Ratio

FUSED, PEER, GRAPH = ("numba", "triton"), "compile", "+graph"


@dataclass(frozen=True)
class Group:
    """Providers timed on the same work.

    Attributes:
        subject: the benchmark, which has a group for each size.
        extra_info: what is saved of each provider beside its samples.
        errors: providers that were not timed, with the reason.
        replayed: providers whose samples pytest-benchmark has received.
    """

    name: str
    subject: str
    comparison: Comparison
    extra_info: Mapping[str, Mapping[str, Any]]
    errors: Mapping[str, str] = field(default_factory=dict)
    replayed: list[str] = field(default_factory=list)

    @property
    def baseline(self) -> str:
        """Return the provider that the others are compared with."""
        return self.comparison.baseline

    @property
    def providers(self) -> list[str]:
        """Return the providers that were timed, the baseline first."""
        return [name for name in self.comparison.samples if name != AGAIN]

    @property
    def moves_bytes(self) -> bool:
        """Return whether memory bounds the time; the pairwise operations are bound by arithmetic."""
        return self.extra_info[self.baseline].get("op") == "reparam_kl"

    def find_peer(self, provider: str) -> str | None:
        """Return what a fused backend competes with, if both were timed: `compile`, and for a CUDA graph its graph."""
        plain = provider.removesuffix(GRAPH)
        peer = PEER + provider.removeprefix(plain)
        return peer if plain in FUSED and {provider, peer} <= set(self.providers) else None

    def seconds(self, provider: str) -> float:
        """Return the median seconds per call."""
        return statistics.median(self.comparison.samples[provider])

    def speed(self, provider: str, over: str | None = None) -> Ratio:
        """Return how many times as fast as another a provider is, by default as the baseline."""
        return self.comparison.ratio(over or self.baseline, provider)


def group_by_subject(groups: Iterable[Group]) -> dict[str, list[Group]]:
    """Return the groups of each subject."""
    subjects: dict[str, list[Group]] = {}
    for group in groups:
        subjects.setdefault(group.subject, []).append(group)
    return subjects
