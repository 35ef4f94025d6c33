"""The pictures of a session: speed over the baseline, share of copy bandwidth and memory, against size."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

from vaebench.bench.session.read import SavedGroup, Session

MODE = ("float32", "both")
COLOURS = {"eager": "tab:gray", "compile": "tab:blue", "analytic": "tab:orange", "triton": "tab:green"}
OTHER_COLOUR = "tab:purple"
GRAPH = "+graph"
FINE = tuple(tuple(place / 100 for place in range(100, 1000, step)) for step in (5, 10))
COARSE = ((1, 1.25, 1.5, 2, 2.5, 3, 4, 5, 6, 8), (1, 1.5, 2, 3, 5, 7), (1, 2, 5), (1,))
STEPS = FINE + COARSE  # within a decade, finest first
MOST_TICKS = 10

Subjects = Mapping[str, Sequence[SavedGroup]]
Panel = Callable[[Axes, Sequence[SavedGroup], str], None]


def draw(session: Session) -> list[Path]:
    """Draw what the session has of the kernels, float32, forward and backward; return the files."""
    chosen = {
        name: sorted((group for group in groups if _mode(group) == MODE), key=_size)
        for name, groups in session.subjects.items()
    }
    subjects = {name: groups for name, groups in chosen.items() if groups}
    moving = {name: groups for name, groups in subjects.items() if groups[0].moves_bytes}
    copy = session.machine["copy_bytes_per_s"]

    def share(axes: Axes, groups: Sequence[SavedGroup], provider: str) -> None:
        moved = [group.facts[provider]["model_bytes"] for group in groups]
        rates = [count / group.seconds(provider).median for count, group in zip(moved, groups, strict=True)]
        axes.plot(moved, [100 * rate / copy for rate in rates], label=provider, **_style(provider))
        axes.axhline(100, color="grey", lw=0.8)

    pages: dict[str, tuple[Subjects, Panel, str, str]] = {
        "speed": (subjects, speed, "bytes of inputs", "speed over eager"),
        "bandwidth": (moving, share, "bytes that must be moved", "% of copy bandwidth"),
        "memory": (subjects, peak, "bytes of inputs", "peak memory over that of the inputs"),
    }
    return [_page(session, name, *page) for name, page in pages.items() if page[0]]


def speed(axes: Axes, groups: Sequence[SavedGroup], provider: str) -> None:
    """Draw times the speed of the baseline, with intervals; the band is the baseline against itself."""
    ratios = [group.speed(provider) for group in groups]
    middles = [ratio.median for ratio in ratios]
    spread = [[ratio.median - ratio.low for ratio in ratios], [ratio.high - ratio.median for ratio in ratios]]
    sizes = [_size(group) for group in groups]
    if provider == groups[0].baseline:
        floors = [group.compared.floor() for group in groups]
        lows, highs = [floor.low for floor in floors], [floor.high for floor in floors]
        axes.fill_between(sizes, lows, highs, alpha=0.2, color="grey", label=f"{provider} against itself")
        axes.axhline(1, color="grey", lw=0.8)
    else:
        axes.errorbar(sizes, middles, spread, capsize=3, label=provider, **_style(provider))


def peak(axes: Axes, groups: Sequence[SavedGroup], provider: str) -> None:
    """Draw the most bytes held at once over those of the inputs."""
    held = [(_size(group), group.facts[provider].get("peak_bytes")) for group in groups]
    known = [(size, count / size) for size, count in held if count]
    if known:
        axes.plot(*zip(*known, strict=True), label=provider, **_style(provider))


def ticks(low: float, high: float) -> list[float]:
    """Return round numbers between two, up to ten, the finest such of a few scales."""
    for steps in STEPS:
        there = [step * 10.0**place for place in range(-9, 10) for step in steps if low <= step * 10.0**place <= high]
        if len(there) <= MOST_TICKS:
            break
    return there


def _page(session: Session, name: str, subjects: Subjects, panel: Panel, xlabel: str, ylabel: str) -> Path:
    figure = Figure(figsize=(4 * len(subjects) + 1.8, 3.4), layout="constrained")
    panels = figure.subplots(1, len(subjects), squeeze=False)[0]
    named = {}
    for axes, (subject, groups) in zip(panels, subjects.items(), strict=True):
        for provider in dict.fromkeys(name for group in groups for name in group.providers):
            panel(axes, [group for group in groups if provider in group.providers], provider)
        axes.set(title=subject, xlabel=xlabel, xscale="log", yscale="log")
        axes.yaxis.set_major_locator(FixedLocator(ticks(*axes.get_ylim())))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.10g}")
        axes.grid(alpha=0.3)
        named |= {label: handle for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    panels[0].set_ylabel(ylabel)
    figure.legend(named.values(), named.keys(), loc="outside right center", fontsize="small")
    path = session.path.with_name(f"{session.path.stem}-{name}.png")
    figure.savefig(path, dpi=110)
    return path


def _style(provider: str) -> dict[str, str]:
    """Return how a provider is drawn, the same in every picture; a CUDA graph as what it replays, but dashed."""
    plain = provider.removesuffix(GRAPH)
    dashes = {"marker": "s", "linestyle": "--"} if plain != provider else {"marker": "o", "linestyle": "-"}
    return {"color": COLOURS.get(plain, OTHER_COLOUR), **dashes}


def _mode(group: SavedGroup) -> tuple[str | None, str | None]:
    facts = group.facts[group.baseline]
    return facts.get("dtype"), facts.get("direction")


def _size(group: SavedGroup) -> int:
    size: int = group.facts[group.baseline]["input_bytes"]
    return size
