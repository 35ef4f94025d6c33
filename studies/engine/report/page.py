"""A study as one HTML page and one Markdown table."""

import base64
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import markupsafe
import optuna
import pandas as pd

from vaebench.studies.engine.report import figures as charts
from vaebench.studies.engine.report import table as tables
from vaebench.studies.engine.study.plan import Plan
from vaebench.studies.tracking.mlflow_runs import Tracker
from vaebench.studies.tracking.record import StoreError

SHOWN, SLOWEST = 10, 5
ERRORS_APART = 3

CAPTIONS = {
    "history": "Each finished trial, and the best up to it.",
    "rate_distortion": "Validation split, pruned trials included. Nothing beats the front in both.",
    "effects": "Mutual information, KL(q(z)||p(z)) and MMD over alpha and lambda, pruned trials included.",
    "importances": "w_kl = beta (1 - alpha) and w_d = beta (alpha + lambda - 1) stand for the three weights.",
    "parallel": "Every finished trial across all settings.",
    "seed_spread": "Mean and standard deviation over the seeds of the ten best.",
    "best_samples": "Samples from the prior, best trial first.",
    "best_reconstructions": "Test examples, reconstructions, and how far these err; best trial first.",
}

PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>{{ title }}</title>
<style>
body { font: 15px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
table { border-collapse: collapse; font-size: 13px } td, th { padding: 3px 9px; text-align: right }
tr:nth-child(even) { background: #f4f4f6 } figure { display: inline-block; margin: 0 1rem 1rem 0; max-width: 100% }
figcaption { color: #666; font-size: 13px } img { max-width: 100% } .fault { color: #a00 }
code { font-size: 12px; overflow-wrap: anywhere } .wide { overflow-x: auto }
</style>
<h1>{{ title }}</h1>
<p>{{ summary }}</p>
{% for fault in faults %}<p class="fault">{{ fault }}</p>{% endfor %}
{% for heading, table in tables %}<h2>{{ heading }}</h2><div class="wide">{{ table }}</div>{% endfor %}
<h2>Figures</h2>
{% for caption, source in figures %}
<figure><img src="{{ source }}" alt="{{ caption }}"><figcaption>{{ caption }}</figcaption></figure>
{% endfor %}
<h2>Train a row again</h2>
{% for number, command in commands %}<p>trial {{ number }}: <code>{{ command }}</code></p>{% endfor %}
</html>
"""


@dataclass(frozen=True)
class Study:
    """A study, read back."""

    plan: Plan
    frame: pd.DataFrame

    @property
    def folders(self) -> list[Path]:
        """Return where the ten best trials left their pictures, best first."""
        best = tables.ranking(self.frame, self.plan).head(SHOWN)
        return [self.plan.folder / "trials" / str(number) for number in best["trial"]]


def gather(plan: Plan, trials: list[optuna.trial.FrozenTrial]) -> Study:
    """Put together what Optuna and MLflow know; without the tracker, what Optuna knows."""
    try:
        runs = Tracker(plan.tracking, plan.name).runs() if plan.tracking != "none" else []
    except StoreError as error:
        print(f"{error}: the report shows what Optuna knows.", file=sys.stderr)
        runs = []
    return Study(plan, tables.table(plan, trials, runs))


def write(study: Study) -> list[Path]:
    """Write report.html, report.md, the table and the figures beside the study; return the files."""
    folder = study.plan.folder
    drawn = charts.draw_all(study.frame, study.plan, study.folders, folder / "figures")
    paths = [folder / "report.html", folder / "report.md"]
    paths[0].write_text(html(study, drawn))
    paths[1].write_text(markdown(study))
    return [*paths, *tables.save(study.frame, folder), *drawn.values()]


def html(study: Study, drawn: dict[str, Path]) -> str:
    """Return one page that needs no other file."""
    plan, frame = study.plan, study.frame
    best = tables.ranking(frame, plan)
    failed = frame[frame["state"] == "failed"]
    shown = [
        (f"Best by {plan.target.metrics[0]}", best[columns(study)].head(SHOWN)),
        ("Slowest", frame.nlargest(SLOWEST, "seconds")[["trial", "state", "seconds"]]),
        ("Failed", failed[["trial", "seconds", "error"]]),
        ("All trials", frame[["trial", "state", *columns(study)[1:]]]),
    ]
    return render(
        plan.name,
        [(heading, table) for heading, table in shown if len(table)],
        [(CAPTIONS[name], path) for name, path in drawn.items()],
        summary=summary(study),
        faults=doubts(study),
        commands=list(frame.dropna(subset=["command"])[["trial", "command"]].itertuples(index=False)),
    )


def render(
    title: str, tables: Sequence[tuple[str, pd.DataFrame]], figures: Sequence[tuple[str, Path]], **texts: Any
) -> str:
    """Return a page of tables under their headings and figures over their captions, all embedded."""
    page = jinja2.Environment(autoescape=True).from_string(PAGE)
    return page.render(
        title=title,
        tables=[(heading, _table(table)) for heading, table in tables],
        figures=[(caption, _embedded(path)) for caption, path in figures],
        **texts,
    )


def markdown(study: Study) -> str:
    """Return the ten best as a Markdown table, what is wrong, and how to train the best again."""
    plan = study.plan
    best = tables.ranking(study.frame, plan).head(SHOWN)
    lines = [f"# {plan.name}", "", summary(study), "", *markdown_table(best[columns(study)])]
    lines += ["", *(f"- {doubt}" for doubt in doubts(study))]
    if len(best):
        lines += ["", "The best again:", "", f"    {best['command'].iloc[0]}", ""]
    return "\n".join(lines)


def summary(study: Study) -> str:
    """Return one line: how many trials, over what, and the best."""
    states = study.frame["state"].value_counts()
    counts = ", ".join(f"{count} {state}" for state, count in states.items())
    target = study.plan.target.metrics[0]
    best = tables.ranking(study.frame, study.plan)
    found = f" Best {target}: {best[target].iloc[0]:.3f} (trial {best['trial'].iloc[0]})." if len(best) else ""
    return f"{counts}; {study.plan.sampler} over space {study.plan.space.name}.{found}"


def columns(study: Study) -> list[str]:
    """Return the columns that a table of the best shows, as far as there are any."""
    plan = study.plan
    extra = [*(f"{name}_ceiling" for name in plan.target.metrics), "seeds/std", "ais/nll", "ais/gap"]
    wanted = ["trial", *plan.target.metrics, *extra, "test/bits_per_dim", "latent/active_units", "latent/mi"]
    wanted += [dimension.name for dimension in plan.space.dimensions] + ["seconds"]
    return [name for name in dict.fromkeys(wanted) if name in study.frame and not study.frame[name].isna().all()]


def doubts(study: Study) -> list[str]:
    """Return a sentence for each figure of the best trials that should not be taken at its word."""
    best = tables.ranking(study.frame, study.plan).head(SHOWN)
    found = tables.faults(study.frame, study.plan)
    if "ais/gap" in best:
        high = best[best["ais/gap"] > ERRORS_APART * best["ais/nll_stderr"]]
        found += [
            f"valid/nll of trial {row['trial']} lies about {row['ais/gap']:.2f} nats high: its q(z|x) is too narrow "
            "for importance sampling, and ais/nll is the better figure"
            for _, row in high.iterrows()
        ]
    if "latent/log_n" in best:
        saturated = best[best["latent/mi"] > best["latent/log_n"] - 1]
        numbers = ", ".join(str(number) for number in saturated["trial"])
        found += [f"latent/mi is within 1 nat of log N, its ceiling, in trials {numbers}"] if numbers else []
    return found


def _table(frame: pd.DataFrame) -> Any:
    return markupsafe.Markup(frame.to_html(index=False, float_format=_number, na_rep="", border=0))


def markdown_table(frame: pd.DataFrame) -> list[str]:
    """Return the lines of a table."""
    cells = [[_cell(value) for value in row] for row in frame.itertuples(index=False)]
    rule = ["---" if i == 0 else "---:" for i in range(len(frame.columns))]
    return [f"| {' | '.join(row)} |" for row in [list(frame.columns), rule, *cells]]


def _cell(value: Any) -> str:
    return _number(value) if isinstance(value, float) else str(value)


def _number(value: float) -> str:
    return "" if pd.isna(value) else f"{value:.4g}"


def _embedded(path: Path) -> str:
    return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"
