"""What changed between two sessions: the speed over the baseline, which a slower or busier machine leaves alone.

A change is named only where the intervals of the two sessions do not overlap, and where it exceeds the spread between
sessions. Otherwise the report states the smallest slowdown that would have been named. The baselines' own times depend
on the machine as much as on the code, so that they are listed separately and without a verdict.
"""

import math
import statistics
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

from vaebench.bench.session.group import Group
from vaebench.bench.session.read import JsonObject, Session
from vaebench.bench.session.summary import WIDTH
from vaebench.bench.timing.ratios import Ratio

MACHINE = ("device", "processor", "machine", "cores", "threads", "driver", "runtime")
SOFTWARE = ("python_version", "torch", "triton", "allocator_pinned")
MIN_CHANGES = 8  # from which the spread between sessions can be estimated
MOST_NAMED = 4  # missing speeds; a session may be of a part of the suite
DEFAULT_SPREAD = math.log(1.1)
MOST_SPREAD = math.log(2)
APART, FEW = "too far apart to compare", "too few rounds"


@dataclass(frozen=True)
class Change:
    """The speed of a provider over its baseline, in the earlier session and now."""

    group: str
    provider: str
    then: Ratio
    now: Ratio

    @property
    def size(self) -> float:
        """Return the change on the log scale, above 0 where it is faster now."""
        return math.log(self.now.median / self.then.median)

    def verdict(self, spread: float) -> str:
        """Return whether the speed changed beyond the spread within and between sessions, or what would have shown."""
        if not (self.now.bounded and self.then.bounded):
            return FEW
        if spread > MOST_SPREAD:
            return APART
        if self.now.low > self.then.high and self.size > spread:
            return "faster"
        if self.now.high < self.then.low and self.size < -spread:
            return "slower"
        within = math.log(self.now.high / self.now.median * self.then.median / self.then.low)
        detectable = max(within, spread)
        return APART if detectable > MOST_SPREAD else f"none beyond {math.expm1(detectable):.1%}"


def find_changes(session: Session, before: Session) -> list[Change]:
    """Return a change for each provider that both sessions timed against the same baseline."""
    return [
        Change(new.name, name, old.speed(name), new.speed(name))
        for old, new in match_groups(session, before)
        for name in new.providers[1:]
        if name in old.providers
    ]


def match_groups(session: Session, before: Session) -> list[tuple[Group, Group]]:
    """Return the groups, old and new, that have the same baseline in both sessions."""
    pairs = [(before.groups[name], group) for name, group in session.groups.items() if name in before.groups]
    return [(old, new) for old, new in pairs if old.baseline == new.baseline]


def estimate_spread(changes: Sequence[Change]) -> float:
    """Return three standard deviations of the log change between two sessions of unchanged code.

    Sessions differ by more than the spread within each: by load and by the placement of memory. A quarter of a normal
    distribution lies within 0.32 standard deviations of 0. The lower quartile of the changes therefore estimates the
    standard deviation even where most of the speeds did change. With few speeds 10 % replaces the estimate.
    """
    if len(changes) < MIN_CHANGES:
        return DEFAULT_SPREAD
    quartile = statistics.quantiles([abs(change.size) for change in changes], n=4)[0]
    return 3 * quartile / statistics.NormalDist().inv_cdf(0.625)


def summarise(session: Session, before: Session) -> list[str]:
    """Return the changes, how the baselines themselves compare, and the differences between the machines."""
    changes = find_changes(session, before)
    lines = [
        _summarise_changes(changes, before.version),
        _summarise_missing(changes, before),
        _summarise_baselines(session, before),
        _summarise_machines(session, before),
    ]
    return [textwrap.fill(line, WIDTH, subsequent_indent="    ", break_on_hyphens=False) for line in lines if line]


def _summarise_changes(changes: Sequence[Change], version: str) -> str:
    spread = estimate_spread(changes)
    if not changes:
        return f"since commit {version}: both sessions have no speed over a baseline in common"
    if spread > MOST_SPREAD:
        return f"since commit {version}: the sessions differ too much to be compared; even twice the speed may be noise"
    by_verdict: dict[str, list[str]] = {}
    for change in changes:
        by_verdict.setdefault(change.verdict(spread), []).append(f"{change.group} by {change.provider}")
    named = {verdict: by_verdict[verdict] for verdict in ("slower", "faster") if verdict in by_verdict}
    parts = [f"{len(names)} {verdict} ({'; '.join(names)})" for verdict, names in named.items()]
    unclear = sum(len(by_verdict.get(verdict, [])) for verdict in (APART, FEW))
    parts += [f"{unclear} that cannot be compared"] if unclear else []
    return f"since commit {version}, of {len(changes)} speeds: {', '.join(parts) or 'nothing beyond the noise'}"


def _summarise_missing(changes: Sequence[Change], before: Session) -> str:
    """Return the speeds of the earlier session that are missing now; a provider that fails has none."""
    present = {(change.group, change.provider) for change in changes}
    missing = [
        f"{name} by {provider}"
        for name, group in before.groups.items()
        for provider in group.providers[1:]
        if (name, provider) not in present
    ]
    more = [f"{len(missing) - MOST_NAMED} more"] if len(missing) > MOST_NAMED else []
    named = "; ".join(missing[:MOST_NAMED] + more)
    return f"{len(missing)} speeds of the earlier session are missing ({named})" if missing else ""


def _summarise_baselines(session: Session, before: Session) -> str:
    pairs = match_groups(session, before)
    speeds = sorted(old.seconds(old.baseline) / new.seconds(new.baseline) for old, new in pairs)
    if not speeds:
        return ""
    span, median = f"{speeds[0]:.2f} to {speeds[-1]:.2f}", f"{statistics.median(speeds):.2f}"
    return f"the baselines run {span} times as fast as before, the median {median}, by machine, load or code"


def _summarise_machines(session: Session, before: Session) -> str:
    differences = find_differences(before.machine, session.machine)
    parts = [f"{name} {then} before, {now} now" for name, then, now in differences]
    return f"the sessions are of different machines or software: {'; '.join(parts)}" if parts else ""


def find_differences(then: JsonObject, now: JsonObject) -> list[tuple[str, str, str]]:
    """Return the name, the old and the new value where machines or software differ; measurements do not count."""
    before, after = _describe_machine(then), _describe_machine(now)
    return [(name, before[name], after[name]) for name in before if before[name] != after[name]]


def _describe_machine(machine: JsonObject) -> dict[str, str]:
    known = {**machine, "processor": machine.get("cpu", {}).get("brand_raw")}
    return {name.replace("_", " "): str(known.get(name)) for name in (*MACHINE, *SOFTWARE)}
