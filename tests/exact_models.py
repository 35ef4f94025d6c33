"""Exactly solvable models for the tests, all in float64."""

from dataclasses import dataclass

import torch

from vaebench.vae.estimators.exact import FullGaussian, MixtureOfGaussians, ProbabilisticPCA


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
