"""The FactorVAE score: does one latent stay constant while a factor is fixed?"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from tqdm import tqdm

BATCH = 64
TRAIN_VOTES, TEST_VOTES = 10_000, 5_000
SPREAD_CODES, MIN_SPREAD = 10_000, 0.05
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
    """Return the accuracy of a majority vote that predicts the fixed factor from the latent that varies least.

    A vote takes 64 codes that share one random value of one random factor; all other factors are random. It elects the
    latent with the smallest variance relative to its variance over 10 000 codes; latents with a standard deviation
    below 0.05 there are left out. The classifier predicts the most common factor of the elected latent among the
    training votes. Guessing scores 1 / F; a code whose latents are all left out scores 0.

    Args:
        codes: function from factors to codes, `(B, F) -> (B, K)`, with factor values from 0.
        sizes: the number of values of each factor.

    Cost: 64 * (train_votes + test_votes) codes of random combinations, by default 960 000.

    Reference: Kim and Mnih, Disentangling by Factorising, 2018; numbers and pruning as in the code of Locatello et
    al., 2019, whose text has 0.05 as a variance.

    Example:
        >>> factor_vae_score(lambda factors: factors.double(), (3, 5), generator=torch.Generator().manual_seed(0))
        1.0
    """
    spread = codes(_draw(sizes, SPREAD_CODES, generator)).double().std(0)
    active = (spread >= MIN_SPREAD).nonzero()[:, 0]
    if not len(active):
        return 0.0
    counts = []
    with tqdm(total=train_votes + test_votes, desc="FactorVAE votes", leave=False, disable=not progress) as bar:
        for votes in (train_votes, test_votes):
            count = torch.zeros(len(sizes), len(active), dtype=torch.int64)
            while (left := votes - int(count.sum())) > 0:
                fixed, elected = _vote(codes, sizes, min(left, VOTES_AT_ONCE), spread, active, generator)
                count.index_put_((fixed, elected.cpu()), torch.ones_like(fixed), accumulate=True)
                bar.update(len(fixed))
            counts.append(count)
    train, test = counts
    predicted = train.argmax(0)
    return (test[predicted, torch.arange(len(active))].sum() / test.sum()).item()


def _vote(
    codes: Callable[[Tensor], Tensor],
    sizes: Sequence[int],
    votes: int,
    spread: Tensor,
    active: Tensor,
    generator: torch.Generator | None,
) -> tuple[Tensor, Tensor]:
    """Return the fixed factor and the index among the active latents of the least varying one, `(votes,)` each."""
    fixed = torch.randint(len(sizes), (votes,), generator=generator)
    factors = _draw(sizes, votes * BATCH, generator).unflatten(0, (votes, BATCH))
    each = torch.arange(votes)
    factors[each, :, fixed] = factors[each, :1, fixed]
    z = codes(factors.flatten(0, 1)).double().unflatten(0, (votes, BATCH))
    return fixed, (z.std(1) / spread)[:, active].argmin(1)


def _draw(sizes: Sequence[int], count: int, generator: torch.Generator | None) -> Tensor:
    """Return factors drawn uniformly and independently, `(count, F)`."""
    return torch.stack([torch.randint(size, (count,), generator=generator) for size in sizes], dim=1)
