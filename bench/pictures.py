"""The pictures of a session: speed over the baseline, fraction of copy bandwidth and memory, against size."""

from collections.abc import Callable, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bench.saved import SavedGroup, Session

MODE = ("float32", "both")
Panel = Callable[[Axes, Sequence[SavedGroup], str], None]


def draw(session: Session) -> list[Path]:
    """Draw what the session has of the kernels, float32, forward and backward; return the files."""
    subjects = {
        name: sorted((group for group in groups if _mode(group) == MODE), key=_size)
        for name, groups in session.subjects.items()
    }
    subjects = {name: groups for name, groups in subjects.items() if groups}
    if not subjects:
        return []
    copy = session.machine["copy_bytes_per_s"]

    def share(axes: Axes, groups: Sequence[SavedGroup], provider: str) -> None:
        moved = [group.facts[provider]["model_bytes"] for group in groups]
        rates = [count / group.seconds(provider).median for count, group in zip(moved, groups, strict=True)]
        axes.plot(moved, [rate / copy for rate in rates], "o-", label=provider)

    pages: dict[str, tuple[Panel, str, str]] = {
        "speed": (speed, "bytes of inputs", "speed over eager"),
        "bandwidth": (share, "bytes that must be moved", "fraction of copy bandwidth"),
        "memory": (peak, "bytes of inputs", "peak memory over that of the inputs"),
    }
    return [_page(session, subjects, name, *page) for name, page in pages.items()]


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
    else:
        axes.errorbar(sizes, middles, spread, fmt="o-", capsize=3, label=provider)


def peak(axes: Axes, groups: Sequence[SavedGroup], provider: str) -> None:
    """Draw the most bytes held at once over those of the inputs."""
    held = [group.facts[provider].get("peak_bytes") for group in groups]
    if None not in held:
        pairs = zip(held, groups, strict=True)
        axes.plot(
            [_size(group) for group in groups], [count / _size(group) for count, group in pairs], "o-", label=provider
        )


def _page(
    session: Session, subjects: dict[str, list[SavedGroup]], name: str, panel: Panel, xlabel: str, ylabel: str
) -> Path:
    figure = Figure(figsize=(4 * len(subjects), 3.4), layout="constrained")
    panels = figure.subplots(1, len(subjects), squeeze=False)[0]
    for axes, (subject, groups) in zip(panels, subjects.items(), strict=True):
        for provider in groups[0].providers:
            panel(axes, [group for group in groups if provider in group.providers], provider)
        axes.set(title=subject, xlabel=xlabel, xscale="log")
        axes.set_yscale("log", base=2)
        axes.yaxis.set_major_formatter("{x:.3g}")
        axes.axhline(1, color="grey", lw=0.8)
        axes.grid(alpha=0.3)
    panels[0].set_ylabel(ylabel)
    panels[0].legend(fontsize="small")
    path = session.path.with_name(f"{session.path.stem}-{name}.png")
    figure.savefig(path, dpi=110)
    return path


def _mode(group: SavedGroup) -> tuple[str | None, str | None]:
    facts = group.facts[group.baseline]
    return facts.get("dtype"), facts.get("direction")


def _size(group: SavedGroup) -> int:
    size: int = group.facts[group.baseline]["input_bytes"]
    return size
