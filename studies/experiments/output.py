"""The parts that experiments share: command line, summaries, table and figure, files and the run in MLflow."""

import argparse
import csv
import dataclasses
import math
import re
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import ParamSpec, TypeVar

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from vaebench.studies import command_line as scripts
from vaebench.studies.command_line import Parser, format_command
from vaebench.studies.experiments import parts
from vaebench.studies.tracking.figures import wrap_command
from vaebench.studies.tracking.record import NOTE, MetricValue, RunRecord, StoreError, milliseconds
from vaebench.vae.errors import InputError
from vaebench.vae.training.setup import open_folder

Row = Mapping[str, str | int | float]
P = ParamSpec("P")
T = TypeVar("T")
Key = TypeVar("Key", bound=Hashable)

MOST = 10**9
MOST_NOTED = 40  # rows


def command_line(script: str, doc: str | None) -> Parser:
    """Return a parser with the options of every experiment; the script's name also names its folder and its runs."""
    name = Path(script).stem
    parser = Parser(doc)
    parser.add_argument("--folder", type=Path, default=Path("runs") / name, help=f"for table and picture (runs/{name})")
    parser.add_argument("--tracking-uri", metavar="URI", help="http://HOST:PORT, or none (mlflow.db in this folder)")
    parser.set_defaults(name=name, started=milliseconds())
    return parser


def run(options: argparse.Namespace, work: Callable[[argparse.Namespace], None]) -> int:
    """Do the work of an experiment and return its exit code; what could not be written is refused before it begins."""

    def check_and_work() -> None:
        if options.tracking_uri not in (None, "none"):
            from vaebench.studies.tracking.mlflow_store import require_writable

            require_writable(options.tracking_uri)
        open_folder(options.folder, "give another --folder")
        work(options)

    return scripts.run(f"{options.name}.py", check_and_work)


def add_count(
    parser: argparse.ArgumentParser, option: str, default: int, purpose: str, *, least: int = 1, most: int = MOST
) -> None:
    """Add an option that takes a whole number from `least` to `most`."""
    parser.add_argument(option, type=between(least, most), default=default, help=f"{purpose} ({default})")


def between(least: int, most: int = MOST) -> Callable[[str], int]:
    """Return a function that reads a whole number from `least` to `most` from a command line."""

    def read(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"must be a whole number of at least {least}, got {text}")
        if int(text) > most:
            raise argparse.ArgumentTypeError(f"must be a whole number of at most {most}, got {text}")
        return int(text)

    return read


def limit_count(options: argparse.Namespace, option: str, available: int, things: str) -> None:
    """Lower an option to the number of things that there are, with a sentence, so that the run records that number."""
    asked: int = getattr(options, option)
    if asked > available:
        print(f"{options.name}.py: there are {available} {things}, fewer than {asked}; all are used.", file=sys.stderr)
        setattr(options, option, available)


def measure_time(function: Callable[P, T], *arguments: P.args, **named: P.kwargs) -> tuple[T, float]:
    """Call a function; return its value and the seconds that it took."""
    started = time.perf_counter()
    value = function(*arguments, **named)
    return value, time.perf_counter() - started


def mean_and_stderr(values: Sequence[float]) -> tuple[float, float]:
    """Return the mean over the seeds, and its standard error."""
    spread = statistics.stdev(values) if len(values) > 1 else math.nan
    return statistics.fmean(values), spread / math.sqrt(len(values))


