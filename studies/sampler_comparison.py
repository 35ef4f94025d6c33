"""Is the default sampler better than chance? Pairs of studies, one seed each, and a sign test over them.

`python studies/sampler_comparison.py --seeds 20` takes about 40 s a study; what is in the table is not run again.
"""

import argparse
import csv
import dataclasses
import math
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

import optuna
import torch

from vaebench.studies import sweep
from vaebench.studies.engine import driver, search
from vaebench.studies.engine.clerk import Clerk
from vaebench.studies.engine.forked import Forked
from vaebench.studies.engine.plans import JOURNAL
from vaebench.studies.engine.progress import Screen
from vaebench.studies.rows import at_least

RIVALS = ("tpe", "random")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=at_least(1), default=20, help="pairs of studies (20)")
    parser.add_argument("--trials", type=at_least(1), default=40, help="trials of each study (40)")
    parser.add_argument(
        "--table", type=Path, default=Path("runs/sampler_comparison.csv"), help="where results are kept"
    )
    options = parser.parse_args(arguments)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    torch.set_num_threads(1)
    found = read(options.table)
    for seed in range(options.seeds):
        for sampler in RIVALS:
            if (seed, sampler) not in found:
                found[seed, sampler] = best_of(sampler, seed, options.trials)
                append(options.table, seed, sampler, found[seed, sampler])
    print(verdict([(found[seed, RIVALS[0]], found[seed, RIVALS[1]]) for seed in range(options.seeds)]))
    return 0


def best_of(sampler: str, seed: int, trials: int) -> float:
    """Return the best validation NLL of one default study."""
    name = f"{sampler}-{seed}"
    line = ["--sampler", sampler, "--trials", str(trials), "--study", name, "--tracking-uri", "none"]
    plan = sweep.planned(sweep.parser().parse_args([*line, "--set", f"train.seed={seed}"]))
    plan = dataclasses.replace(plan, folder=plan.folder.parent / "sampler_comparison" / name)
    plan = dataclasses.replace(plan, storage=str(plan.folder / JOURNAL))
    job = sweep.open_job(plan, "python studies/sampler_comparison.py")
    opened = search.start(plan)
    driver.drive(Forked(job), opened, Clerk(job), Screen(plan, opened), leads=True)
    best = opened.best()
    assert best is not None
    return best


def sign_test(wins: int, pairs: int) -> float:
    """Return the one-sided P(at least `wins` of `pairs`) if either side won with probability 1/2."""
    return sum(math.comb(pairs, k) for k in range(wins, pairs + 1)) / 2**pairs


def verdict(pairs: list[tuple[float, float]]) -> str:
    """Return one line: who won how often, by how much, and how probable that is by chance."""
    gains = sorted(second - first for first, second in pairs if first != second)
    wins = sum(gain > 0 for gain in gains)
    return (
        f"{RIVALS[0]} beats {RIVALS[1]} in {wins} of {len(gains)} pairs, median gain "
        f"{statistics.median(gains):.2f} nats, "
        f"one-sided sign test p = {sign_test(wins, len(gains)):.2g}"
    )


def read(path: Path) -> dict[tuple[int, str], float]:
    """Return results by seed and sampler."""
    if not path.exists():
        return {}
    with path.open() as file:
        return {(int(seed), sampler): float(value) for seed, sampler, value in csv.reader(file)}


def append(path: Path, seed: int, sampler: str, value: float) -> None:
    """Keep one result."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        csv.writer(file).writerow([seed, sampler, value])


if __name__ == "__main__":
    sys.exit(main())
