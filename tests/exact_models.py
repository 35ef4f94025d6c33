"""Exactly solvable models for the tests, all in float64."""

import math
from dataclasses import dataclass

import torch

from vaebench.vae.estimators.exact import FullGaussian, MixtureOfGaussians, ProbabilisticPCA
from vaebench.vae.prob.proposals import GaussianProposal

LOG_2PI = math.log(2 * math.pi)


@dataclass(frozen=True)
class LinearGaussianEncoder:
    """q(z|x) = N(matrix x + offset, covariance), matrix `(K, D)`, offset `(K,)`, covariance `(K, K)`."""

    matrix: torch.Tensor
    offset: torch.Tensor
    covariance: torch.Tensor

    def __call__(self, x):
        return FullGaussian(x @ self.matrix.T + self.offset, self.covariance)


def generator(seed):
    return torch.Generator().manual_seed(seed)


def orthogonal_ppca(K, *, seed=0):
    """Probabilistic PCA of 2K dimensions whose posterior is diagonal, with signal-to-noise ratios from 1 to 9."""
    basis, _ = torch.linalg.qr(torch.randn(2 * K, K, generator=generator(seed), dtype=torch.float64))
    scales = torch.linspace(3, 1, K, dtype=torch.float64)
    return ProbabilisticPCA(basis * scales, torch.linspace(-1, 1, 2 * K, dtype=torch.float64), 1.0)


def correlated_ppca(K, *, seed=0, correlation=0.05):
    """The same with a posterior whose dimensions are correlated."""
    model = orthogonal_ppca(K, seed=seed)
    mixing = torch.randn(K, K, generator=generator(seed + 1), dtype=torch.float64)
    return ProbabilisticPCA(model.weight + correlation * model.weight @ mixing, model.mean, 0.7)


def mixture(C=3, D=2, *, seed=0):
    """A mixture of C overlapping Gaussians with full covariances."""
    g = generator(seed)
    factors = torch.randn(C, D, D, generator=g, dtype=torch.float64)
    covariances = factors @ factors.mT + 0.3 * torch.eye(D, dtype=torch.float64)
    means = 2 * torch.randn(C, D, generator=g, dtype=torch.float64)
    return MixtureOfGaussians(torch.rand(C, generator=g, dtype=torch.float64).log_softmax(0), means, covariances)


class Modes:
    """p(x_b, z) = p_b sum_c pi_c N(z; means_bc, sd^2 I): log p(x_b) = log p_b, and as many modes as pi has entries."""

    def __init__(self, data, distance, *, K=2, sd=0.4, pi=(0.6, 0.4), seed=0):
        draws = generator(seed)
        ends = torch.randn(data, 1, K, generator=draws, dtype=torch.float64)
        ends = (
            ends / ends.norm(dim=-1, keepdim=True) * torch.linspace(0, distance, len(pi), dtype=torch.float64)[:, None]
        )
        self.means, self.sd, self.log_pi = ends, sd, torch.tensor(pi, dtype=torch.float64).log()
        self.log_p = -50 + 10 * torch.randn(data, generator=draws, dtype=torch.float64)
        self.q = GaussianProposal(torch.zeros(data, K).double(), torch.full((data, K), 2 * math.log(sd)).double())

    def __call__(self, z, rows):
        u = (z[..., None, :] - self.means[rows]) / self.sd
        log_n = -0.5 * (u.square() + LOG_2PI).sum(-1) - z.shape[-1] * math.log(self.sd)
        return self.log_p[rows] + (log_n + self.log_pi).logsumexp(-1)
