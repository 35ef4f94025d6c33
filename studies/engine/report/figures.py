"""The figures of a study, each drawn from its table."""

from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from PIL import Image

from vaebench.studies.engine.report import table
from vaebench.studies.engine.study.plan import Plan
from vaebench.studies.engine.workers.job import TRIALS
from vaebench.studies.engine.workers.outcome import SPREAD

DPI = 100
SHEET_COLUMNS = 5


def history(frame: pd.DataFrame, plan: Plan) -> Figure:
    """Draw the target of each finished trial, and the best so far."""
    target = plan.target.metrics[0]
    finished = frame[frame["state"] == "finished"].sort_values("trial")
    figure, axes = _figure()
    best = finished[target].cummin() if plan.target.directions[0] == "minimize" else finished[target].cummax()
    axes.plot(finished["trial"], finished[target], "o", ms=4, label="trial")
    axes.plot(finished["trial"], best, drawstyle="steps-post", label="best so far")
    if len(finished):
        spread = finished[target].quantile([0, 0.9]).tolist() if best.is_monotonic_decreasing else None
        if spread and spread[1] > spread[0]:
            axes.set_ylim(spread[0] - 0.1 * (spread[1] - spread[0]), spread[1] + 0.3 * (spread[1] - spread[0]))
    axes.set(xlabel="trial", ylabel=target, title="Optimisation history")
    axes.legend()
    return figure


def importances(frame: pd.DataFrame, plan: Plan) -> Figure | None:
    """Draw a bar for each coordinate's importance for the target."""
    shares = table.importances(frame, plan)
    if not shares:
        return None
    figure, axes = _figure()
    names = list(reversed(shares))
    axes.barh(names, [shares[name] for name in names])
    axes.set(xlabel=f"importance for {plan.target.metrics[0]} (PED-ANOVA)", title="What matters")
    return figure


def parallel_coordinates(frame: pd.DataFrame, plan: Plan) -> Figure | None:
    """Draw a line for each finished trial across all numeric settings, coloured by rank, the best on top."""
    target = plan.target.metrics[0]
    ranked = table.rank(frame, plan).iloc[::-1]
    dimensions = [dimension for dimension in plan.space.dimensions if not dimension.choices]
    if len(ranked) < 2 or not dimensions:
        return None
    figure, axes = _figure(width=8)
    values = ranked[[dimension.name for dimension in dimensions]].astype(float)
    logs = [dimension.name for dimension in dimensions if dimension.log]
    columns = values.assign(**np.log10(values[logs]), **{target: ranked[target].rank()})
    heights = (columns - columns.min()) / (columns.max() - columns.min()).replace(0, 1)
    colours = mpl.colormaps["viridis"](np.linspace(1, 0, len(ranked)))
    for line, colour in zip(heights.to_numpy(), colours, strict=True):
        axes.plot(line, color=colour, alpha=0.8)
    for i, name in enumerate(values):
        for height, value in ((0, values[name].min()), (1, values[name].max())):
            offset = (0, 12 * (2 * height - 1))
            axes.annotate(f"{value:.3g}", (i, height), offset, textcoords="offset points", ha="center")
    labels = [f"{d.name}{' (log)' if d.log else ''}".replace(".", ".\n") for d in dimensions]
    axes.set_xticks(range(len(labels) + 1), [*labels, f"rank of\n{target}"])
    axes.set(yticks=[], ylim=(-0.12, 1.12), title="Settings, dark is better")
    return figure


def rate_distortion(frame: pd.DataFrame) -> Figure | None:
    """Draw distortion over rate on the validation split, coloured by beta, and the Pareto front."""
    rate, distortion = "valid/rate", "valid/distortion"
    if not {rate, distortion} <= set(frame):
        return None
    ended = frame[frame["state"].isin(["finished", "pruned"])].dropna(subset=[rate, distortion])
    if ended.empty:
        return None
    figure, axes = _figure()
    colour = next((name for name in ("objective.beta", "w_kl") if name in ended and ended[name].nunique() > 1), None)
    values = ended[colour].astype(float) if colour else None
    norm = LogNorm() if values is not None and values.min() > 0 else Normalize()
    points = axes.scatter(ended[rate], ended[distortion], c=values, norm=norm if colour else None, s=22)
    if colour:
        figure.colorbar(points, label=colour)
    ordered = ended.sort_values([rate, distortion])
    front = ordered[ordered[distortion] < ordered[distortion].cummin().shift(fill_value=np.inf)]
    axes.plot(front[rate], front[distortion], "k-", lw=0.8, drawstyle="steps-post", label="front")
    axes.set(xlabel="rate (nats)", ylabel="distortion (nats)", title="Rate and distortion")
    axes.set_ylim(top=float(ended[distortion].quantile(0.95)) * 1.05)
    axes.legend()
    return figure


