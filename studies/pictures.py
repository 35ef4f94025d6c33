"""Pictures of a trained model: tensors `(3 or 1, H, W)` in [0, 1] or matplotlib figures, and their files."""

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
from vaebench.vae.metrics.labels import renumber
from vaebench.vae.model import GenerativeModel

COLUMNS = 10
SMALLEST_SIDE = 48
MOST_LINES = 32
MOST_PASSES, MOST_PASSES_IN_TRAINING = 4096, 512
MOST_POINTS = 5000
FEW_CLASSES = 10
STRIP = "training.png"


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
    count = min(rows, len(splits.test) // columns) * columns
    x = splits.test.batch(torch.arange(count, device=splits.test.stored.device), generator)
    mean = model.decode(model.represent(x)).mean
    groups = zip(x.split(columns), mean.split(columns), (x - mean).abs().split(columns), strict=True)
    return _grid(torch.cat([row for group in groups for row in group]), columns)


@torch.no_grad()
def prior_samples(model: GenerativeModel, generator: torch.Generator, rows: int = 6) -> Tensor:
    """Return E[x|z] at codes z drawn from the prior."""
    return _grid(model.decode(model.sample_prior(rows * COLUMNS, generator)).mean, COLUMNS)


@torch.no_grad()
def extend_strip(model: GenerativeModel, epoch: int, device: torch.device, folder: Path, *, seed: int = 0) -> None:
    """Append a row to training.png after epochs 1, 2, 4, 8 and so on: samples of the model, always from the same noise.

    The rows of earlier epochs are read back from the file, so that a resumed run continues the picture.
    """
    if epoch & (epoch - 1) or model.passes > MOST_PASSES_IN_TRAINING:
        return
    row = prior_samples(model, torch.Generator(device).manual_seed(seed), rows=1).cpu()
    path, no_rows = folder / STRIP, row[:, :0]
    try:
        earlier = torch.from_numpy(np.array(Image.open(path))).movedim(-1, 0) / 255
    except OSError:  # missing, or damaged
        earlier = no_rows
    kept = earlier[:, : row.shape[1] * int(math.log2(epoch))] if earlier.shape[2] == row.shape[2] else no_rows
    unfinished = path.with_name(f".{STRIP}")
    save_image(torch.cat([kept, row], dim=1), unfinished)
    unfinished.replace(path)


@torch.no_grad()
def traversal(model: GenerativeModel, splits: Splits, generator: torch.Generator, reach: float = 3.0) -> Tensor:
    """Return one row for each latent: E[x|z] while this latent goes from -reach to reach.

    The other latents stay at the code of the first test example. The 32 latents of largest KL are shown, the largest
    on top.
    """
    shown = _kl(model, splits.test, generator).argsort(descending=True)[:MOST_LINES]
    first = splits.test.batch(torch.zeros(1, dtype=torch.int64, device=splits.test.stored.device), generator)
    z = model.represent(first)[0].repeat(len(shown), COLUMNS, 1)
    for row, latent in enumerate(shown):
        z[row, :, latent] = torch.linspace(-reach, reach, COLUMNS, device=z.device)
    return _grid(model.decode(z).mean.flatten(0, 1), COLUMNS)


@torch.no_grad()
def latent_scatter(model: GenerativeModel, splits: Splits, generator: torch.Generator) -> Figure:
    """Draw the codes of the training set in two latents, with circles at one and two standard deviations of the prior.

    With several factors there is one panel for each: the two latents with most information about the factor, coloured
    by its value. Otherwise the two latents of largest KL are shown, coloured by class if there are classes.
    """
    shown = splits.train.subsample(MOST_POINTS)
    codes = represent_all(model, shown, generator).cpu()
    labels = None if shown.labels is None else renumber(shown.labels.cpu())
    names = splits.label_names or ("",)
    figure = Figure(figsize=(4.8 * len(names), 4), dpi=90, layout="constrained")
    for f, axes in enumerate(figure.subplots(1, len(names), squeeze=False)[0]):
        label = None if labels is None else labels[:, f]
        if label is not None and len(names) > 1:
            score = binned_information(codes, label[:, None])[:, 0]
        else:
            score = _kl(model, shown, generator)
        first, second = score.argsort(descending=True)[[0, min(1, model.latent - 1)]].tolist()
        _scatter(axes, codes[:, first], codes[:, second], label)
        axes.set(xlabel=f"z[{first}]", ylabel=f"z[{second}]", aspect="equal", title=names[f])
    return figure


def _scatter(axes: Axes, x: Tensor, y: Tensor, label: Tensor | None) -> None:
    """Draw points coloured by a label, and the two circles of the prior."""
    if label is not None and int(label.max()) < FEW_CLASSES:
        for value in label.unique().tolist():
            members = label == value
            axes.scatter(x[members], y[members], s=3, alpha=0.6, color=f"C{value}", label=str(value))
        axes.legend(markerscale=3, fontsize="small", loc="upper left", bbox_to_anchor=(1, 1))
    else:
        points = axes.scatter(x, y, s=3, alpha=0.6, c=label)
        if label is not None:
            axes.figure.colorbar(points, ax=axes)
    for radius in (1, 2):
        axes.add_patch(Circle((0, 0), radius, fill=False, color="0.6"))


def _kl(model: GenerativeModel, split: Split, generator: torch.Generator | None = None) -> Tensor:
    """Return twice KL(q(z_k|x) || N(0, 1)) for each latent k, averaged over a split, `(K,)`."""
    mu, logvar = encode_all(model, split, generator)
    return (mu**2 + torch.expm1(logvar) - logvar).mean(0)


def _grid(images: Tensor, columns: int) -> Tensor:
    scale = max(1, -(-SMALLEST_SIDE // images.shape[-1]))
    enlarged = images.clamp(0, 1).repeat_interleave(scale, -1).repeat_interleave(scale, -2)
    return make_grid(enlarged, nrow=columns, padding=2, pad_value=0.5)
