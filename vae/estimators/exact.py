"""Models whose evidence and posterior are known in closed form: probabilistic PCA and a mixture of Gaussians.

Axes: S samples, B data, D data size, K latent size, C classes. Float64 in, float64 out.
"""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from vaebench.vae.prob.draws import normal_like
from vaebench.vae.prob.proposals import GaussianProposal

Pair = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class FullGaussian:
    """N(mean, covariance), mean `(..., K)`, covariance `(K, K)` or `(..., K, K)`."""

    mean: Tensor
    covariance: Tensor

    def log_prob(self, z: Tensor) -> Tensor:
        """Return `-1/2 (|L^-1 (z - mean)|^2 + 2 log det L + K log 2 pi)` with L the Cholesky factor, `(...)`."""
        identity = _eye(z.shape[-1], self.covariance)
        whitening: Tensor = torch.linalg.solve_triangular(cholesky(self.covariance), identity, upper=False)
        white = torch.einsum("...ij,...j->...i", whitening, z - self.mean)
        return -0.5 * (white.square().sum(-1) + log_det(self.covariance) + z.shape[-1] * math.log(2 * math.pi))

    def kl(self, other: "FullGaussian") -> Tensor:
        """Return KL(self || other) = `1/2 (tr(P C) + d^T P d - K - log det(P C))`, P the other's precision."""
        precision: Tensor = torch.linalg.inv(other.covariance)
        gap = other.mean - self.mean
        ratio = precision @ self.covariance
        trace = ratio.diagonal(dim1=-2, dim2=-1).sum(-1)
        distance = torch.einsum("...i,...ij,...j->...", gap, precision, gap)
        volume = log_det(other.covariance) - log_det(self.covariance)
        return 0.5 * (trace + distance - self.mean.shape[-1] + volume)

    def sample(self, samples: int, generator: torch.Generator | None) -> Tensor:
        """Return draws, `(S, ..., K)`."""
        mean = self.mean
        eps = normal_like(mean.new_empty((samples, *mean.shape)), generator)
        return mean + (cholesky(self.covariance) @ eps[..., None])[..., 0]


