"""What a study of the exact models leaves behind: rows as a table and as CSV, and a picture, in one run folder."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure

Row = Mapping[str, str | int | float]


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


def _column(name: str, values: Sequence[str | int | float]) -> list[str]:
    """Return the cells of one column under its name, padded: text to the left, numbers to the right."""
    cells = [name, *(f"{value:.4g}" if isinstance(value, float) else str(value) for value in values)]
    width = max(map(len, cells))
    return [cell.ljust(width) if isinstance(values[0], str) else cell.rjust(width) for cell in cells]
