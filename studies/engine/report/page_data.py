"""What the page of a report shows beside its charts: facts, the best and its ties, cells of the table, pictures."""

import base64
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from PIL import Image

from vaebench.studies.engine.report import comparison, page, table
from vaebench.studies.engine.report.chart_data import HEIGHT, ChartData
from vaebench.studies.engine.report.page import Study
from vaebench.studies.engine.workers.outcome import SPREAD
from vaebench.studies.tracking.provenance import PACKAGES
from vaebench.vae.evaluation.evaluate import nll_of

SMALL_BYTES, MOST_PIXELS = 40_000, 640
EMBEDDED = {
    "reconstructions": "Reconstructions, by three rows: test examples, E[x|z] at their codes, and their difference",
    "samples": "Samples of the model: E[x|z] at codes from the prior",
}
LINKED = ("traversal", "latent", "training")
COMMIT_LETTERS = 10
LEAST_ERROR = 1e-6


def list_facts(study: Study) -> list[tuple[str, str]]:
    """Return what was searched, on which data, when, for how long, where and by which versions, as far as known."""
    plan, frame, tags = study.plan, study.frame, study.tags
    seeds = f", {plan.seeds} seeds each" if plan.seeds > 1 else ""
    versions = ", ".join(f"{name} {tags[name]}" for name in ("python", *PACKAGES) if name in tags)
    facts = [
        ("Searched", "; ".join(f"{dimension.name} {dimension}" for dimension in plan.space.dimensions)),
        ("Trials", f"{page.count_states(frame)}; sampler {plan.sampler}, pruner {plan.pruner}{seeds}"),
        ("Data", f"{plan.base.data.name} {plan.data[:8]}".strip()),
        ("When", _describe_time(frame)),
        ("Machine", ", ".join(tags[name] for name in ("host", "device") if name in tags)),
        ("Versions", versions),
        ("Commit", tags.get("mlflow.source.git.commit", "")[:COMMIT_LETTERS]),
        ("Command", tags.get("command", "")),
    ]
    return [(name, text) for name, text in facts if text]


def describe_best(study: Study) -> dict[str, Any]:
    """Return the best trial with its error and the trials that are tied with it; of several targets the front."""
    ranked = table.rank(study.frame, study.plan)
    if ranked.empty:
        return {}
    targets = study.plan.target.metrics
    if len(targets) > 1:
        front = ranked[table.pareto_front(ranked, targets)]
        return {"front": front["trial"].tolist(), "targets": " and ".join(targets)}
    best = ranked.iloc[0]
    settings = [
        f"{dimension.name} = {_format_plain(best[dimension.name])}" for dimension in study.plan.space.dimensions
    ]
    tied = ranked["trial"][ranked[comparison.TIED].fillna(False).astype(bool)] if comparison.TIED in ranked else None
    return {
        "trial": int(best["trial"]),
        "target": targets[0],
        "value": format_cells(ranked.head(1), targets[0]).iloc[0],
        "settings": settings,
        "compared": tied is not None,
        "tied": [] if tied is None else tied.tolist(),
    }


def build_table(studies: Sequence[Study], trials: pd.DataFrame) -> dict[str, Any]:
    """Return the columns of the table with a text and a sortable value for each trial, column by column."""
    wanted = [name for study in studies for name in page.list_columns(study)]
    settings = [dimension.name for study in studies for dimension in study.plan.space.dimensions]
    first = ["rank", "trial", *(["study"] if len(studies) > 1 else []), *studies[0].plan.target.metrics]
    names = dict.fromkeys([*first, comparison.DIFFERENCE, comparison.TIED, *settings, "w_kl", "w_d", *wanted, "error"])
    shown = [name for name in names if name in trials and not trials[name].isna().all()]
    return {
        "columns": shown,
        "texts": {name: format_cells(trials, name).tolist() for name in shown},
        "values": {name: to_plain(trials[name]) for name in shown},
    }


def format_cells(frame: pd.DataFrame, name: str) -> "pd.Series[Any]":
    """Return a column as text: numbers with their standard errors, and as many decimals as these support.

    A metric over several seeds has its spread for an error. A bound stands behind `<=`, without an error.
    """
    if name == comparison.TIED:
        return frame[name].map(comparison.TIED_TEXTS).astype(object).fillna("")
    if name == comparison.DIFFERENCE:
        return _format_differences(frame)
    error = next((one for one in (name + SPREAD, f"{name}_stderr") if one in frame), None)
    errors = frame[error] if error else pd.Series(math.nan, frame.index)
    bounds = comparison.is_bound(frame, name) if nll_of(name) else pd.Series(False, frame.index)
    cells = zip(frame[name], errors, bounds, strict=True)
    texts = [f"<= {_format_plain(value)}" if high else format_with_error(value, e) for value, e, high in cells]
    return pd.Series(texts, frame.index, dtype=object)