def effects(frame: pd.DataFrame) -> Figure | None:
    """Draw mutual information and the divergences of q(z) from the prior over alpha and lambda."""
    settings = [name for name in ("objective.alpha", "objective.lambda") if name in frame]
    results = [name for name in ("latent/mi", "latent/kl_aggregate", "latent/mmd2") if name in frame]
    if not settings or not results:
        return None
    figure = Figure(figsize=(3.2 * len(results), 2.8 * len(settings)), dpi=DPI, layout="constrained")
    grid = figure.subplots(len(settings), len(results), squeeze=False)
    found = frame[frame["state"].isin(["finished", "pruned"])]
    for row, setting in zip(grid, settings, strict=True):
        for axes, result in zip(row, results, strict=True):
            axes.plot(found[setting], found[result], "o", ms=3)
            axes.set(xlabel=setting, ylabel=result, xscale="log" if setting.endswith("lambda") else "linear")
    return figure


def seed_spread(frame: pd.DataFrame, plan: Plan) -> Figure | None:
    """Draw the mean of the ten best trials over their seeds, with its standard deviation."""
    target = plan.target.metrics[0]
    best, spread = table.rank(frame, plan).head(table.BEST), target + SPREAD
    if spread not in best or best[spread].isna().all():
        return None
    figure, axes = _figure()
    labels = [str(number) for number in best["trial"]]
    axes.errorbar(labels, best[target], best[spread], fmt="o", capsize=3)
    axes.set(xlabel="trial", ylabel=target, title=f"Spread over {plan.seeds} seeds")
    return figure


def contact_sheet(folders: list[Path], picture: str) -> Image.Image | None:
    """Put one picture of each of several trials side by side, best first."""
    paths = [folder / picture for folder in folders if (folder / picture).exists()]
    if not paths:
        return None
    tiles = [Image.open(path).convert("RGB") for path in paths]
    width, height = tiles[0].size
    rows = -(-len(tiles) // SHEET_COLUMNS)
    sheet = Image.new("RGB", (min(len(tiles), SHEET_COLUMNS) * (width + 8), rows * (height + 8)), "white")
    for i, tile in enumerate(tiles):
        sheet.paste(tile, (i % SHEET_COLUMNS * (width + 8), i // SHEET_COLUMNS * (height + 8)))
    return sheet


def draw_all(frame: pd.DataFrame, plan: Plan) -> dict[str, Path]:
    """Save each figure for which the trials have the data in the study's folder; return the files by name."""
    folder = plan.folder / "figures"
    folder.mkdir(parents=True, exist_ok=True)
    best = [plan.folder / TRIALS / str(number) for number in table.rank(frame, plan).head(table.BEST)["trial"]]
    figures = {
        "history": history(frame, plan),
        "importances": importances(frame, plan),
        "parallel": parallel_coordinates(frame, plan),
        "rate_distortion": rate_distortion(frame),
        "effects": effects(frame),
        "seed_spread": seed_spread(frame, plan),
        "best_samples": contact_sheet(best, "samples_0.png"),
        "best_reconstructions": contact_sheet(best, "reconstructions_0.png"),
    }
    drawn = {}
    for name, figure in figures.items():
        if figure is None:
            continue
        drawn[name] = folder / f"{name}.png"
        if isinstance(figure, Figure):
            figure.savefig(drawn[name])
        else:
            figure.save(drawn[name])
    return drawn


def _figure(width: float = 6) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, 4), dpi=DPI, layout="constrained")
    return figure, figure.add_subplot()
