"""Cost of a trial beside its training, over a study's length: `python studies/overhead/trial_cost.py --trials 5000`.

The training is a stub that reports and logs like a real one. Queue, sampler, pruner, storage, files and tracker are
real. One worker runs the whole study, and every 50 trials the work that a driver repeats twice a second is measured
too. It prints the milliseconds of a trial by part as the study grows. With --workers N it runs N workers under a driver
and prints the trials a second that they sustain.
"""

import argparse
import dataclasses
import random
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ParamSpec, TypeVar
from unittest import mock

import optuna
import torch
from optuna.trial import TrialState

from vaebench.studies import command_line
from vaebench.studies import sweep as sweep_command
from vaebench.studies.command_line import Parser
from vaebench.studies.commands import sweep
from vaebench.studies.engine.driver.progress import Screen
from vaebench.studies.engine.driver.supervise import drive
from vaebench.studies.engine.driver.tracker_sync import TrackerSync, synchronise
from vaebench.studies.engine.launch.local import ForkedWorkers
from vaebench.studies.engine.report import files
from vaebench.studies.engine.report.page import Study
from vaebench.studies.engine.search import queue
from vaebench.studies.engine.search.queue import Search
from vaebench.studies.engine.study.choices import PRUNERS, SAMPLERS
from vaebench.studies.engine.study.plan import JOURNAL, RUNS, Plan
from vaebench.studies.engine.workers.job import Job
from vaebench.studies.engine.workers.outcome import Outcome
from vaebench.studies.engine.workers.trial import CURVES, QUICK, Log, finish_trial
from vaebench.studies.engine.workers.trial_log import TrialLog
from vaebench.studies.experiments import output
from vaebench.studies.experiments.output import Row, measure_time
from vaebench.studies.tracking import mlflow_store
from vaebench.vae import model as models
from vaebench.vae.data import Splits
from vaebench.vae.errors import InputError
from vaebench.vae.evaluation.evaluate import process_peak_mb
from vaebench.vae.training.fit import Result

PARTS = ("ask", "prune", "track", "tell", "rest")
METRICS = 40
RUN_TRIAL = "vaebench.studies.engine.workers.trial.run_trial"
WINDOW = 50

P = ParamSpec("P")
T = TypeVar("T")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit code."""
    parser = Parser(__doc__)
    output.add_count(parser, "--trials", 5000, "length of the study")
    parser.add_argument("--workers", type=output.between(1), help="measure trials a second under N workers instead")
    parser.add_argument("--storage", metavar="URL", help="postgresql+psycopg://USER@HOST/DB (a journal)")
    parser.add_argument("--tracking-uri", metavar="URI", help="http://HOST:PORT, or none (SQLite)")
    parser.add_argument("--sampler", default="tpe", choices=SAMPLERS)
    parser.add_argument("--pruner", default="hyperband", choices=PRUNERS)
    parser.add_argument("--folder", type=Path, help="where the study is kept (nowhere)")
    options = parser.parse_args(arguments)
    return command_line.run("trial_cost.py", lambda: run(options))


def run(options: argparse.Namespace) -> None:
    """Measure a study and print what it costs."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        job = prepare_job(options, options.folder or Path(temporary))
        if options.workers:
            print(measure_rate(job))
        else:
            print(output.format_table(summarise(measure_trials(job), options.trials)), flush=True)
            print(measure_end(job))


def prepare_job(options: argparse.Namespace, folder: Path) -> Job:
    """Return a default study with its tracker ready."""
    if (folder / RUNS / "cost").exists():
        raise InputError(f"{folder} holds a study that was measured; give another --folder.")
    line = ["--study", "cost", "--trials", str(options.trials), "--workers", str(options.workers or 1)]
    line += ["--sampler", options.sampler, "--pruner", options.pruner]
    plan = sweep.make_plan(sweep_command.parser().parse_args(line))
    storage, uri = options.storage or str(folder / JOURNAL), options.tracking_uri or mlflow_store.default_uri(folder)
    plan = dataclasses.replace(plan, folder=folder / RUNS / "cost", storage=storage, tracking=uri)
    job = sweep.open_job(plan, "python studies/overhead/trial_cost.py")
    queue.create_study(job.plan).top_up()
    if job.tracker is not None:
        synchronise(job)
    return job


class Clock:
    """Seconds of the current trial, by part."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)

    @contextmanager
    def measure(self, part: str) -> Iterator[None]:
        """Add the time of the enclosed statements to a part."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[part] += time.perf_counter() - started

    def wrap(self, part: str, function: Callable[P, T]) -> Callable[P, T]:
        """Return the function, with the time of its calls added to a part."""

        def call(*arguments: P.args, **named: P.kwargs) -> T:
            with self.measure(part):
                return function(*arguments, **named)

        return call


