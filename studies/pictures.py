"""Pictures of a trained model, each a tensor `(3 or 1, H, W)` in [0, 1] or a figure, and functions that save them."""

import math
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle
from PIL import Image
from torch import Tensor
from torchvision.utils import make_grid, save_image

from vaebench.vae.data import Split, Splits
from vaebench.vae.evaluation.codes import encode_all, represent_all
from vaebench.vae.metrics import binned_information
from vaebench.vae.metrics.labels import ranked
from vaebench.vae.model import VAE
from vaebench.vae.model.flow import FlowModel

COLUMNS = 10
SMALLEST_SIDE = 48
MOST_LINES = 32
MOST_PASSES, MOST_PASSES_IN_TRAINING = 4096, 512
MOST_POINTS = 5000
FEW_CLASSES = 10
STRIP = "training.png"


def draw_all(model: VAE, splits: Splits, folder: Path, *, seed: int = 0) -> list[Path]:
    """Save what can be drawn as PNG: reconstructions, samples, and of codes traversals and a scatter.

    Data that are no images give no pictures, and a model that is too slow to draw from, see `left_out`, gives none.
    """
    if not are_images(splits) or left_out(model):
        return []
    generator = torch.Generator(splits.test.device).manual_seed(seed)
    drawn = {
        "reconstructions": reconstructions(model, splits, generator),
        "samples": prior_samples(model, generator, splits.test.device),
    }
    if not isinstance(model, FlowModel):
        drawn["traversal"] = traversal(model, splits, generator)
        latent_scatter(model, splits, generator).savefig(folder / "latent.png")
    for name, picture in drawn.items():
        save_image(picture, folder / f"{name}.png")
    scatter = [] if isinstance(model, FlowModel) else [folder / "latent.png"]
    return [*(folder / f"{name}.png" for name in drawn), *scatter]


def are_images(splits: Splits) -> bool:
    """Whether examples are grey or coloured images."""
    return len(splits.shape) == 3 and splits.shape[0] in (1, 3)


def left_out(model: VAE) -> str:
    """Return why nothing is drawn of a model, empty where something is.

    An autoregressive flow decodes element by element, 4 096 times a layer for an image of 64 x 64: minutes a picture.
    """
    if model.passes <= MOST_PASSES:
        return ""
    return (
        "samples and reconstructions are left out: to draw from this flow takes "
        f"{model.passes} passes one after the other, and more than {MOST_PASSES} take minutes"
    )


