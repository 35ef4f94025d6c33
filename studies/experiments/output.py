"""What a study of the exact models leaves behind: rows as a table and as CSV, a picture, and a run in MLflow."""

import argparse
import csv
import math
import re
import shlex
import statistics
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from vaebench.studies.tracking.record import Point, Record, StoreError, milliseconds
from vaebench.vae.errors import InputError

Row = Mapping[str, str | int | float]


def parser(name: str, doc: str | None) -> argparse.ArgumentParser:
    """Return a command line that knows where its study's files and its run go."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("runs") / name, help=f"for table and picture (runs/{name})")
    parser.add_argument("--tracking-uri", metavar="URI", help="http://HOST:PORT, or none (mlflow.db in this folder)")
    parser.set_defaults(name=name, started=milliseconds())
    return parser


def at_least(least: int) -> Callable[[str], int]:
    """Return what reads a whole number of at least `least` from a command line."""

    def read(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            number = least - 1
        if number < least:
            raise argparse.ArgumentTypeError(f"must be a whole number of at least {least}, got {text}")
        return number

    return read


def leave(rows: Sequence[Row], figure: Figure, options: argparse.Namespace) -> None:
    """Save table and picture, write the run, and say where both are."""
    save(rows, figure, options.folder)
    try:
        tracked = track(rows, options)
    except (InputError, StoreError) as error:
        print(f"{options.name}: {str(error).rstrip('.')}; table and picture are written.", file=sys.stderr)
        tracked = ""
    print(f"\nin {options.folder}: table.csv, picture.png{tracked}")


def render(rows: Sequence[Row]) -> str:
    """Return aligned columns, one for each key of the first row; numbers to four significant digits."""
    columns = [_column(name, [row[name] for row in rows]) for name in rows[0]]
    return "\n".join("  ".join(line).rstrip() for line in zip(*columns, strict=True))


def save(rows: Sequence[Row], figure: Figure, folder: Path) -> None:
    """Write table.csv and picture.png into the folder, which is made where it is missing."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "table.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    figure.savefig(folder / "picture.png", dpi=120)


def track(rows: Sequence[Row], options: argparse.Namespace) -> str:
    """Write one run, in the experiment named after the study: its options, its curves, its files."""
    from vaebench.studies.tracking import mlflow_runs  # MLflow takes seconds to import, and --help needs none of it
    from vaebench.studies.tracking.provenance import provenance

    if options.tracking_uri == "none":
        return ""
    uri = options.tracking_uri or mlflow_runs.default_uri(Path())
    mlflow_runs.require_writable(uri)
    end = milliseconds()
    hidden = ("name", "started", "folder", "tracking_uri")
    record = Record(
        trial=0,
        name=options.name,
        start=options.started,
        status="FINISHED",
        end=end,
        params={name: str(value) for name, value in vars(options).items() if name not in hidden},
        tags=provenance(shlex.join(["python", f"studies/experiments/{options.name}.py", *sys.argv[1:]])),
        metrics=curves(rows, end),
        files=[str(options.folder / name) for name in ("table.csv", "picture.png")],
    )
    mlflow_runs.Tracker(uri, options.name).add(record)
    return f"; in MLflow: experiment {options.name}"


def curves(rows: Sequence[Row], now: int) -> list[Point]:
    """Return each numeric column as curves, one for each text that rows carry, its steps counting their rows.

    >>> curves([{"method": "hmc", "error": 0.5}, {"method": "hmc", "error": 0.25}], now=7)
    [('error/hmc', 0.5, 7, 0), ('error/hmc', 0.25, 7, 1)]
    """
    points, steps = [], Counter[str]()
    for row in rows:
        series = " ".join(str(value) for value in row.values() if isinstance(value, str))
        for name, value in row.items():
            if not isinstance(value, str) and math.isfinite(value):
                metric = re.sub(r"[^\w/. :-]+", "", f"{name}/{series}" if series else name)
                points.append((metric, float(value), now, steps[series]))
        steps[series] += 1
    return points


def _column(name: str, values: Sequence[str | int | float]) -> list[str]:
    """Return the cells of one column under its name, padded: text to the left, numbers to the right."""
    cells = [name, *(f"{value:.4g}" if isinstance(value, float) else str(value) for value in values)]
    width = max(map(len, cells))
    return [cell.ljust(width) if isinstance(values[0], str) else cell.rjust(width) for cell in cells]


def mean_and_stderr(values: Sequence[float]) -> tuple[float, float]:
    """Return the mean over the seeds, and its standard error."""
    spread = statistics.stdev(values) if len(values) > 1 else math.nan
    return statistics.fmean(values), spread / math.sqrt(len(values))


def show(axes: Axes, sheets: Mapping[str, Tensor]) -> None:
    """Draw a line of images for each name."""
    padded = [torch.nn.functional.pad(sheet, (1, 1, 1, 1), value=0.5) for sheet in sheets.values()]
    picture = torch.cat([torch.cat(list(sheet), dim=1) for sheet in padded])
    axes.imshow(picture.numpy(), cmap="gray", vmin=0, vmax=1)
    height = padded[0].shape[1]
    axes.set_yticks([height * (i + 0.5) for i in range(len(sheets))], list(sheets))
    axes.set_xticks([])
