"""From a saved session to a page and pictures; with a second file, what changed since that one.

`python bench/report.py A.json [B.json]` writes A.md and A-*.png beside A.json.
"""

import argparse
import itertools
import math
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from vaebench.bench.session import compare, verdicts
from vaebench.bench.session.read import Facts, SavedGroup, Session, UnreadableError, load
from vaebench.bench.timing.ratios import Ratio

Row = Sequence[str]

SPEED, OF_COPY, KEPT, PEAK, SEES, VERDICT = "speed", "of copy", "kept", "peak", "sees", "verdict"
MEANINGS = {
    SPEED: "how many times as fast as the baseline, larger is better, with the interval that covers it with 95 %",
    OF_COPY: "the bytes that must be moved, over those that the machine's fastest copy moves in that time",
    KEPT: "bytes that autograd holds for backward beside the inputs",
    PEAK: "the most bytes held at once beyond those before the call",
    SEES: "the smallest slowdown that 9 of 10 sessions like this would find",
    VERDICT: "slower or faster beyond doubt, or the smallest slowdown that would have been",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("session", type=Path, help="JSON of the session to report")
    parser.add_argument("before", type=Path, nargs="?", help="JSON of an earlier session to hold it against")
    options = parser.parse_args(arguments)
    try:
        session = load(options.session)
        before = load(options.before) if options.before else None
        require_room(options.session)
    except UnreadableError as error:
        print(f"report.py: {error}", file=sys.stderr)
        return 2
    print("\n".join([*doubts(session), *summary(session, before)]))
    try:
        files = write(session, before)
    except OSError as error:
        print(f"report.py: cannot write beside {session.path}: {error.strerror}; copy it elsewhere.", file=sys.stderr)
        return 2
    print(f"\nin {files[0].parent}: {', '.join(file.name for file in files)}")
    return 0


def require_room(path: Path) -> None:
    """Refuse a session whose page would take the place of its own file."""
    if path.with_suffix(".md") == path:
        raise UnreadableError(f"{path} is where its page would be written; rename it to {path.stem}.json.")


def write(session: Session, before: Session | None = None) -> list[Path]:
    """Write page and pictures beside the session's file; return their paths, the page first."""
    try:
        from vaebench.bench.session import figures  # matplotlib may be missing where benchmarks run
    except ModuleNotFoundError as error:
        if error.name != "matplotlib":
            raise
        drawn = []
    else:
        drawn = figures.draw(session)
    path = session.path.with_suffix(".md")
    path.write_text(page(session, before, drawn))
    return [path, *drawn]


def page(session: Session, before: Session | None, drawn: Sequence[Path]) -> str:
    """Return the page in Markdown."""
    parts = [f"# Benchmarks of {session.date.replace('T', ' ')}, commit {session.version}"]
    parts += [*doubts(session), machine(session)]
    parts += ["\n".join(f"- {line}" for line in summary(session, before))]
    parts += [f"![{path.stem}]({path.name})" for path in drawn]
    tables = {subject: measured(groups, session.machine) for subject, groups in session.subjects.items()}
    since = [] if before is None else changed(session, before)
    parts += [legend([*tables.values(), *([since] if since else [])])]
    for subject, rows in tables.items():
        parts += [f"## {subject}", table(rows)]
    if before is not None:
        parts += [f"## Since {before.date.replace('T', ' ')}, commit {before.version}", table(since)]
        parts += ["The baselines themselves, whose times are as much the machine's as the code's:"]
        parts += [table(baselines(session, before))]
    return "\n\n".join(parts) + "\n"


def machine(session: Session) -> str:
    """Return a paragraph on the machine."""
    known = session.machine
    name = known["device"] if known["device"] != "CPU" else known.get("cpu", {}).get("brand_raw", known["machine"])
    driver = f", driver {known['driver']}, runtime {known['runtime']}" if known.get("driver") else ""
    note = f" {known['note']}" if known.get("note") else ""
    return (
        f"{name}{driver}; {known['cores']} cores, arithmetic on {known['threads']}, load {known['load']}; "
        f"Python {known['python_version']}, torch {known['torch']}, triton {known['triton']}; allocator "
        f"{'pinned' if known['allocator_pinned'] else 'not pinned'}; it {verdicts.floor(known)}.{note}"
    )


def doubts(session: Session) -> list[str]:
    """Return lines on why its verdicts are not to be trusted."""
    return verdicts.doubts(session.machine, [group.compared for group in session.groups.values()])


def summary(session: Session, before: Session | None) -> list[str]:
    """Return a line for each subject, and some on what changed."""
    lines = [
        verdicts.line(subject, [group.compared for group in groups]) for subject, groups in session.subjects.items()
    ]
    return lines + (compare.lines(session, before) if before is not None else [])


def measured(groups: Sequence[SavedGroup], machine: Facts) -> list[Row]:
    """Return a row for each provider of each group, under a heading, without the columns that nothing fills."""
    heading = ("work", "by", "time", f"{SPEED} over {groups[0].baseline}", OF_COPY, "Gflop/s", KEPT, PEAK, SEES)
    rows = [_measured(group, name, machine) for group in groups for name in group.providers]
    filled = [any(cells) for cells in zip(*rows, strict=True)]
    return [tuple(itertools.compress(row, filled)) for row in (heading, *rows)]


def legend(tables: Iterable[Sequence[Row]]) -> str:
    """Return what the columns of these tables mean."""
    there = {name for rows in tables for name in rows[0]} | {SPEED}
    return f"{'; '.join(f'*{name}*: {meaning}' for name, meaning in MEANINGS.items() if name in there)}."


def changed(session: Session, before: Session) -> list[Row]:
    """Return a row for each speed that both sessions have, under a heading."""
    found = compare.changes(session, before)
    between = compare.spread_between(found)
    heading = ("work", "by", "speed before", "speed now", "change", VERDICT)
    rows = [
        (
            one.work,
            one.provider,
            _speed(one.then),
            _speed(one.now),
            f"{math.expm1(one.size):+z.1%}",
            one.verdict(between),
        )
        for one in found
    ]
    return [heading, *rows]


def baselines(session: Session, before: Session) -> list[Row]:
    """Return a row for each baseline that both sessions timed, under a heading."""
    rows: list[Row] = [("work", "baseline", "time before", "time now", "speed now over before")]
    for old, new in compare.in_both(session, before):
        then, now = old.seconds(old.baseline).median, new.seconds(new.baseline).median
        rows.append((new.name, new.baseline, _time(then), _time(now), f"{then / now:.2f}"))
    return rows


def table(rows: Sequence[Row]) -> str:
    """Return rows as a table in Markdown, the first as its heading."""
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([lines[0], "|---" * len(rows[0]) + "|", *lines[1:]])


def _measured(group: SavedGroup, name: str, machine: Facts) -> Row:
    facts, seconds, first = group.facts[name], group.seconds(name).median, name == group.baseline
    moved = facts.get("model_bytes")
    return (
        group.name,
        name,
        _time(seconds),
        "1" if first else _speed(group.speed(name)),
        f"{moved / seconds / machine['copy_bytes_per_s']:.0%}" if moved and group.moves_bytes else "",
        f"{facts['model_flops'] / seconds / 1e9:.3g}" if facts.get("model_flops") else "",
        _bytes(facts.get("saved_bytes")),
        _bytes(facts.get("peak_bytes")),
        f"{found:.1%}" if first and (found := group.compared.floor().detectable) < math.inf else "",
    )


def _speed(ratio: Ratio) -> str:
    """Return a speed and its interval with the digits, up to four, that tell its ends from 1."""
    if not ratio.bounded:
        return str(ratio)
    ends = (ratio.low, ratio.high)
    digits = next((count for count in (2, 3) if all(end == 1 or round(end, count) != 1 for end in ends)), 4)
    middle, low, high = (f"{value:.{digits}f}" for value in (ratio.median, *ends))
    return f"{middle} ({low} to {high})"


def _time(value: float) -> str:
    for unit, scale in (("s", 1.0), ("ms", 1e3), ("us", 1e6)):
        if value * scale >= 1:
            return f"{value * scale:.3g} {unit}"
    return f"{value * 1e9:.3g} ns"


def _bytes(value: int | None) -> str:
    if value is None:
        return ""
    return f"{value / 1e6:.3g} MB" if value >= 1e6 else f"{value / 1e3:.3g} kB"


if __name__ == "__main__":
    sys.exit(main())
