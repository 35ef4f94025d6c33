"""A moving average of the weights while a model trains: what is validated and kept in place of the weights themselves.

    a_t = a_(t-1) + (1 - d) / (1 - d^t) (w_t - a_(t-1)),    a_1 = w_1,    t steps done

which is sum_s d^(t-s) w_s / sum_s d^(t-s): an exponential average whose weights add up to 1 from the first step on,
where the plain recursion would keep d^t of what training started from.

Reference: Polyak and Juditsky, Acceleration of Stochastic Approximation by Averaging, 1992; the correction is that of
Kingma and Ba, Adam, 2015, section 3.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass
class Average:
    """The average of a model's parameters. A model holds it between epochs, its own weights while it trains.

    Attributes:
        parameters: those of the model.
        aside: what the model does not hold of the two, weights or their average, in the order of the parameters.
        decay: d.
        steps: t.
    """

    parameters: Sequence[nn.Parameter]
    aside: list[Tensor]
    decay: float
    steps: int = 0

    @classmethod
    def start(cls, parameters: Sequence[nn.Parameter], decay: float) -> "Average":
        """Return the average before the first step."""
        return cls(parameters, [parameter.detach().clone() for parameter in parameters], decay)

    @torch.no_grad()
    def update(self) -> None:
        """Take a step's weights, which the model holds, into the average."""
        self.steps += 1
        share = (1 - self.decay) / (1 - self.decay**self.steps)
        torch._foreach_lerp_(self.aside, list(self.parameters), share)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange what the model holds and what lies aside; before the first step the two are the same."""
        if self.steps == 0:
            return
        for parameter, other in zip(self.parameters, self.aside, strict=True):
            held = parameter.clone()
            parameter.copy_(other)
            other.copy_(held)