@dataclass(frozen=True)
class ProbabilisticPCA:
    """z ~ N(0, I), x | z ~ N(weight z + mean, noise I); weight `(D, K)`, mean `(D,)`, noise a variance.

    Reference: Tipping and Bishop, Probabilistic Principal Component Analysis, 1999.

    Example:
        >>> model = ProbabilisticPCA(torch.ones(2, 1), torch.zeros(2), 1.0)
        >>> model.marginal().covariance
        tensor([[2., 1.],
                [1., 2.]])
    """

    weight: Tensor
    mean: Tensor
    noise: float

    def marginal(self) -> FullGaussian:
        """Return p(x) = N(mean, weight weight^T + noise I)."""
        return FullGaussian(
            self.mean, self.weight @ self.weight.T + self.noise * _eye(self.weight.shape[0], self.weight)
        )

    def log_prob(self, x: Tensor) -> Tensor:
        """Return log p(x), `(B, D) -> (B,)`."""
        return self.marginal().log_prob(x)

    def log_likelihood(self, x: Tensor, z: Tensor) -> Tensor:
        """Return log p(x|z), x `(B, D)`, z `(..., B, K) -> (..., B)`."""
        squares = (x - self.mean - z @ self.weight.T).square().sum(-1)
        return -0.5 * (squares / self.noise + x.shape[-1] * math.log(2 * math.pi * self.noise))

    def log_joint(self, x: Tensor, z: Tensor) -> Tensor:
        """Return log p(x|z) + log p(z), x `(B, D)`, z `(..., B, K) -> (..., B)`."""
        return self.log_likelihood(x, z) + GaussianProposal.prior(z).log_prob(z)

    def prior(self) -> FullGaussian:
        """Return p(z) = N(0, I)."""
        K = self.weight.shape[1]
        return FullGaussian(self.weight.new_zeros(K), _eye(K, self.weight))

    def precision(self) -> Tensor:
        """Return the precision of the posterior, `I + weight^T weight / noise`, the same for every x."""
        return _eye(self.weight.shape[1], self.weight) + self.weight.T @ self.weight / self.noise

    def posterior(self, x: Tensor) -> FullGaussian:
        """Return p(z|x) = N(P^-1 weight^T (x - mean) / noise, P^-1), P the precision."""
        covariance: Tensor = torch.linalg.inv(self.precision())
        return FullGaussian((x - self.mean) @ self.weight @ covariance / self.noise, covariance)

    def best_diagonal(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return mu and logvar of the diagonal Gaussian closest to the posterior in KL(q || p(z|x)), `(B, K)` each.

        Its mean is the posterior mean, its variances are 1 / P_kk, P the precision.
        """
        mu = self.posterior(x).mean
        return mu, -self.precision().diagonal().log().expand_as(mu)

    def family_gap(self) -> Tensor:
        """Return KL(best diagonal || p(z|x)) = `1/2 (sum_k log P_kk - log det P)`, the same for every x."""
        precision = self.precision()
        return 0.5 * (precision.diagonal().log().sum() - log_det(precision))

    def elbo(self, x: Tensor, q: FullGaussian) -> Tensor:
        """Return the evidence lower bound of any Gaussian q(z|x) in closed form, `(B,)`.

        E_q log p(x|z) - KL(q || p(z)),    E_q |x - m - W z|^2 = |x - m - W mu|^2 + tr(W C W^T)
        """
        spread = torch.einsum("dk,...kl,dl->...", self.weight, q.covariance, self.weight)
        return self.log_likelihood(x, q.mean) - 0.5 * spread / self.noise - q.kl(self.prior())

    def gibbs_updates(self, x: Tensor) -> list[Callable[[Tensor, torch.Generator | None], Tensor]]:
        """Return for each k the update that draws z_k from p(z_k | z_others, x), for z `(..., B, K)`: see `mcmc.gibbs`.

        N(mu_k - sum_{j != k} P_kj (z_j - mu_j) / P_kk, 1 / P_kk), with mu the posterior mean and P its precision.
        """
        mu, precision = self.posterior(x).mean, self.precision()

        def update(k: int, z: Tensor, generator: torch.Generator | None) -> Tensor:
            pull = ((z - mu) @ precision[k]) / precision[k, k]
            eps = normal_like(pull, generator)
            fresh = z.clone()
            fresh[..., k] += eps * precision[k, k].rsqrt() - pull
            return fresh

        return [functools.partial(update, k) for k in range(len(precision))]

    def sample(self, n: int, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        """Return n pairs (x, z), `(n, D)` and `(n, K)`."""
        z = self.prior().sample(n, generator)
        eps = normal_like(z.new_empty((n, *self.mean.shape)), generator)
        return z @ self.weight.T + self.mean + math.sqrt(self.noise) * eps, z


def fit_ppca(x: Tensor, K: int) -> ProbabilisticPCA:
    """Return the maximum likelihood fit to data `(N, D)`.

        noise = mean of the D - K smallest eigenvalues of Cov(x),    weight = U_K (Lambda_K - noise I)^(1/2)

    with Cov(x) divided by N, and U_K, Lambda_K its K leading eigenvectors and eigenvalues.
    """
    D = x.shape[1]
    if not 0 < K < D:
        raise ValueError(f"K must lie between 1 and {D - 1} for data of size {D}, got {K}.")
    eigenvalues, _ = _spectrum(x)
    return fit_beta_ppca(x, K, beta=1.0, noise=eigenvalues[K:].mean().item())


def fit_beta_ppca(x: Tensor, K: int, *, beta: float, noise: float) -> ProbabilisticPCA:
    """Return the linear decoder that maximises the beta-weighted ELBO of data `(N, D)` at a fixed noise variance.

        weight = U_K (Lambda_K - beta noise I)_+^(1/2)

    Proof: divide the objective by beta. The likelihood at noise s^2 with the KL weighted by beta equals, up to scale,
    the likelihood at noise beta s^2 with the KL weighted by 1. Directions with eigenvalues below beta * noise collapse.

    Reference: Lucas et al., Don't Blame the ELBO!, 2019, for beta = 1.
    """
    eigenvalues, vectors = _spectrum(x)
    scale = (eigenvalues[:K] - beta * noise).clamp_min(0).sqrt()
    return ProbabilisticPCA(vectors[:, :K] * scale, x.mean(0), noise)


@dataclass(frozen=True)
class MixtureOfGaussians:
    """c ~ Categorical(weights), x | c ~ N(means_c, covariances_c).

    Shapes: log_weights `(C,)`, means `(C, D)`, covariances `(C, D, D)`.
    """

    log_weights: Tensor
    means: Tensor
    covariances: Tensor

    def log_joint(self, x: Tensor) -> Tensor:
        """Return log p(x, c) for every class, `(B, D) -> (B, C)`."""
        return self.log_weights + FullGaussian(self.means, self.covariances).log_prob(x[:, None])

    def log_prob(self, x: Tensor) -> Tensor:
        """Return log p(x) = log sum_c p(x, c), `(B,)`."""
        return self.log_joint(x).logsumexp(-1)

    def responsibilities(self, x: Tensor) -> Tensor:
        """Return p(c|x), `(B, C)`."""
        return torch.softmax(self.log_joint(x), -1)

    def elbo(self, x: Tensor, q: Tensor) -> Tensor:
        """Return the bound `sum_c q_c (log p(x, c) - log q_c)` of any categorical q `(B, C)`, `(B,)`."""
        return (q * self.log_joint(x) - torch.special.xlogy(q, q)).sum(-1)

    def em_step(self, x: Tensor) -> "MixtureOfGaussians":
        """Return the model after one E-step, which makes the bound tight, and one M-step, which raises the bound."""
        q = self.responsibilities(x)
        mass = q.sum(0)
        means = q.T @ x / mass[:, None]
        centred = x[:, None] - means
        covariances = torch.einsum("bc,bci,bcj->cij", q, centred, centred) / mass[:, None, None]
        return MixtureOfGaussians((mass / x.shape[0]).log(), means, covariances)

    def sample(self, n: int, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        """Return n pairs (x, c), `(n, D)` and `(n,)`."""
        c = torch.multinomial(self.log_weights.exp(), n, replacement=True, generator=generator)
        return self._sample_given(c, generator), c

    def gibbs_updates(self) -> list[Callable[[Pair, torch.Generator | None], Pair]]:
        """Return the updates that draw c given x and x given c, for the state (x, c): see `mcmc.gibbs`."""

        def draw_c(state: Pair, generator: torch.Generator | None) -> Pair:
            x = state[0]
            return x, torch.multinomial(self.responsibilities(x), 1, generator=generator)[:, 0]

        def draw_x(state: Pair, generator: torch.Generator | None) -> Pair:
            c = state[1]
            return self._sample_given(c, generator), c

        return [draw_c, draw_x]

    def _sample_given(self, c: Tensor, generator: torch.Generator | None) -> Tensor:
        return FullGaussian(self.means[c], self.covariances[c]).sample(1, generator)[0]


def cholesky(matrix: Tensor) -> Tensor:
    """Return the lower triangular L with `L L^T = matrix`, `(..., K, K)`."""
    factor: Tensor = torch.linalg.cholesky(matrix)
    return factor


def log_det(matrix: Tensor) -> Tensor:
    """Return the log determinant of symmetric positive definite matrices, `(..., K, K) -> (...)`."""
    return 2 * cholesky(matrix).diagonal(dim1=-2, dim2=-1).log().sum(-1)


def _eye(size: int, like: Tensor) -> Tensor:
    return torch.eye(size, dtype=like.dtype, device=like.device)


def _spectrum(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the eigenvalues of Cov(x), largest first, and its eigenvectors in the columns."""
    centred = x - x.mean(0)
    ascending, vectors = torch.linalg.eigh(centred.T @ centred / x.shape[0])
    return ascending.flip(0), vectors.flip(1)
