"""The figures of a session: speed over the baseline, share of copy bandwidth, and memory, against size."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

from vaebench.bench.session.group import GRAPH, Group
from vaebench.bench.session.read import Session

COLOURS = {"eager": "tab:gray", "compile": "tab:blue", "numba": "tab:orange", "triton": "tab:green"}
OTHER_COLOUR = "tab:purple"
FINE = tuple(tuple(place / 100 for place in range(100, 1000, step)) for step in (5, 10))
COARSE = ((1, 1.25, 1.5, 2, 2.5, 3, 4, 5, 6, 8), (1, 1.5, 2, 3, 5, 7), (1, 2, 5), (1,))
TICK_SCALES = FINE + COARSE  # within a decade, finest first
MOST_TICKS = 10

Panel = Callable[[Axes, Sequence[Group], str], None]


def draw(session: Session) -> list[Path]:
    """Draw the groups of the kernels in float32, forward and backward; return the files."""
    subjects = {
        name: sorted(chosen, key=_input_bytes)
        for name, groups in session.subjects.items()
        if (chosen := [group for group in groups if _is_drawn(group)])
    }
    moving = {name: groups for name, groups in subjects.items() if groups[0].moves_bytes}
    copy_rate = session.machine["copy_bytes_per_s"]

    def plot_bandwidth(axes: Axes, groups: Sequence[Group], provider: str) -> None:
        moved = [group.extra_info[provider]["model_bytes"] for group in groups]
        rates = [count / group.seconds(provider) for count, group in zip(moved, groups, strict=True)]
        axes.plot(moved, [100 * rate / copy_rate for rate in rates], label=provider, **_style(provider))
        axes.axhline(100, color="grey", lw=0.8)

    figures: dict[str, tuple[Mapping[str, Sequence[Group]], Panel, str, str]] = {
        "speed": (subjects, plot_speed, "bytes of inputs", "speed over eager"),
        "bandwidth": (moving, plot_bandwidth, "bytes that must be moved", "% of copy bandwidth"),
        "memory": (subjects, plot_memory, "bytes of inputs", "peak memory over that of the inputs"),
    }
    return [_draw_figure(session, name, *figure) for name, figure in figures.items() if figure[0]]


def plot_speed(axes: Axes, groups: Sequence[Group], provider: str) -> None:
    """Plot the speed over the baseline, with intervals; a band shows the baseline over itself."""
    sizes = [_input_bytes(group) for group in groups]
    if provider == groups[0].baseline:
        floors = [group.comparison.noise_floor for group in groups]
        lows, highs = [floor.low for floor in floors], [floor.high for floor in floors]
        axes.fill_between(sizes, lows, highs, alpha=0.2, color="grey", label=f"{provider} against itself")
        axes.axhline(1, color="grey", lw=0.8)
        return
    ratios = [group.speed(provider) for group in groups]
    spread = [[ratio.median - ratio.low for ratio in ratios], [ratio.high - ratio.median for ratio in ratios]]
    axes.errorbar(sizes, [ratio.median for ratio in ratios], spread, capsize=3, label=provider, **_style(provider))


def plot_memory(axes: Axes, groups: Sequence[Group], provider: str) -> None:
    """Plot the most bytes held at once over the bytes of the inputs."""
    peaks = [(_input_bytes(group), group.extra_info[provider].get("peak_bytes")) for group in groups]
    known = [(size, count / size) for size, count in peaks if count]
    if known:
        axes.plot(*zip(*known, strict=True), label=provider, **_style(provider))


def choose_ticks(low: float, high: float) -> list[float]:
    """Return at most ten round numbers between two, on the finest scale that has so few."""
    for scale in TICK_SCALES:
        ticks = [step * 10.0**place for place in range(-9, 10) for step in scale if low <= step * 10.0**place <= high]
        if len(ticks) <= MOST_TICKS:
            break
    return ticks


def _draw_figure(
    session: Session, name: str, subjects: Mapping[str, Sequence[Group]], panel: Panel, xlabel: str, ylabel: str
) -> Path:
    figure = Figure(figsize=(4 * len(subjects) + 1.8, 3.4), layout="constrained")
    panels = figure.subplots(1, len(subjects), squeeze=False)[0]
    handles: dict[str, Artist] = {}
    for axes, (subject, groups) in zip(panels, subjects.items(), strict=True):
        for provider in dict.fromkeys(name for group in groups for name in group.providers):
            panel(axes, [group for group in groups if provider in group.providers], provider)
        axes.set(title=subject, xlabel=xlabel, xscale="log", yscale="log")
        axes.yaxis.set_major_locator(FixedLocator(choose_ticks(*axes.get_ylim())))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.10g}")
        axes.grid(alpha=0.3)
        handles |= {label: handle for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    panels[0].set_ylabel(ylabel)
    figure.legend(list(handles.values()), list(handles), loc="outside right center", fontsize="small")
    path = session.path.with_name(f"{session.path.stem}-{name}.png")
    figure.savefig(path, dpi=110)
    return path


def _style(provider: str) -> dict[str, Any]:
    """Return the style of a provider in every figure; a CUDA graph is drawn dashed, in the colour of its original."""
    plain = provider.removesuffix(GRAPH)
    dashes = {"marker": "s", "linestyle": "--"} if plain != provider else {"marker": "o", "linestyle": "-"}
    return {"color": COLOURS.get(plain, OTHER_COLOUR), **dashes}


def _is_drawn(group: Group) -> bool:
    info = group.extra_info[group.baseline]
    return (info.get("dtype"), info.get("direction")) == ("float32", "both")


def _input_bytes(group: Group) -> int:
    return int(group.extra_info[group.baseline]["input_bytes"])