@torch.no_grad()
def reconstructions(model: VAE, splits: Splits, generator: torch.Generator, rows: int = 3) -> Tensor:
    """Return groups of three lines: test examples, E[x|z] at their codes, the posterior means, and what it misses."""
    columns = min(COLUMNS, len(splits.test))
    count = min(rows, len(splits.test) // columns) * columns
    x = splits.test.batch(torch.arange(count, device=splits.test.stored.device), generator)
    mean = model.decode(model.represent(x)).mean
    groups = zip(x.split(columns), mean.split(columns), (x - mean).abs().split(columns), strict=True)
    return _grid(torch.cat([line for group in groups for line in group]), columns)


@torch.no_grad()
def prior_samples(model: VAE, generator: torch.Generator, device: torch.device, rows: int = 6) -> Tensor:
    """Return E[x|z] at codes from the prior."""
    z = model.prior(torch.zeros(rows * COLUMNS, model.latent, device=device)).rsample(generator)
    return _grid(model.decode(z).mean, COLUMNS)


@torch.no_grad()
def extend_strip(model: VAE, epoch: int, device: torch.device, folder: Path, *, seed: int = 0) -> None:
    """Add a line to training.png after epochs 1, 2, 4, 8 and so on: samples of the model as it is, from the same noise.

    The lines of earlier epochs are read back from the file, so that a run that was stopped goes on with its strip.
    """
    if epoch & (epoch - 1) or model.passes > MOST_PASSES_IN_TRAINING:
        return
    line = prior_samples(model, torch.Generator(device).manual_seed(seed), device, rows=1).cpu()
    path, height = folder / STRIP, line.shape[1]
    earlier = _read_strip(path, line[:, :0])
    kept = earlier[:, : height * int(math.log2(epoch))] if earlier.shape[2] == line.shape[2] else line[:, :0]
    unfinished = path.with_name(f".{STRIP}")
    save_image(torch.cat([kept, line], dim=1), unfinished)
    unfinished.replace(path)


def _read_strip(path: Path, nothing: Tensor) -> Tensor:
    """Return a strip as it was saved, or nothing where there is none that can be read."""
    try:
        return torch.from_numpy(np.array(Image.open(path))).movedim(-1, 0) / 255
    except OSError:
        return nothing


@torch.no_grad()
def traversal(model: VAE, splits: Splits, generator: torch.Generator, reach: float = 3.0) -> Tensor:
    """Return one line a latent, at most 32, the one with the largest KL on top: E[x|z] from -reach to reach.

    The other latents stay at the code of the first test example.
    """
    shown = _kl(model, splits.test, generator).argsort(descending=True)[:MOST_LINES]
    first = splits.test.batch(torch.zeros(1, dtype=torch.int64, device=splits.test.stored.device), generator)
    z = model.represent(first)[0].repeat(len(shown), COLUMNS, 1)
    for line, latent in enumerate(shown):
        z[line, :, latent] = torch.linspace(-reach, reach, COLUMNS, device=z.device)
    return _grid(model.decode(z).mean.flatten(0, 1), COLUMNS)


@torch.no_grad()
def latent_scatter(model: VAE, splits: Splits, generator: torch.Generator) -> Figure:
    """Draw the codes of the training set in two latents, and two radii of the prior; a panel for each label.

    The latents are those that know most of a factor, coloured by its value; else the two of the largest KL, coloured by
    class where there are classes.
    """
    shown = splits.train.spread(MOST_POINTS)
    codes = represent_all(model, shown, generator).cpu()
    labels = None if shown.labels is None else ranked(shown.labels.cpu())
    names = splits.label_names or ("",)
    figure = Figure(figsize=(4.8 * len(names), 4), dpi=90, layout="constrained")
    for f, axes in enumerate(figure.subplots(1, len(names), squeeze=False)[0]):
        known = None if labels is None else labels[:, f]
        if known is not None and len(names) > 1:
            use = binned_information(codes, known[:, None])[:, 0]
        else:
            use = _kl(model, shown, generator)
        first, second = use.argsort(descending=True)[[0, min(1, model.latent - 1)]].tolist()
        _scatter(axes, codes[:, first], codes[:, second], known)
        axes.set(xlabel=f"z[{first}]", ylabel=f"z[{second}]", aspect="equal", title=names[f])
    return figure


def _scatter(axes: Axes, x: Tensor, y: Tensor, known: Tensor | None) -> None:
    """Draw points, coloured by a label, and two radii of the prior."""
    if known is not None and int(known.max()) < FEW_CLASSES:
        for value in known.unique().tolist():
            own = known == value
            axes.scatter(x[own], y[own], s=3, alpha=0.6, color=f"C{value}", label=str(value))
        axes.legend(markerscale=3, fontsize="small", loc="upper left", bbox_to_anchor=(1, 1))
    else:
        points = axes.scatter(x, y, s=3, alpha=0.6, c=known)
        if known is not None:
            axes.figure.colorbar(points, ax=axes)
    for radius in (1, 2):
        axes.add_patch(Circle((0, 0), radius, fill=False, color="0.6"))


def _kl(model: VAE, split: Split, generator: torch.Generator | None = None) -> Tensor:
    """Return twice the KL of each latent's Gaussian from N(0, 1), averaged over a split, `(K,)`."""
    mu, logvar = encode_all(model, split, generator)
    return (mu**2 + torch.expm1(logvar) - logvar).mean(0)


def _grid(images: Tensor, columns: int) -> Tensor:
    scale = max(1, -(-SMALLEST_SIDE // images.shape[-1]))
    enlarged = images.clamp(0, 1).repeat_interleave(scale, -1).repeat_interleave(scale, -2)
    return make_grid(enlarged, nrow=columns, padding=2, pad_value=0.5)
