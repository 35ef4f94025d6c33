"""E_q[log p(x|z)] - KL(q(z|x)||p(z)) - gamma TC(z), the total correlation by a critic of codes and permuted codes.

Reference: Kim and Mnih, Disentangling by Factorising, 2018.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vaebench.vae.config.fields import field
from vaebench.vae.config.objective import Batch, Critic, Objective, Weight
from vaebench.vae.objective.critics import permute_latents
from vaebench.vae.objective.divergences import critic_mean
from vaebench.vae.prob.terms import Terms


@dataclass(frozen=True)
class FactorVAE(Objective):
    """The evidence lower bound less gamma TC(z)."""

    name: ClassVar[str] = "factor_vae"
    sentence: ClassVar[str] = "the evidence lower bound less gamma TC(z), by a critic"

    gamma: float = field(30.0, "Weight of the total correlation.", at_least=0)
    critic_hidden: tuple[int, ...] = field((256, 256), "Widths of the critic.", at_least=1)
    critic_learning_rate: float = field(1e-3, "Step size of the critic's Adam.", above=0)

    @property
    def estimates_divergence(self) -> bool:
        return True

    @property
    def critic(self) -> Critic | None:
        return Critic(self.critic_hidden, self.critic_learning_rate)

    def negatives(self, terms: Terms, generator: torch.Generator | None) -> Tensor:
        """Draw from the product of the marginals of q(z)."""
        return permute_latents(terms.z, generator)

    def weights(self, epochs_done: float) -> dict[str, float]:
        return {"gamma": self.gamma}

    def value(self, terms: Terms, weights: Mapping[str, Weight], batch: Batch) -> tuple[Tensor, Tensor | None]:
        tc = critic_mean(terms, batch.critic, self.kind)
        per_example = terms.log_px - weights["warmup"] * terms.kl
        return per_example.mean() - weights["warmup"] * weights["gamma"] * tc, tc

    def describe(self, epochs: int) -> str:
        return f"weight of KL 1, of TC by a critic {self.gamma:g}"
