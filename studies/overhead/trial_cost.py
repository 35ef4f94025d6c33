"""What a trial costs beside its training, over a study's length: `python studies/overhead/trial_cost.py --trials 5000`.

One worker runs a whole study whose training is a stub, which reports and logs like a real one; all else is real: queue,
sampler, pruner, storage, files, tracker. The driver's part, which it repeats twice a second, is measured in between.
With --workers N it is N workers under a driver, and what is measured is the trials a second that all of it sustains.
"""

import argparse
import dataclasses
import random
import resource
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar
from unittest import mock

import optuna
import torch

from vaebench.studies import sweep
from vaebench.studies.engine.driver.progress import Screen
from vaebench.studies.engine.driver.supervise import drive
from vaebench.studies.engine.driver.tracker_sync import TrackerSync, synchronise
from vaebench.studies.engine.launch.local import ForkedWorkers
from vaebench.studies.engine.report import page
from vaebench.studies.engine.search import pruners, queue, samplers
from vaebench.studies.engine.search.queue import Search
from vaebench.studies.engine.study.plan import JOURNAL, RUNS, Plan
from vaebench.studies.engine.workers import loop
from vaebench.studies.engine.workers.job import Job
from vaebench.studies.engine.workers.trial import CURVES, QUICK, Log, Outcome, TrainingRequests, run_alone
from vaebench.studies.experiments import output as rows
from vaebench.studies.tracking import mlflow_runs
from vaebench.vae import model as models
from vaebench.vae.config.run import Run
from vaebench.vae.data import Splits

PARTS = ("ask", "prune", "track", "tell", "rest")
MEASURED = 40
WINDOW = 50

T = TypeVar("T")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=rows.at_least(1), default=5000, help="length of the study (5000)")
    parser.add_argument(
        "--workers", type=rows.at_least(1), help="measure trials a second under so many workers instead"
    )
    parser.add_argument("--storage", metavar="URL", help="postgresql+psycopg://USER@HOST/DB (a journal)")
    parser.add_argument("--tracking-uri", metavar="URI", help="http://HOST:PORT, or none (SQLite)")
    parser.add_argument("--sampler", default="tpe", choices=samplers.SAMPLERS)
    parser.add_argument("--pruner", default="hyperband", choices=pruners.PRUNERS)
    parser.add_argument("--folder", type=Path, help="where the study is left (nowhere)")
    options = parser.parse_args(arguments)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as made:
        job = prepare(options, options.folder or Path(made))
        if options.workers:
            print(rate(job))
            return 0
        print(rows.render(table(run(job), options.trials)), flush=True)
        print(closing(job))
    return 0


def prepare(options: argparse.Namespace, folder: Path) -> Job:
    """Return a default study with its tracker ready."""
    line = ["--study", "cost", "--trials", str(options.trials), "--workers", str(options.workers or 1)]
    line += ["--sampler", options.sampler, "--pruner", options.pruner]
    plan = sweep.make_plan(sweep.parser().parse_args(line))
    storage, uri = (
        options.storage or str(folder / JOURNAL),
        options.tracking_uri or mlflow_runs.default_uri(folder),
    )
    plan = dataclasses.replace(plan, folder=folder / RUNS / "cost", storage=storage, tracking=uri)
    job = sweep.open_job(plan, "python studies/overhead/trial_cost.py")
    queue.create_study(job.plan).top_up()
    if job.tracker is not None:
        synchronise(job)
    return job


@dataclasses.dataclass
class Clock:
    """Seconds by part, of the trial under way."""

    spent: dict[str, float] = dataclasses.field(default_factory=lambda: defaultdict(float))

    @contextmanager
    def on(self, part: str) -> Iterator[None]:
        """Add what happens inside to a part."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.spent[part] += time.perf_counter() - started

    def timed(self, part: str, function: Callable[..., T]) -> Callable[..., T]:
        """Return a function whose calls are added to a part."""

        def call(*arguments: Any, **named: Any) -> T:
            with self.on(part):
                return function(*arguments, **named)

        return call


def run(job: Job) -> list[dict[str, float]]:
    """Return the milliseconds of each trial, by part, and of the driver's tick between two of them."""
    clock, found = Clock(), []
    opened, leading = queue.connect(job.plan), queue.connect(job.plan)
    stub = Stub(job, clock)
    with mock.patch.object(loop, "request_trainings", stub.request_trainings):
        for i in range(job.plan.trials):
            clock.spent.clear()
            used = time.process_time()
            with clock.on("all"):
                with clock.on("ask"):
                    trial = opened.claim("trial_cost.py")
                    assert trial is not None
                    job.plan.space.suggest(trial)
                trial.study.tell = clock.timed("tell", trial.study.tell)  # type: ignore[method-assign]
                claimed = loop.ClaimedTrial(timed(job, clock), trial, lambda message: None, lambda: True)
                run_alone(claimed.request_trainings(), job.raw)
            clock.spent["cpu"] = time.process_time() - used
            if i % WINDOW == 0:
                with clock.on("driver"):
                    tick(leading)
            clock.spent["rest"] = clock.spent["all"] - sum(clock.spent[part] for part in PARTS[:-1])
            found.append({part: 1000 * seconds for part, seconds in clock.spent.items()})
    return found


