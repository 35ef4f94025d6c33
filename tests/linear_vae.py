"""A linear Gaussian VAE in plain torch: what another library's model looks like, with every figure in closed form."""

import math

import torch
from torch import nn
from torch.distributions import Independent, Normal

from tests.exact_models import correlated_ppca, orthogonal_ppca


class LinearVAE(nn.Module):
    """p(x|z) = N(W z + m, s^2 I), and q(z|x) with the posterior's mean and its standard deviations over `narrow`.

    Args:
        ppca: the model, in float64.
        idle: latents behind the others that the decoder ignores; there q is the prior.
        best: give q the standard deviations of the best diagonal Gaussian instead of the posterior's.
    """

    def __init__(self, ppca, narrow=1.0, idle=0, *, best=False):
        super().__init__()
        D, K = ppca.weight.shape
        precision = ppca.precision()
        covariance = torch.linalg.inv(precision)
        variance = 1 / precision.diagonal() if best else covariance.diagonal()
        self.ppca, self.idle = ppca, idle
        self.decoder = nn.Linear(K + idle, D)
        self.log_std = nn.Parameter((variance.sqrt() / narrow).log().float())
        self.matrix = nn.Parameter((covariance @ ppca.weight.T / ppca.noise).float())
        with torch.no_grad():
            self.decoder.weight.copy_(torch.cat([ppca.weight, ppca.weight.new_zeros(D, idle)], dim=1))
            self.decoder.bias.copy_(ppca.mean)

    def encode(self, x):
        mu = (x - self.decoder.bias) @ self.matrix.T
        zero = mu.new_zeros(len(mu), self.idle)
        return torch.cat([mu, zero], 1), torch.cat([2 * self.log_std.expand(len(mu), -1), zero], 1)

    def decode(self, z):
        return Independent(Normal(self.decoder(z), math.sqrt(self.ppca.noise)), 1)

    def amortisation_gap(self):
        """Return by how much the ELBO of the best diagonal Gaussian is above that of q, which has its mean."""
        ratio = self.log_std.detach().double().exp().square() * self.ppca.precision().diagonal()
        return 0.5 * (ratio - 1 - ratio.log()).sum().item()


def exact():
    return LinearVAE(orthogonal_ppca(3))


def narrow():
    return LinearVAE(orthogonal_ppca(3), narrow=1.9)


def idle():
    return LinearVAE(orthogonal_ppca(3), idle=5)


def correlated():
    return LinearVAE(correlated_ppca(3, correlation=1.0), best=True)


def broken():
    raise RuntimeError("no weights here")


class NoDecoder:
    def encode(self, x):
        return x, x


MODEL = "not a function"
