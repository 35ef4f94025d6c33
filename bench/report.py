"""From a saved session to a page and pictures; with a second file, what changed since that one.

`python bench/report.py A.json [B.json]` writes A.md and A-*.png beside A.json. A change is named only where the
intervals of both sessions lie apart by more than sessions differ on the whole; otherwise the page says which change
would have been seen.
"""

import argparse
import math
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from bench import verdicts
from bench.ratios import Ratio
from bench.saved import Facts, SavedGroup, Session, UnreadableError, load

Row = Sequence[str]


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
    files = write(session, before)
    print("\n".join(summary(session, before)))
    print(f"\nin {files[0].parent}: {', '.join(file.name for file in files)}")
    return 0


def require_room(path: Path) -> None:
    """Refuse a session whose page would take the place of its own file."""
    if path.with_suffix(".md") == path:
        raise UnreadableError(f"{path} is where its page would be written; rename it to {path.stem}.json.")


def write(session: Session, before: Session | None = None) -> list[Path]:
    """Write page and pictures beside the session's file; return their paths, the page first."""
    try:
        from bench import pictures  # matplotlib may be missing where benchmarks run
    except ModuleNotFoundError as error:
        if error.name != "matplotlib":
            raise
        drawn = []
    else:
        drawn = pictures.draw(session)
    path = session.path.with_suffix(".md")
    path.write_text(page(session, before, drawn))
    return [path, *drawn]


def page(session: Session, before: Session | None, drawn: Sequence[Path]) -> str:
    """Return the page in Markdown."""
    parts = [f"# Benchmarks of {session.date.replace('T', ' ')}, commit {session.version}", machine(session)]
    parts += ["\n".join(f"- {line}" for line in summary(session, before))]
    parts += [f"![{path.stem}]({path.name})" for path in drawn]
    for subject, groups in session.subjects.items():
        parts += [f"## {subject}", table(measured(groups, session.machine))]
    if before is not None:
        parts += [f"## Since {before.date.replace('T', ' ')}, commit {before.version}", table(changes(session, before))]
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


def summary(session: Session, before: Session | None) -> list[str]:
    """Return a line for each subject, and one for what changed."""
    lines = [
        verdicts.line(subject, [group.compared for group in groups]) for subject, groups in session.subjects.items()
    ]
    return lines + ([changed(session, before)] if before is not None else [])


def measured(groups: Sequence[SavedGroup], machine: Facts) -> list[Row]:
    """Return a row for each provider of each group, under a heading."""
    heading = ("work", "by", "time", f"speed over {groups[0].baseline}", "of copy", "Gflop/s", "kept", "peak", "sees")
    return [heading, *(_measured(group, name, machine) for group in groups for name in group.providers)]


def changes(session: Session, before: Session) -> list[Row]:
    """Return a row for each provider that both sessions timed, under a heading.

    What is held against the earlier session is the time over that of the baseline, which a slower or busier machine
    leaves alone; of the baseline it is the time itself.
    """
    rows: list[Row] = [("work", "by", "before", "now", "change", "verdict")]
    between = spread_between(session, before)
    for old, new, name in _in_both(session, before):
        then, now = _compared(old, name), _compared(new, name)
        shown = [_time(one.median) if name == new.baseline else f"{one} x {new.baseline}" for one in (then, now)]
        rows.append((new.name, name, *shown, f"{now.median / then.median - 1:+.1%}", change_of(then, now, between)))
    return rows


def change_of(then: Ratio, now: Ratio, between: float) -> str:
    """Return whether a time changed beyond the spread within and between sessions, or what would have been seen."""
    change = math.log(now.median / then.median)
    if now.low > then.high and change > between:
        return "slower"
    if now.high < then.low and change < -between:
        return "faster"
    within = (now.median / now.low) * (then.high / then.median) - 1
    return f"none beyond {max(within, math.expm1(between)):.1%}"


def spread_between(session: Session, before: Session) -> float:
    """Return three standard deviations of what two sessions differ by, on the log scale, where nothing changed.

    Sessions differ by more than the spread within each, by load and by where memory happens to lie. Of a normal
    distribution a quarter is nearer to 0 than 0.32 standard deviations; the lower quartile of the changes measures
    these even where most of the rows did change.
    """
    pairs = [(_compared(old, name), _compared(new, name)) for old, new, name in _in_both(session, before)]
    changes = [abs(math.log(now.median / then.median)) for then, now in pairs]
    quartile = statistics.quantiles(changes, n=4)[0] if len(changes) > 1 else 0.0
    return 3 * quartile / statistics.NormalDist().inv_cdf(0.625)


def changed(session: Session, before: Session) -> str:
    """Return one line on what changed."""
    found: dict[str, list[str]] = {"slower": [], "faster": []}
    pairs = _in_both(session, before)
    between = spread_between(session, before)
    for old, new, name in pairs:
        verdict = change_of(_compared(old, name), _compared(new, name), between)
        if verdict in found:
            found[verdict].append(f"{new.name} by {name}")
    told = [f"{len(names)} {verdict} ({'; '.join(names)})" for verdict, names in found.items() if names]
    return f"since commit {before.version}, of {len(pairs)}: {', '.join(told) or 'nothing beyond the noise'}"


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
        "1" if first else str(group.speed(name)),
        "" if moved is None else f"{moved / seconds / machine['copy_bytes_per_s']:.0%}",
        f"{facts['model_flops'] / seconds / 1e9:.3g}" if facts.get("model_flops") else "",
        _bytes(facts.get("saved_bytes")),
        _bytes(facts.get("peak_bytes")),
        f"{group.compared.floor().detectable:.1%}" if first else "",
    )


def _in_both(session: Session, before: Session) -> list[tuple[SavedGroup, SavedGroup, str]]:
    """Return old group, new group and provider, for all that both sessions timed against the same baseline."""
    pairs = [(before.groups[name], group) for name, group in session.groups.items() if name in before.groups]
    same = [(old, new) for old, new in pairs if old.baseline == new.baseline]
    return [(old, new, name) for old, new in same for name in new.providers if name in old.providers]


def _compared(group: SavedGroup, name: str) -> Ratio:
    """Return the time of a provider over that of the baseline, and of the baseline itself its seconds."""
    return group.seconds(name) if name == group.baseline else group.compared.ratio(name, group.baseline)


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
