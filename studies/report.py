"""A study as one HTML page and one Markdown table: `python studies/report.py STUDY`, or `--compare A B`."""

import argparse
import json
import sys
from collections.abc import Sequence
from typing import Any

import optuna
import pandas as pd

from vaebench.studies.engine.report import figures as charts
from vaebench.studies.engine.report import table
from vaebench.studies.engine.report.page import CAPTIONS, Study, columns, gather, markdown_table, render, write
from vaebench.studies.engine.search import queue
from vaebench.studies.engine.study import plan as plans
from vaebench.studies.engine.study.plan import KEPT_PLAN, RUNS
from vaebench.vae.errors import InputError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("study", nargs="?", help="the name of a study in runs/")
    parser.add_argument("--compare", nargs=2, metavar=("A", "B"), help="two studies side by side")
    options = parser.parse_args(arguments)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        if options.compare:
            print(compare(*(read(name) for name in options.compare)))
        elif options.study:
            print("\n".join(map(str, write(read(options.study)))))
        else:
            raise InputError(f"report.py needs a study; those in {RUNS}: {', '.join(names()) or 'none'}.")
    except InputError as error:
        print(f"report.py: {error}", file=sys.stderr)
        return 2
    return 0


def names() -> list[str]:
    """Return the studies of this folder."""
    return sorted(path.parent.name for path in RUNS.glob(f"*/{KEPT_PLAN}"))


def read(name: str) -> Study:
    """Read a study of this folder from Optuna and MLflow."""
    path = RUNS / name / KEPT_PLAN
    if not path.exists():
        raise InputError(f"there is no study {name!r} in {RUNS}; those there: {', '.join(names()) or 'none'}.")
    plan = plans.from_json(json.loads(path.read_text()), folder=path.parent)
    return gather(plan, queue.connect(plan).trials())


def compare(first: Study, second: Study) -> str:
    """Write two studies side by side as HTML and Markdown; return the Markdown."""
    if first.plan.target.name != second.plan.target.name:
        raise InputError(
            f"--compare needs studies of one target, got {first.plan.target.name} and {second.plan.target.name}."
        )
    target = first.plan.target.metrics[0]
    rows = []
    for study in (first, second):
        best = table.ranking(study.frame, study.plan)
        row: dict[str, Any] = {"study": study.plan.name, "finished": len(best)}
        row |= {"pruned": int((study.frame["state"] == "pruned").sum()), "sampler": study.plan.sampler}
        if len(best):
            row |= {f"best {target}": best[target].iloc[0], f"median {target}": best[target].median()}
            row |= {name: best[name].iloc[0] for name in columns(study)[1:] if name in best and name != target}
        rows.append(row | {"seconds in all": study.frame["seconds"].sum()})
    frame = pd.DataFrame(rows).set_index("study").T.reset_index(names="")
    name = f"compare-{first.plan.name}-{second.plan.name}"
    figures = []
    for study in (first, second):
        drawn = charts.draw_all(study.frame, study.plan, study.folders, study.plan.folder / "figures")
        figures += [(f"{study.plan.name}: {CAPTIONS[key]}", path) for key, path in drawn.items()]
    text = "\n".join([f"# {first.plan.name} and {second.plan.name}", "", *markdown_table(frame), ""])
    (RUNS / f"{name}.md").write_text(text)
    (RUNS / f"{name}.html").write_text(render(name, [("Best of each", frame)], figures))
    return f"{text}\n{RUNS / name}.html"


if __name__ == "__main__":
    sys.exit(main())
