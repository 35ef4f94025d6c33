"""Write the report of a study, or one of several together: the work of studies/report.py."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import optuna
import pandas as pd

from vaebench.studies.engine.report import comparison, files, page, table
from vaebench.studies.engine.report.chart_data import ChartData
from vaebench.studies.engine.report.page import Study
from vaebench.studies.engine.search import queue
from vaebench.studies.engine.study.paired import nll_difference
from vaebench.studies.engine.study.plan import PLAN_FILE, RUNS, Plan, study_folder
from vaebench.vae.errors import InputError

LONGEST_NAME = 200


def run(options: argparse.Namespace) -> None:
    """Write the report of one study, or one of several."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    names = list(dict.fromkeys(name.removeprefix(f"{RUNS}/").rstrip("/") for name in options.study))
    if not names:
        raise InputError(f"a study is needed; those in {RUNS}: {list_studies()}.")
    studies = [read(name) for name in names]
    print(compare(studies) if len(studies) > 1 else "\n".join(map(str, write(studies[0]))))


def write(study: Study) -> list[Path]:
    """Write the report of a study; return its files. Without a trial that has a result there is nothing to draw."""
    if not study.frame["state"].isin(table.ENDED).any():
        errors = study.frame.reindex(columns=["error"])["error"].dropna()
        why = f"all failed, the first by: {errors.iloc[0]}" if len(errors) else "none has ended yet"
        raise InputError(f"no trial of study {study.plan.name} has a result to report: {why.rstrip('.')}.")
    return files.write(study)


def list_studies() -> str:
    """Return the names of the studies in this folder."""
    return ", ".join(sorted(path.parent.name for path in RUNS.glob(f"*/{PLAN_FILE}"))) or "none"


def read(name: str) -> Study:
    """Read a study of this folder from Optuna and MLflow."""
    path = study_folder(name) / PLAN_FILE
    if not path.exists():
        raise InputError(f"there is no study {name!r} in {RUNS}; those there: {list_studies()}.")
    plan = Plan.load(path)
    return Study.read(plan, queue.reopen(plan).trials())


def compare(studies: Sequence[Study]) -> str:
    """Write several studies of one target as one page and as Markdown; return the Markdown."""
    names, targets = ([study.plan.name for study in studies], [study.plan.target.name for study in studies])
    if len(set(targets)) > 1:
        raise InputError(f"a report of several studies needs one target, got {', '.join(dict.fromkeys(targets))}.")
    parts = zip(studies, compare_held(studies), compare_best(studies), strict=True)
    rows = [summarise(study) | held | pair for study, held, pair in parts]
    frame = pd.DataFrame(rows).set_index("study").T.reset_index(names="").fillna("")
    text = "\n".join([f"# {' and '.join(names)}", "", *page.markdown_table(frame), ""])
    path = RUNS / f"compare-{'-'.join(names)}"[:LONGEST_NAME]
    path.with_name(f"{path.name}.md").write_text(text)
    html = path.with_name(f"{path.name}.html")
    html.write_text(files.render(ChartData.read(studies), " and ".join(names), RUNS, overview=frame))
    return f"{text}\n{html}"


def compare_held(studies: Sequence[Study]) -> list[dict[str, str]]:
    """Return the settings that studies hold at different values, or that not all of them search."""
    searched = [{dimension.name for dimension in study.plan.space.dimensions} for study in studies]
    held = [
        {name: "searched" if name in names else str(value) for name, value in study.plan.base.flat().items()}
        for study, names in zip(studies, searched, strict=True)
    ]
    differing = [name for name in held[0] if len({values[name] for values in held}) > 1]
    return [{name: values[name] for name in differing} for values in held]


def compare_best(studies: Sequence[Study]) -> list[dict[str, str]]:
    """Return how each study's best trial compares with the best of all, over the same examples.

    It is empty if the examples differ, are not on this machine, or are not what the target is a mean of.
    """
    ends = [study for study in studies if study.plan.target.is_paired and len(study.best)]
    read = [comparison.read_likelihoods(study.plan, study.best["trial"].iloc[0]) for study in ends]
    found = [one for one in read if one is not None]
    if len(found) < len(studies) or not all(one.is_comparable(found[0]) for one in found):
        return [{} for _ in studies]
    best = max(found, key=lambda one: one.value.mean().item())
    rows = []
    for one in found:
        pair = nll_difference(one, best)
        shown = ("0", "") if one is best else (str(pair), comparison.TIED_TEXTS.get(pair.tied, ""))
        rows.append(dict(zip((comparison.DIFFERENCE, comparison.TIED), shown, strict=True)))
    return rows


def summarise(study: Study) -> dict[str, Any]:
    """Return the counts, the settings of the search and the best results of a study."""
    target, ranked = study.plan.target.metrics[0], table.rank(study.frame, study.plan)
    row: dict[str, Any] = {"study": study.plan.name, "finished": len(ranked)}
    row |= {"pruned": int((study.frame["state"] == "pruned").sum()), "sampler": study.plan.sampler}
    if len(ranked):
        left_out = ("trial", comparison.DIFFERENCE, comparison.TIED)
        columns = [name for name in page.list_columns(study) if name not in left_out]
        best = comparison.format_columns(ranked.head(1), columns).iloc[0]
        row |= {f"best {target}": best.pop(target), f"median {target}": ranked[target].median(), **best}
    return row | {"seconds in all": study.frame["seconds"].sum()}
