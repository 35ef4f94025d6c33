"""What of a study is not to be trusted: one line for each kind of doubt, the gravest first, and harmless footnotes."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from vaebench.studies.engine.report import table
from vaebench.studies.engine.report.table import BEST
from vaebench.studies.engine.study.plan import Plan
from vaebench.studies.engine.study.space import Dimension
from vaebench.vae.config.run import SETTINGS
from vaebench.vae.config.unused import unused
from vaebench.vae.evaluation import enclosure

MOST_STDERRS = 3
FEWEST_FINISHED = 5
EDGE_SHARE = 0.02
DIVERGED = ("training diverged", "the target is not finite")


@dataclass(frozen=True)
class Warnings:
    """Lines on what may mislead, in the order of their gravity, and footnotes on what is worth knowing alone."""

    lines: Sequence[str]
    footnotes: Sequence[str]


def find_warnings(frame: pd.DataFrame, plan: Plan) -> Warnings:
    """Return the warnings of a study: each names all the trials that it is about.

    In order: collapsed posteriors, divergence and other failures, settings that were not applied, too few finished
    trials, a best trial at an edge of the space, doubts about the estimator of log p(x).
    """
    ranked = table.rank(frame, plan)
    best = ranked.head(BEST)
    found = [
        _find_collapse(ranked),
        *_find_failures(frame),
        f"settings not applied: {'; '.join(faults)}" if (faults := table.find_faults(frame, plan)) else "",
        _find_too_few(frame, ranked),
        _find_edges(best, plan),
        _find_gaps(best),
        *_find_estimates_outside(best),
    ]
    return Warnings([line for line in found if line], [line for line in [_find_saturation(best)] if line])


def _find_collapse(ranked: pd.DataFrame) -> str:
    """Return a line on finished trials without an active unit; with several seeds the number is a mean over them."""
    collapsed = ranked[ranked.reindex(columns=["latent/active_units"])["latent/active_units"] < 1]
    if collapsed.empty:
        return ""
    also = ", the best one among them" if ranked.index[0] in collapsed.index else ""
    ended = "had seeds that ended" if (collapsed["latent/active_units"] > 0).any() else "ended"
    return (
        f"posterior collapse: {_name_trials(collapsed['trial'])} {ended} without an active unit{also}, so that codes "
        "say nothing about x; lower objective.beta, or warm up with train.warmup_epochs"
    )


def _find_failures(frame: pd.DataFrame) -> list[str]:
    """Return a line on trials that diverged, and one on trials that failed by another error of their own."""
    failed = frame[frame["state"] == "failed"]
    errors = failed.reindex(columns=["error"])["error"].fillna("").astype(str)
    diverged = errors.str.startswith(DIVERGED)
    found = []
    if diverged.any():
        found.append(f"divergence: {_name_trials(failed['trial'][diverged])} did not train; lower train.learning_rate")
    others = failed[~diverged]
    if len(others):
        found.append(f"failure: {_name_trials(others['trial'])} failed, the first by: {others['error'].iloc[0]}")
    return found


def _find_too_few(frame: pd.DataFrame, ranked: pd.DataFrame) -> str:
    """Return a line where fewer trials are finished than a ranking needs."""
    if len(ranked) >= FEWEST_FINISHED:
        return ""
    pruned = int((frame["state"] == "pruned").sum())
    advice = "--pruner none, or more --trials" if pruned else "more --trials"
    return f"few trials: {len(ranked)} finished and {pruned} were pruned, too few to rank settings by; {advice}"


def _find_edges(best: pd.DataFrame, plan: Plan) -> str:
    """Return a line on settings of the best trial that lie at an end of their range, unless no value lies beyond."""
    if best.empty or len(plan.target.metrics) > 1:  # of several targets none is the best
        return ""
    row = best.iloc[0]
    point = {dimension.name: dimension.restore_type(row[dimension.name]) for dimension in plan.space.dimensions}
    without_effect = unused(plan.config(point))
    at_edge = [
        f"{dimension.name} = {point[dimension.name]:.4g} of {dimension}"
        for dimension in plan.space.dimensions
        if dimension.name not in without_effect and _is_at_edge(dimension, point[dimension.name])
    ]
    if not at_edge:
        return ""
    return f"edge of the space: the best trial has {'; '.join(at_edge)}; a wider range may hold a better one"


def _is_at_edge(dimension: Dimension, value: Any) -> bool:
    """Whether a value lies within a fiftieth of its range from an end that is not the bound of the setting itself."""
    if dimension.choices:
        return False
    scale = math.log if dimension.log else float
    low, high, place = scale(dimension.low), scale(dimension.high), scale(value)
    declared, margin = SETTINGS[dimension.name][1].metadata, EDGE_SHARE * (high - low)
    at_low = place - low <= margin and declared["at_least"] != dimension.low
    at_high = high - place <= margin and declared["at_most"] != dimension.high
    return at_low or at_high


def _find_gaps(best: pd.DataFrame) -> str:
    """Return a line on trials for which annealing found a log p(x) that is clearly higher than the estimate."""
    if not {"ais/gap", "ais/gap_stderr"} <= set(best):
        return ""
    high = best[best["ais/gap"] > MOST_STDERRS * best["ais/gap_stderr"]]
    if high.empty:
        return ""
    gaps = ", ".join(format_gap(row) for _, row in high.iterrows())
    return (
        f"estimator of log p(x): under {_name_trials(high['trial'])} annealed importance sampling finds it {gaps} nats "
        "higher, so that nll is too high"
    )


def _find_estimates_outside(best: pd.DataFrame) -> list[str]:
    """Return a line for each trial whose estimate of simulated data lies outside its enclosure, beyond the errors."""
    outside = {row["trial"]: enclosure.find_estimate_outside(row.to_dict()) for _, row in best.iterrows()}
    return [
        f"estimator of log p(x): on data simulated by trial {trial} it lies {where}"
        for trial, where in outside.items()
        if where
    ]


def _find_saturation(best: pd.DataFrame) -> str:
    """Return a footnote on trials whose mutual information is near log N, the most that N examples can show."""
    if "latent/log_n" not in best:
        return ""
    known = best[best["latent/mi"].notna()]
    saturated = known[known["latent/mi"] > known["latent/log_n"] - 1]
    if saturated.empty:
        return ""
    which = "all trials shown" if len(saturated) == len(known) else _name_trials(saturated["trial"])
    return f"latent/mi is within 1 nat of log N, its ceiling, in {which}"


def format_gap(row: "pd.Series[Any]") -> str:
    """Return `0.31 ± 0.10`; runs of older versions have no standard error."""
    stderr = row.get("ais/gap_stderr", math.nan)
    return f"{row['ais/gap']:.2f}" + ("" if pd.isna(stderr) else f" ± {stderr:.2f}")


def _name_trials(numbers: Iterable[int]) -> str:
    """Return `trial 3` or `trials 3, 7`, in order."""
    ordered = sorted(int(number) for number in numbers)
    return f"trial{'s' if len(ordered) > 1 else ''} {', '.join(map(str, ordered))}"
