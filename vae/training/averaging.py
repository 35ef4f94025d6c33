"""A moving average of the weights while a model trains; it is validated and kept in place of the weights.

    a_t = a_(t-1) + (1 - d) / (1 - d^t) (w_t - a_(t-1)),    a_1 = w_1,    t steps done

This is sum_s d^(t-s) w_s / sum_s d^(t-s), an exponential average whose coefficients add up to 1 from the first step on.
The plain recursion a_t = d a_(t-1) + (1 - d) w_t would keep d^t of the initial weights.

Reference: Polyak and Juditsky, Acceleration of Stochastic Approximation by Averaging, 1992; the correction 1 - d^t is
from Kingma and Ba, Adam, 2015, section 3.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass
class Average:
    """The average of a model's parameters. The model holds it between epochs, and its raw weights while it trains.

    Attributes:
        parameters: the model's parameters.
        stored: the average while the model holds its raw weights, else the raw weights; in the order of `parameters`.
        decay: d.
        steps: t.
    """

    parameters: Sequence[nn.Parameter]
    stored: list[Tensor]
    decay: float
    steps: int = 0

    @classmethod
    def start(cls, parameters: Sequence[nn.Parameter], decay: float) -> "Average":
        """Return the average before the first step."""
        return cls(parameters, [parameter.detach().clone() for parameter in parameters], decay)

    @torch.no_grad()
    def update(self) -> None:
        """Include the weights of one more step, which the model holds, in the average."""
        self.steps += 1
        share = (1 - self.decay) / (1 - self.decay**self.steps)
        torch._foreach_lerp_(self.stored, list(self.parameters), share)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange the model's weights and the stored ones; before the first step the two are the same."""
        if self.steps == 0:
            return
        for parameter, stored in zip(self.parameters, self.stored, strict=True):
            held = parameter.clone()
            parameter.copy_(stored)
            stored.copy_(held)
