"""Who proposes settings: Optuna's samplers as a study uses them."""

import heapq
import warnings
from collections.abc import Container, Sequence
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial, TrialState

from vaebench.studies.engine.study.plan import Plan
from vaebench.studies.engine.study.space import Point

LATEST, BEST = 1000, 25
FIRST_POINTS = 5


def make_sampler(plan: Plan, number: int) -> optuna.samplers.BaseSampler:
    """Return the sampler of one trial, seeded by the study's seed and the trial's number: a retry draws the same."""
    seed = sampler_seed(plan.base.train.seed, number)
    if plan.sampler in ("random", "grid"):
        return optuna.samplers.RandomSampler(seed=seed)
    with ignore_experimental():
        return {"gp": optuna.samplers.GPSampler, "tpe": BoundedTPE}[plan.sampler](seed=seed)


def sampler_seed(seed: int, number: int) -> int:
    """Return the seed of a trial's sampler, below 2^32 as NumPy requires; the trials of a study have different ones.

    The first trial of study seed s has 1 000 003 s, or a hash of s where that is too large.
    """
    first = seed * 1_000_003
    if first >= 2**32:
        first = int(np.random.SeedSequence(seed).generate_state(1)[0])
    return (first + number) % 2**32


class BoundedTPE(optuna.samplers.TPESampler):
    """The tree-structured Parzen estimator, given the latest thousand trials and the 25 best of the older ones.

    TPE models the 25 best trials against the rest and weighs older trials less (Watanabe 2023, arXiv:2304.11127). Its
    time grows with the number of trials, to 0.1 s at 5 000. With several targets it is given all trials.
    """

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Return the distributions that all the trials it is given were drawn from."""
        return super().infer_relative_search_space(bound_study(study), trial)

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Draw a setting."""
        return super().sample_relative(bound_study(study), trial, search_space)


class BoundedStudy:
    """A study that shows only the trials that `select_trials` selects."""

    def __init__(self, study: optuna.Study) -> None:
        self._study = study

    def __getattr__(self, name: str) -> Any:
        return getattr(self._study, name)

    def _get_trials(
        self, deepcopy: bool = True, states: Container[TrialState] | None = None, use_cache: bool = False
    ) -> list[FrozenTrial]:
        found = self._study._get_trials(deepcopy=deepcopy, states=states, use_cache=use_cache)
        return select_trials(found, maximise=self._study.direction == optuna.study.StudyDirection.MAXIMIZE)


def bound_study(study: optuna.Study) -> Any:
    """Return the study that `BoundedTPE` is given."""
    return study if len(study.directions) > 1 else BoundedStudy(study)


def select_trials(trials: Sequence[FrozenTrial], *, maximise: bool) -> list[FrozenTrial]:
    """Return the 25 best of the older trials and the latest thousand, in the order of their numbers."""
    older, latest = trials[:-LATEST], trials[-LATEST:]
    sign = -1 if maximise else 1
    complete = [trial for trial in older if trial.state == TrialState.COMPLETE]
    best = heapq.nsmallest(BEST, complete, key=lambda trial: sign * trial.values[0])
    return [*sorted(best, key=lambda trial: trial.number), *latest]


def ignore_experimental() -> "warnings.catch_warnings[None]":
    """Silence Optuna's warning that an interface is experimental."""
    return warnings.catch_warnings(action="ignore", category=optuna.exceptions.ExperimentalWarning)


def draw_first_points(plan: Plan, count: int = FIRST_POINTS) -> list[Point]:
    """Return the settings of the first trials, drawn without knowing any result."""
    if plan.sampler == "grid":
        return plan.space.grid(plan.trials)[:count]
    drawn = []
    for number in range(min(count, plan.trials)):
        study = optuna.create_study(directions=list(plan.target.directions), sampler=make_sampler(plan, number))
        drawn.append(plan.space.suggest(study.ask()))
    return drawn
