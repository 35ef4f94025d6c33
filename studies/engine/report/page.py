"""A study with the table of its trials, as Markdown and in sentences."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import optuna
import pandas as pd

from vaebench.studies.engine.report import best_trials, comparison, table
from vaebench.studies.engine.report.table import BEST
from vaebench.studies.engine.report.warnings import Warnings, find_warnings, format_gap
from vaebench.studies.engine.study.plan import Plan
from vaebench.studies.engine.workers.outcome import SPREAD
from vaebench.studies.engine.workers.trial import QUICK
from vaebench.studies.tracking.figures import wrap_command
from vaebench.studies.tracking.mlflow_runs import TrackedRun, Tracker
from vaebench.studies.tracking.provenance import PACKAGES
from vaebench.studies.tracking.record import StoreError
from vaebench.studies.tracking.views import list_addresses
from vaebench.vae.evaluation import enclosure
from vaebench.vae.evaluation.evaluate import format_metric

ORIGIN = ("command", "host", "device", "python", *PACKAGES, "mlflow.source.git.commit")


@dataclass(frozen=True)
class Study:
    """A study with the table of its trials.

    Attributes:
        tags: tags of its runs: command, commit, machine, versions; where trials differ, each of their values.
    """

    plan: Plan
    frame: pd.DataFrame
    tags: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def best(self) -> pd.DataFrame:
        """Return the rows of the ten best trials."""
        return table.rank(self.frame, self.plan).head(BEST)

    @cached_property
    def addresses(self) -> dict[str, str]:
        """Return the addresses of leaderboard, charts and comparison of the best trials in MLflow by their names.

        There are none without a tracker, or where it does not answer.
        """
        runs = self.best["run"].dropna().tolist() if "run" in self.best else []
        if self.plan.tracking == "none" or not runs:
            return {}
        try:
            return list_addresses(self.plan.tracking, Tracker(self.plan.tracking, self.plan.name).experiment, runs)
        except StoreError:
            return {}

    @cached_property
    def warnings(self) -> Warnings:
        """Return what of it is not to be trusted."""
        return find_warnings(self.frame, self.plan)

    @classmethod
    def read(cls, plan: Plan, trials: list[optuna.trial.FrozenTrial]) -> "Study":
        """Join Optuna's trials with their runs; if MLflow cannot be reached, take Optuna's data alone."""
        try:
            tracked = plan.tracking != "none"
            runs = Tracker(plan.tracking, plan.name).runs() if tracked else best_trials.read_runs(plan, trials)
        except StoreError as error:
            print(f"{error}: the report shows what Optuna knows.", file=sys.stderr)
            runs = []
        return cls(plan, comparison.add_differences(table.build(plan, trials, runs), plan), _join_tags(runs))


def render_markdown(study: Study) -> str:
    """Return the ten best as a Markdown table, what is known of their figures, and the command that trains the best."""
    best = study.best
    shown = comparison.format_columns(best, list_columns(study)).rename(columns=shorten)
    lines = [f"# {study.plan.name}", "", summarise(study), "", *markdown_table(shown)]
    warnings = study.warnings
    remarks = [*(f"**{line}**" for line in warnings.lines), *describe_estimates(study), *warnings.footnotes]
    lines += ["", *(f"- {remark}" for remark in remarks)]
    if len(best):
        lines += ["", "The best again:", "", "```", wrap_command(best["command"].iloc[0]), "```", ""]
    lines += [f"- [{name}]({address})" for name, address in study.addresses.items()]
    return "\n".join(lines)


def summarise(study: Study) -> str:
    """Return one line: the number of trials in each state, sampler, space, and the best value."""
    target, best = study.plan.target.metrics[0], study.best
    found = ""
    if len(best):
        value = format_metric(best.iloc[0].dropna().to_dict(), target)
        found = f" Best {target}: {value} (trial {best['trial'].iloc[0]})."
    return f"{count_states(study.frame)}; {study.plan.sampler} over space {study.plan.space.name}.{found}"


def count_states(frame: pd.DataFrame) -> str:
    """Return the number of trials in each state, in words."""
    return ", ".join(f"{count} {state}" for state, count in frame["state"].value_counts().items())


def list_columns(study: Study) -> list[str]:
    """Return the columns for a table of the best trials, without those that have no values."""
    plan = study.plan
    spreads = [name + SPREAD for name in plan.target.metrics]
    wanted = ["trial", *plan.target.metrics, *spreads, comparison.DIFFERENCE, comparison.TIED]
    wanted += [
        *(f"{name}_ceiling" for name in plan.target.metrics),
        "test/bits_per_dim",
        "latent/active_units",
        "latent/mi",
    ]
    wanted += [dimension.name for dimension in plan.space.dimensions] + ["seconds"]
    return [name for name in dict.fromkeys(wanted) if name in study.frame and not study.frame[name].isna().all()]


def shorten(name: str) -> str:
    """Return a column's name for a narrow page: `beta` for `objective.beta`, `mi` for `latent/mi`."""
    return name.rpartition(".")[2].removeprefix("latent/").removeprefix("test/")


