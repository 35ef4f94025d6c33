"""Activation normalisation: a shift and a scale for each element, initialised from the data."""

import torch
from torch import Tensor, nn

from vaebench.vae.errors import InputError
from vaebench.vae.flows.transform import Transform, ValueAndLogDet

SMALLEST_SCALE = 1e-3


class ActivationNorm(Transform):
    """z = (x - mu) / s with mu and log s parameters, the identity until `initialise` has seen a batch.

    After it, the elements of that batch have mean 0 and variance 1. From then on both are learned like any parameter.
    The map uses no statistics of a batch, so that it is the same in training and in evaluation.

    Cost of either direction: D multiplications.

    Reference: Kingma and Dhariwal, Glow, 2018, section 3.1.
    """

    def __init__(self, features: int) -> None:
        super().__init__()
        self.mu = nn.Parameter(torch.zeros(features))
        self.log_s = nn.Parameter(torch.zeros(features))

    def extra_repr(self) -> str:
        return f"features={len(self.mu)}"

    def forward_and_log_det(self, x: Tensor, context: Tensor | None = None) -> ValueAndLogDet:
        self._require_features(x)
        return (x - self.mu) * torch.exp(-self.log_s), -self.log_s.sum().expand(x.shape[:-1])

    def inverse_and_log_det(self, z: Tensor, context: Tensor | None = None) -> ValueAndLogDet:
        self._require_features(z)
        return self.mu + z * torch.exp(self.log_s), self.log_s.sum().expand(z.shape[:-1])

    @torch.no_grad()
    def initialise(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Set mu and s to the mean and the standard deviation of a batch `(B, D)`, the latter at least 0.001."""
        self._require_features(x)
        s, mu = torch.std_mean(x.flatten(0, -2), dim=0, correction=0)
        self.mu.copy_(mu)
        self.log_s.copy_(s.clamp_min(SMALLEST_SCALE).log())
        return self.forward_and_log_det(x)[0]

    def _require_features(self, x: Tensor) -> None:
        if x.shape[-1] != len(self.mu):
            raise InputError(f"this normalisation is of {len(self.mu)} elements, got {tuple(x.shape)}.")
