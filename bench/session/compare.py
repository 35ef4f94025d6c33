"""What changed between two sessions: the speed over the baseline, which a slower or busier machine leaves alone.

A change is named only where the intervals of both sessions lie apart, and by more than sessions differ on the whole;
otherwise it says which slowdown would have been named. The baselines' own times are as much the machine's as the
code's: they stand apart, and nothing is said of them.
"""

import math
import statistics
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

from vaebench.bench.session.read import Facts, SavedGroup, Session
from vaebench.bench.session.verdicts import WIDTH
from vaebench.bench.timing.ratios import Ratio

OF_MACHINE = ("device", "processor", "machine", "cores", "threads", "driver", "runtime")
OF_SOFTWARE = ("python_version", "torch", "triton", "allocator_pinned")
ENOUGH = 8  # speeds from which the spread between sessions can be estimated
NAMED = 4  # missing speeds that are named, since a session may be of a part of the suite
SPREAD_OF_FEW = math.log(1.1)
TOO_FAR = math.log(2)
APART, FEW = "too far apart to compare", "too few rounds"


@dataclass(frozen=True)
class Change:
    """The speed of a provider over its baseline, in the earlier session and now."""

    work: str
    provider: str
    then: Ratio
    now: Ratio

    @property
    def size(self) -> float:
        """Return the change on the log scale, above 0 where it is faster now."""
        return math.log(self.now.median / self.then.median)

    def verdict(self, between: float) -> str:
        """Return whether the speed changed beyond the spread within and between sessions, or what would have shown."""
        if not (self.now.bounded and self.then.bounded):
            return FEW
        if between > TOO_FAR:
            return APART
        if self.now.low > self.then.high and self.size > between:
            return "faster"
        if self.now.high < self.then.low and self.size < -between:
            return "slower"
        within = math.log(self.now.high / self.now.median * self.then.median / self.then.low)
        seen = max(within, between)
        return APART if seen > TOO_FAR else f"none beyond {math.expm1(seen):.1%}"


def changes(session: Session, before: Session) -> list[Change]:
    """Return a change for each provider that both sessions timed against the same baseline."""
    return [
        Change(new.name, name, old.speed(name), new.speed(name))
        for old, new in in_both(session, before)
        for name in new.providers[1:]
        if name in old.providers
    ]


def in_both(session: Session, before: Session) -> list[tuple[SavedGroup, SavedGroup]]:
    """Return the groups, old and new, that have the same baseline in both sessions."""
    pairs = [(before.groups[name], group) for name, group in session.groups.items() if name in before.groups]
    return [(old, new) for old, new in pairs if old.baseline == new.baseline]


def spread_between(found: Sequence[Change]) -> float:
    """Return three standard deviations of what two sessions differ by, on the log scale, where nothing changed.

    Sessions differ by more than the spread within each, by load and by where memory happens to lie. Of a normal
    distribution a quarter is nearer to 0 than 0.32 standard deviations; the lower quartile of the changes measures
    these even where most of the speeds did change. Of few speeds it cannot be told, and 10 % stands in for it.
    """
    if len(found) < ENOUGH:
        return SPREAD_OF_FEW
    quartile = statistics.quantiles([abs(one.size) for one in found], n=4)[0]
    return 3 * quartile / statistics.NormalDist().inv_cdf(0.625)


def lines(session: Session, before: Session) -> list[str]:
    """Return what changed, how the baselines themselves compare, and what differs between the machines."""
    found = changes(session, before)
    told = [
        _changed(found, before.version),
        _missing(found, before),
        _baselines(session, before),
        _machines(session, before),
    ]
    return [textwrap.fill(one, WIDTH, subsequent_indent="    ", break_on_hyphens=False) for one in told if one]


def _changed(found: Sequence[Change], version: str) -> str:
    between = spread_between(found)
    if not found:
        return f"since commit {version}: both sessions have no speed over a baseline in common"
    if between > TOO_FAR:
        return f"since commit {version}: the sessions differ too much to be compared; even twice the speed may be noise"
    by_verdict: dict[str, list[str]] = {}
    for one in found:
        by_verdict.setdefault(one.verdict(between), []).append(f"{one.work} by {one.provider}")
    named = {verdict: by_verdict[verdict] for verdict in ("slower", "faster") if verdict in by_verdict}
    told = [f"{len(names)} {verdict} ({'; '.join(names)})" for verdict, names in named.items()]
    unclear = sum(len(by_verdict.get(verdict, [])) for verdict in (APART, FEW))
    told += [f"{unclear} that cannot be compared"] if unclear else []
    return f"since commit {version}, of {len(found)} speeds: {', '.join(told) or 'nothing beyond the noise'}"


def _missing(found: Sequence[Change], before: Session) -> str:
    """Return which speeds of the earlier session are not there now: what is wrong, or raises, has none."""
    there = {(one.work, one.provider) for one in found}
    gone = [
        f"{name} by {provider}"
        for name, group in before.groups.items()
        for provider in group.providers[1:]
        if (name, provider) not in there
    ]
    named = "; ".join(gone[:NAMED]) + (f"; {len(gone) - NAMED} more" if len(gone) > NAMED else "")
    return f"{len(gone)} speeds of the earlier session are missing ({named})" if gone else ""


def _baselines(session: Session, before: Session) -> str:
    """Return how fast the baselines themselves are, over the earlier session."""
    pairs = [(old.seconds(old.baseline), new.seconds(new.baseline)) for old, new in in_both(session, before)]
    factors = sorted(then.median / now.median for then, now in pairs)
    if not factors:
        return ""
    span, middle = f"{factors[0]:.2f} to {factors[-1]:.2f}", f"{statistics.median(factors):.2f}"
    return f"the baselines run {span} times as fast as before, the median {middle}, by machine, load or code"


def _machines(session: Session, before: Session) -> str:
    """Return what differs between machines and software."""
    told = [f"{name} {then} before, {now} now" for name, then, now in differences(before.machine, session.machine)]
    return f"the sessions are of different machines or software: {'; '.join(told)}" if told else ""


def differences(then: Facts, now: Facts) -> list[tuple[str, str, str]]:
    """Return in what machines and software differ, by name, but for what is measured anew each time."""
    before, after = _described(then), _described(now)
    return [(name, before[name], after[name]) for name in before if before[name] != after[name]]


def _described(machine: Facts) -> dict[str, str]:
    known = {**machine, "processor": machine.get("cpu", {}).get("brand_raw")}
    return {name.replace("_", " "): str(known.get(name)) for name in (*OF_MACHINE, *OF_SOFTWARE)}
