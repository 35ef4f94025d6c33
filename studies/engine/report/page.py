"""A study as one HTML page and one Markdown table."""

import base64
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import jinja2
import markupsafe
import optuna
import pandas as pd

from vaebench.studies.engine.report import comparison, figures, table
from vaebench.studies.engine.report.addresses import find_addresses
from vaebench.studies.engine.report.table import BEST
from vaebench.studies.engine.report.warnings import Warnings, find_warnings, format_gap
from vaebench.studies.engine.study.plan import Plan
from vaebench.studies.engine.workers.outcome import SPREAD
from vaebench.studies.engine.workers.trial import QUICK
from vaebench.studies.tracking.figures import wrap_command
from vaebench.studies.tracking.mlflow_runs import Tracker
from vaebench.studies.tracking.record import StoreError
from vaebench.vae.evaluation import enclosure
from vaebench.vae.evaluation.evaluate import format_metric

SLOWEST = 5

CAPTIONS = {
    "history": "Each finished trial, and the best up to it.",
    "rate_distortion": "Validation split, pruned trials included. Nothing beats the front in both.",
    "effects": "Mutual information, KL(q(z)||p(z)) and MMD over alpha and lambda, pruned trials included.",
    "importances": "w_kl = beta (1 - alpha) and w_d = beta (alpha + lambda - 1) stand for the three weights.",
    "parallel": "Every finished trial across all settings.",
    "seed_spread": "Mean and standard deviation over the seeds of the ten best.",
    "best_samples": "Samples from the prior, best trial first.",
    "best_reconstructions": "Test examples, reconstructions, and their absolute errors; best trial first.",
}

PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>{{ title }}</title>
<style>
body { font: 15px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
table { border-collapse: collapse; font-size: 13px } td, th { padding: 3px 9px; text-align: right }
tr:nth-child(even) { background: #f4f4f6 } figure { display: inline-block; margin: 0 1rem 1rem 0; max-width: 100% }
figcaption { color: #666; font-size: 13px } img { max-width: 100% } .warning { color: #a00 }
code { font-size: 12px; overflow-wrap: anywhere } .wide { overflow-x: auto }
</style>
<h1>{{ title }}</h1>
<p>{{ summary }}</p>
{% if addresses %}<p>In MLflow:
{% for name, to in addresses.items() %}<a href="{{ to }}">{{ name }}</a>{{ ", " if not loop.last }}{% endfor %}
</p>{% endif %}
{% for warning in warnings %}<p class="warning">{{ warning }}</p>{% endfor %}
{% for remark in remarks %}<p>{{ remark }}</p>{% endfor %}
{% for heading, table in tables %}<h2>{{ heading }}</h2><div class="wide">{{ table }}</div>{% endfor %}
<h2>Figures</h2>
{% for caption, png in figures %}
<figure><img src="data:image/png;base64,{{ png }}" alt="{{ caption }}"><figcaption>{{ caption }}</figcaption></figure>
{% endfor %}
{% for footnote in footnotes %}<p>{{ footnote }}</p>{% endfor %}
<h2>Train a row again</h2>
{% for number, command in commands %}<p>trial {{ number }}: <code>{{ command }}</code></p>{% endfor %}
</html>
"""


@dataclass(frozen=True)
class Study:
    """A study with the table of its trials."""

    plan: Plan
    frame: pd.DataFrame

    @property
    def best(self) -> pd.DataFrame:
        """Return the rows of the ten best trials."""
        return table.rank(self.frame, self.plan).head(BEST)

    @cached_property
    def addresses(self) -> dict[str, str]:
        """Return the addresses of its pages in MLflow, by their names."""
        return find_addresses(self.plan, self.best)

    @property
    def warnings(self) -> Warnings:
        """Return what of it is not to be trusted."""
        return find_warnings(self.frame, self.plan)

    @classmethod
    def read(cls, plan: Plan, trials: list[optuna.trial.FrozenTrial]) -> "Study":
        """Join Optuna's trials with their runs in MLflow; if MLflow cannot be reached, take Optuna's data alone."""
        try:
            runs = Tracker(plan.tracking, plan.name).runs() if plan.tracking != "none" else []
        except StoreError as error:
            print(f"{error}: the report shows what Optuna knows.", file=sys.stderr)
            runs = []
        return cls(plan, comparison.add_differences(table.build(plan, trials, runs), plan))


def write(study: Study) -> list[Path]:
    """Write report.html, report.md, the table and the figures into the study's folder; return the files."""
    folder = study.plan.folder
    drawn = figures.draw_all(study.frame, study.plan)
    paths = [folder / "report.html", folder / "report.md"]
    paths[0].write_text(render_html(study, drawn))
    paths[1].write_text(render_markdown(study))
    return [*paths, *table.save(study.frame, folder), *drawn.values()]


def render_html(study: Study, drawn: dict[str, Path]) -> str:
    """Return the report as one HTML page that needs no other file."""
    frame, columns = study.frame, list_columns(study)
    failed = frame[frame["state"] == "failed"]
    sections = [
        (f"Best by {study.plan.target.metrics[0]}", comparison.format_columns(study.best, columns)),
        ("Slowest", frame.nlargest(SLOWEST, "seconds")[["trial", "state", "seconds"]]),
        ("Failed", failed[["trial", "seconds", "error"]]),
        ("All trials", comparison.format_columns(frame, ["trial", "state", *columns[1:]])),
    ]
    return render(
        study.plan.name,
        [(heading, rows) for heading, rows in sections if len(rows)],
        [(CAPTIONS[name], path) for name, path in drawn.items()],
        summary=summarise(study),
        addresses=study.addresses,
        remarks=describe_estimates(study),
        warnings=study.warnings.lines,
        footnotes=study.warnings.footnotes,
        commands=list(frame.dropna(subset=["command"])[["trial", "command"]].itertuples(index=False)),
    )


def render(
    title: str, sections: Sequence[tuple[str, pd.DataFrame]], pictures: Sequence[tuple[str, Path]], **texts: Any
) -> str:
    """Return an HTML page of tables under their headings and pictures over their captions, all embedded."""
    page = jinja2.Environment(autoescape=True).from_string(PAGE)
    return page.render(
        title=title,
        tables=[(heading, _html_table(frame)) for heading, frame in sections],
        figures=[(caption, base64.b64encode(path.read_bytes()).decode()) for caption, path in pictures],
        **texts,
    )


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
    states = study.frame["state"].value_counts()
    counts = ", ".join(f"{count} {state}" for state, count in states.items())
    target, best = study.plan.target.metrics[0], study.best
    found = ""
    if len(best):
        value = format_metric(best.iloc[0].dropna().to_dict(), target)
        found = f" Best {target}: {value} (trial {best['trial'].iloc[0]})."
    return f"{counts}; {study.plan.sampler} over space {study.plan.space.name}.{found}"


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


def _html_table(frame: pd.DataFrame) -> Any:
    return markupsafe.Markup(frame.to_html(index=False, float_format=_format_number, na_rep="", border=0))


def markdown_table(frame: pd.DataFrame) -> list[str]:
    """Return the lines of a Markdown table."""
    cells = [
        [_format_number(value) if isinstance(value, float) else str(value) for value in row]
        for row in frame.itertuples(index=False)
    ]
    rule = ["---" if i == 0 else "---:" for i in range(len(frame.columns))]
    return [f"| {' | '.join(row)} |" for row in [list(frame.columns), rule, *cells]]


def _format_number(value: float) -> str:
    return "" if pd.isna(value) else f"{value:.4g}"
