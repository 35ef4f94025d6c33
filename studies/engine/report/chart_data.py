"""The data of a report's charts: one table of the trials of all its studies, and what is computed from it."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from vaebench.studies.engine.report import comparison, effects, table
from vaebench.studies.engine.report.page import Study
from vaebench.studies.engine.study.plan import Plan
from vaebench.studies.engine.study.space import Dimension

RATE, DISTORTION = "valid/rate", "valid/distortion"
RESULTS = (RATE, DISTORTION, "latent/mi", "latent/active_units", "latent/kl_aggregate", "latent/mmd2")
MOST_LINES = 300
HEIGHT = "height "
MARKED = ("best", "tied", "front")  # groups


@dataclass(frozen=True)
class Field:
    """A column that charts draw: whether its axis is logarithmic, its ends, and its choices in order if it has any."""

    name: str
    log: bool = False
    ends: tuple[float, float] | None = None
    choices: tuple[Any, ...] = ()

    @classmethod
    def join(cls, dimensions: Sequence[Dimension]) -> "Field":
        """Return the field of a setting that several studies search."""
        ends = (min(one.low for one in dimensions), max(one.high for one in dimensions))
        choices = tuple(dict.fromkeys(choice for one in dimensions for choice in one.choices))
        return cls(dimensions[0].name, ends[0] > 0 and any(one.log for one in dimensions), ends, choices)


@dataclass(frozen=True)
class ChartData:
    """The trials of one or several studies of one target.

    Attributes:
        trials: a row for each trial, with its `study`, its `group` (best, tied, front, finished, pruned or another
            state), `front` (whether it is on the front of rate and distortion), `rank` among the trials of all
            studies and its place on each axis of the parallel coordinates.
    """

    studies: Sequence[Study]
    trials: pd.DataFrame

    @classmethod
    def read(cls, studies: Sequence[Study]) -> "ChartData":
        """Join the tables of the studies; the index numbers the trials of all of them."""
        joined = pd.concat([_describe_trials(study) for study in studies], ignore_index=True)
        ranked = table.rank(joined, studies[0].plan).index
        rank = pd.Series(range(1, len(ranked) + 1), ranked).reindex(joined.index)
        data = cls(studies, joined.assign(rank=rank))
        heights = {HEIGHT + field.name: _scale(data.trials[field.name], field) for field in data.axes}
        return cls(studies, data.trials.assign(**heights, drawn=_choose_lines(data.trials)))

    @property
    def plan(self) -> Plan:
        """Return the plan of the first study: all have its target."""
        return self.studies[0].plan

    @property
    def target(self) -> str:
        """Return the metric that ranks the trials."""
        return self.plan.target.metrics[0]

    @property
    def has_several_targets(self) -> bool:
        """Whether no trial is the best one, and a front takes its place."""
        return len(self.plan.target.metrics) > 1

    @property
    def ended(self) -> pd.DataFrame:
        """Return the trials that have results."""
        return self.trials[self.trials["state"].isin(table.ENDED)]

    @cached_property
    def searched(self) -> list[Field]:
        """Return the settings that at least one of the studies searches."""
        found: dict[str, list[Dimension]] = {}
        for dimension in (dimension for study in self.studies for dimension in study.plan.space.dimensions):
            found.setdefault(dimension.name, []).append(dimension)
        return [Field.join(dimensions) for dimensions in found.values()]

    @cached_property
    def axes(self) -> list[Field]:
        """Return the axes of the parallel coordinates: every setting, and the targets of finished trials."""
        finished = self.trials[self.trials["state"] == "finished"]
        targets = [(name, _find_range(finished, name)) for name in self.plan.target.metrics]
        return [*self.searched, *(Field(name, ends=ends) for name, ends in targets if ends is not None)]

    @cached_property
    def causes(self) -> list[Field]:
        """Return what effects are drawn against: w_kl and w_d where trials have them, then each setting."""
        weights = [name for name in table.TERM_WEIGHTS if name in self.trials and self.trials[name].nunique() > 1]
        return [*(Field(name, effects.is_wide(self.trials[name])) for name in weights), *self.searched]

    @cached_property
    def results(self) -> list[str]:
        """Return the metrics whose dependence on the settings is drawn, the target first."""
        wanted = dict.fromkeys([*self.plan.target.metrics, *RESULTS])
        return [name for name in wanted if name in self.trials and self.trials[name].nunique() > 1]

    @cached_property
    def ranges(self) -> dict[str, tuple[float, float]]:
        """Return the ends of the axis of each result.

        Those of a single target are of the finished trials: the values of pruned trials may be far from them.
        """
        finished = self.trials[self.trials["state"] == "finished"]
        single = () if self.has_several_targets else (self.target,)
        found = {name: _find_range(finished if name in single else self.ended, name) for name in self.results}
        return {name: ends for name, ends in found.items() if ends is not None}

    @cached_property
    def trends(self) -> pd.DataFrame:
        """Return the trend of each result over each cause, in each study, over its finished trials."""
        finished = self.trials[self.trials["state"] == "finished"]
        found = [
            effects.trend(rows[cause.name], rows[result]).assign(cause=cause.name, result=result, study=study)
            for study, rows in finished.groupby("study", sort=False)
            for cause in self.causes
            for result in self.results
        ]
        return pd.concat(found, ignore_index=True) if found else pd.DataFrame(columns=["x", "y", "cause", "result"])

    @cached_property
    def importances(self) -> pd.DataFrame:
        """Return the importance of each coordinate in each study, with the ends of its spread."""
        rows = [
            (study.plan.name, name, *ends)
            for study in self.studies
            for name, ends in effects.importance_ranges(study.frame, study.plan).items()
        ]
        return pd.DataFrame(rows, columns=["study", "setting", "low", "share", "high"])


def _describe_trials(study: Study) -> pd.DataFrame:
    frame = study.frame
    ended = frame[frame["state"].isin(table.ENDED)]
    front = pd.Series(False, frame.index)
    if {RATE, DISTORTION} <= set(frame):
        front = table.pareto_front(ended, (RATE, DISTORTION)).reindex(frame.index, fill_value=False)
    return frame.assign(study=study.plan.name, front=front, group=_group(study))


def _find_range(trials: pd.DataFrame, name: str) -> tuple[float, float] | None:
    """Return the range of an axis on which the best trials have their true place, and outliers may lie at its ends."""
    return effects.robust_range(trials[name], trials["group"].isin(MARKED))


def _group(study: Study) -> "pd.Series[Any]":
    """Return for each trial best, tied with the best, on the front of several targets, or its state."""
    frame, plan = study.frame, study.plan
    ranked, group = table.rank(frame, plan), frame["state"].astype(object)
    if len(plan.target.metrics) > 1:
        front = table.pareto_front(ranked, plan.target.metrics)
        return group.where(~front.reindex(frame.index, fill_value=False), "front")
    if comparison.TIED in frame:
        group = group.where(~frame[comparison.TIED].fillna(False).astype(bool), "tied")
    return group.where(frame.index != (ranked.index[0] if len(ranked) else None), "best")


def _scale(values: "pd.Series[Any]", field: Field) -> "pd.Series[float]":
    """Return the places of a column's values on an axis from 0 to 1."""
    if field.choices:
        steps = max(1, len(field.choices) - 1)
        places: pd.Series[float] = values.map({choice: i / steps for i, choice in enumerate(field.choices)})
        return places
    assert field.ends is not None
    function = np.log if field.log else np.asarray
    low, high = function(np.array(field.ends, dtype=float))
    numbers = function(values.astype(float))
    scaled: pd.Series[float] = pd.Series((numbers - low) / (high - low), values.index).clip(0, 1)
    return scaled


def _choose_lines(trials: pd.DataFrame) -> "pd.Series[bool]":
    """Return which finished trials the parallel coordinates draw: of many the best half, and others evenly spread."""
    finished = trials[trials["state"] == "finished"].sort_values("rank", kind="stable").index
    best, others = finished[: MOST_LINES // 2], finished[MOST_LINES // 2 :]
    chosen = others[:: -(-len(others) // (MOST_LINES // 2)) or 1]
    return pd.Series(trials.index.isin([*best, *chosen]), trials.index)
