"""Does the harness find what it should on this machine? `python bench/selfcheck.py`

A baseline of ten calls of a small operation is compared with eleven, a planted slowdown of 10 %, and with itself.
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
    parser.add_argument("--runs", type=_parse_runs, default=20, help="comparisons to make (20)")
    options = parser.parse_args(arguments)
    print(summarise([compare_calls() for _ in range(options.runs)]))
    return 0


def compare_calls() -> Comparison:
    """Time ten calls, eleven calls, and the ten again, in turns."""
    device = machine.pick_device()
    workload = kernel_providers.prepare("reparam_kl", (128, 32), torch.float32, "both", device, only=("eager",))
    call = workload.providers["eager"]
    calls = {"as it is": partial(_repeat, call, CALLS), "slower": partial(_repeat, call, CALLS + 1)}
    return harness.compare(calls, timer=harness.pick_timer(device))


def summarise(runs: Sequence[Comparison]) -> str:
    """Return how often the planted slowdown was found, and how often unchanged work was flagged, as one line."""
    found = sum(run.ratio("slower", run.baseline).verdict == "slower" for run in runs)
    flagged = sum(run.noise_floor.verdict != "same" for run in runs)
    detectable = statistics.median(run.noise_floor.detectable for run in runs)
    return (
        f"a planted slowdown of {1 / CALLS:.0%} was found in {found} of {len(runs)} runs, unchanged work flagged in "
        f"{flagged}; the smallest slowdown that 9 of 10 runs would find is {detectable:.1%}"
    )


def _parse_runs(text: str) -> int:
    if not (text.isdecimal() and int(text) >= 1):
        raise argparse.ArgumentTypeError(f"a whole number of at least 1 is required, got {text}.")
    return int(text)


def _repeat(call: harness.Call, times: int) -> None:
    for _ in range(times):
        call()


if __name__ == "__main__":
    sys.exit(main())
