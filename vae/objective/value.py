"""The value that training maximises, from the terms of a batch, for every family."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from vaebench.vae.config.objective import Batch, Objective
from vaebench.vae.prob.terms import Terms


def value(
    objective: Objective,
    terms: Terms,
    *,
    data_size: int,
    warmup: float = 1.0,
    epochs_done: float = math.inf,
    critic: Callable[[Tensor], Tensor] | None = None,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Return the objective of a batch, a scalar to maximise, and D if it was estimated.

    Args:
        data_size: N, the size of the set that the batch was drawn from, for minibatch estimates of q(z).
        warmup: a factor on all weights except the weight of the reconstruction, rising to 1.
        epochs_done: the place in the training, for weights that change; they are final if it is not given.
        critic: T(z) ~ log q(z) - log r(z), `(B, K) -> (B,)`, see `vae.objective.critics`; for objectives that use one.
        generator: draws the prior samples, and the directions, of D.
    """
    weights = {**objective.weights(epochs_done), "warmup": warmup}
    return objective.value(terms, weights, Batch(data_size, critic, generator))


@torch.no_grad()
def draw_negatives(objective: Objective, terms: Terms, generator: torch.Generator | None = None) -> Tensor:
    """Draw the critic's negatives, `(B, K)`, without a gradient."""
    return objective.negatives(terms, generator)
