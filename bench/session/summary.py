"""The lines under the table: how the providers of each subject compare, and what this machine could show."""

import math
import statistics
import textwrap
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from vaebench.bench.session.group import Group, group_by_subject
from vaebench.bench.timing.ratios import MIN_ROUNDS, Ratio

WIDTH = 120
BUSY_SHARE = 0.75  # of the cores, by the load
WIDE = 0.2  # the slowdown that at most a quarter of the noise floors may hide
UNPINNED = "the allocator is not pinned, and large blocks cost what they happen to: --benchmark-only pins it"


def summarise(groups: Iterable[Group]) -> list[str]:
    """Return one line for each subject, and one for each pair of peers over all subjects, broken to fit a terminal."""
    subjects = group_by_subject(groups)
    lines = [_summarise_subject(subject, members) for subject, members in subjects.items()]
    lines += _summarise_peers([group for members in subjects.values() for group in members])
    return [textwrap.fill(line, WIDTH, subsequent_indent="    ", break_on_hyphens=False) for line in lines]


def describe_measurements(machine: Mapping[str, Any]) -> str:
    """Return the copy bandwidth of the machine, and the time that the harness measures for an empty call."""
    return (
        f"copies {machine['copy_bytes_per_s'] / 1e9:.1f} GB/s; an empty call is timed as "
        f"{1e9 * machine['floor_seconds']:.0f} ns; the copy over itself takes {Ratio.from_json(machine['floor_ratio'])}"
    )


def list_warnings(machine: Mapping[str, Any], groups: Collection[Group]) -> list[str]:
    """Return lines on why the verdicts of a session are not to be trusted.

    Args:
        machine: its `load` at the start of the session, its `cores`, and whether the allocator was pinned.
    """
    wide = sum(WIDE < group.comparison.noise_floor.detectable < math.inf for group in groups)
    reasons = []
    if machine["load"] >= BUSY_SHARE * machine["cores"]:
        reasons.append(f"the load was {machine['load']} on {machine['cores']} cores at the start")
    if wide > len(groups) / 4:
        reasons.append(f"{wide} of {len(groups)} noise floors hide {WIDE:.0%}")
    busy = f"other programs run here, or did a minute ago; do not trust these verdicts: {'; '.join(reasons)}"
    warnings = [busy] if reasons else []
    return warnings if machine["allocator_pinned"] else [*warnings, UNPINNED]


def _summarise_subject(subject: str, groups: Sequence[Group]) -> str:
    """Return the speed of each provider as a multiple of the baseline's, over the sizes of one subject.

    A provider is faster or slower at a size where the interval of the paired ratios excludes 1. A fused backend is also
    compared with its peer. The last entry is the slowdown that would be found in 9 of 10 runs, by the noise floors: the
    median over the sizes.
    """
    baseline = groups[0].baseline
    detectable = statistics.median(group.comparison.noise_floor.detectable for group in groups)
    sees = f"sees {detectable:.1%}" if detectable < math.inf else f"sees nothing in fewer than {MIN_ROUNDS} rounds"
    providers = dict.fromkeys(name for group in groups for name in group.providers if name != baseline)
    speeds = []
    for name in providers:
        members = [group for group in groups if name in group.providers]
        speeds.append(f"{name} {_summarise_ratios([group.comparison.ratio(name, baseline) for group in members])}")
    speeds += [f"{pair} {_summarise_ratios(ratios)}" for pair, ratios in _pair_peers(groups).items()]
    over = f", speed over {baseline}" if speeds else ""
    return f"{subject}{over}: {'; '.join([*speeds, sees])}"


def _summarise_peers(groups: Iterable[Group]) -> list[str]:
    """Return a line for each fused backend and its peer, over the works of all subjects."""
    return [
        f"{pair}, over all {len(ratios)} works: median {statistics.median(1 / ratio.median for ratio in ratios):.2f}, "
        f"{_summarise_ratios(ratios)}"
        for pair, ratios in _pair_peers(groups).items()
        if len(ratios) > 1
    ]


def _pair_peers(groups: Iterable[Group]) -> dict[str, list[Ratio]]:
    """Return the ratios of each fused backend to its peer, from the groups that have both."""
    pairs: dict[str, list[Ratio]] = {}
    for group in groups:
        for name in group.providers:
            peer = group.find_peer(name)
            if peer is not None:
                pairs.setdefault(f"{name} over {peer}", []).append(group.comparison.ratio(name, peer))
    return pairs


def _summarise_ratios(ratios: Sequence[Ratio]) -> str:
    """Return the range of the speeds over sizes, and the number of sizes with a verdict, from ratios of times."""
    speeds = sorted(1 / ratio.median for ratio in ratios)
    span = f"{speeds[0]:.2f}" if len(speeds) == 1 else f"{speeds[0]:.2f}-{speeds[-1]:.2f}"
    counts = Counter(ratio.verdict for ratio in ratios)
    tally = [f"{verdict} {counts[verdict]}/{len(ratios)}" for verdict in ("faster", "slower") if counts[verdict]]
    bounded = any(ratio.bounded for ratio in ratios)
    return f"{span} ({', '.join(tally) or ('same' if bounded else 'no verdict')})"
