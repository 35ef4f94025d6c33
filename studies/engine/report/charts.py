"""The charts of a report as Vega-Lite specifications, which its page and its PNG files draw.

Each names its data sets and leaves them out. `trials` has the trials, and `pointed` the one that the page points at.
The page writes the trials that are selected in one chart to the parameter `picked` of all others.
"""

from collections.abc import Mapping
from typing import Any

from vaebench.studies.engine.report import table
from vaebench.studies.engine.report.chart_data import DISTORTION, HEIGHT, RATE, ChartData, Field
from vaebench.studies.engine.workers.outcome import SPREAD

Spec = dict[str, Any]

COLOURS = {"finished": "#3b82c4", "tied": "#d98a00", "front": "#d6453d", "best": "#d6453d", "pruned": "#8b8f97"}
SHAPES = {"finished": "circle", "tied": "square", "front": "diamond", "best": "diamond", "pruned": "cross"}
PALETTE = ("#3b82c4", "#d98a00", "#2f9e6e", "#b05cc6", "#d6453d", "#7f8c2f")
PICKED = {"name": "picked", "value": None}
IS_PICKED = "!picked || picked[datum.id]"
SELECTABLE = {"name": "brush", "select": {"type": "interval", "zoom": False}}


def theme(text: str, grid: str, extent: tuple[float, float]) -> Spec:
    """Return the configuration of a theme by the colour of its text and lines and a part of the colour map viridis."""
    font = "system-ui, 'Liberation Sans', sans-serif"
    words = {"labelColor": text, "titleColor": text, "labelFont": font, "titleFont": font, "titleFontWeight": "normal"}
    return {
        "background": None,
        "view": {"stroke": grid},
        "axis": {**words, "gridColor": grid, "domainColor": grid, "tickColor": grid, "labelSeparation": 5},
        "legend": {**words, "orient": "top", "direction": "horizontal", "gradientLength": 110, "symbolLimit": 12},
        "title": {"color": text, "font": font, "fontSize": 12, "fontWeight": "normal", "anchor": "start"},
        "text": {"color": text, "font": font},
        "range": {"ramp": {"scheme": "viridis", "extent": list(extent)}},
        "style": {
            "pointed": {"color": text, "strokeWidth": 2.5, "opacity": 1},
            "summary": {"color": text, "strokeWidth": 1.4, "opacity": 0.75},
        },
    }


THEMES = {"light": theme("#2b2f36", "#d9dce1", (0.0, 0.9)), "dark": theme("#d8dbe0", "#3a3f47", (0.3, 1.0))}


def draw_all(data: ChartData) -> dict[str, Spec]:
    """Return each chart for which the trials have the data; those of effects are named `CAUSE/RESULT`."""
    found = {
        "rate_distortion": draw_rate_distortion(data),
        "history": draw_history(data),
        "parallel": draw_parallel(data),
        "importances": draw_importances(data),
        "seed_spread": draw_seed_spread(data),
    }
    return {name: spec for name, spec in found.items() if spec is not None}


def draw_effects(data: ChartData) -> dict[str, dict[str, Spec]]:
    """Return a chart of each result over each setting, by setting and result."""
    return {cause.name: {result: _draw_effect(data, cause, result) for result in data.results} for cause in data.causes}


def draw_history(data: ChartData) -> Spec:
    """Draw the target over the numbers of the trials and, where one trial is the best, the best so far."""
    layers = [*_draw_points(data, _axis("trial"), _clip(data, data.target))]
    if not data.has_several_targets:
        operation = "min" if data.plan.target.directions[0] == "minimize" else "max"
        best = {"op": operation, "field": _escape(data.target), "as": "best"}
        sofar = {"window": [best], "sort": [{"field": "trial"}], "groupby": ["study"]}
        line = {
            "transform": [{"filter": "datum.state == 'finished'"}, sofar],
            "mark": {"type": "line", "interpolate": "step-after", "style": "summary"},
            "encoding": {"x": _axis("trial"), "y": {**_clip(data, "best"), "title": data.target}, **_split(data)},
        }
        layers.insert(0, line)
    return _layer(*layers)


def draw_rate_distortion(data: ChartData) -> Spec | None:
    """Draw distortion over rate, coloured by the weight of the KL, and their front."""
    if not {RATE, DISTORTION} <= set(data.results):
        return None
    x, y = _clip(data, RATE), _clip(data, DISTORTION)
    front = {
        "transform": [{"filter": "datum.front"}],
        "mark": {"type": "line", "interpolate": "step-after", "style": "summary"},
        "encoding": {"x": x, "y": y, **_split(data)},
    }
    weights = [field for field in data.causes if field.name in ("w_kl", "objective.beta")]
    return _layer(front, *_draw_points(data, x, y, colour=weights[0] if weights and len(data.studies) == 1 else None))


