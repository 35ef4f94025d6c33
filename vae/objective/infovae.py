"""E_q[log p(x|z)] - beta * ( (1 - alpha) KL(q(z|x)||p(z)) + (alpha + lambda - 1) D(q(z)||p(z)) ).

With D = KL, the mutual information is weighed by beta (1 - alpha) and KL(q(z)||p(z)) by beta lambda.

Reference: Zhao et al., InfoVAE: Information Maximizing Variational Autoencoders, 2017.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import Tensor

from vaebench.vae.config.fields import Predicate, field
from vaebench.vae.config.model import is_vae
from vaebench.vae.config.objective import Batch, Critic, Density, Objective, Stacking, Weight
from vaebench.vae.errors import InputError
from vaebench.vae.objective import divergences
from vaebench.vae.prob.divergences import mmd2_to_prior, sliced_wasserstein2
from vaebench.vae.prob.terms import Terms

ROUNDING = 1e-12


def _estimates(*names: str) -> Predicate:
    """Return the predicate whether D is estimated, by one of these divergences if any are given."""

    def is_used(run: Any) -> bool:
        return run.objective.estimates_divergence and (not names or run.objective.divergence in names)

    return is_used


def _has_weight(run: Any) -> bool:
    """Return whether a term has a weight, or beta is 0, which hides whether one would have."""
    weight = run.objective.w_d if not is_vae(run) else abs(run.objective.w_kl) + run.objective.w_d
    return bool(weight > 0 or run.objective.beta == 0)


def _has_beta(run: Any) -> bool:
    return bool(run.objective.beta > 0)


@dataclass(frozen=True)
class InfoVAE(Objective):
    """The family of VAE, beta-VAE, InfoVAE and MMD-VAE: weights of the KL and of a divergence of q(z)."""

    name: ClassVar[str] = "infovae"
    sentence: ClassVar[str] = "the evidence lower bound with a weight of the KL and a weight of D(q(z)||p(z))"

    beta: float = field(1.0, "The weight of everything but the reconstruction.", at_least=0, used=_has_weight)
    alpha: float = field(
        0.0, "1 - alpha weighs the mutual information; 0 is a VAE, 1 an MMD-VAE.", at_most=1, used=_has_beta
    )
    lambda_: float = field(1.0, "Weight of the aggregated divergence; alpha + lambda >= 1.", used=_has_beta)
    divergence: Literal["mmd", "kl", "sliced", "stein", "adversarial"] = field(
        "mmd",
        "D(q(z)||p(z)); sliced is Wasserstein's, stein and adversarial follow the KL without a density of q.",
        used=_estimates(),
    )
    kernel: Literal["imq", "rbf"] = field(
        "imq", "mmd, stein: c / (c + d^2), or rbf: exp(-d^2 / c).", used=_estimates("mmd", "stein")
    )
    bandwidth: tuple[float, ...] = field(
        (), "mmd, stein: c; several are averaged; auto is 2K.", above=0, used=_estimates("mmd", "stein")
    )
    estimator: Literal["u", "v"] = field("u", "mmd: u is unbiased, v is never negative.", used=_estimates("mmd"))
    projections: int = field(64, "sliced: directions drawn for each batch.", at_least=1, used=_estimates("sliced"))
    critic_hidden: tuple[int, ...] = field(
        (256, 256), "adversarial: widths of the critic.", at_least=1, used=_estimates("adversarial")
    )
    critic_learning_rate: float = field(
        1e-3, "adversarial: step size of the critic's Adam.", above=0, used=_estimates("adversarial")
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.alpha + self.lambda_ - 1 < -ROUNDING:
            raise InputError(
                "objective must have alpha + lambda - 1 >= 0, the weight of D(q(z)||p(z)), or mismatch is rewarded; "
                f"got alpha = {self.alpha:g}, lambda = {self.lambda_:g}."
            )

    @property
    def w_kl(self) -> float:
        """Return beta * (1 - alpha), the weight of KL(q(z|x)||p(z))."""
        return self.beta * (1 - self.alpha)

    @property
    def w_d(self) -> float:
        """Return beta * (alpha + lambda - 1), the weight of D(q(z)||p(z))."""
        surplus = self.alpha + self.lambda_ - 1
        return 0.0 if abs(surplus) < ROUNDING else self.beta * surplus

    @property
    def logged_weights(self) -> dict[str, float]:
        return {"w_kl": self.w_kl, "w_d": self.w_d}

    @property
    def estimates_divergence(self) -> bool:
        return self.w_d > 0

    @property
    def critic(self) -> Critic | None:
        used = self.estimates_divergence and self.divergence == "adversarial"
        return Critic(self.critic_hidden, self.critic_learning_rate) if used else None

    @property
    def needs(self) -> Density | None:
        return "posterior" if self.estimates_divergence and self.divergence == "kl" else None

    @property
    def kind(self) -> str:
        return f"objective.divergence = {self.divergence}"

    def weights(self, epochs_done: float) -> dict[str, float]:
        return self.logged_weights

    def value(self, terms: Terms, weights: Mapping[str, Weight], batch: Batch) -> tuple[Tensor, Tensor | None]:
        per_example = terms.log_px - weights["warmup"] * weights["w_kl"] * terms.kl
        if not self.estimates_divergence:
            return per_example.mean(), None
        d = self.estimate(terms, batch)
        return per_example.mean() - weights["warmup"] * weights["w_d"] * d, d

    def estimate(self, terms: Terms, batch: Batch) -> Tensor:
        """Return the batch's estimate of D(q(z)||p(z)), a scalar.

        mmd: MMD^2 between the codes and as many prior draws. kl: mean of log q(z) - log p(z), with q(z) from the batch
        by stratified weights; exact in q(z) where the batch is the whole set. sliced: the squared sliced Wasserstein-2
        distance of the codes from as many prior draws. stein: the squared kernelised Stein discrepancy, with the
        gradient -phi / B of KL(q(z)||p(z)). adversarial: the mean of the critic's T(z).

        A learned prior gets its gradient through the prior draws of mmd and sliced. kl, stein and adversarial draw none
        and give it the gradient of KL(q(z)||p(z)), -E_q grad log p(z).
        """
        if self.divergence == "adversarial":
            return divergences.adversarial(terms, batch.critic, self.kind)
        if self.divergence == "kl":
            return divergences.aggregate_kl(terms, batch.data_size)
        if self.divergence == "stein":
            return divergences.stein_discrepancy(terms, self.kernel, self.bandwidth or None)
        prior = batch.prior_samples
        if prior is None and terms.prior is not None:
            prior = terms.prior.rsample(batch.generator)
        if self.divergence == "sliced":
            return sliced_wasserstein2(terms.z, prior=prior, projections=self.projections, generator=batch.generator)
        return mmd2_to_prior(
            terms.z,
            prior=prior,
            kernel=self.kernel,
            bandwidth=self.bandwidth or None,
            estimator=self.estimator,
            generator=batch.generator,
        )

    def resolve(self, latent: int) -> "InfoVAE":
        return self if self.bandwidth else dataclasses.replace(self, bandwidth=(2.0 * latent,))

    def stacking(self, latent: int) -> Stacking | None:
        """Group by what is not a weight: MMD depends on distances in units of the bandwidth, so latents may differ."""
        if self.divergence not in ("mmd", "kl"):
            return None
        if not self.estimates_divergence:
            return Stacking((self.name,), self)
        if self.divergence == "kl":
            return Stacking((self.name, latent, "kl"), self)
        widths = tuple(width / self.bandwidth[0] for width in self.bandwidth)
        key = (self.name, 0, "mmd", self.kernel, widths, self.estimator)
        return Stacking(key, dataclasses.replace(self, bandwidth=widths), self.bandwidth[0], draws_prior=True)

    def describe(self, epochs: int) -> str:
        kind = f" ({self.divergence})" if self.estimates_divergence else ""
        return f"weight of KL {self.w_kl:g}, of D{kind} {self.w_d:g}"