def measure_trials(job: Job) -> list[dict[str, float]]:
    """Return the milliseconds of each trial by part, and of the driver's work between two trials."""
    clock, trials = Clock(), []
    worker, driver = queue.connect(job.plan), queue.connect(job.plan)
    stub = StubTraining(job, clock)
    with mock.patch(RUN_TRIAL, stub.run_trial):
        for i in range(job.plan.trials):
            clock.seconds.clear()
            used = time.process_time()
            with clock.measure("all"):
                with clock.measure("ask"):
                    trial = worker.claim("trial_cost.py")
                    assert trial is not None
                    job.plan.space.suggest(trial)
                trial.study.tell = clock.wrap("tell", trial.study.tell)  # type: ignore[method-assign]
                log = TrialLog(time_tracker(job, clock), trial, lambda message: None, lambda: True)
                finish_trial(trial, log)
            clock.seconds["cpu"] = time.process_time() - used
            if i % WINDOW == 0:
                with clock.measure("driver"):
                    drive_once(driver)
            clock.seconds["rest"] = clock.seconds["all"] - sum(clock.seconds[part] for part in PARTS[:-1])
            trials.append({part: 1000 * seconds for part, seconds in clock.seconds.items()})
    return trials


def measure_rate(job: Job) -> str:
    """Run the study under a driver; return its trials a second, from the first to the last."""
    stub = StubTraining(job, Clock())
    with mock.patch(RUN_TRIAL, stub.run_trial):
        opened = queue.connect(job.plan)
        drive(ForkedWorkers(job), opened, TrackerSync(job), Screen(job.plan, opened), leads=True)
    ended = [trial for trial in opened.trials() if trial.datetime_start and trial.datetime_complete]
    first = min(trial.datetime_start for trial in ended if trial.datetime_start)
    last = max(trial.datetime_complete for trial in ended if trial.datetime_complete)
    seconds = (last - first).total_seconds()
    per_second = len(ended) / seconds
    return f"{len(ended)} trials in {seconds:.1f} s under {job.plan.workers} workers: {per_second:.1f} a second"


def drive_once(search: Search) -> None:
    """Do the work that a driver repeats twice a second."""
    search.top_up()
    search.best_value()
    search.requeue_orphans()


def time_tracker(job: Job, clock: Clock) -> Job:
    """Return the job with a tracker whose calls are measured."""
    if job.tracker is None:
        return job
    verbs = ("begin", "extend", "attach", "close")
    tracker = SimpleNamespace(**{verb: clock.wrap("track", getattr(job.tracker, verb)) for verb in verbs})
    return dataclasses.replace(job, tracker=tracker)  # type: ignore[arg-type]


class StubTraining:
    """A training that takes no time: fifty epochs of curves, ten reports of a value that falls, forty metrics."""

    def __init__(self, job: Job, clock: Clock) -> None:
        self.clock = clock
        config = job.plan.base.resolve()
        self.result = Result(config, models.build(config.model, job.raw.shape, job.raw.levels), job.raw, [], 0)

    def run_trial(self, trial: optuna.Trial, plan: Plan, data: Splits, log: Log) -> Outcome:
        """Stand in for `trial.run_trial`; a setting is better the nearer its values are to 1."""
        log.begin(plan.space.suggest(trial))
        dice = random.Random(trial.number)
        final = 90 + sum(distance_from_one(value) for value in trial.params.values()) + dice.random()
        pruned = False
        for epoch in range(1, plan.base.train.epochs + 1):
            value = final + 20 / epoch + dice.random()
            metrics = dict.fromkeys(CURVES, value)
            if epoch % plan.report_epochs == 0:
                with self.clock.measure("prune"):
                    trial.report(value, epoch)
                    pruned = epoch < plan.base.train.epochs and trial.should_prune()
                metrics[QUICK] = value
            log.log(epoch, metrics)
            if pruned:
                break
        measured = {f"valid/metric_{i}": value for i in range(METRICS - 1)} | {plan.target.metrics[0]: value}
        state, values = (TrialState.PRUNED, None) if pruned else (TrialState.COMPLETE, [value])
        return Outcome(state, values, measured, self.result, data=data)


def distance_from_one(value: Any) -> float:
    """Return how far a number is from 1; of any other setting, the length of its text."""
    return abs(float(value) - 1) if isinstance(value, int | float) else float(len(str(value)))


def summarise(trials: list[dict[str, float]], count: int) -> list[Row]:
    """Return the medians around trial 100, 200, 500, 1000, ..., by part, and the ratio of CPU time to the first.

    The CPU time shows the cost of a trial also while other programs use the machine.
    """
    rows: list[Row] = []
    first = None
    for number in [n for n in (100, 200, 500, 1000, 2000, 3000, 4000, 5000, 10000) if n <= count] or [count]:
        window = trials[max(0, number - WINDOW) : number + WINDOW]
        medians = {part: statistics.median(trial.get(part, 0.0) for trial in window) for part in ("all", "cpu", *PARTS)}
        first = first or medians["cpu"]
        ticks = statistics.mean(trial["driver"] for trial in window if "driver" in trial)
        rows.append({"trial": number, **medians, "cpu to first": medians["cpu"] / first, "tick": ticks})
    return rows


def measure_end(job: Job) -> str:
    """Return the cost of the study's end: to bring the tracker up to date, and to write the report."""
    sentences = []
    if job.tracker is not None:
        sentences.append(f"tracker brought up to date in {measure_time(synchronise, job)[1]:.1f} s")
    _, seconds = measure_time(write_report, job)
    peak = process_peak_mb() / 1024
    sentences.append(f"report written in {seconds:.1f} s, peak memory {peak:.2f} GiB")
    return ", ".join(sentences)


def write_report(job: Job) -> None:
    """Write the study's plan and report, as at the end of a sweep."""
    job.plan.save()
    files.write(Study.read(job.plan, queue.connect(job.plan).trials()))


if __name__ == "__main__":
    sys.exit(main())
