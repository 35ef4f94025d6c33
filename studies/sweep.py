"""Search the settings of a VAE, every trial an MLflow run: `python studies/sweep.py`, then `mlflow ui`.

The same command goes on where it stopped, a larger --trials adds trials, and another shell helps with --join.
"""

import sys
from collections.abc import Sequence

from vaebench.studies import command_line
from vaebench.studies.command_line import Parser
from vaebench.studies.engine.study.choices import ENGINES, PRUNERS, SAMPLERS, SPACES, TARGETS


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit code."""
    return command_line.run_command("sweep", parser(), arguments)


def parser() -> Parser:
    """Return the parser of the command line."""
    parser = Parser(__doc__)
    parser.add_argument("--study", metavar="NAME", help="default: made of data, space, target and a hash of the rest")
    parser.add_argument("--trials", type=int, default=40, help="finished trials to reach in all (40)")
    parser.add_argument("--workers", type=int, help="processes (one a GPU; one a core, up to a fifth of the trials)")
    parser.add_argument("--space", default="full", help=f"{', '.join(SPACES)}, or a TOML file (full)")
    parser.add_argument("--target", default="nll", choices=TARGETS, help="what is optimised (nll)")
    parser.add_argument("--dataset", metavar="NAME", help="sets data.name (digits)")
    parser.add_argument(
        "--model", metavar="FILE.py:F", help="sets model.build: F(settings, shape) builds your own model"
    )
    parser.add_argument("--data-dir", metavar="DIR", help="sets data.dir, also of a study to --join (data)")
    parser.add_argument("--download", action="store_true", help="fetch mnist, fashion_mnist or cifar10 into data.dir")
    parser.add_argument("--sampler", default="tpe", choices=SAMPLERS, help="how settings are chosen (tpe)")
    parser.add_argument(
        "--pruner", default="hyperband", choices=PRUNERS, help="how poor trials are stopped (hyperband)"
    )
    parser.add_argument("--seeds", type=int, default=1, help="trainings of each setting: means with spread (1)")
    parser.add_argument("--storage", metavar="URL", help="postgresql+psycopg://USER@HOST/DB (a journal in runs/)")
    parser.add_argument("--tracking-uri", metavar="URI", help="http://HOST:PORT, or none (mlflow.db in this folder)")
    parser.add_settings()
    parser.add_argument("--engine", default="local", choices=ENGINES, help="what starts the workers (local)")
    parser.add_argument(
        "--address", default="auto", metavar="HOST:PORT", help="of a Ray cluster (auto: this machine's)"
    )
    parser.add_argument("--gpus-per-worker", type=float, metavar="X", help="with ray: 0.25 puts four on one GPU (1)")
    parser.add_argument("--dry-run", action="store_true", help="show space, first settings and time, and stop")
    parser.add_argument("--join", action="store_true", help="work on a study that another process leads")
    parser.add_argument("--replay", action="store_true", help="write to MLflow what waits in runs/*/outbox.jsonl")
    return parser


if __name__ == "__main__":
    sys.exit(main())
