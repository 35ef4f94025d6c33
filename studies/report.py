"""A study as one HTML page and one Markdown table: `python studies/report.py STUDY`, or several: `A B`."""

import sys
from collections.abc import Sequence

from vaebench.studies import command_line
from vaebench.studies.command_line import Parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit code."""
    return command_line.run_command("report", parser(), arguments)


def parser() -> Parser:
    """Return the parser of the command line."""
    parser = Parser(__doc__)
    parser.add_argument("study", nargs="*", help="the name of a study in runs/; several are drawn on the same axes")
    return parser


if __name__ == "__main__":
    sys.exit(main())
