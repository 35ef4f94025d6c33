"""The codes of a whole split, computed in batches that fit into memory."""

from collections.abc import Iterator

import torch
from torch import Tensor

from vaebench.vae.data import Split
from vaebench.vae.model import GenerativeModel
from vaebench.vae.prob.proposals import GaussianProposal

ROWS_AT_ONCE = 1024


@torch.no_grad()
def encode_all(model: GenerativeModel, split: Split, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
    """Return mu and logvar of q(z|x) for every example of a split, `(N, K)` each."""
    posteriors = [model.encode(x) for x in _batches(split, generator)]
    return torch.cat([q.mu for q in posteriors]), torch.cat([q.logvar for q in posteriors])


@torch.no_grad()
def represent_all(model: GenerativeModel, split: Split, generator: torch.Generator | None = None) -> Tensor:
    """Return one code for every example of a split, `(N, K)`: see `VAE.represent`."""
    return torch.cat([model.represent(x) for x in _batches(split, generator)])


@torch.no_grad()
def draw_codes(model: GenerativeModel, split: Split, samples: int, generator: torch.Generator | None = None) -> Tensor:
    """Return draws of q(z|x) for every example of a split, `(S, N, K)`."""
    codes = []
    for x in _batches(split, generator):
        q, context = model.encode_with_context(x)
        z0 = GaussianProposal(q.mu, q.logvar).sample(samples, generator)
        codes.append(model.transform(z0, context)[0])
    return torch.cat(codes, dim=1)


def _batches(split: Split, generator: torch.Generator | None) -> Iterator[Tensor]:
    index = torch.arange(len(split), device=split.stored.device)
    return split.batches(index.split(ROWS_AT_ONCE), generator)
