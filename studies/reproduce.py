"""Train and measure what others have published, and compare: `python studies/reproduce.py burda2016 --data-dir data`.

Without a name it lists the published results, each with its source, its tolerance, the data that it needs, and what
this machine has found so far. A name is one of a result, or the beginning of several: burda2016 stands for six. A
result that is found is kept in runs/reproduce, and a training that was stopped goes on.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from vaebench.studies import command_line
from vaebench.studies.command_line import Parser

FOLDER = Path("runs/reproduce")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit code."""
    return command_line.run_command("reproduce", parser(), arguments)


def parser() -> Parser:
    """Return the parser of the command line."""
    parser = Parser(__doc__)
    parser.add_argument("name", nargs="?", help="a result, or the beginning of several (none: list them all)")
    parser.add_argument("--data-dir", default="data", metavar="DIR", help="the folder above the data sets' (data)")
    parser.add_argument("--folder", type=Path, default=FOLDER, help=f"where results are kept ({FOLDER})")
    parser.add_settings()
    return parser


if __name__ == "__main__":
    sys.exit(main())
