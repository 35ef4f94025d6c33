"""A study as one pandas table: a row for each trial, from Optuna and from MLflow."""

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import optuna
import pandas as pd
from optuna.trial import FrozenTrial

from vaebench.studies.engine.search.queue import RAISED, REASON
from vaebench.studies.engine.study.plan import Plan
from vaebench.studies.engine.workers import job
from vaebench.studies.tracking.mlflow_runs import Known
from vaebench.vae.config.fields import Plain
from vaebench.vae.config.run import Run
from vaebench.vae.config.unused import unused

STATES = {"COMPLETE": "finished", "PRUNED": "pruned", "FAIL": "failed", "RUNNING": "running", "WAITING": "waiting"}
WEIGHTS = ("objective.beta", "objective.alpha", "objective.lambda")
IMPORTANCE_TRIALS = 10


def table(plan: Plan, trials: list[FrozenTrial], runs: list[Known]) -> pd.DataFrame:
    """Return trial, state, coordinates, seconds, error, and every metric that MLflow has of it."""
    known = {run.trial: run for run in runs}
    default = Run().flat()
    rows = [_row(plan, trial, known.get(trial.number), default) for trial in trials]
    columns = ["trial", "state", *plan.target.metrics, *(dimension.name for dimension in plan.space.dimensions)]
    found = pd.DataFrame(rows)
    for name in columns:
        if name not in found:
            found[name] = pd.NA
    return found[[*columns, *(name for name in found if name not in columns)]]


def ranking(frame: pd.DataFrame, plan: Plan) -> pd.DataFrame:
    """Return the finished trials, best first."""
    finished = frame[frame["state"] == "finished"]
    return finished.sort_values(plan.target.metrics[0], ascending=plan.target.directions[0] == "minimize")


def importances(frame: pd.DataFrame, plan: Plan) -> tuple[str, dict[str, float]]:
    """Return an evaluator's name and each coordinate's share in the first target, of the finished trials.

    Where two or more of beta, alpha and lambda vary, w_kl and w_d stand for them: the three have two degrees of
    freedom.
    """
    finished = frame[frame["state"] == "finished"]
    names = coordinates(plan)
    names = [name for name in names if finished[name].nunique() > 1]
    evaluator = optuna.importance.PedAnovaImportanceEvaluator()
    if len(finished) < IMPORTANCE_TRIALS or not names:
        return "PED-ANOVA", {}
    study = optuna.create_study(direction=plan.target.directions[0])
    distributions = {name: _spanning(finished[name]) for name in names}
    for _, row in finished.iterrows():
        params = {name: row[name] if isinstance(row[name], str) else float(row[name]) for name in names}
        value = float(row[plan.target.metrics[0]])
        study.add_trial(optuna.create_trial(params=params, distributions=distributions, value=value))
    return "PED-ANOVA", optuna.importance.get_param_importances(study, evaluator=evaluator)


def coordinates(plan: Plan) -> list[str]:
    """Return the names by which trials are told apart, with w_kl and w_d for the weights where these are redundant."""
    names = [dimension.name for dimension in plan.space.dimensions]
    if sum(name in WEIGHTS for name in names) < 2:
        return names
    return [name for name in names if name not in WEIGHTS] + ["w_kl", "w_d"]


def faults(frame: pd.DataFrame, plan: Plan) -> list[str]:
    """Return a sentence for each group of trials with different settings and identical weights or metrics.

    A setting that changes nothing, though the run depends on it, was not applied.
    """
    ended = frame[frame["state"].isin(["finished", "pruned"])]
    names = coordinates(plan)
    settings = ended[names].mask(_unused(ended, plan)[names])
    found = []
    for what in ("weights_sha256", *plan.target.metrics):
        if what not in ended:
            continue
        alike = ended[ended[what].notna() & ended.duplicated(what, keep=False)]
        for value, group in alike.groupby(what):
            if len(settings.loc[group.index].drop_duplicates()) > 1:
                numbers = ", ".join(str(number) for number in group["trial"])
                shown = f"{value:g}" if isinstance(value, float) else f"{value:.8}"
                found.append(f"trials {numbers} differ in their settings, yet have the same {what} ({shown})")
    return found


def _unused(frame: pd.DataFrame, plan: Plan) -> pd.DataFrame:
    """Return, for each trial and each coordinate, whether the trial's run does not depend on it."""
    names = coordinates(plan)
    setting = {"w_kl": "objective.lambda", "w_d": "objective.lambda"}
    rows = []
    for _, row in frame.iterrows():
        idle = unused(plan.config({d.name: d.typed(row[d.name]) for d in plan.space.dimensions}))
        rows.append([setting.get(name, name) in idle for name in names])
    return pd.DataFrame(rows, frame.index, names, dtype=bool)


def command(config: Run, default: Mapping[str, Plain]) -> str:
    """Return the command that trains a setting again, which names what differs from the default."""
    changed = {name: value for name, value in config.flat().items() if value != default[name]}
    settings = [part for name, value in changed.items() for part in ("--set", f"{name}={value}")]
    return shlex.join(["python", "studies/train.py", *settings])


def save(frame: pd.DataFrame, folder: Path) -> list[Path]:
    """Write the table as CSV and as Parquet."""
    paths = [folder / "trials.csv", folder / "trials.parquet"]
    frame.to_csv(paths[0], index=False)
    frame.to_parquet(paths[1], index=False)
    return paths


def _row(plan: Plan, trial: FrozenTrial, run: Known | None, default: Mapping[str, Plain]) -> dict[str, Any]:
    row: dict[str, Any] = {"trial": trial.number, "state": STATES[trial.state.name]}
    if all(dimension.name in trial.params for dimension in plan.space.dimensions):
        config = plan.config(trial.params)
        row |= job.axes(plan, trial.params, config) | {"command": command(config, default)}
    row["seconds"] = trial.duration.total_seconds() if trial.duration else None
    row["error"] = trial.user_attrs.get(RAISED) or trial.user_attrs.get(REASON)
    if run is not None:
        row |= run.metrics | {"weights_sha256": run.tags.get("weights_sha256"), "run": run.run}
    if trial.values:
        row |= dict(zip(plan.target.metrics, trial.values, strict=False)) if row["state"] == "finished" else {}
    return row


def _spanning(values: "pd.Series[Any]") -> optuna.distributions.BaseDistribution:
    """Return the distribution that a column seems to come from, logarithmic where it spans more than a factor of 30."""
    if values.dtype == object or isinstance(values.iloc[0], str):
        return optuna.distributions.CategoricalDistribution(sorted(set(values), key=str))
    low, high = float(values.min()), float(values.max())
    return optuna.distributions.FloatDistribution(low, high, log=low > 0 and high / low > 30)
