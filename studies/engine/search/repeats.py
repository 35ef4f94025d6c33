"""Settings that were tried already: a trial that draws one again is not trained, and another one takes its place.

Two settings are the same where their trainings are: whatever has no effect is left out, and beta, alpha and lambda
count by w_kl and w_d.
"""

import hashlib
import json
import random
from collections.abc import Iterable

import optuna
from optuna.trial import FrozenTrial

from vaebench.studies.engine.search.states import DONE, state_of
from vaebench.studies.engine.study.plan import Plan
from vaebench.studies.engine.study.space import WEIGHTS, Point
from vaebench.vae.config.run import Run
from vaebench.vae.config.unused import unused

SETTING, REPLACES = "setting", "replaces"
MOST_SETTINGS = 1000


def setting_of(config: Run) -> str:
    """Return a digest that two configurations share where the same training follows from both."""
    weights = config.objective.logged_weights
    left_out = {*unused(config), *(WEIGHTS if weights else ())}
    values: Point = {name: value for name, value in config.identity().items() if name not in left_out}
    values.update(weights)
    rounded = {name: f"{value:.12g}" if isinstance(value, float) else value for name, value in values.items()}
    return hashlib.sha256(json.dumps(rounded, sort_keys=True).encode()).hexdigest()[:16]


def find_earlier(trial: optuna.Trial, config: Run) -> FrozenTrial | None:
    """Note the setting of a trial, and return an earlier trial that has or will have its result, if there is one.

    Two workers that draw one setting in the same moment may both train it.
    """
    setting = setting_of(config)
    trial.set_user_attr(SETTING, setting)
    for other in trial.study.get_trials(deepcopy=False):
        if other.number == trial.number or other.user_attrs.get(SETTING) != setting:
            continue
        state = state_of(other)
        if state in DONE or (state == "running" and other.number < trial.number):
            return other
    return None


def different_settings(plan: Plan) -> dict[str, Point] | None:
    """Return a point for each different setting of a finite space, and None for one that is not, or is very large."""
    points = plan.space.points(MOST_SETTINGS)
    return None if points is None else {setting_of(plan.config(point)): point for point in points}


def untried(settings: dict[str, Point], trials: Iterable[FrozenTrial]) -> list[tuple[str, Point]]:
    """Return those settings that no trial has, waiting ones included, in random order."""
    taken = {trial.user_attrs.get(SETTING) for trial in trials if state_of(trial) in (*DONE, "running", "waiting")}
    left = [(setting, point) for setting, point in settings.items() if setting not in taken]
    random.Random(len(left)).shuffle(left)
    return left
