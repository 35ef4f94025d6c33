"""The knobs of the objective: which family, its weights, and how the divergence D(q(z)||p(z)) is estimated."""

from dataclasses import dataclass

from vaebench.vae.config.fields import Section, knob
from vaebench.vae.errors import InputError

ROUNDING = 1e-12


@dataclass(frozen=True)
class Objective(Section):
    """The weights of the maximised objective, `vae.objective.terms` has the formulas.

    infovae:    E_q[log p(x|z)] - beta * ( (1 - alpha) KL(q(z|x)||p(z)) + (alpha + lambda - 1) D(q(z)||p(z)) )
    tc_vae:     E_q[log p(x|z)] - ( w_mi I_q(x;z) + w_tc TC(z) + w_dim sum_k KL(q(z_k)||p(z_k)) )
    factor_vae: E_q[log p(x|z)] - KL(q(z|x)||p(z)) - gamma TC(z)
    capacity:   E_q[log p(x|z)] - gamma | KL(q(z|x)||p(z)) - C |
    """

    name: str = knob(
        "infovae",
        "What is maximised: infovae, tc_vae, factor_vae (TC by a critic), capacity (the rate held at C).",
        choices=("infovae", "tc_vae", "factor_vae", "capacity"),
    )
    beta: float = knob(1.0, "infovae: weight of everything but the reconstruction.", at_least=0)
    alpha: float = knob(0.0, "infovae: 1 - alpha weighs the mutual information; 0 is a VAE, 1 an MMD-VAE.", at_most=1)
    lambda_: float = knob(1.0, "infovae: weight of the aggregated divergence; alpha + lambda >= 1.")
    divergence: str = knob(
        "mmd",
        "infovae: D(q(z)||p(z)); sliced is Wasserstein's, stein and adversarial follow the KL without a density of q.",
        choices=("mmd", "kl", "sliced", "stein", "adversarial"),
    )
    kernel: str = knob("imq", "mmd, stein: c / (c + d^2), or rbf: exp(-d^2 / c).", choices=("imq", "rbf"))
    bandwidth: tuple[float, ...] = knob((), "mmd, stein: c; several are averaged; auto is 2K.", above=0)
    estimator: str = knob("u", "mmd: u is unbiased, v is never negative.", choices=("u", "v"))
    projections: int = knob(64, "sliced: directions drawn for each batch.", at_least=1)
    critic_hidden: tuple[int, ...] = knob((256, 256), "adversarial, factor_vae: widths of the critic.", at_least=1)
    critic_learning_rate: float = knob(1e-3, "adversarial, factor_vae: step size of the critic's Adam.", above=0)
    w_mi: float = knob(1.0, "tc_vae: weight of the mutual information.", at_least=0)
    w_tc: float = knob(1.0, "tc_vae: weight of the total correlation.", at_least=0)
    w_dim: float = knob(1.0, "tc_vae: weight of the divergence of the marginals.", at_least=0)
    gamma: float = knob(30.0, "capacity: weight of |KL - C|; factor_vae: of the total correlation.", at_least=0)
    capacity: float = knob(25.0, "capacity: nats that C rises to, the rate that is asked for.", at_least=0)
    capacity_epochs: int = knob(
        40, "capacity: epochs over which C rises linearly from 0; patience waits for their end.", at_least=0
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
