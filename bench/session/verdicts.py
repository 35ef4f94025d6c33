"""The lines under the table: how the backends of each subject compare, and what this machine could show."""

import math
import statistics
import textwrap
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from vaebench.bench.timing.ratios import AGAIN, FEWEST, Comparison, Ratio

WIDTH = 120
BUSY, WIDE = 0.75, 0.2  # load over cores, and a slowdown that a quarter of the noise floors may hide
UNPINNED = "the allocator is not pinned, and large blocks cost what they happen to: --benchmark-only pins it"


@dataclass(frozen=True)
class Group:
    """Providers compared on the same work.

    Attributes:
        subject: what they compute; a subject has a group for each size.
        facts: what else is known of each provider.
        wrong: providers that were not timed, and why.
        replayed: providers whose samples their own benchmark has handed on.
    """

    subject: str
    compared: Comparison
    facts: Mapping[str, Mapping[str, Any]]
    wrong: Mapping[str, str]
    replayed: list[str] = field(default_factory=list)


def lines(groups: Iterable[Group]) -> list[str]:
    """Return one line for each subject, broken where a machine has more backends than fit."""
    subjects: dict[str, list[Comparison]] = {}
    for group in groups:
        subjects.setdefault(group.subject, []).append(group.compared)
    return [line(subject, compared) for subject, compared in subjects.items()]


def line(subject: str, compared: list[Comparison]) -> str:
    """Return the speed of each provider as a multiple of the baseline's, over the sizes of one subject.

    A provider is faster or slower at a size where the interval of the paired ratios leaves 1 out. The last entry is the
    slowdown that the baseline's second turns say would be found in 9 of 10 runs, the median over the sizes.
    """
    found = statistics.median(one.floor().detectable for one in compared)
    sees = f"sees {found:.1%}" if found < math.inf else f"sees nothing in fewer than {FEWEST} rounds"
    names = dict.fromkeys(name for one in compared for name in one.samples if name not in (one.baseline, AGAIN))
    speeds = [
        _speed(name, [one.ratio(name, one.baseline) for one in compared if name in one.samples]) for name in names
    ]
    over = f", speed over {compared[0].baseline}" if speeds else ""
    told = f"{subject}{over}: {'; '.join([*speeds, sees])}"
    return textwrap.fill(told, WIDTH, subsequent_indent="    ", break_on_hyphens=False)


def floor(measured: Mapping[str, Any]) -> str:
    """Return the line on the machine: copy bandwidth, and what an empty call takes."""
    ratio = Ratio.of(measured["floor_ratio"])
    return (
        f"copies {measured['copy_bytes_per_s'] / 1e9:.1f} GB/s; an empty call is timed as "
        f"{1e9 * measured['floor_seconds']:.0f} ns; the copy over itself takes {ratio}"
    )


def doubts(known: Mapping[str, Any], compared: Sequence[Comparison]) -> list[str]:
    """Return lines on why the verdicts of a session are not to be trusted, none where nothing speaks against them.

    Args:
        known: of the machine, its `load` when the session started, its `cores`, and whether the allocator was pinned.
    """
    wide = sum(WIDE < one.floor().detectable < math.inf for one in compared)
    busy = {
        f"the load was {known['load']} on {known['cores']} cores at the start": known["load"] >= BUSY * known["cores"],
        f"{wide} of {len(compared)} noise floors hide {WIDE:.0%}": wide > len(compared) / 4,
    }
    told = "; ".join(why for why, holds in busy.items() if holds)
    lines = [f"other programs run here, or did a minute ago; do not trust these verdicts: {told}"] if told else []
    return lines if known["allocator_pinned"] else [*lines, UNPINNED]


def _speed(name: str, ratios: list[Ratio]) -> str:
    """Return the range of speeds over sizes, and at how many of these they are beyond doubt."""
    speeds = sorted(1 / ratio.median for ratio in ratios)
    span = f"{speeds[0]:.2f}" if len(speeds) == 1 else f"{speeds[0]:.2f}-{speeds[-1]:.2f}"
    counts = Counter(ratio.verdict for ratio in ratios)
    tally = ", ".join(
        f"{verdict} {counts[verdict]}/{len(ratios)}" for verdict in ("faster", "slower") if counts[verdict]
    )
    bounded = any(ratio.bounded for ratio in ratios)
    return f"{name} {span} ({tally or ('same' if bounded else 'no verdict')})"
