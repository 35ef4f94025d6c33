"""The files of a report: one HTML page, a Markdown table, the table of all trials, and PNG files of the charts."""

import json
import math
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
import markupsafe
import pandas as pd
from PIL import Image
from torchvision.transforms.functional import pil_to_tensor
from torchvision.utils import save_image

from vaebench.studies.engine.report import charts, page, page_data, table, vega
from vaebench.studies.engine.report.chart_data import ChartData
from vaebench.studies.engine.report.charts import Spec
from vaebench.studies.engine.report.page import Study

TEMPLATE = resources.files("vaebench.studies.engine.report") / "template"
SHEET_COLUMNS = 5
PNG_WIDTH = 480
CAPTIONS = {
    "rate_distortion": "Rate and distortion: of the validation split. Nothing beats the front in both.",
    "history": "History: the target of the trials as they were run.",
    "parallel": "Settings: a line for each finished trial; the darker, the better its rank.",
    "importances": "Importances: the line is the spread over trials drawn again, 10 to 90 %.",
    "seed_spread": "Seeds: mean and standard deviation of the best trials over their seeds.",
}


def write(study: Study) -> list[Path]:
    """Write report.html, report.md, the table and the figures into the study's folder; return the files."""
    folder, data = study.plan.folder, ChartData.read([study])
    paths = [folder / "report.html", folder / "report.md"]
    paths[0].write_text(render(data, study.plan.name, folder))
    paths[1].write_text(page.render_markdown(study))
    return [*paths, *table.save(study.frame, folder), *draw_figures(data, folder / "figures")]


def render(data: ChartData, title: str, folder: Path, overview: pd.DataFrame | None = None) -> str:
    """Return the page of one or several studies, for a file in a folder; it needs no other file."""
    script = {name: (TEMPLATE / f"page.{name}").read_text() for name in ("html", "css", "js")}
    template = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(script["html"])
    return template.render(
        title=title,
        style=markupsafe.Markup(script["css"]),
        library=markupsafe.Markup(vega.read_javascript()),
        program=markupsafe.Markup(script["js"]),
        data=markupsafe.Markup(_to_json(_collect(data, folder))),
        studies=[_describe(study) for study in data.studies],
        overview=None if overview is None else page.format_rows(overview),
        captions=CAPTIONS,
        causes=[cause.name for cause in data.causes],
    )


def draw_figures(data: ChartData, folder: Path) -> list[Path]:
    """Save the charts, and the pictures of the best trials side by side, as PNG files; return the files."""
    folder.mkdir(parents=True, exist_ok=True)
    sets = {**_collect_sets(data), "trials": page_data.unpack(page_data.pack_trials(data)), "pointed": []}
    figures = {name: {**spec, "width": PNG_WIDTH} for name, spec in charts.draw_all(data).items()}
    grid = [{**spec, "width": 240} for specs in list(charts.draw_effects(data).values())[:2] for spec in specs.values()]
    if grid:
        figures["effects"] = {"concat": grid, "columns": len(data.results)}
    config = {**charts.THEMES["light"], "background": "white"}
    drawn = [
        vega.save_png({**_freeze(spec), "config": config, "datasets": sets}, folder / f"{name}.png")
        for name, spec in figures.items()
    ]
    folders = [study.plan.trial_folder(number) for study in data.studies for number in study.best["trial"]]
    for name in page_data.EMBEDDED:
        paths = [path for one in folders if (path := one / f"{name}_0.png").exists()]
        if paths:
            tiles = [pil_to_tensor(Image.open(path).convert("RGB")) / 255 for path in paths]
            drawn.append(folder / f"best_{name}.png")
            save_image(tiles, drawn[-1], nrow=SHEET_COLUMNS, padding=8, pad_value=1)
    return drawn


def _freeze(spec: Spec) -> Spec:
    """Return a chart in which nothing can be selected, for a file."""

    def without_params(part: Any) -> Any:
        if isinstance(part, list):
            return [without_params(entry) for entry in part]
        if isinstance(part, dict):
            return {name: without_params(entry) for name, entry in part.items() if name != "params"}
        return part

    return {**without_params(spec), "params": [charts.PICKED]}


def _collect(data: ChartData, folder: Path) -> dict[str, Any]:
    """Return everything that the program of the page reads."""
    trials = data.trials
    pictures: dict[int, Any] = {}
    for study in data.studies:
        rows = trials.index[trials["study"] == study.plan.name]
        row_of = dict(zip(trials.loc[rows, "trial"], rows.tolist(), strict=True))
        found = page_data.list_pictures(study, folder)
        pictures |= {row_of[number]: entry for number, entry in found.items()}
    return {
        "target": data.target,
        "up": data.plan.target.directions[0] == "minimize",
        "trials": page_data.pack_trials(data),
        "states": trials["state"].tolist(),
        "groups": trials["group"].tolist(),
        "commands": trials["command"].fillna("").tolist() if "command" in trials else [],
        "table": page_data.build_table(data.studies, trials),
        "pictures": pictures,
        "captions": page_data.EMBEDDED,
        "sets": _collect_sets(data),
        "charts": charts.draw_all(data),
        "effects": charts.draw_effects(data),
        "themes": charts.THEMES,
    }


def _collect_sets(data: ChartData) -> dict[str, Any]:
    """Return the data sets of the charts beside the trials."""
    sets = {"trends": data.trends, "importances": data.importances}
    return {
        **{
            name: page_data.unpack({one: page_data.to_plain(frame[one]) for one in frame})
            for name, frame in sets.items()
        },
        "ticks": charts.list_ticks(data),
    }


def _describe(study: Study) -> dict[str, Any]:
    """Return what the head of the page says of a study."""
    warnings = study.warnings
    return {
        "name": study.plan.name,
        "facts": page_data.list_facts(study),
        "links": study.addresses,
        "best": page_data.describe_best(study),
        "warnings": warnings.lines,
        "kinds": ", ".join(line.partition(":")[0] for line in warnings.lines),
        "remarks": [*page.describe_estimates(study), *warnings.footnotes],
    }


def _to_json(values: Mapping[str, Any]) -> str:
    """Return JSON that may stand in a script element."""
    return json.dumps(values, separators=(",", ":"), allow_nan=False, default=_to_number).replace("</", "<\\/")


def _to_number(value: Any) -> Any:
    """Return a number of NumPy as one of Python."""
    number = value.item()
    return None if isinstance(number, float) and not math.isfinite(number) else number
