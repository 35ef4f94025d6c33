"""Pictures of a trained model, each a tensor `(3 or 1, H, W)` in [0, 1] and a function that saves it."""

from pathlib import Path

import torch
from torch import Tensor
from torchvision.utils import make_grid, save_image

from vae.data import Splits
from vae.evaluate import encode_all
from vae.model import VAE

COLUMNS = 10
SMALLEST_SIDE = 48
MOST_LINES = 32


def draw_all(model: VAE, splits: Splits, folder: Path, *, seed: int = 0) -> list[Path]:
    """Save reconstructions, prior samples and a traversal as PNG; data that are no images give no pictures."""
    if len(splits.shape) != 3 or splits.shape[0] not in (1, 3):
        return []
    generator = torch.Generator(splits.test.device).manual_seed(seed)
    drawn = {
        "reconstructions": reconstructions(model, splits, generator),
        "samples": prior_samples(model, generator, splits.test.device),
        "traversal": traversal(model, splits, generator),
    }
    for name, picture in drawn.items():
        save_image(picture, folder / f"{name}.png")
    return [folder / f"{name}.png" for name in drawn]


@torch.no_grad()
def reconstructions(model: VAE, splits: Splits, generator: torch.Generator, rows: int = 3) -> Tensor:
    """Return pairs of lines: test examples above, E[x|z] at their codes, the posterior means, below."""
    columns = min(COLUMNS, len(splits.test))
    count = min(rows, len(splits.test) // columns) * columns
    x = splits.test.batch(torch.arange(count, device=splits.test.stored.device), generator)
    mean = model.decode(model.represent(x)).mean
    lines = [line for pair in zip(x.split(columns), mean.split(columns), strict=True) for line in pair]
    return _grid(torch.cat(lines), columns)


@torch.no_grad()
def prior_samples(model: VAE, generator: torch.Generator, device: torch.device, rows: int = 6) -> Tensor:
    """Return E[x|z] at codes from the prior."""
    z = model.prior(torch.zeros(rows * COLUMNS, model.latent, device=device)).rsample(generator)
    return _grid(model.decode(z).mean, COLUMNS)


@torch.no_grad()
def traversal(model: VAE, splits: Splits, generator: torch.Generator, reach: float = 3.0) -> Tensor:
    """Return one line a latent, at most 32, the one with the largest KL on top: E[x|z] from -reach to reach.

    The other latents stay at the code of the first test example.
    """
    mu, logvar = encode_all(model, splits.test, generator)
    kl = (mu**2 + torch.expm1(logvar) - logvar).mean(0)
    shown = kl.argsort(descending=True)[:MOST_LINES]
    first = splits.test.batch(torch.zeros(1, dtype=torch.int64, device=splits.test.stored.device), generator)
    z = model.represent(first)[0].repeat(len(shown), COLUMNS, 1)
    for line, latent in enumerate(shown):
        z[line, :, latent] = torch.linspace(-reach, reach, COLUMNS, device=z.device)
    return _grid(model.decode(z).mean.flatten(0, 1), COLUMNS)


def _grid(images: Tensor, columns: int) -> Tensor:
    scale = max(1, -(-SMALLEST_SIDE // images.shape[-1]))
    enlarged = images.clamp(0, 1).repeat_interleave(scale, -1).repeat_interleave(scale, -2)
    return make_grid(enlarged, nrow=columns, padding=2, pad_value=0.5)
