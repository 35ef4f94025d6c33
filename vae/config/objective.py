"""The protocol of an objective: its settings, and what training, sweeps and reports need to know of it.

A family of objectives is one subclass in one file, see `vae.objective`; `vae.config.run.register` adds it to the table.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor

from vaebench.vae.config.fields import Section, Stack
from vaebench.vae.config.model import Model
from vaebench.vae.errors import InputError
from vaebench.vae.prob.draws import normal_like
from vaebench.vae.prob.terms import Terms

Weight = float | Tensor  # a number, or a zero-dimensional tensor where many models train at once
Density = Literal["rate", "draw", "posterior", "marginals"]

_DENSITIES = {
    "rate": "KL(q(z|x)||p(z))",
    "draw": "q(z|x) at its draws",
    "posterior": "q(z|x) of each code under each example",
    "marginals": "q(z_k|x) and p(z_k) of each latent",
}


@dataclass(frozen=True)
class Critic:
    """The settings of a critic T(z), see `vae.objective.critics`: the widths of its layers, the step size of Adam."""

    hidden: tuple[int, ...] = (256, 256)
    learning_rate: float = 1e-3


@dataclass(frozen=True)
class Batch:
    """What an objective may use of a batch beside its terms.

    Attributes:
        data_size: N, the size of the set that the batch was drawn from, for minibatch estimates of q(z).
        critic: T(z) ~ log q(z) - log r(z), `(B, K) -> (B,)`, for objectives that have one.
        generator: draws prior samples and directions.
        prior_samples: draws of p(z), `(B, K)`, where they are drawn beforehand.
    """

    data_size: int
    critic: Callable[[Tensor], Tensor] | None = None
    generator: torch.Generator | None = None
    prior_samples: Tensor | None = None


@dataclass(frozen=True)
class Stacking:
    """How the objectives of many models are computed at once.

    Attributes:
        key: equal for two objectives that differ only in their weights, and may be computed together; it begins with
            the name of the family, and keys of one family can be sorted.
        objective: has the value for codes that are measured in units of sqrt(bandwidth).
        draws_prior: whether the value needs prior samples.
    """

    key: tuple[Any, ...]
    objective: "Objective"
    bandwidth: float = 1.0
    draws_prior: bool = False


@dataclass(frozen=True)
class Objective(Section, ABC):
    """A family of objectives; the fields of a subclass are its settings, declared by `vae.config.fields.field`.

    Attributes:
        name: the value of the setting objective.name.
        sentence: what is maximised, for `describe`.
    """

    section: ClassVar[str] = "objective"
    stack: ClassVar[Stack] = "own"
    name: ClassVar[str]
    sentence: ClassVar[str]

    @abstractmethod
    def weights(self, epochs_done: float) -> dict[str, float]:
        """Return the weights of the terms after so many epochs, by name; training adds `warmup`."""

    @abstractmethod
    def value(self, terms: Terms, weights: Mapping[str, Weight], batch: Batch) -> tuple[Tensor, Tensor | None]:
        """Return the objective of a batch, a scalar to maximise, and D if it was estimated.

        `weights["warmup"]`, from 0 to 1, multiplies all weights except the weight of the reconstruction.
        """

    @abstractmethod
    def describe(self, epochs: int) -> str:
        """Return the weights in words, for a training of so many epochs."""

    @property
    def draws(self) -> int:
        """Return the number of codes that are drawn for each example."""
        return 1

    @property
    def needs(self) -> Density | None:
        """Return the density that must be known in closed form: of KL, of q(z|x), or of each latent."""
        return None

    @property
    def settled_after(self) -> int:
        """Return the number of epochs in which the weights change, warm-up apart."""
        return 0

    @property
    def estimates_divergence(self) -> bool:
        """Whether a step estimates a divergence of q(z), which is then logged."""
        return False

    @property
    def critic(self) -> Critic | None:
        """Return the settings of the critic that is trained beside the model, if there is one."""
        return None

    @property
    def logged_weights(self) -> dict[str, float]:
        """Return the weights that a sweep logs beside the settings which it searches."""
        return {}

    def figures(self, epoch: int) -> dict[str, float]:
        """Return metrics of the objective itself after an epoch."""
        return {}

    def negatives(self, terms: Terms, generator: torch.Generator | None) -> Tensor:
        """Draw the critic's negatives, `(B, K)`, which are those of the prior."""
        return terms.prior.rsample(generator) if terms.prior is not None else normal_like(terms.z, generator)

    def resolve(self, latent: int) -> Self:
        """Return the objective with every automatic choice made for codes of this size."""
        return self

    def stacking(self, latent: int) -> Stacking | None:
        """Return how many models train with this objective at once, or None where they do not."""
        return None

    @property
    def kind(self) -> str:
        """Return the setting that a refusal names."""
        return f"objective.name = {self.name}"

    def require_densities(self, model: Model) -> None:
        """Refuse a model that lacks the density which the objective needs."""
        known = model.kind == "vae"
        if self.needs in ("posterior", "marginals"):
            known = known and model.posterior == "gaussian"
        if self.needs == "marginals":
            known = known and model.prior == "normal"
        if self.needs is not None and not known:
            raise InputError(
                f"{self.kind} needs {_DENSITIES[self.needs]}, not known with model.kind = {model.kind}, model.prior = "
                f"{model.prior}, model.posterior = {model.posterior}; use mmd, sliced, stein or adversarial as the "
                "divergence of infovae, which need draws alone."
            )


def ramp(epochs_done: float, epochs: int) -> float:
    """Return the value of a linear ramp from 0 to 1 over `epochs`, or 1 where there are none."""
    return min(1.0, epochs_done / epochs) if epochs else 1.0
