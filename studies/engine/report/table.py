"""A study as one pandas table: a row for each trial, from Optuna and from MLflow."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from optuna.trial import FrozenTrial

from vaebench.studies.engine.search.states import BEST_SEED, RAISED, REASON, state_of
from vaebench.studies.engine.study.plan import Plan
from vaebench.studies.engine.study.space import WEIGHTS
from vaebench.studies.engine.workers.job import train_command, trial_params
from vaebench.studies.engine.workers.trial import QUICK
from vaebench.studies.tracking.mlflow_runs import TrackedRun
from vaebench.vae.config.fields import Plain
from vaebench.vae.config.run import Run
from vaebench.vae.config.unused import unused

BEST = 10
ENDED = ("finished", "pruned")  # states of trials that have results
FEWEST_RANKED = 5
TERM_WEIGHTS = ("w_kl", "w_d")


def build(plan: Plan, trials: list[FrozenTrial], runs: list[TrackedRun]) -> pd.DataFrame:
    """Return a row for each trial: number, state, coordinates, seconds, error, and all its metrics in MLflow."""
    run_of = {run.trial: run for run in runs}
    default = Run().flat()
    frame = pd.DataFrame([_build_row(plan, trial, run_of.get(trial.number), default) for trial in trials])
    first = ["trial", "state", *plan.target.metrics, *(dimension.name for dimension in plan.space.dimensions)]
    return frame.reindex(columns=list(dict.fromkeys([*first, *frame])))


def rank(frame: pd.DataFrame, plan: Plan) -> pd.DataFrame:
    """Return the finished trials, best first by the first target; of two targets, those on the front come first."""
    metrics, ascending = plan.target.metrics, plan.target.directions[0] == "minimize"
    ranked = frame[frame["state"] == "finished"].sort_values(metrics[0], ascending=ascending, kind="stable")
    if len(metrics) == 1 or ranked.empty:
        return ranked
    front = pareto_front(ranked, metrics)
    return pd.concat([ranked[front], ranked[~front]])


def pareto_front(frame: pd.DataFrame, names: Sequence[str]) -> "pd.Series[bool]":
    """Return whether each row is on the Pareto front of two metrics, both the better the smaller they are."""
    first, second = names
    pairs = frame[[first, second]].dropna().drop_duplicates().sort_values([first, second])
    falls = pairs[second] < pairs[second].cummin().shift(fill_value=np.inf)
    front = pd.MultiIndex.from_frame(pairs[falls])
    return pd.Series(pd.MultiIndex.from_frame(frame[[first, second]]).isin(front), frame.index)


def quick_rank_correlation(frame: pd.DataFrame, plan: Plan) -> tuple[float, int] | None:
    """Return Spearman's correlation of the last quick nll with the target, and the number of finished trials it is of.

    Pruned trials are left out: they ended earlier, so that both of their figures are high, and would raise it.
    """
    if QUICK not in frame:
        return None
    pairs = frame.loc[frame["state"] == "finished", [QUICK, plan.target.metrics[0]]].dropna()
    correlation = pairs.rank().corr().iloc[0, 1]
    return None if len(pairs) < FEWEST_RANKED or pd.isna(correlation) else (float(correlation), len(pairs))


def coordinates(plan: Plan) -> list[str]:
    """Return the names of the settings that are searched.

    If two or more of beta, alpha and lambda are searched, w_kl and w_d replace them: the three have two degrees of
    freedom.
    """
    names = [dimension.name for dimension in plan.space.dimensions]
    if sum(name in WEIGHTS for name in names) < 2:
        return names
    return [name for name in names if name not in WEIGHTS] + [*TERM_WEIGHTS]


def find_faults(frame: pd.DataFrame, plan: Plan) -> list[str]:
    """Return a sentence for each group of trials with different settings and identical weights or metrics.

    A setting that changes nothing, though the run depends on it, was not applied.
    """
    ended = frame[frame["state"].isin(ENDED)]
    settings = ended.reindex(columns=coordinates(plan)).mask(_find_unused(ended, plan))
    found = []
    for result in ("weights_sha256", *plan.target.metrics):
        if result not in ended:
            continue
        same = ended[ended[result].notna() & ended.duplicated(result, keep=False)]
        for value, group in same.groupby(result):
            if len(settings.loc[group.index].drop_duplicates()) > 1:
                numbers = ", ".join(str(number) for number in group["trial"])
                shown = f"{value:g}" if isinstance(value, float) else f"{value:.8}"
                found.append(f"trials {numbers} differ in their settings, yet have the same {result} ({shown})")
    return found


def _find_unused(frame: pd.DataFrame, plan: Plan) -> pd.DataFrame:
    """Return whether the run of each trial is independent of each coordinate."""
    names = coordinates(plan)
    setting = {"w_kl": "objective.lambda", "w_d": "objective.lambda"}
    rows = []
    for _, row in frame.iterrows():
        without_effect = unused(plan.config({d.name: d.restore_type(row[d.name]) for d in plan.space.dimensions}))
        rows.append([setting.get(name, name) in without_effect for name in names])
    return pd.DataFrame(rows, frame.index, names, dtype=bool)


def save(frame: pd.DataFrame, folder: Path) -> list[Path]:
    """Write the table as CSV and as Parquet."""
    paths = [folder / "trials.csv", folder / "trials.parquet"]
    frame.to_csv(paths[0], index=False)
    frame.to_parquet(paths[1], index=False)
    return paths


def _build_row(plan: Plan, trial: FrozenTrial, run: TrackedRun | None, default: Mapping[str, Plain]) -> dict[str, Any]:
    row: dict[str, Any] = {"trial": trial.number, "state": state_of(trial)}
    if plan.space.is_point(trial.params):
        config = plan.config(trial.params)
        trained = config.replace({"train.seed": trial.user_attrs.get(BEST_SEED, config.train.seed)})
        row |= trial_params(plan, trial.params, config) | {"command": train_command(trained, default)}
    row["start"] = trial.datetime_start
    row["seconds"] = trial.duration.total_seconds() if trial.duration else None
    row["error"] = trial.user_attrs.get(RAISED) or trial.user_attrs.get(REASON)
    if run is not None:
        row |= run.metrics | {"weights_sha256": run.tags.get("weights_sha256"), "run": run.id}
    if trial.last_step is not None:
        row[QUICK] = trial.intermediate_values[trial.last_step]
    if trial.values and row["state"] in ("finished", "repeated"):
        row |= dict(zip(plan.target.metrics, trial.values, strict=False))
    return row
