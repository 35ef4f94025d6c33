"""Audit a trained VAE of any library: `python studies/audit.py --model mine.py:make --data images.npy`.

It prints and writes log p(x), with a proof on simulated data of how far the estimate holds; the ELBO's gap, taken
apart; what the codes say of the data; and what is wrong, in plain words. --model is one of

  FILE.py:FUNCTION   returns an object with encode(x) -> (mu, logvar) or a Normal, and decode(z) -> a distribution of
                     torch.distributions over x; or a model of vaebench, pythae, diffusers or scvi-tools
  FOLDER             of a run of train.py, or a model that pythae, diffusers or scvi-tools has saved

--data is a folder of images, an .npy or .npz file, or a known set such as fashion_mnist. A run of train.py and a model
of scvi-tools know their data. Stopped, the same command goes on.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from vaebench.studies import command_line
from vaebench.studies.command_line import Parser

GAP_EXAMPLES, SIMULATED, TEMPERATURES = 64, 32, 100


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit code."""
    return command_line.run_command("audit", parser(), arguments)


def parser() -> Parser:
    """Return the parser of the command line."""
    parser = Parser(__doc__)
    parser.add_argument("--model", required=True, metavar="MODEL", help="FILE.py:FUNCTION, or a folder")
    parser.add_argument("--data", metavar="DATA", help="a folder of images, an .npy or .npz file, or a known set")
    parser.add_argument("--data-dir", metavar="DIR", help="where a known set lies; sets data.dir")
    parser.add_argument("--sigma", metavar="X", type=_sigma, help="of a Gaussian p(x|z) around decoded means, or fit")
    parser.add_argument("--examples", metavar="N", type=_count(2), default=200, help="test examples for log p(x) (200)")
    _add_count(parser, "--gap-examples", GAP_EXAMPLES, "of these, examples whose gap is taken apart")
    _add_count(parser, "--simulated", SIMULATED, "simulated examples whose log p(x) is enclosed")
    _add_count(parser, "--temperatures", TEMPERATURES, "temperatures of the annealing that encloses it")
    parser.add_argument("--seed", metavar="N", type=_count(0), default=0, help="noise of all estimates (0)")
    parser.add_settings()
    parser.add_argument("--folder", type=Path, help="for parts and results (default: runs/, named after the model)")
    parser.add_argument("--tracking-uri", metavar="URI", help="http://HOST:PORT, or none (mlflow.db in this folder)")
    return parser


def _add_count(parser: argparse.ArgumentParser, option: str, default: int, purpose: str) -> None:
    parser.add_argument(option, metavar="N", type=_count(2), default=default, help=f"{purpose} ({default})")


def _count(least: int) -> Callable[[str], int]:
    """Return a function that reads a whole number of at least `least`."""

    def read(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"needs a whole number of at least {least}, got {text!r}")
        return int(text)

    return read


def _sigma(text: str) -> str | float:
    """Read a positive number, or `fit`."""
    try:
        value = text if text == "fit" else float(text)
    except ValueError:
        value = 0.0
    if isinstance(value, float) and not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"needs a positive number or fit, got {text!r}")
    return value


if __name__ == "__main__":
    sys.exit(main())