def draw_parallel(data: ChartData) -> Spec | None:
    """Draw a line for each finished trial across all settings and targets, coloured by its rank."""
    if data.trials["drawn"].sum() < 2:
        return None
    names = [HEIGHT + field.name for field in data.axes]
    fold = {"fold": [_escape(name) for name in names], "as": ["axis", "height"]}
    # `height model.latent` is labelled by the lines `model` and `latent`
    words = f"split(replace(slice(datum.label, {len(HEIGHT)}), regexp('[._/]', 'g'), ' '), ' ')"
    x: Spec = {"field": "axis", "type": "ordinal", "sort": names, "title": None}
    x |= {"axis": {"labelExpr": words, "labelAngle": 0, "grid": True, "labelOverlap": False}}
    y = {"field": "height", "type": "quantitative", "axis": None, "scale": {"domain": [-0.1, 1.1], "nice": False}}
    colour = {"field": "rank", "type": "quantitative", "legend": None}
    shown = {"x": x, "y": y, "color": _study_colour(data) or colour, "detail": {"field": "id"}, "opacity": _fade(0.75)}
    lines = [{"filter": "datum.drawn"}, fold]
    pointed = {"x": x, "y": y, "detail": {"field": "id"}}
    return _layer(
        {"transform": lines, "mark": {"type": "line", "strokeWidth": 1.3}, "encoding": shown},
        {
            "params": [SELECTABLE],
            "transform": lines,
            "mark": {"type": "point", "filled": True, "size": 16},
            "encoding": shown,
        },
        {
            "data": {"name": "pointed"},
            "transform": [fold],
            "mark": {"type": "line", "style": "pointed"},
            "encoding": pointed,
        },
        {
            "data": {"name": "ticks"},
            "mark": {"type": "text", "fontSize": 10, "dy": {"expr": "datum.shift"}},
            "encoding": {"x": x, "y": y, "text": {"field": "label"}},
        },
    )


def list_ticks(data: ChartData) -> list[dict[str, Any]]:
    """Return the labels on the axes of the parallel coordinates: the ends of a range, or every choice."""
    ticks: list[dict[str, Any]] = []
    for field in data.axes:
        if field.choices:
            steps = max(1, len(field.choices) - 1)
            labels = [(i / steps, str(choice), -8) for i, choice in enumerate(field.choices)]
        else:
            assert field.ends is not None
            labels = [(0, f"{field.ends[0]:.4g}", 11), (1, f"{field.ends[1]:.4g}", -10)]
        names = ("height", "label", "shift")
        ticks += [{"axis": HEIGHT + field.name, **dict(zip(names, label, strict=True))} for label in labels]
    return ticks


def draw_importances(data: ChartData) -> Spec | None:
    """Draw a bar for each setting's importance, with its spread."""
    if data.importances.empty:
        return None
    place: Spec = {"y": {"field": "setting", "type": "nominal", "sort": {"field": "share", "order": "descending"}}}
    place["y"] |= {"title": None, "axis": {"labelLimit": 130}}
    colour: Spec = {"value": PALETTE[0]}
    if len(data.studies) > 1:
        place["yOffset"], colour = {"field": "study"}, _study_colour(data)
    share = {"field": "share", "type": "quantitative", "title": f"importance for {data.target} (PED-ANOVA)"}
    ends = {"x": {"field": "low", "type": "quantitative"}, "x2": {"field": "high"}}
    layers = [
        {"mark": {"type": "bar", "opacity": 0.75}, "encoding": {"x": share, "color": colour, **place}},
        {"mark": {"type": "rule", "style": "summary"}, "encoding": {**ends, **place}},
    ]
    step = 26 / len(data.studies) + 6
    return {"data": {"name": "importances"}, "params": [PICKED], "height": {"step": step}, "layer": layers}


def draw_seed_spread(data: ChartData) -> Spec | None:
    """Draw the best trials with the standard deviation of their target over the seeds."""
    spread = data.target + SPREAD
    if spread not in data.trials or data.trials[spread].isna().all():
        return None
    value, error = (f"datum['{name}']" for name in (data.target, spread))
    best = [
        {"filter": f"datum.rank && datum.rank <= {table.BEST}"},
        {"calculate": f"{value} - {error}", "as": "low"},
        {"calculate": f"{value} + {error}", "as": "high"},
    ]
    x: Spec = {"field": "rank", "type": "ordinal", "title": "rank"}
    x |= {"axis": {"labelAngle": 0}}
    y: Spec = {"type": "quantitative", "title": f"{data.target} ± its spread over the seeds", "scale": {"zero": False}}
    ends = {"x": x, "y": {"field": "low", **y}, "y2": {"field": "high"}, **_split(data)}
    means = {"x": x, "y": {"field": _escape(data.target), **y}, "color": _colour(data), "opacity": _fade(1.0)}
    return _layer(
        {"transform": best, "mark": {"type": "rule", "style": "summary"}, "encoding": ends},
        {"transform": best[:1], "mark": {"type": "point", "filled": True, "size": 60}, "encoding": means},
    )