def group_by(items: Iterable[T], key: Callable[[T], Key]) -> dict[Key, list[T]]:
    """Return the items under their keys, in order of appearance."""
    groups: dict[Key, list[T]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return groups


def plot_lines(axes: Axes, rows: Sequence[Row], x: str, y: str, label: Callable[[Row], str]) -> None:
    """Plot column y against column x, both logarithmic: one line for each label."""
    for name, line in group_by(rows, label).items():
        axes.loglog([row[x] for row in line], [row[y] for row in line], marker="o", label=name)


def plot_image_rows(axes: Axes, images: Mapping[str, Tensor]) -> None:
    """Show a row of images `(N, H, W)` beside each name."""
    padded = [torch.nn.functional.pad(row, (1, 1, 1, 1), value=0.5) for row in images.values()]
    axes.imshow(torch.cat([torch.cat(list(row), dim=1) for row in padded]).numpy(), cmap="gray", vmin=0, vmax=1)
    height = padded[0].shape[1]
    axes.set_yticks([height * (i + 0.5) for i in range(len(images))], list(images))
    axes.set_xticks([])


def write_results(
    rows: Sequence[Row], figure: Figure, options: argparse.Namespace, printed: Sequence[Row] | None = None
) -> None:
    """Print the table, save it with the figure, delete the parts that it was made of, and write the run.

    A tracker that cannot be reached costs a sentence, not the results: the exit code is 0 all the same.
    """
    print(format_table(printed or rows))
    save(rows, figure, options.folder)
    parts.remove(options.folder)
    try:
        tracked = track(rows, options)
    except (InputError, StoreError) as error:
        print(f"{options.name}: {str(error).rstrip('.')}; table and picture are written.", file=sys.stderr)
        tracked = ""
    print(f"\nin {options.folder}: table.csv, picture.png{tracked}")


def format_table(rows: Sequence[Row]) -> str:
    """Return aligned columns, one for each key of the first row that a row has a value for; numbers to four digits.

    A value that is unknown is `-`.
    """
    known = [name for name in rows[0] if not all(is_unknown(row[name]) for row in rows)]
    columns = [_align(name, [row[name] for row in rows]) for name in known]
    return "\n".join("  ".join(line).rstrip() for line in zip(*columns, strict=True))


def mark_bounds(rows: Sequence[Row], figure: str, difference: str, *, below: bool = False) -> list[Row]:
    """Return rows to print, in which a figure with unresolved examples is an upper bound without a standard error.

    `difference` is the figure above that of the first row, or with `below` under it. It is a bound on the side of the
    one of them that is unresolved, and unknown where both are.
    """
    printed: list[Row] = []
    for row in rows:
        own, first = (float(one["unresolved"]) > 0 and row is not rows[0] for one in (row, rows[0]))
        upper, lower = (first, own) if below else (own, first)
        marked = {
            difference: mark_bound(float(row[difference]), upper=upper, lower=lower),
            f"{difference} +-": math.nan if own or first else row[f"{difference} +-"],
        }
        printed.append({**mark_figure(row, figure), **marked})
    return printed


def mark_figure(row: Row, figure: str) -> Row:
    """Return a row to print, in which a figure with unresolved examples is an upper bound without a standard error."""
    high = float(row["unresolved"]) > 0
    stderr = math.nan if high else row[f"{figure} +-"]
    return {**row, figure: mark_bound(float(row[figure]), upper=high), f"{figure} +-": stderr}


def mark_bound(value: float, *, upper: bool, lower: bool = False) -> str | float:
    """Return a figure as it is printed: behind `<=` if it is an upper bound, behind `>=` if it is a lower one.

    >>> mark_bound(24.853, upper=False), mark_bound(24.853, upper=True), mark_bound(0.2, upper=True, lower=True)
    (24.853, '<= 24.85', 'unknown')
    >>> mark_bound(math.nan, upper=True)
    nan
    """
    if math.isnan(value):
        return value
    if upper and lower:
        return "unknown"
    return f"{'<=' if upper else '>='} {value:.4g}" if upper or lower else value


def _align(name: str, values: Sequence[str | int | float]) -> list[str]:
    """Return the cells of one column under its name, padded: text to the left, a column with numbers to the right."""
    cells = [
        name,
        *("-" if is_unknown(one) else f"{one:.4g}" if isinstance(one, float) else str(one) for one in values),
    ]
    width = max(map(len, cells))
    text = all(isinstance(value, str) for value in values)
    return [cell.ljust(width) if text else cell.rjust(width) for cell in cells]


def is_unknown(value: str | float) -> bool:
    """Whether a cell of a table is a number that is not known, such as the standard error of one value."""
    return isinstance(value, float) and math.isnan(value)


def save(rows: Sequence[Row], figure: Figure, folder: Path) -> None:
    """Write table.csv, where what is unknown is empty, and picture.png into the folder, made if it is missing."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "table.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows({name: "" if is_unknown(value) else value for name, value in row.items()} for row in rows)
    figure.savefig(folder / "picture.png", dpi=120)


def track(rows: Sequence[Row], options: argparse.Namespace) -> str:
    """Write a run with options, table and files to the experiment of this name, and return where it is.

    Each series, such as a model, becomes a child run with its texts as params and its numbers as metrics, so that
    MLflow compares them.
    """
    if options.tracking_uri == "none":
        return ""
    from vaebench.studies.tracking.mlflow_runs import Tracker  # MLflow takes seconds to import, and --help needs none
    from vaebench.studies.tracking.mlflow_store import resolve_uri
    from vaebench.studies.tracking.provenance import provenance

    tracker, end = Tracker(resolve_uri(options.tracking_uri), options.name), milliseconds()
    command = format_command(f"experiments/{options.name}", *sys.argv[1:])
    origin = provenance(command)
    whole = RunRecord(
        trial=None,
        name=options.name,
        start=options.started,
        status="FINISHED",
        end=end,
        params={name: str(value) for name, value in vars(options).items() if name not in parts.ELSEWHERE},
        tags=origin | {NOTE: describe(rows, command)},
        files=[str(options.folder / name) for name in ("table.csv", "picture.png")],
    )
    series = list_series(rows, end)
    if len(series) == 1:
        whole.metrics = next(iter(series.values()))
        tracker.add(whole)
    else:
        parent = tracker.add(whole)
        for texts, metrics in series.items():
            name, params = " ".join(text for _, text in texts), {_clean(name): text for name, text in texts}
            child = dataclasses.replace(whole, name=name, params=params, metrics=metrics, tags=origin, files=[])
            tracker.add(child, parent)
    return f"; in MLflow: experiment {options.name}"


def describe(rows: Sequence[Row], command: str) -> str:
    """Return the note of the run: the command, and the first rows of the table."""
    shown = [[f"{value:.4g}" if isinstance(value, float) else str(value) for value in row.values()] for row in rows]
    lines = [list(rows[0]), ["---"] * len(rows[0]), *shown[:MOST_NOTED]]
    table = [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |" for cells in lines]
    return "\n".join(["```", wrap_command(command), "```", "", *table])


def list_series(rows: Sequence[Row], now: int) -> dict[tuple[tuple[str, str], ...], list[MetricValue]]:
    """Return the numbers of each series of rows, those with the same texts, as metrics with a step for each row.

    >>> list_series([{"method": "hmc", "error": 0.5}, {"method": "hmc", "error": 0.25}], now=7)
    {(('method', 'hmc'),): [('error', 0.5, 7, 0), ('error', 0.25, 7, 1)]}
    """
    found: dict[tuple[tuple[str, str], ...], list[MetricValue]] = {}
    steps = Counter[tuple[tuple[str, str], ...]]()
    for row in rows:
        texts = tuple((name, value) for name, value in row.items() if isinstance(value, str))
        points = found.setdefault(texts, [])
        for name, value in row.items():
            if not isinstance(value, str) and math.isfinite(value):
                points.append((_clean(name), float(value), now, steps[texts]))
        steps[texts] += 1
    return found


def _clean(name: str) -> str:
    """Return a column's name without the characters that MLflow refuses in the names of metrics and params."""
    return re.sub(r"[^\w/. :-]+", "", name)
