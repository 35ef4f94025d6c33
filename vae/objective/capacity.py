"""E_q[log p(x|z)] - gamma | KL(q(z|x)||p(z)) - C |, with C rising linearly from 0 to `capacity` nats.

Reference: Burgess et al., Understanding Disentangling in beta-VAE, 2018.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from vaebench.vae.config.fields import field
from vaebench.vae.config.objective import Batch, Density, Objective, Stacking, Weight, ramp
from vaebench.vae.prob.terms import Terms


@dataclass(frozen=True)
class Capacity(Objective):
    """The reconstruction with the rate held at C.

    The mean rate of a batch is held at C, as in the published implementations; the rates of examples may differ. With a
    flow as prior or posterior the KL is estimated with a standard deviation s, and the absolute value errs high:
    E|KL - C| exceeds |E KL - C| by 0.8 s where the rate is at C, and by less than 0.02 s from 2 s away. On digits, with
    batches of 64, 0.8 s is 0.1 nats.
    """

    name: ClassVar[str] = "capacity"
    sentence: ClassVar[str] = "the reconstruction with the rate held at C"

    gamma: float = field(30.0, "Weight of |KL - C|.", at_least=0)
    capacity: float = field(
        25.0, "Nats that C rises to, the rate that is asked for; with flows |KL - C| errs high near C.", at_least=0
    )
    capacity_epochs: int = field(
        40, "Epochs over which C rises linearly from 0; patience waits for their end.", at_least=0
    )

    @property
    def needs(self) -> Density | None:
        return "rate"

    @property
    def settled_after(self) -> int:
        return self.capacity_epochs

    def weights(self, epochs_done: float) -> dict[str, float]:
        return {"gamma": self.gamma, "capacity": self.capacity, "risen": ramp(epochs_done, self.capacity_epochs)}

    def value(self, terms: Terms, weights: Mapping[str, Weight], batch: Batch) -> tuple[Tensor, Tensor | None]:
        gap = (terms.kl.mean() - weights["risen"] * weights["capacity"]).abs()
        return terms.log_px.mean() - weights["warmup"] * weights["gamma"] * gap, None

    def figures(self, epoch: int) -> dict[str, float]:
        return {"train/capacity": self.capacity * ramp(epoch, self.capacity_epochs)}

    def stacking(self, latent: int) -> Stacking | None:
        return Stacking((self.name,), self)

    def describe(self, epochs: int) -> str:
        nats = f"{self.capacity:g} nats"
        rise = f"from 0 to {nats} in {self.capacity_epochs} epochs" if self.capacity_epochs else nats
        rise += f", of which there are {epochs}" if self.capacity_epochs > epochs else ""
        return f"weight of |KL - C| {self.gamma:g}, C {rise}"
