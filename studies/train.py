"""Train and evaluate one model: `python studies/train.py --dataset digits --latent 8 --beta 4`."""

import sys
from collections.abc import Sequence
from pathlib import Path

from vaebench.studies import command_line
from vaebench.studies.command_line import Parser

SHORTCUTS = {
    "dataset": "data.name",
    "data-dir": "data.dir",
    "model": "model.build",
    "latent": "model.latent",
    "beta": "objective.beta",
    "alpha": "objective.alpha",
    "lambda": "objective.lambda",
    "epochs": "train.epochs",
    "seed": "train.seed",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit code."""
    return command_line.run_command("train", parser(), arguments)


def parser() -> Parser:
    """Return the parser of the command line; `--set` reaches every setting of a run."""
    parser = Parser(__doc__)
    for option, name in SHORTCUTS.items():
        parser.add_argument(f"--{option}", metavar="X", help=f"sets {name}")
    parser.add_argument(
        "--config", type=Path, metavar="FILE", help="TOML with tables [data], [model], [objective], [train], [eval]"
    )
    parser.add_settings()
    parser.add_argument("--download", action="store_true", help="fetch mnist, fashion_mnist or cifar10 into data.dir")
    parser.add_argument("--folder", type=Path, help="where the run is kept (default: runs/, named after its settings)")
    parser.add_argument("--tracking-uri", metavar="URI", help="http://HOST:PORT, or none (mlflow.db in this folder)")
    parser.add_argument("--settings", action="store_true", help="list every setting with its default, and stop")
    return parser


if __name__ == "__main__":
    sys.exit(main())
