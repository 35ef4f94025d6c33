"""Pictures of a trained model: tensors `(3 or 1, H, W)` in [0, 1] or matplotlib figures, and their files."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle
from PIL import Image
from torch import Tensor
from torchvision.utils import save_image

from vaebench.studies.image_grid import annotate, arrange
from vaebench.studies.whole_file import replacing
from vaebench.vae.data import Split, Splits
from vaebench.vae.evaluation.codes import (
    ACTIVE_VARIANCE,
    describe_latents,
    encode_all,
    represent_all,
    variance_of_means,
)
from vaebench.vae.metrics import binned_information
from vaebench.vae.metrics.labels import renumber
from vaebench.vae.model import GenerativeModel

COLUMNS = 10
MOST_LINES = 32
MOST_PASSES, MOST_PASSES_IN_TRAINING = 4096, 512
MOST_POINTS = 5000
FEW_CLASSES = 10
STRIP = "training.png"
WIDEST_EPOCH = "epoch 65536"


def draw_all(model: GenerativeModel, splits: Splits, folder: Path, *, seed: int = 0) -> list[Path]:
    """Save reconstructions, samples, and for a VAE a latent traversal and a scatter of codes, as PNG; return the files.

    Nothing is drawn where the data are no images, or where drawing takes too long, see `reason_not_drawn`.
    """
    if not are_images(splits) or reason_not_drawn(model):
        return []
    generator = torch.Generator(splits.test.device).manual_seed(seed)
    drawn = {
        "reconstructions": reconstructions(model, splits, generator),
        "samples": prior_samples(model, generator),
    }
    if model.has_codes:
        drawn["traversal"] = traversal(model, splits, generator)
    paths = {folder / f"{name}.png": picture for name, picture in drawn.items()}
    for path, picture in paths.items():
        save_image(picture, path)
    if not model.has_codes:
        return list(paths)
    latent_scatter(model, splits, generator).savefig(folder / "latent.png")
    return [*paths, folder / "latent.png"]


def are_images(splits: Splits) -> bool:
    """Whether the examples are grey or colour images."""
    return len(splits.shape) == 3 and splits.shape[0] in (1, 3)


def reason_not_drawn(model: GenerativeModel) -> str:
    """Return a sentence that says why no pictures of the model are drawn; empty if they are.

    An autoregressive flow decodes element by element, with 4 096 passes a layer for an image of 64 x 64. One picture
    takes minutes.
    """
    if model.passes <= MOST_PASSES:
        return ""
    return (
        "samples and reconstructions are left out: to draw from this flow takes "
        f"{model.passes} passes one after the other, and more than {MOST_PASSES} take minutes"
    )


@torch.no_grad()
def reconstructions(model: GenerativeModel, splits: Splits, generator: torch.Generator, rows: int = 3) -> Tensor:
    """Return groups of three rows: test examples x, E[x|z] at their codes (the posterior means), and |x - E[x|z]|."""
    columns = min(COLUMNS, len(splits.test))
    groups = min(rows, len(splits.test) // columns)
    x = splits.test.batch(torch.arange(groups * columns, device=splits.test.stored.device), generator)
    mean = model.reconstruct(x)
    lines = zip(x.split(columns), mean.split(columns), (x - mean).abs().split(columns), strict=True)
    grid = arrange(torch.cat([line for group in lines for line in group]), columns)
    return annotate(grid, ["original", "reconstruction", "error"] * groups)


@torch.no_grad()
def prior_samples(model: GenerativeModel, generator: torch.Generator, rows: int = 6) -> Tensor:
    """Return E[x|z] at codes z drawn from the prior."""
    return arrange(model.decode(model.sample_prior(rows * COLUMNS, generator)).mean, COLUMNS)


@torch.no_grad()
def extend_strip(model: GenerativeModel, epoch: int, device: torch.device, folder: Path, *, seed: int = 0) -> None:
    """Append a row to training.png after epochs 1, 2, 4, 8 and so on: samples of the model, always from the same noise.

    The rows of earlier epochs are read back from the file, so that a resumed run continues the picture.
    """
    if epoch & (epoch - 1) or model.passes > MOST_PASSES_IN_TRAINING:
        return
    samples = prior_samples(model, torch.Generator(device).manual_seed(seed), rows=1)
    row = annotate(samples, [f"epoch {epoch}"], widest=WIDEST_EPOCH)
    path, no_rows = folder / STRIP, row[:, :0]
    try:
        earlier = torch.from_numpy(np.array(Image.open(path))).movedim(-1, 0) / 255
    except OSError:  # missing, or damaged
        earlier = no_rows
    kept = earlier[:, : row.shape[1] * int(math.log2(epoch))] if earlier.shape[2] == row.shape[2] else no_rows
    with replacing(path) as unfinished:
        save_image(torch.cat([kept, row], dim=1), unfinished, format="png")


@torch.no_grad()
def traversal(model: GenerativeModel, splits: Splits, generator: torch.Generator, reach: float = 3.0) -> Tensor:
    """Return one row for each active latent: E[x|z] while this latent goes from -reach to reach.

    The other latents stay at the code of the first test example. At most 32 latents are shown, the most important on
    top, see `_importance`. A line below says how many are not; where none is active, the first is shown all the same.
    """
    known = splits.train.subsample(MOST_POINTS)  # of which `latent/active_units` is told as well
    active = variance_of_means(model, known, generator) > ACTIVE_VARIANCE
    importance = _importance(model, known, generator)
    order = importance.argsort(descending=True)
    shown = (order[active[order]] if active.any() else order[:1])[:MOST_LINES]
    first = splits.test.batch(torch.zeros(1, dtype=torch.int64, device=splits.test.stored.device), generator)
    values = torch.linspace(-reach, reach, COLUMNS, device=order.device)
    z = model.represent(first)[0].repeat(len(shown), COLUMNS, 1)
    for row, latent in enumerate(shown):
        z[row, :, latent] = values
    grid = arrange(model.decode(z).mean.flatten(0, 1), COLUMNS)
    kl = [f"  KL {importance[k]:.2f}" if _has_kl(model) else "" for k in shown]
    names = [f"z[{k}]{of}" for k, of in zip(shown.tolist(), kl, strict=True)]
    note = _explain_hidden(model.latent, int(active.sum()), len(shown))
    return annotate(grid, names, [f"{value:.1f}" for value in values], note)


def _explain_hidden(latents: int, active: int, shown: int) -> str:
    """Return a line on the latents that a traversal leaves out."""
    if not active:
        return f"none of the {latents} latents is in use: no mean moves with x"
    more = f"{active - shown} more of the {latents} latents are in use" if active > shown else ""
    unused = f"{latents - active} of {latents} latents not shown: their means do not move with x"
    return "; ".join(part for part in (more, unused if active < latents else "") if part)


@torch.no_grad()
def latent_scatter(model: GenerativeModel, splits: Splits, generator: torch.Generator) -> Figure:
    """Draw the codes of the training set in two latents, with circles at one and two standard deviations of the prior.

    With several factors there is one panel for each: the two latents with most information about the factor, coloured
    by its value. Otherwise the two most important latents are shown, coloured by class if there are classes.
    """
    shown = splits.train.subsample(MOST_POINTS)
    codes = represent_all(model, shown, generator).cpu()
    labels = None if shown.labels is None else shown.labels.cpu()
    names = splits.label_names or ("",)
    figure = Figure(figsize=(4.8 * len(names), 4), dpi=90, layout="constrained")
    for f, axes in enumerate(figure.subplots(1, len(names), squeeze=False)[0]):
        label = None if labels is None else labels[:, f]
        if label is not None and len(names) > 1:
            score = binned_information(codes, renumber(label[:, None]))[:, 0]
        else:
            score = _importance(model, shown, generator)
        first, second = score.argsort(descending=True)[[0, min(1, model.latent - 1)]].tolist()
        _scatter(axes, codes[:, first], codes[:, second], label, splits.class_names)
        axes.set(xlabel=f"z[{first}]", ylabel=f"z[{second}]", aspect="equal", title=names[f])
    return figure


def _scatter(axes: Axes, x: Tensor, y: Tensor, label: Tensor | None, names: Sequence[str]) -> None:
    """Draw points coloured by a label, whose values may have names, and the two circles of the prior."""
    values = [] if label is None else label.unique().tolist()
    if 0 < len(values) <= FEW_CLASSES:
        for place, value in enumerate(values):
            members = label == value
            name = names[value] if names else str(value)
            axes.scatter(x[members], y[members], s=3, alpha=0.6, color=f"C{place}", label=name)
        axes.legend(markerscale=3, fontsize="small", loc="upper left", bbox_to_anchor=(1, 1))
    else:
        points = axes.scatter(x, y, s=3, alpha=0.6, c=label)
        if label is not None:
            axes.figure.colorbar(points, ax=axes)
    for radius in (1, 2):
        axes.add_patch(Circle((0, 0), radius, fill=False, color="0.6"))


def _importance(model: GenerativeModel, split: Split, generator: torch.Generator) -> Tensor:
    """Return KL(q(z_k|x) || N(0, 1)) of each latent k in nats, averaged over a split, `(K,)`.

    Where a flow takes part, the KL of a single latent is unknown, and the variance of its means takes its place.
    """
    if _has_kl(model):
        return describe_latents(*encode_all(model, split, generator)).rate
    return variance_of_means(model, split, generator)


def _has_kl(model: GenerativeModel) -> bool:
    return model.prior_flow is None and model.posterior_flow is None