def describe_estimates(study: Study) -> list[str]:
    """Return a sentence on each figure beside the target: the quick estimate, the annealed one, and the enclosure."""
    found = []
    ranked = table.quick_rank_correlation(study.frame, study.plan)
    if ranked is not None:
        correlation, count = ranked
        use = "" if study.plan.pruner == "none" else ", which decides on pruning,"
        found.append(
            f"{QUICK}{use} has a rank correlation of {correlation:.3f} with "
            f"{study.plan.target.metrics[0]} over {count} finished trials."
        )
    return [*found, *_describe_annealing(study.best), *_describe_enclosure(study.best)]


def _describe_annealing(best: pd.DataFrame) -> list[str]:
    """Return a sentence on the gaps between annealing and the estimate, and one on checked trials that have none."""
    found = []
    checked = _with_values(best, "ais/nll", "ais/gap")
    compared = _with_values(checked, "ais/gap")
    if len(compared):
        numbers = ", ".join(str(number) for number in compared["trial"])
        gaps = ", ".join(format_gap(row) for _, row in compared.iterrows())
        found.append(
            "Annealed importance sampling checks the estimator. On trials "
            f"{numbers} its log p(x) minus the estimate is {gaps} nats; below 0 the annealing was too short."
        )
    alone = ", ".join(str(number) for number in checked["trial"].drop(compared.index))
    if alone:
        found.append(f"On trials {alone} annealing has no estimate to compare with: all examples are unresolved.")
    return found


def _describe_enclosure(best: pd.DataFrame) -> list[str]:
    """Return a sentence on the bounds of log p(x) on simulated data, for the best of the trials that have them."""
    enclosed = _with_values(best, "enclosure/lower").head(1)
    return [f"Under trial {row['trial']}, {enclosure.describe(row.to_dict())}." for _, row in enclosed.iterrows()]


def _with_values(frame: pd.DataFrame, *names: str) -> pd.DataFrame:
    """Return the rows that have a value of at least one of the metrics; a metric may be missing altogether."""
    return frame[frame.reindex(columns=list(names)).notna().any(axis="columns")]


def markdown_table(frame: pd.DataFrame) -> list[str]:
    """Return the lines of a Markdown table."""
    names, *cells = format_rows(frame)
    rule = ["---" if i == 0 else "---:" for i in range(len(names))]
    return [f"| {' | '.join(row)} |" for row in [names, rule, *cells]]


def format_rows(frame: pd.DataFrame) -> list[list[str]]:
    """Return the names of the columns and the cells of each row as text."""
    cells = [
        [_format_number(value) if isinstance(value, float) else str(value) for value in row]
        for row in frame.itertuples(index=False)
    ]
    return [list(frame.columns), *cells]


def _format_number(value: float) -> str:
    return "" if pd.isna(value) else f"{value:.4g}"


def _join_tags(runs: Sequence[TrackedRun]) -> dict[str, str]:
    """Return where the runs come from; a tag with several values, such as the host of two machines, has all of them."""
    found = {name: dict.fromkeys(run.tags[name] for run in runs if name in run.tags) for name in ORIGIN}
    return {name: ", ".join(values) for name, values in found.items() if values}
