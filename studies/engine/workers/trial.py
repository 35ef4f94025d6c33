"""One trial: draw a setting, train its seeds, report to the pruner on the way, measure, and tell the study."""

import statistics
from typing import Protocol

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import TrialState

from vaebench.studies.engine.search.queue import STORAGE_ERRORS
from vaebench.studies.engine.search.repeats import find_earlier
from vaebench.studies.engine.search.states import BEST_SEED, RAISED, REPEATS
from vaebench.studies.engine.study.plan import Plan
from vaebench.studies.engine.study.space import Point
from vaebench.studies.engine.study.target import quick_nll
from vaebench.studies.engine.workers.outcome import Outcome, measure_seeds
from vaebench.studies.engine.workers.trial_log import TrialLog
from vaebench.vae.data import Splits, load
from vaebench.vae.ensemble.fit_many import Ensemble
from vaebench.vae.ensemble.stack import Member
from vaebench.vae.errors import sentence
from vaebench.vae.evaluation.evaluate import active_units
from vaebench.vae.training.epoch import Metrics
from vaebench.vae.training.setup import pick_device
from vaebench.vae.training.streams import evaluation_generator

QUICK = "valid/nll_quick"
CURVES = (
    *("valid/elbo", "valid/bound", "valid/distortion", "valid/rate", "perf/images_per_s"),
    *("train/divergence", "train/critic_loss"),
)


class Log(Protocol):
    """What hears of a trial while it trains."""

    def begin(self, point: Point) -> None:
        """Take the setting, before its training."""

    def log(self, epoch: int, metrics: Metrics) -> None:
        """Take the figures of an epoch; an exception ends the trial."""


def run_trial(trial: optuna.Trial, plan: Plan, data: Splits, log: Log) -> Outcome:
    """Draw a setting, train its seeds side by side until they end or are pruned, and measure them.

    The pruner and the log are given means over the seeds. A setting that another trial has is not trained again. `data`
    are those before `data.binarise`.
    """
    point = plan.space.suggest(trial)
    log.begin(point)
    config = plan.config(point)
    if (earlier := find_earlier(trial, config)) is not None:
        return Outcome.of_repeat(earlier, plan)
    data = load(config.data, data)
    splits = data.to(pick_device(config.train))
    seeds = Ensemble(plan.seeded(config), splits)
    pruned = False
    while seeds.training and not pruned:
        seeds.train_epoch()
        epoch, metrics = summarise_epoch(seeds)
        is_due = plan.target.prunable and epoch % plan.report_epochs == 0
        if is_due:
            metrics[QUICK] = statistics.fmean(quick_nll(one.model, splits.valid, one.config) for one in seeds.members)
            trial.report(metrics[QUICK], epoch)
        log.log(epoch, metrics)
        pruned = is_due and bool(seeds.training) and trial.should_prune()
    return measure_seeds(seeds.results(), data, plan, pruned=pruned)


def summarise_epoch(seeds: Ensemble) -> tuple[int, Metrics]:
    """Return the number of the last epoch and the means of its figures; raise the error of a seed that has failed.

    A seed that has run out of patience counts with its own last epoch.
    """
    for member in seeds.members:
        if member.error is not None:
            raise member.error
    figures = [select_figures(member, seeds.splits) for member in seeds.members]
    common = [name for name in figures[0] if all(name in one for one in figures)]
    return max(one.state.epoch for one in seeds.members), {
        name: statistics.fmean(one[name] for one in figures) for name in common
    }


def select_figures(member: Member, splits: Splits) -> Metrics:
    """Return the figures of a model's last epoch that are logged, and the number of its active units."""
    metrics, config = member.state.history[-1], member.config
    wanted = (*CURVES, *config.objective.figures(member.state.epoch))
    logged = {name: metrics[name] for name in wanted if name in metrics}
    if member.model.has_codes:
        generator = evaluation_generator(config.eval.seed, splits.valid.device)
        logged["latent/active_units"] = active_units(member.model.eval(), splits.valid, generator)
    return logged


def finish_trial(trial: optuna.Trial, log: TrialLog) -> None:
    """Run a trial, and write down its end exactly once.

    The tracker gets everything but the end before the study is told, so that the driver can close the run wherever this
    worker is killed.
    """
    try:
        outcome = run_trial(trial, log.job.plan, log.job.raw, log)
    except (*STORAGE_ERRORS, UpdateFinishedTrialError):
        raise
    except Exception as error:  # a setting that cannot be trained is a result too
        trial.set_user_attr(RAISED, sentence(error))
        outcome = Outcome(TrialState.FAIL, error=error)
    if outcome.best is not None and log.job.plan.seeds > 1:
        trial.set_user_attr(BEST_SEED, outcome.best.config.train.seed)
    if outcome.repeats is not None:
        trial.set_user_attr(REPEATS, outcome.repeats)
    log.conclude(outcome)
    trial.study.tell(trial, outcome.values, outcome.state)
    log.close()