def _draw_effect(data: ChartData, cause: Field, result: str) -> Spec:
    x, y = _axis(cause.name, cause), _clip(data, result)
    chosen = {"filter": f"datum.cause == '{cause.name}' && datum.result == '{result}'"}
    line = {
        "data": {"name": "trends"},
        "transform": [chosen],
        "mark": {"type": "line", "style": "summary", "point": {"filled": True, "size": 18}},
        "encoding": {"x": {**x, "field": "x"}, "y": {**y, "field": "y"}, **_split(data)},
    }
    spec = _layer(*_draw_points(data, x, {**y, "title": None}, legend=False), line, height=150)
    return {**spec, "title": result}


def _draw_points(data: ChartData, x: Spec, y: Spec, *, colour: Field | None = None, legend: bool = True) -> list[Spec]:
    """Return a layer of the trials, in which they can be selected, and a ring around the one that is pointed at."""
    shown = {"x": x, "y": y, "color": _colour(data), "opacity": _fade(0.9)}
    if colour is not None:
        scale = {"type": "log"} if colour.log else {}
        field = {"field": _escape(colour.name), "type": "quantitative"}
        shown["color"] = {**field, "title": colour.name, "scale": scale, "legend": {"format": ".2~g", "tickCount": 3}}
    shown["shape"] = {**_by_group(data, SHAPES), **({} if colour is None else {"legend": None})}
    large = "datum.group == 'best' || datum.group == 'tied' || datum.group == 'front'"
    shown["size"] = {"condition": {"test": large, "value": 110}, "value": 45}
    if not legend:
        shown |= {name: {**shown[name], "legend": None} for name in ("color", "shape")}
    ring = {"type": "point", "size": 240, "style": "pointed"}
    return [
        {"params": [SELECTABLE], "mark": {"type": "point", "filled": True}, "encoding": shown},
        {"data": {"name": "pointed"}, "mark": ring, "encoding": {"x": x, "y": y}},
    ]


def _layer(*layers: Spec, height: int = 280) -> Spec:
    return {"data": {"name": "trials"}, "params": [PICKED], "height": height, "layer": list(layers)}


def _axis(name: str, field: Field | None = None) -> Spec:
    """Return the axis of a column: a band for each choice, or numbers."""
    shown: Spec = {"field": _escape(name), "title": name}
    if field is not None and field.choices:
        return {**shown, "type": "nominal", "sort": list(field.choices), "axis": {"labelAngle": 0}}
    scale = {"type": "log"} if field is not None and field.log else {"zero": False}
    return {**shown, "type": "quantitative", "scale": {**scale, "nice": False, "padding": 8}}


def _clip(data: ChartData, name: str) -> Spec:
    """Return the axis of a result, whose outliers are drawn at its ends; `best` has the axis of the target."""
    source = data.target if name == "best" else name
    scale: Spec = {"zero": False}
    if source in data.ranges:
        scale |= {"domain": list(data.ranges[source]), "clamp": True, "nice": False}
    return {"field": _escape(name), "type": "quantitative", "title": source, "scale": scale}


def _colour(data: ChartData) -> Spec:
    return _study_colour(data) or _by_group(data, COLOURS)


def _study_colour(data: ChartData) -> Spec:
    """Return the colours of the studies; empty if there is only one."""
    names = [study.plan.name for study in data.studies]
    if len(names) == 1:
        return {}
    scale = {"domain": names, "range": [PALETTE[i % len(PALETTE)] for i in range(len(names))]}
    return {"field": "study", "type": "nominal", "title": None, "scale": scale}


def _by_group(data: ChartData, values: Mapping[str, str]) -> Spec:
    present = [name for name in values if (data.trials["group"] == name).any()]
    scale = {"domain": present, "range": [values[name] for name in present]}
    return {"field": "group", "type": "nominal", "title": None, "scale": scale}


def _split(data: ChartData) -> Spec:
    """Return the encoding of a summary: a line for each study."""
    return {"color": {**_study_colour(data), "legend": None}} if len(data.studies) > 1 else {}


def _fade(opacity: float) -> Spec:
    return {"condition": {"test": IS_PICKED, "value": opacity}, "value": 0.08}


def _escape(name: str) -> str:
    """Return the name of a column as Vega-Lite reads it: a dot would lead into a record."""
    return name.replace(".", "\\.")
