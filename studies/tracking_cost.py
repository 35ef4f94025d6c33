"""What tracking costs a trial: the same short study, one trial with it and one without, in turn.

`python studies/tracking_cost.py` prints medians; the first pair, in which connections are opened, does not count.
"""

import argparse
import dataclasses
import gc
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import optuna
import torch

from vaebench.studies import exits, sweep, tracking
from vaebench.studies.engine import clerk, search, workers
from vaebench.studies.engine.jobs import Job
from vaebench.studies.rows import at_least

FIXED = ("model.latent=16", "objective.beta=1", "objective.alpha=0.5", "objective.lambda=2")

Pair = tuple[float, float]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=at_least(1), default=9, help="pairs of trials to count (9)")
    parser.add_argument("--epochs", type=at_least(1), default=50, help="length of a trial (50)")
    options = parser.parse_args(arguments)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        job = prepare(Path(folder), options.epochs, 2 * options.pairs + 2)
        gc.freeze()  # as a worker does: else one trial in some takes 0.4 s more, with tracking or without
        pairs = measure(job, options.pairs)
    print(verdict(pairs))
    return 0


def prepare(folder: Path, epochs: int, trials: int) -> Job:
    """Return a study of trials that cost the same and that nothing prunes, with its tracker ready."""
    line = ["--study", "cost", "--trials", str(trials), "--workers", "1", "--pruner", "none", "--sampler", "random"]
    for setting in (f"train.epochs={epochs}", *FIXED):
        line += ["--set", setting]
    plan = sweep.planned(sweep.parser().parse_args(line))
    storage, uri = str(folder / "journal"), tracking.default_uri(folder)
    plan = dataclasses.replace(plan, folder=folder, storage=storage, tracking=uri)
    job = sweep.open_job(plan, "python studies/tracking_cost.py")
    search.start(job.plan)
    clerk.tend(job)
    return job


def measure(job: Job, pairs: int) -> list[Pair]:
    """Return seconds of pairs of trials, the first of each with tracking."""
    off = dataclasses.replace(job, tracker=None)
    opened = search.connect(job.plan)
    seconds = []
    for i in range(2 * (pairs + 1)):
        opened.top_up()
        trial = opened.claim("tracking_cost.py")
        assert trial is not None
        started = time.perf_counter()
        workers.Work((job, off)[i % 2], trial, lambda message: None, lambda: True).run()
        seconds.append(time.perf_counter() - started)
    return list(zip(seconds[2::2], seconds[3::2], strict=True))


def verdict(pairs: list[Pair]) -> str:
    """Return one line: the medians, and the median of what is between the trials of a pair."""
    on, off = (statistics.median(side) for side in zip(*pairs, strict=True))
    cost = statistics.median(tracked - untracked for tracked, untracked in pairs)
    return f"with tracking {on:.3f} s, without {off:.3f} s; of a pair {1000 * cost:.0f} ms, {cost / off:.1%}"


if __name__ == "__main__":
    exits.leave(main())
