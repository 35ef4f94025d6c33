"""The text of `--dry-run`: the space, the first settings, and an estimate of the time."""

import dataclasses
import time
from dataclasses import dataclass, field

import optuna

from vaebench.studies.engine.search.pruners import make_pruner
from vaebench.studies.engine.search.samplers import draw_first_points
from vaebench.studies.engine.study.plan import Plan
from vaebench.studies.engine.study.space import Point
from vaebench.studies.engine.study.target import quick_nll
from vaebench.studies.engine.workers.outcome import Outcome
from vaebench.studies.engine.workers.trial import run_trial
from vaebench.vae.data import Splits
from vaebench.vae.training.epoch import Metrics

TIMED_EPOCHS = 3
SHARE_WITH_PRUNER = 0.5


@dataclass
class EpochTimes:
    """A log that keeps the time of each epoch alone."""

    times: list[float] = field(default_factory=list)

    def begin(self, point: Point) -> None:
        """Take the setting."""

    def log(self, epoch: int, metrics: Metrics) -> None:
        """Note the time."""
        self.times.append(time.perf_counter())


def preview(plan: Plan, raw: Splits) -> str:
    """Describe the plan, after training the first setting for three epochs to time it."""
    points = draw_first_points(plan)
    seconds = estimate_seconds(plan, points[0], raw)
    of_epochs = "" if "train.epochs" in points[0] else f" of {plan.base.train.epochs} epochs"
    lines = [
        f"study {plan.name}: {plan.trials} trials{of_epochs}, {plan.workers} workers,",
        f"sampler {plan.sampler}, pruner {plan.pruner}, target {', '.join(plan.target.metrics)}",
        "",
        str(plan.space),
        "",
        "first settings:",
        *(f"  {', '.join(f'{name} {_short(value)}' for name, value in point.items())}" for point in points),
        "",
        f"about {max(1, round(seconds))} s on this machine, pictures and report apart",
    ]
    return "\n".join(lines)


def estimate_seconds(plan: Plan, point: Point, raw: Splits) -> float:
    """Estimate the time of the study from a short training of one setting.

    With a pruner a trial costs about half of a whole one, as counted over default studies, and every report to the
    pruner costs time.
    """
    base = plan.base.replace({"train.epochs": TIMED_EPOCHS})
    target = dataclasses.replace(plan.target, prunable=False)
    others = tuple(dimension for dimension in plan.space.dimensions if dimension.name != "train.epochs")
    space = dataclasses.replace(plan.space, dimensions=others)
    short = dataclasses.replace(plan, base=base, target=target, space=space)
    study = optuna.create_study(directions=list(plan.target.directions))
    study.enqueue_trial({name: value for name, value in point.items() if name != "train.epochs"})
    log = EpochTimes()
    outcome = run_trial(study.ask(), short, raw, log)
    measured = time.perf_counter() - log.times[-1]
    epoch = (log.times[-1] - log.times[0]) / (TIMED_EPOCHS - 1)
    share = 1.0 if isinstance(make_pruner(plan), optuna.pruners.NopPruner) else SHARE_WITH_PRUNER
    epochs = plan.config(point).train.epochs
    trained = epoch * epochs + measure_reports(plan, outcome, epochs)
    return share * plan.trials * (trained + measured) / plan.workers


def measure_reports(plan: Plan, outcome: Outcome, epochs: int) -> float:
    """Return the seconds that a trial of so many epochs spends on its reports to the pruner."""
    if not plan.target.prunable or outcome.best is None:
        return 0.0
    started = time.perf_counter()
    quick_nll(outcome.best.model, outcome.best.splits.valid, outcome.best.config)
    return (time.perf_counter() - started) * plan.seeds * (epochs // plan.report_epochs)


def _short(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
