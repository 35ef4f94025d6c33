"""Put saved benchmark sessions into MLflow: one run each, with a child for each operation and mode.

`python studies/track_bench.py bench/results/*.json`, then `mlflow ui`: the step of a metric is the problem size, so
that charts have it on x, with sessions of different machines and commits side by side. The files that `python
bench/report.py A.json` wrote, and a folder A-profile of `python bench/profile_step.py`, become artifacts. A session
that is tracked already gets the new files only; one that was stopped halfway is completed.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from vaebench.studies import command_line
from vaebench.studies.command_line import Parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit code."""
    return command_line.run_command("track_bench", parser(), arguments)


def parser() -> Parser:
    """Return the parser of the command line."""
    parser = Parser(__doc__)
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE.json", help="written with --benchmark-json")
    parser.add_argument("--tracking-uri", metavar="URI", help="http://HOST:PORT (mlflow.db in this folder)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
