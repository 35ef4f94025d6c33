"""Settings of the objective: which family, its weights, and how the divergence D(q(z)||p(z)) is estimated."""

from dataclasses import dataclass
from typing import Any, Literal

from vaebench.vae.config.fields import Predicate, Section, field
from vaebench.vae.config.model import is_vae
from vaebench.vae.errors import InputError

ROUNDING = 1e-12


def _is(*names: str) -> Predicate:
    return lambda run: run.objective.name in names


def _estimates(*divergences: str) -> Predicate:
    """Return the predicate whether infovae estimates D(q(z)||p(z)), by one of these divergences if any are given."""

    def is_used(run: Any) -> bool:
        objective = run.objective
        estimated = objective.name == "infovae" and objective.uses_divergence
        return estimated and (not divergences or objective.divergence in divergences)

    return is_used


def _has_critic(run: Any) -> bool:
    return run.objective.uses_critic


def _has_beta(run: Any) -> bool:
    return run.objective.name == "infovae" and run.objective.beta > 0


def _has_weight(run: Any) -> bool:
    """Return whether a term of infovae has a weight, or beta is 0, which hides whether one would have."""
    weight = run.objective.w_d if not is_vae(run) else abs(run.objective.w_kl) + run.objective.w_d
    return run.objective.name == "infovae" and (weight > 0 or run.objective.beta == 0)


@dataclass(frozen=True)
class Objective(Section):
    """The family and the weights of the maximised objective; `vae.objective.terms` has the formulas."""

    name: Literal["infovae", "tc_vae", "factor_vae", "capacity"] = field(
        "infovae",
        "What is maximised: infovae, tc_vae, factor_vae (TC by a critic), capacity (the rate held at C).",
        stack="own",
    )
    beta: float = field(
        1.0, "infovae: weight of everything but the reconstruction.", at_least=0, used=_has_weight, stack="own"
    )
    alpha: float = field(
        0.0,
        "infovae: 1 - alpha weighs the mutual information; 0 is a VAE, 1 an MMD-VAE.",
        at_most=1,
        used=_has_beta,
        stack="own",
    )
    lambda_: float = field(
        1.0, "infovae: weight of the aggregated divergence; alpha + lambda >= 1.", used=_has_beta, stack="own"
    )
    divergence: Literal["mmd", "kl", "sliced", "stein", "adversarial"] = field(
        "mmd",
        "infovae: D(q(z)||p(z)); sliced is Wasserstein's, stein and adversarial follow the KL without a density of q.",
        used=_estimates(),
        stack="own",
    )
    kernel: Literal["imq", "rbf"] = field(
        "imq", "mmd, stein: c / (c + d^2), or rbf: exp(-d^2 / c).", used=_estimates("mmd", "stein"), stack="own"
    )
    bandwidth: tuple[float, ...] = field(
        (), "mmd, stein: c; several are averaged; auto is 2K.", above=0, used=_estimates("mmd", "stein"), stack="own"
    )
    estimator: Literal["u", "v"] = field(
        "u", "mmd: u is unbiased, v is never negative.", used=_estimates("mmd"), stack="own"
    )
    projections: int = field(64, "sliced: directions drawn for each batch.", at_least=1, used=_estimates("sliced"))
    critic_hidden: tuple[int, ...] = field(
        (256, 256),
        "adversarial, factor_vae: widths of the critic.",
        at_least=1,
        used=_has_critic,
    )
    critic_learning_rate: float = field(
        1e-3,
        "adversarial, factor_vae: step size of the critic's Adam.",
        above=0,
        used=_has_critic,
    )
    w_mi: float = field(1.0, "tc_vae: weight of the mutual information.", at_least=0, used=_is("tc_vae"), stack="own")
    w_tc: float = field(1.0, "tc_vae: weight of the total correlation.", at_least=0, used=_is("tc_vae"), stack="own")
    w_dim: float = field(
        1.0, "tc_vae: weight of the divergence of the marginals.", at_least=0, used=_is("tc_vae"), stack="own"
    )
    gamma: float = field(
        30.0,
        "capacity: weight of |KL - C|; factor_vae: of the total correlation.",
        at_least=0,
        used=_is("capacity", "factor_vae"),
        stack="own",
    )
    capacity: float = field(
        25.0,
        "capacity: nats that C rises to, the rate that is asked for; with flows |KL - C| errs high near C.",
        at_least=0,
        used=_is("capacity"),
        stack="own",
    )
    capacity_epochs: int = field(
        40,
        "capacity: epochs over which C rises linearly from 0; patience waits for their end.",
        at_least=0,
        used=_is("capacity"),
        stack="own",
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
    def uses_divergence(self) -> bool:
        """Whether a training step estimates a divergence of q(z): D(q(z)||p(z)), or factor_vae's TC by its critic."""
        return self.name == "factor_vae" or (self.name == "infovae" and self.w_d > 0)

    @property
    def uses_critic(self) -> bool:
        """Whether a critic is trained beside the model."""
        return self.uses_divergence and (self.name == "factor_vae" or self.divergence == "adversarial")