def format_with_error(value: Any, error: float) -> str:
    """Return a number with its standard error to two digits, and with the decimals of that error.

    An error below a millionth of the number is left out.

    Example:
        >>> format_with_error(83.32604, 0.00461), format_with_error(1964.78, 12.3), format_with_error(0.25, math.nan)
        ('83.3260 ± 0.0046', '1965 ± 12', '0.25')
    """
    if pd.isna(error) or not error > 0 or not math.isfinite(error):
        return _format_plain(value)
    if pd.isna(value) or error < LEAST_ERROR * abs(value):
        return "" if pd.isna(value) else f"{value:.6g}"
    decimals = max(0, 1 - int(f"{error:.1e}".partition("e")[2]))
    return f"{value:.{decimals}f} ± {error:.{decimals}f}"


def list_pictures(study: Study, page_folder: Path) -> dict[int, dict[str, Any]]:
    """Return for each trial with pictures those that the page embeds, of the ten best, and addresses of others."""
    best = set(study.best["trial"])
    found = {}
    for number in study.frame["trial"]:
        folder = study.plan.trial_folder(number)
        embedded = {name: folder / f"{name}_0.png" for name in EMBEDDED} if number in best else {}
        links = {name: folder / f"{name}.png" for name in LINKED}
        pictures = {
            "embedded": {name: embed(path) for name, path in embedded.items() if path.exists()},
            "links": {name: _relative(path, page_folder) for name, path in links.items() if path.exists()},
        }
        if any(pictures.values()):
            found[int(number)] = pictures
    return found


def embed(path: Path) -> str:
    """Return a picture as a data address: a small PNG as it is, a large one as JPEG of at most 640 pixels."""
    content, kind = path.read_bytes(), "png"
    if len(content) > SMALL_BYTES:
        picture, made = Image.open(path).convert("RGB"), io.BytesIO()
        picture.thumbnail((MOST_PIXELS, MOST_PIXELS))
        picture.save(made, "JPEG", quality=80)
        content, kind = made.getvalue(), "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def pack_trials(data: ChartData) -> dict[str, list[Any]]:
    """Return the columns that charts draw of the trials that ended, with the number of each in the table as `id`.

    The best come last, so that they are drawn over the others.
    """
    ended = data.ended.sort_values("rank", ascending=False, na_position="first", kind="stable")
    fields = [field.name for field in (*data.causes, *data.axes)]
    spread = [data.target + SPREAD] if data.target + SPREAD in ended else []
    heights = [name for name in ended if name.startswith(HEIGHT)]
    names = dict.fromkeys(["study", "trial", "state", "group", "rank", "front", "drawn", *fields, *data.results])
    return {"id": ended.index.tolist(), **{name: to_plain(ended[name]) for name in [*names, *spread, *heights]}}


def unpack(columns: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """Return columns as a record for each row."""
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _format_differences(frame: pd.DataFrame) -> "pd.Series[Any]":
    """Return each paired difference to the best with its error; where it is a bound, as the other tables print it."""
    printed = comparison.format_columns(frame, [comparison.DIFFERENCE])[comparison.DIFFERENCE]
    exact = printed.str.match(r"-?\d.*±")
    pairs = zip(frame[comparison.DIFFERENCE], frame[comparison.STDERR], strict=True)
    precise = pd.Series([format_with_error(*pair) for pair in pairs], frame.index, dtype=object)
    return printed.where(~exact, precise)


def _format_plain(value: Any) -> str:
    """Return a number by four digits; whole ones, choices and text as they are."""
    if value is None or (not isinstance(value, str) and pd.isna(value)):
        return ""
    if isinstance(value, str | bool) or (isinstance(value, float) and not math.isfinite(value)):
        return str(value)
    return f"{value:.0f}" if float(value).is_integer() and abs(value) < 1e6 else f"{value:.4g}"


def to_plain(column: "pd.Series[Any]") -> list[Any]:
    """Return a column as JSON has it: numbers by seven digits, and None for what is missing or infinite."""
    if pd.api.types.is_float_dtype(column.dtype):
        return [float(f"{value:.7g}") if math.isfinite(value) else None for value in column]
    return [None if pd.isna(value) else value for value in column.astype(object)]


def _describe_time(frame: pd.DataFrame) -> str:
    """Return begin, end and duration of a study, and the time that its trials took together."""
    if "start" not in frame or frame["start"].isna().all():
        return ""
    started = pd.to_datetime(frame["start"])
    begin, end = started.min(), (started + pd.to_timedelta(frame["seconds"].fillna(0), unit="s")).max()
    lasted, together = ((end - begin).total_seconds(), frame["seconds"].sum())
    return (
        f"{begin:%Y-%m-%d %H:%M} to {end:%Y-%m-%d %H:%M}, {_format_duration(lasted)}; "
        f"the trials took {_format_duration(together)} together"
    )


def _format_duration(seconds: float) -> str:
    """Return `2 h 05 min`, `3 min 20 s` or `12 s`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s" if minutes else f"{rest} s"


def _relative(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix() if path.is_relative_to(folder) else path.resolve().as_uri()
