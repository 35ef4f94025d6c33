"""Does holding a factor still hold one latent still? The FactorVAE score."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from tqdm import tqdm

BATCH = 64
TRAIN_VOTES, TEST_VOTES = 10_000, 5_000
SPREAD_CODES, LEAST_SPREAD = 10_000, 0.05
VOTES_AT_ONCE = 250


def factor_vae_score(
    codes: Callable[[Tensor], Tensor],
    sizes: Sequence[int],
    *,
    train_votes: int = TRAIN_VOTES,
    test_votes: int = TEST_VOTES,
    generator: torch.Generator | None = None,
    progress: bool = False,
) -> float:
    """Return how often a majority vote names the factor that was held still, from the latent that moved least.

    A vote: 64 codes that share one value of one factor, both drawn at random like all else, elect the latent of the
    least variance relative to its variance over 10 000 codes; latents whose standard deviation there is below 0.05
    are left out. The classifier is the commonest factor of each latent among the training votes. Guessing gets 1 / F;
    a code without a latent left gets 0.

    Args:
        codes: codes of factors, `(B, F) -> (B, K)`, all from 0 to their sizes.
        sizes: how many values each factor has.

    Cost: 64 * (train_votes + test_votes), by default 960 000, codes of combinations drawn at random.

    Reference: Kim and Mnih, Disentangling by Factorising, 2018; numbers and pruning as in the code of Locatello et
    al., 2019, whose text has 0.05 as a variance.

    Example:
        >>> factor_vae_score(lambda factors: factors.double(), (3, 5), generator=torch.Generator().manual_seed(0))
        1.0
    """
    spread = codes(_draw(sizes, SPREAD_CODES, generator)).double().std(0)
    active = (spread >= LEAST_SPREAD).nonzero()[:, 0]
    if not len(active):
        return 0.0
    totals = []
    with tqdm(total=train_votes + test_votes, desc="FactorVAE votes", leave=False, disable=not progress) as bar:
        for votes in (train_votes, test_votes):
            total = torch.zeros(len(sizes), len(active), dtype=torch.int64)
            while (left := votes - int(total.sum())) > 0:
                held, elected = _vote(codes, sizes, min(left, VOTES_AT_ONCE), spread, active, generator)
                total.index_put_((held, elected.cpu()), torch.ones_like(held), accumulate=True)
                bar.update(len(held))
            totals.append(total)
    trained, tested = totals
    named = trained.argmax(0)
    return (tested[named, torch.arange(len(active))].sum() / tested.sum()).item()


def _vote(
    codes: Callable[[Tensor], Tensor],
    sizes: Sequence[int],
    votes: int,
    spread: Tensor,
    active: Tensor,
    generator: torch.Generator | None,
) -> tuple[Tensor, Tensor]:
    """Return which factors were held still and which of the active latents moved least, `(votes,)` each."""
    held = torch.randint(len(sizes), (votes,), generator=generator)
    factors = _draw(sizes, votes * BATCH, generator).unflatten(0, (votes, BATCH))
    each = torch.arange(votes)
    factors[each, :, held] = factors[each, :1, held]
    found = codes(factors.flatten(0, 1)).double().unflatten(0, (votes, BATCH))
    return held, (found.std(1) / spread)[:, active].argmin(1)


def _draw(sizes: Sequence[int], count: int, generator: torch.Generator | None) -> Tensor:
    """Return factors drawn uniformly and independently, `(count, F)`."""
    return torch.stack([torch.randint(size, (count,), generator=generator) for size in sizes], dim=1)
