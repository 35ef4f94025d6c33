"""How the trials of a study compare: paired differences to the best one, ties, and figures that are bounds."""

import math
from collections.abc import Sequence

import pandas as pd

from vaebench.studies.engine.report import table
from vaebench.studies.engine.study.paired import Difference, ExampleLikelihoods, nll_difference
from vaebench.studies.engine.study.plan import Plan
from vaebench.studies.engine.study.target import NLL
from vaebench.vae.evaluation.evaluate import nll_of

DIFFERENCE, STDERR, TIED = "difference to best", "difference_stderr", "tied"
TIED_TEXTS: dict[bool | None, str] = {True: "yes", False: "no", None: ""}
UNRESOLVED, EXAMPLES = f"{NLL}_unresolved", f"{NLL}_examples"


def add_differences(frame: pd.DataFrame, plan: Plan) -> pd.DataFrame:
    """Return the table with the paired difference of each finished trial to the best one, its error, and ties.

    The columns are left out where the target is not a mean of log p(x). A cell is empty where the estimates of the
    examples are on another machine; the driver has those of the ten best.
    """
    ranked = table.rank(frame, plan)
    if not plan.target.is_paired or ranked.empty:
        return frame
    likelihoods = {index: read_likelihoods(plan, row["trial"]) for index, row in ranked.iterrows()}
    best = likelihoods[ranked.index[0]]
    if best is None:
        return frame
    rows = {}
    for index, found in likelihoods.items():
        if found is None or not found.is_comparable(best):
            continue
        difference = nll_difference(found, best)
        tied = difference.tied if found is not best else None
        rows[index] = (difference.value, difference.stderr, tied, found.unresolved, len(found.value))
    if not rows:
        return frame
    names = [DIFFERENCE, STDERR, TIED, UNRESOLVED, EXAMPLES]
    added = pd.DataFrame.from_dict(rows, orient="index", columns=names).astype({TIED: "boolean"}).reindex(frame.index)
    for name in {UNRESOLVED, EXAMPLES} & set(frame):
        added[name] = frame[name].fillna(added[name])
    return frame.assign(**added)


def read_likelihoods(plan: Plan, trial: int) -> ExampleLikelihoods | None:
    """Read log p(x) of each validation example under a trial; return None if the file is not on this machine."""
    return ExampleLikelihoods.read(plan.trial_folder(trial))


def format_columns(frame: pd.DataFrame, columns: Sequence[str]) -> pd.DataFrame:
    """Return columns of the table as they are printed: a bound behind `<=`, a difference with its standard error."""
    shown = frame[list(columns)].copy()
    for name in columns:
        bound = is_bound(frame, name)
        if bound.any():
            texts = [f"{'<= ' if high else ''}{value:.4g}" for value, high in zip(frame[name], bound, strict=True)]
            shown[name] = pd.Series(texts, frame.index).where(frame[name].notna(), "")
    if DIFFERENCE in columns:
        shown[DIFFERENCE] = _format_differences(frame)
    if TIED in columns:
        shown[TIED] = frame[TIED].map(TIED_TEXTS).astype(object).fillna("")
    return shown


def is_bound(frame: pd.DataFrame, name: str) -> "pd.Series[bool]":
    """Return for each trial whether a metric is an upper bound, since it is of an nll with unresolved examples."""
    unresolved = f"{nll_of(name)}_unresolved"
    if unresolved not in frame:
        return pd.Series(False, frame.index)
    return frame[unresolved].fillna(0) > 0


def _format_differences(frame: pd.DataFrame) -> "pd.Series[str]":
    """Return each difference with its error; that of a study's best trial is 0, and an unknown one is empty."""
    bound, study = is_bound(frame, NLL), frame["study"] if "study" in frame else pd.Series("", frame.index)
    low = (bound & (frame[DIFFERENCE] == 0)).groupby(study).transform("any")
    texts = []
    for value, stderr, *is_bounded in zip(frame[DIFFERENCE], frame[STDERR], bound, low, strict=True):
        difference = Difference(value, stderr, *is_bounded)
        texts.append("" if math.isnan(value) else str(difference) if value else "0")
    return pd.Series(texts, frame.index, dtype=object)
