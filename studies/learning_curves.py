"""Learning curves of a run: the ELBO and its terms by epoch, in training and in validation."""

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from vaebench.vae.config.run import Run

COLOURS = {"train": "C0", "valid": "C1", "latent": "C1"}  # active units are those of the validation split
PANELS = {
    "ELBO, nats": ("train/elbo", "valid/elbo"),
    "distortion, nats": ("train/distortion", "valid/distortion"),
    "rate, nats": ("train/rate", "valid/rate"),
    "active units": ("latent/active_units",),
}
FEW = 30  # epochs, each of which is then a dot too

Records = Sequence[Mapping[str, float]]


def draw_curves(records: Records, config: Run, best_epoch: int) -> Figure:
    """Draw the curves of the records of epochs, a panel for each term.

    Grey are the epochs of the warm-up, or of weights that the objective itself changes; a line marks the best epoch.
    """
    panels = {title: names for title, names in PANELS.items() if any(name in one for name in names for one in records)}
    figure = Figure(figsize=(3.3 * len(panels), 3), dpi=100, layout="constrained")
    for axes, (title, names) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        for name in names:
            _plot(axes, records, name)
        _mark(axes, config, best_epoch, len(records))
        axes.set(title=title, xlabel="epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.axes[0].legend(fontsize="small")
    return figure


def _plot(axes: Axes, records: Records, name: str) -> None:
    """Plot a metric against the epochs that have it."""
    points = [(one["epoch"], one[name]) for one in records if name in one]
    split = name.partition("/")[0]
    axes.plot(*zip(*points, strict=True), marker="." if len(points) <= FEW else "", color=COLOURS[split], label=split)


def _mark(axes: Axes, config: Run, best_epoch: int, epochs: int) -> None:
    rising = {"warm-up of the weights": config.train.warmup_epochs, "objective changes": config.objective.settled_after}
    for label, last in rising.items():
        if last:
            axes.axvspan(0, min(last, epochs), color="0.5", alpha=0.2, linewidth=0, label=label)
    if best_epoch:
        axes.axvline(best_epoch, color="0.4", linestyle=":", linewidth=1, label="best epoch")
