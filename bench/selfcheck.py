"""Does the harness see, on this machine, what it should? `python bench/selfcheck.py`

A baseline of ten calls of a small operation is held against eleven, a planted slowdown of 10 %, and against itself.
"""

import argparse
import statistics
import sys
from collections.abc import Sequence
from functools import partial

import torch

from vaebench.bench.cases import kernel_providers
from vaebench.bench.timing import harness, machine
from vaebench.bench.timing.ratios import Comparison

CALLS = 10


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=_runs, default=20, help="comparisons to make (20)")
    options = parser.parse_args(arguments)
    print(verdict([compared() for _ in range(options.runs)]))
    return 0


def compared() -> Comparison:
    """Time ten calls, eleven calls, and the ten again, in turns."""
    device = machine.device()
    contest = kernel_providers.contest("reparam_kl", (128, 32), torch.float32, "both", device, only=("eager",))
    call = contest.providers["eager"]
    work = {"as it is": partial(_repeat, call, CALLS), "slower": partial(_repeat, call, CALLS + 1)}
    return harness.compare(work, timer=harness.clock(device))


def verdict(runs: Sequence[Comparison]) -> str:
    """Return one line: how often the planted slowdown was found, how often one that is not there."""
    found = sum(run.ratio("slower", run.baseline).verdict == "slower" for run in runs)
    flagged = sum(run.floor().verdict != "same" for run in runs)
    seen = statistics.median(run.floor().detectable for run in runs)
    return (
        f"a planted slowdown of {1 / CALLS:.0%} was found in {found} of {len(runs)} runs, unchanged work flagged in "
        f"{flagged}; what this machine shows in 9 of 10 runs is {seen:.1%}"
    )


def _runs(text: str) -> int:
    if not (text.isdecimal() and int(text) >= 1):
        raise argparse.ArgumentTypeError(f"a whole number of at least 1 is required, got {text}.")
    return int(text)


def _repeat(call: harness.Work, times: int) -> None:
    for _ in range(times):
        call()


if __name__ == "__main__":
    sys.exit(main())
