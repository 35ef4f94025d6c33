"""Who proposes settings: Optuna's samplers as a study uses them."""

import heapq
import warnings
from collections.abc import Container, Sequence
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial, TrialState

from vaebench.studies.engine.search import samplers
from vaebench.studies.engine.study.plan import Plan
from vaebench.studies.engine.study.space import Point

SAMPLERS = ("tpe", "gp", "random", "grid")
LATEST, BEST = 1000, 25


def sampler(plan: Plan, number: int) -> optuna.samplers.BaseSampler:
    """Return the sampler of one trial, its seed made of the study's and the trial's number: a retry draws the same.

    Where trials train side by side, each takes those under way for poor ones: it is not drawn to where they are.
    """
    seed = plan.base.train.seed * 1_000_003 + number
    if plan.sampler == "gp":
        with quiet():
            return optuna.samplers.GPSampler(seed=seed)
    if plan.sampler == "tpe":
        with quiet():
            return BoundedTPE(seed=seed, constant_liar=plan.stack != 1)
    return optuna.samplers.RandomSampler(seed=seed)


class BoundedTPE(optuna.samplers.TPESampler):
    """The tree-structured Parzen estimator over the latest thousand trials and the 25 best: all, up to a thousand.

    It models the 25 best trials against the rest, the older of which count ever less; its own time grows with their
    number, to 0.1 s at 5 000 (Watanabe 2023, arXiv:2304.11127). Where there are several targets it sees all trials.
    """

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Return what all of the trials that it looks at were drawn from."""
        return super().infer_relative_search_space(shown(study), trial)

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Draw a setting."""
        return super().sample_relative(shown(study), trial, search_space)


class Shown:
    """A study that shows some of its trials."""

    def __init__(self, study: optuna.Study) -> None:
        self._study = study

    def __getattr__(self, name: str) -> Any:
        return getattr(self._study, name)

    def _get_trials(
        self, deepcopy: bool = True, states: Container[TrialState] | None = None, use_cache: bool = False
    ) -> list[FrozenTrial]:
        found = self._study._get_trials(deepcopy=deepcopy, states=states, use_cache=use_cache)
        return bounded(found, maximise=self._study.direction == optuna.study.StudyDirection.MAXIMIZE)


def shown(study: optuna.Study) -> Any:
    """Return a study as `BoundedTPE` looks at it."""
    return study if len(study.directions) > 1 else Shown(study)


def bounded(trials: Sequence[FrozenTrial], *, maximise: bool) -> list[FrozenTrial]:
    """Return the latest trials, and those among the 25 best that are older, in the order of their numbers."""
    older, latest = trials[:-LATEST], trials[-LATEST:]
    sign = -1 if maximise else 1
    complete = [trial for trial in older if trial.state == TrialState.COMPLETE]
    best = heapq.nsmallest(BEST, complete, key=lambda trial: sign * trial.values[0])
    return [*sorted(best, key=lambda trial: trial.number), *latest]


def quiet() -> "warnings.catch_warnings[None]":
    """Silence Optuna's note that an interface is experimental."""
    return warnings.catch_warnings(action="ignore", category=optuna.exceptions.ExperimentalWarning)


FIRST = 5


def first_points(plan: Plan, count: int = FIRST) -> list[Point]:
    """Return what the first trials will train."""
    if plan.sampler == "grid":
        return plan.space.grid(plan.trials)[:count]
    drawn = []
    for number in range(min(count, plan.trials)):
        study = optuna.create_study(directions=list(plan.target.directions), sampler=samplers.sampler(plan, number))
        drawn.append(plan.space.suggest(study.ask()))
    return drawn
