"""From a saved session to a page and figures; with a second file, also the changes since that session.

`python bench/report.py A.json [B.json]` writes A.md and A-*.png beside A.json.
"""

import argparse
import itertools
import math
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from vaebench.bench.session import compare, summary
from vaebench.bench.session.group import PEER, Group
from vaebench.bench.session.read import JsonObject, Session, UnreadableError, load
from vaebench.bench.timing.ratios import Ratio

Cells = Sequence[str]

SPEED, OF_COPY, KEPT, PEAK, SEES, VERDICT = "speed", "of copy", "kept", "peak", "sees", "verdict"
MEANINGS = {
    SPEED: "how many times as fast as the other, larger is better, with the interval that covers it with 95 %",
    OF_COPY: "the bytes per second that the work must move, over the bytes per second of the machine's fastest copy",
    KEPT: "bytes that autograd keeps for backward beside the inputs",
    PEAK: "the most bytes held at once during the call, beyond the bytes held before it",
    SEES: "the smallest slowdown that 9 of 10 sessions like this would find",
    VERDICT: "slower or faster beyond the noise, or the smallest slowdown that would have been found",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("session", type=Path, help="JSON of the session to report")
    parser.add_argument("before", type=Path, nargs="?", help="JSON of an earlier session to compare it with")
    options = parser.parse_args(arguments)
    try:
        session = load(options.session)
        before = load(options.before) if options.before else None
        require_other_name(options.session)
    except UnreadableError as error:
        print(f"report.py: {error}", file=sys.stderr)
        return 2
    print("\n".join([*list_warnings(session), *summarise(session, before)]))
    try:
        files = write(session, before)
    except OSError as error:
        print(f"report.py: cannot write beside {session.path}: {error.strerror}; copy it elsewhere.", file=sys.stderr)
        return 2
    print(f"\nin {files[0].parent}: {', '.join(file.name for file in files)}")
    return 0


def require_other_name(path: Path) -> None:
    """Refuse a session that its own page would overwrite."""
    if path.with_suffix(".md") == path:
        raise UnreadableError(f"{path} is where its page would be written; rename it to {path.stem}.json.")


def write(session: Session, before: Session | None = None) -> list[Path]:
    """Write page and figures beside the session's file; return their paths, the page first."""
    try:
        from vaebench.bench.session import figures  # matplotlib may be missing where benchmarks run
    except ModuleNotFoundError as error:
        if error.name != "matplotlib":
            raise
        drawn = []
    else:
        drawn = figures.draw(session)
    path = session.path.with_suffix(".md")
    path.write_text(format_page(session, before, drawn))
    return [path, *drawn]


def format_page(session: Session, before: Session | None, drawn: Sequence[Path]) -> str:
    """Return the page in Markdown."""
    parts = [f"# Benchmarks of {session.date.replace('T', ' ')}, commit {session.version}"]
    parts += [*list_warnings(session), describe_machine(session.machine)]
    parts += ["\n".join(f"- {line}" for line in summarise(session, before))]
    parts += [f"![{path.stem}]({path.name})" for path in drawn]
    tables = {subject: tabulate_providers(groups, session.machine) for subject, groups in session.subjects.items()}
    changes = [] if before is None else tabulate_changes(session, before)
    parts += [explain_columns([*tables.values(), *([changes] if changes else [])])]
    for subject, rows in tables.items():
        parts += [f"## {subject}", format_table(rows)]
    if before is not None:
        parts += [f"## Since {before.date.replace('T', ' ')}, commit {before.version}", format_table(changes)]
        parts += ["The baselines themselves, whose times depend on the machine as much as on the code:"]
        parts += [format_table(tabulate_baselines(session, before))]
    return "\n\n".join(parts) + "\n"


def describe_machine(machine: JsonObject) -> str:
    """Return a paragraph on the machine."""
    cpu = machine.get("cpu", {}).get("brand_raw", machine["machine"])
    name = cpu if machine["device"] == "CPU" else machine["device"]
    driver = f", driver {machine['driver']}, runtime {machine['runtime']}" if machine.get("driver") else ""
    note = f" {machine['note']}" if machine.get("note") else ""
    return (
        f"{name}{driver}; {machine['cores']} cores, arithmetic on {machine['threads']}, load {machine['load']}; "
        f"Python {machine['python_version']}, torch {machine['torch']}, triton {machine['triton']}; allocator "
        f"{'pinned' if machine['allocator_pinned'] else 'not pinned'}; "
        f"it {summary.describe_measurements(machine)}.{note}"
    )


def list_warnings(session: Session) -> list[str]:
    """Return lines on why the verdicts of the session are not to be trusted."""
    return summary.list_warnings(session.machine, session.groups.values())


def summarise(session: Session, before: Session | None) -> list[str]:
    """Return a line for each subject, and some on the changes."""
    changes = [] if before is None else compare.summarise(session, before)
    return summary.summarise(session.groups.values()) + changes


def tabulate_providers(groups: Sequence[Group], machine: JsonObject) -> list[Cells]:
    """Return a row for each provider of each group, under a heading, without the columns that are empty."""
    speeds = (f"{SPEED} over {groups[0].baseline}", f"{SPEED} over {PEER}")
    heading = ("work", "by", "time", *speeds, OF_COPY, "Gflop/s", KEPT, PEAK, SEES)
    rows = [_tabulate_provider(group, name, machine) for group in groups for name in group.providers]
    filled = [any(cells) for cells in zip(*rows, strict=True)]
    return [tuple(itertools.compress(row, filled)) for row in (heading, *rows)]


def explain_columns(tables: Iterable[Sequence[Cells]]) -> str:
    """Return the meanings of the columns of tables."""
    columns = {name for rows in tables for name in rows[0]} | {SPEED}
    return f"{'; '.join(f'*{name}*: {meaning}' for name, meaning in MEANINGS.items() if name in columns)}."


def tabulate_changes(session: Session, before: Session) -> list[Cells]:
    """Return a row for each speed that both sessions have, under a heading."""
    changes = compare.find_changes(session, before)
    spread = compare.estimate_spread(changes)
    rows: list[Cells] = [("work", "by", "speed before", "speed now", "change", VERDICT)]
    for change in changes:
        speeds, size = (_format_speed(change.then), _format_speed(change.now)), f"{math.expm1(change.size):+z.1%}"
        rows.append((change.group, change.provider, *speeds, size, change.verdict(spread)))
    return rows


def tabulate_baselines(session: Session, before: Session) -> list[Cells]:
    """Return a row for each baseline that both sessions timed, under a heading."""
    rows: list[Cells] = [("work", "baseline", "time before", "time now", "speed now over before")]
    for old, new in compare.match_groups(session, before):
        then, now = old.seconds(old.baseline), new.seconds(new.baseline)
        rows.append((new.name, new.baseline, _format_time(then), _format_time(now), f"{then / now:.2f}"))
    return rows


def format_table(rows: Sequence[Cells]) -> str:
    """Return rows as a table in Markdown, the first as its heading."""
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([lines[0], "|---" * len(rows[0]) + "|", *lines[1:]])


def _tabulate_provider(group: Group, name: str, machine: JsonObject) -> Cells:
    info, seconds, is_baseline = group.extra_info[name], group.seconds(name), name == group.baseline
    peer = group.find_peer(name)
    moved, flops = info.get("model_bytes"), info.get("model_flops")
    detectable = group.comparison.noise_floor.detectable
    return (
        group.name,
        name,
        _format_time(seconds),
        "1" if is_baseline else _format_speed(group.speed(name)),
        _format_speed(group.speed(name, peer)) if peer else "",
        f"{moved / seconds / machine['copy_bytes_per_s']:.0%}" if moved and group.moves_bytes else "",
        f"{flops / seconds / 1e9:.3g}" if flops else "",
        _format_bytes(info.get("saved_bytes")),
        _format_bytes(info.get("peak_bytes")),
        f"{detectable:.1%}" if is_baseline and detectable < math.inf else "",
    )


def _format_speed(ratio: Ratio) -> str:
    """Return a speed and its interval with two digits, or up to four where the ends would else be rounded to 1."""
    if not ratio.bounded:
        return str(ratio)
    ends = (ratio.low, ratio.high)
    digits = next((count for count in (2, 3) if all(end == 1 or round(end, count) != 1 for end in ends)), 4)
    median, low, high = (f"{value:.{digits}f}" for value in (ratio.median, *ends))
    return f"{median} ({low} to {high})"


def _format_time(seconds: float) -> str:
    for unit, scale in (("s", 1.0), ("ms", 1e3), ("us", 1e6)):
        if seconds * scale >= 1:
            return f"{seconds * scale:.3g} {unit}"
    return f"{seconds * 1e9:.3g} ns"


def _format_bytes(count: int | None) -> str:
    if count is None:
        return ""
    return f"{count / 1e6:.3g} MB" if count >= 1e6 else f"{count / 1e3:.3g} kB"


if __name__ == "__main__":
    sys.exit(main())
