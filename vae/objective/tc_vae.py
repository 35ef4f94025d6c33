"""E_q[log p(x|z)] - ( w_mi I_q(x;z) + w_tc TC(z) + w_dim sum_k KL(q(z_k)||p(z_k)) ): the parts of the KL, weighed.

Reference: Chen et al., Isolating Sources of Disentanglement in Variational Autoencoders, 2018.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from vaebench.vae.config.fields import field
from vaebench.vae.config.objective import Batch, Density, Objective, Stacking, Weight
from vaebench.vae.objective.divergences import batch_aggregate
from vaebench.vae.prob.densities import log_standard_normal
from vaebench.vae.prob.terms import Terms


@dataclass(frozen=True)
class TCVAE(Objective):
    """The evidence lower bound with a weight of each part of its KL; all three weights 1 give the bound."""

    name: ClassVar[str] = "tc_vae"
    sentence: ClassVar[str] = "the parts of the KL with a weight each"

    w_mi: float = field(1.0, "Weight of the mutual information.", at_least=0)
    w_tc: float = field(1.0, "Weight of the total correlation.", at_least=0)
    w_dim: float = field(1.0, "Weight of the divergence of the marginals.", at_least=0)

    @property
    def needs(self) -> Density | None:
        return "marginals"

    def weights(self, epochs_done: float) -> dict[str, float]:
        return {"w_mi": self.w_mi, "w_tc": self.w_tc, "w_dim": self.w_dim}

    def value(self, terms: Terms, weights: Mapping[str, Weight], batch: Batch) -> tuple[Tensor, Tensor | None]:
        """Sample the three parts of the KL at the batch's codes: log q(z|x) - log q(z), and so on down to the prior."""
        joint, marginals = batch_aggregate(terms, batch.data_size)
        mi = terms.q.log_prob(terms.z) - joint
        tc = joint - marginals.sum(-1)
        dim_kl = (marginals - log_standard_normal(terms.z)).sum(-1)
        penalty = weights["w_mi"] * mi + weights["w_tc"] * tc + weights["w_dim"] * dim_kl
        return (terms.log_px - weights["warmup"] * penalty).mean(), None

    def stacking(self, latent: int) -> Stacking | None:
        return Stacking((self.name, latent), self)

    def describe(self, epochs: int) -> str:
        return f"weight of MI {self.w_mi:g}, of TC {self.w_tc:g}, of the marginals {self.w_dim:g}"
