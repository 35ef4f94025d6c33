"""Increasing maps of the real line, one for each element, whose parameters other layers predict."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor


class ElementMap(ABC):
    """A family of increasing maps R -> R with `parameters` numbers each; all of them zero give the identity."""

    @property
    @abstractmethod
    def parameters(self) -> int:
        """Return P, the number of parameters of a member."""

    @abstractmethod
    def forward(self, x: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:
        """Return z and log dz/dx of each element, x `(...)` and raw `(..., P)` -> `(...)` each."""

    @abstractmethod
    def inverse(self, z: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:
        """Return x and log dx/dz of each element, z `(...)` and raw `(..., P)` -> `(...)` each."""


@dataclass(frozen=True)
class Affine(ElementMap):
    """z = (x - mu) / s: in an autoregressive layer, x_i | x_<i ~ N(mu_i, s_i^2) if z ~ N(0, I).

    raw holds mu and r, with log s = limit * tanh(r / limit): smooth, and no scale beyond exp(+-limit).
    """

    limit: float = 3.0

    @property
    def parameters(self) -> int:
        return 2

    def forward(self, x: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:
        mu, log_s = self._unpack(raw)
        return (x - mu) * torch.exp(-log_s), -log_s

    def inverse(self, z: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:
        mu, log_s = self._unpack(raw)
        return mu + z * torch.exp(log_s), log_s

    def _unpack(self, raw: Tensor) -> tuple[Tensor, Tensor]:
        mu, r = raw.unbind(-1)
        return mu, self.limit * torch.tanh(r / self.limit)
