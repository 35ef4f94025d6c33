"""The text of `--dry-run`: the space, the first settings, and an estimate of the time."""

import time

import optuna

from vaebench.studies.engine.search.samplers import draw_first_points
from vaebench.studies.engine.study.plan import Plan
from vaebench.studies.engine.study.space import Point
from vaebench.studies.engine.study.target import quick_nll
from vaebench.studies.engine.workers.trial import Outcome, Training, run_alone
from vaebench.vae.data import Splits, load
from vaebench.vae.training.setup import pick_device

TIMED_EPOCHS = 3
SHARE_WITH_PRUNER = 0.5


def preview(plan: Plan, raw: Splits) -> str:
    """Describe the plan, after training the first setting for three epochs to time it."""
    points = draw_first_points(plan)
    seconds = estimate_seconds(plan, points[0], raw)
    lines = [
        f"study {plan.name}: {plan.trials} trials of {plan.base.train.epochs} epochs, {plan.workers} workers,",
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
    config = plan.config(point)
    study = optuna.create_study(directions=list(plan.target.directions))
    training = Training(plan, raw, study.ask(), lambda epoch, metrics: epochs.append(time.perf_counter()))
    epochs: list[float] = []
    outcome = run_alone(training.request(config.replace({"train.epochs": TIMED_EPOCHS}), prune=False), raw)
    measured = time.perf_counter() - epochs[-1]
    epoch = (epochs[-1] - epochs[0]) / (TIMED_EPOCHS - 1)
    share = SHARE_WITH_PRUNER if plan.pruner != "none" else 1.0
    trained = epoch * config.train.epochs + measure_reports(plan, outcome, raw)
    return share * plan.trials * plan.seeds * (trained + measured) / plan.workers


def measure_reports(plan: Plan, outcome: Outcome, raw: Splits) -> float:
    """Return the seconds that a whole trial spends on its reports to the pruner."""
    if not plan.target.prunable or plan.seeds > 1:
        return 0.0
    valid = load(outcome.config.data, raw).valid.to(pick_device(outcome.config.train))
    started = time.perf_counter()
    quick_nll(outcome.model, valid, outcome.config)
    return (time.perf_counter() - started) * (plan.base.train.epochs // plan.report_epochs)


def _short(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
