"""What settings do to results: importances with their spread, trends, and ranges to draw them in."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import optuna
import pandas as pd
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.importance import PedAnovaImportanceEvaluator
from optuna.trial import FrozenTrial

from vaebench.studies.engine.report import table
from vaebench.studies.engine.study.plan import Plan

FEWEST_TRIALS = 10
MOST_RESAMPLES, FEWEST_RESAMPLES, RESAMPLED_TRIALS = 20, 5, 10_000
SPREAD_ENDS = (0.1, 0.9)
TREND_GROUPS, TREND_MEMBERS = 8, 4
FENCE = 3.0
LOG_RATIO = 30

Shares = dict[str, float]


def importance_ranges(frame: pd.DataFrame, plan: Plan, *, seed: int = 0) -> dict[str, tuple[float, float, float]]:
    """Return the importance of each coordinate between the tenth and the ninetieth percentile of its spread.

    It is that for the first target, by PED-ANOVA; there is none if there are too few trials.

    The spread is over bootstrap samples: as many finished trials, drawn with replacement. PED-ANOVA looks at the best
    tenth of the trials, so that with few trials the importances are rough.
    """
    trials, draw = _list_trials(frame, plan), np.random.default_rng(seed)
    if not trials:
        return {}
    count = min(MOST_RESAMPLES, max(FEWEST_RESAMPLES, RESAMPLED_TRIALS // len(trials)))
    samples = draw.integers(len(trials), size=(count, len(trials)))
    found = pd.DataFrame([_evaluate([trials[i] for i in sample], plan) for sample in samples])
    shares = _evaluate(trials, plan)
    low, high = (found.quantile(end) for end in SPREAD_ENDS)
    return {name: (min(share, low[name]), share, max(share, high[name])) for name, share in shares.items()}


def trend(x: "pd.Series[Any]", y: "pd.Series[Any]") -> pd.DataFrame:
    """Return medians of y over x: of each choice, or of groups of equally many neighbours in x.

    There are at most eight groups, of at least four trials each. Fewer than two groups are no trend.
    """
    known = (x.notna() & y.notna()).to_numpy()
    places, values = x[known], y[known].to_numpy(dtype=float)
    if _is_choice(places):
        names = places.to_numpy()
        groups = [(name, values[names == name]) for name in sorted(set(names), key=str)]
    else:
        numbers = places.to_numpy(dtype=float)
        order = np.argsort(numbers, kind="stable")
        count = min(TREND_GROUPS, len(order) // TREND_MEMBERS)
        groups = [(np.median(numbers[rows]), values[rows]) for rows in np.array_split(order, max(1, count))]
    medians = [(place, np.median(group)) for place, group in groups] if len(groups) > 1 else []
    return pd.DataFrame(medians, columns=["x", "y"])


def robust_range(values: "pd.Series[float]", marked: "pd.Series[bool] | None" = None) -> tuple[float, float] | None:
    """Return the range of an axis that outliers do not stretch; None if there are no values.

    A value is an outlier beyond three interquartile ranges from the middle half of the values, unless it is `marked`.
    """
    numbers = values.to_numpy(dtype=float)
    finite = np.isfinite(numbers)
    if not finite.any():
        return None
    low, high = np.quantile(numbers[finite], [0.25, 0.75])
    fence = FENCE * (high - low)
    inside = (numbers >= low - fence) & (numbers <= high + fence)
    inside = numbers[finite & (inside if marked is None else inside | marked.to_numpy())]
    first, last = float(inside.min()), float(inside.max())
    margin = 0.05 * (last - first) or 0.05 * abs(first) or 1.0
    return first - margin, last + margin


def _list_trials(frame: pd.DataFrame, plan: Plan) -> list[FrozenTrial]:
    """Return the finished trials in Optuna's form with the coordinates that vary; none if they are too few."""
    finished = frame[frame["state"] == "finished"]
    of_all = finished.reindex(columns=list(table.TERM_WEIGHTS)).notna().all(axis=None)  # other families have neither
    searched = table.coordinates(plan) if of_all else [dimension.name for dimension in plan.space.dimensions]
    names = [name for name in searched if name in finished and finished[name].nunique() > 1]
    finished = finished.dropna(subset=names)
    if len(finished) < FEWEST_TRIALS or not names:
        return []
    distributions = {name: _infer_distribution(finished[name]) for name in names}
    columns = [finished[name].tolist() for name in (*names, plan.target.metrics[0])]
    trials = []
    for *values, result in zip(*columns, strict=True):
        point = {
            name: value if isinstance(value, str) else float(value) for name, value in zip(names, values, strict=True)
        }
        trials.append(optuna.create_trial(params=point, distributions=distributions, value=float(result)))
    return trials


def _evaluate(trials: Sequence[FrozenTrial], plan: Plan) -> Shares:
    study = optuna.create_study(direction=plan.target.directions[0])
    study.add_trials(trials)
    return optuna.importance.get_param_importances(study, evaluator=PedAnovaImportanceEvaluator())


def _infer_distribution(values: "pd.Series[Any]") -> BaseDistribution:
    """Return a distribution over the range of a column, logarithmic where it is wide."""
    if _is_choice(values):
        return CategoricalDistribution(sorted(set(values), key=str))
    low, high = float(values.min()), float(values.max())
    return FloatDistribution(low, high, log=is_wide(values))


def is_wide(values: "pd.Series[float]") -> bool:
    """Whether positive values span so much that their axis is logarithmic."""
    return bool(values.min() > 0 and values.max() / values.min() > LOG_RATIO)


def _is_choice(values: "pd.Series[Any]") -> bool:
    return not pd.api.types.is_numeric_dtype(values.dtype) or pd.api.types.is_bool_dtype(values.dtype)