def rate(job: Job) -> str:
    """Run the study under a driver; return its trials a second, from the first to the last."""
    stub = Stub(job, Clock())
    with mock.patch.object(loop, "request_trainings", stub.request_trainings):
        opened = queue.connect(job.plan)
        drive(ForkedWorkers(job), opened, TrackerSync(job), Screen(job.plan, opened), leads=True)
    ended = [trial for trial in opened.trials() if trial.datetime_start and trial.datetime_complete]
    first = min(trial.datetime_start for trial in ended if trial.datetime_start)
    last = max(trial.datetime_complete for trial in ended if trial.datetime_complete)
    seconds = (last - first).total_seconds()
    return (
        f"{len(ended)} trials in {seconds:.1f} s under {job.plan.workers} workers: {len(ended) / seconds:.1f} a second"
    )


def tick(leading: Search) -> None:
    """Do what a driver does twice a second."""
    leading.top_up()
    leading.best_value()
    leading.requeue_orphans()


def timed(job: Job, clock: Clock) -> Job:
    """Return a job whose tracker is on the clock."""
    if job.tracker is None:
        return job
    return dataclasses.replace(job, tracker=Timed(job.tracker, clock))  # type: ignore[arg-type]


class Timed:
    """A tracker on the clock."""

    def __init__(self, tracker: mlflow_runs.Tracker, clock: Clock) -> None:
        for verb in ("begin", "extend", "attach", "close"):
            setattr(self, verb, clock.timed("track", getattr(tracker, verb)))


class Stub:
    """A training that takes no time: fifty epochs of curves, ten reports of a value that falls, forty metrics."""

    def __init__(self, job: Job, clock: Clock) -> None:
        self.clock = clock
        self.config = job.plan.base.resolve()
        self.model = models.build(self.config.model, job.raw.shape, job.raw.levels)

    def request_trainings(
        self, trial: optuna.Trial, plan: Plan, config: Run, raw: Splits, log: Log
    ) -> TrainingRequests[Outcome]:
        """Stand in for `trial.request_trainings`; a setting is better the nearer its values are to 1."""
        dice = random.Random(trial.number)
        final = 90 + sum(abs(hash_free(value)) for value in trial.params.values()) + dice.random()
        pruned = False
        for epoch in range(1, plan.base.train.epochs + 1):
            value = final + 20 / epoch + dice.random()
            metrics = dict.fromkeys(CURVES, value)
            if epoch % plan.report_epochs == 0:
                with self.clock.on("prune"):
                    trial.report(value, epoch)
                    pruned = epoch < plan.base.train.epochs and trial.should_prune()
                metrics[QUICK] = value
            log(epoch, metrics)
            if pruned:
                break
        measured = {f"valid/metric_{i}": value for i in range(MEASURED - 1)} | {plan.target.metrics[0]: value}
        yield from ()
        return Outcome(self.config, self.model, measured, pruned)


def hash_free(value: Any) -> float:
    """Return how far a setting is from 1, whatever it is."""
    return float(value) - 1 if isinstance(value, int | float) else float(len(str(value)))


def table(found: list[dict[str, float]], trials: int) -> list[dict[str, str | float]]:
    """Return the medians around trial 100, 200, 500, 1000, ..., by part, and the CPU time's ratio to that at the first.

    Where other programs use the machine too, the CPU time still tells what a trial costs.
    """
    shown = [n for n in (100, 200, 500, 1000, 2000, 3000, 4000, 5000, 10000) if n <= trials] or [trials]
    rows: list[dict[str, str | float]] = []
    first = None
    for number in shown:
        window = found[max(0, number - WINDOW) : number + WINDOW]
        medians = {part: statistics.median(row.get(part, 0.0) for row in window) for part in ("all", "cpu", *PARTS)}
        first = first or medians["cpu"]
        ticks = [row["driver"] for row in window if "driver" in row]
        rows.append(
            {"trial": number, **medians, "cpu to first": medians["cpu"] / first, "tick": statistics.mean(ticks)}
        )
    return rows


def closing(job: Job) -> str:
    """Return what the end of the study costs: to bring the tracker up to date, and to write the report."""
    said = []
    if job.tracker is not None:
        started = time.perf_counter()
        synchronise(job)
        said.append(f"tracker brought up to date in {time.perf_counter() - started:.1f} s")
    started = time.perf_counter()
    job.plan.save()
    page.write(page.read(job.plan, queue.connect(job.plan).trials()))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    said.append(f"report written in {time.perf_counter() - started:.1f} s, peak memory {peak:.2f} GiB")
    return ", ".join(said)


if __name__ == "__main__":
    sys.exit(main())
