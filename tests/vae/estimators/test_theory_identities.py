"""The identities of docs/theory.md, both sides computed apart, to 1e-9 in float64."""

import math

import pytest
import torch
from torch.distributions import MultivariateNormal

from tests.exact_models import LinearGaussianEncoder, correlated_ppca, generator, mixture
from vaebench.vae.estimators.exact import FullGaussian

EXACT = {"rtol": 1e-9, "atol": 1e-9}


def random_gaussian(K, seed, B=()):
    g = generator(seed)
    factor = torch.randn(*B, K, K, generator=g, dtype=torch.float64)
    mean = torch.randn(*B, K, generator=g, dtype=torch.float64)
    return FullGaussian(mean, factor @ factor.mT / K + 0.1 * torch.eye(K, dtype=torch.float64))


def expectation(quadratic, gaussian):
    """E quadratic(v) for v ~ N(m, L L^T): the mean over the points m +- sqrt(n) L_i is exact for quadratics."""
    n = len(gaussian.mean)
    arms = math.sqrt(n) * torch.linalg.cholesky(gaussian.covariance).mT
    return quadratic(torch.cat([gaussian.mean + arms, gaussian.mean - arms])).mean()


class GaussianModel:
    """Probabilistic PCA as p(x|z), any Gaussian as the data, any linear encoder as q(z|x): all joints are Gaussian."""

    def __init__(self, seed, K=3):
        self.model = correlated_ppca(K, seed=seed, correlation=0.4)
        self.data = random_gaussian(2 * K, seed + 10)
        g = generator(seed + 20)
        matrix = torch.randn(K, 2 * K, generator=g, dtype=torch.float64) / K
        self.encoder = LinearGaussianEncoder(
            matrix, torch.randn(K, generator=g, dtype=torch.float64), random_gaussian(K, seed + 30).covariance
        )
        self.prior = FullGaussian(torch.zeros(K, dtype=torch.float64), torch.eye(K, dtype=torch.float64))
        cross = matrix @ self.data.covariance
        self.q_z = FullGaussian(
            matrix @ self.data.mean + self.encoder.offset, cross @ matrix.mT + self.encoder.covariance
        )
        self.gain = cross.mT @ torch.linalg.inv(self.q_z.covariance)
        self.spread = self.data.covariance - self.gain @ cross

    def decoder_kl(self, z):
        """KL(q(x|z) || p(x|z)) for z `(n, K)`, with q(x|z) from the joint by conditioning on z."""
        q_x = FullGaussian(self.data.mean + (z - self.q_z.mean) @ self.gain.mT, self.spread)
        noise = self.model.noise * torch.eye(len(self.spread), dtype=torch.float64)
        return q_x.kl(FullGaussian(self.model.mean + z @ self.model.weight.mT, noise))

    def terms(self):
        """Return E log p(x|z), E KL(q(z|x)||p(z)), KL(q(z)||p(z)), E KL(q(x|z)||p(x|z)), I_q, E log p_D(x)."""
        rate = expectation(lambda x: self.encoder(x).kl(self.prior), self.data)
        elbo = expectation(lambda x: self.model.elbo(x, self.encoder(x)), self.data)
        information = 0.5 * (torch.logdet(self.q_z.covariance) - torch.logdet(self.encoder.covariance))
        return (
            elbo + rate,
            rate,
            self.q_z.kl(self.prior),
            expectation(self.decoder_kl, self.q_z),
            information,
            -MultivariateNormal(self.data.mean, self.data.covariance).entropy(),
        )


class MixtureModel:
    """A mixture of Gaussians as p(x|c), N points as the data, any table q(c|x)."""

    def __init__(self, seed, N=7, C=3):
        self.model = mixture(C, seed=seed)
        self.x, _ = self.model.sample(N, generator(seed + 1))
        self.q = torch.rand(N, C, generator=generator(seed + 2), dtype=torch.float64)
        self.q /= self.q.sum(1, keepdim=True)

    def terms(self):
        """The same six; the data's density is 1/N at each point, and that of x given c is compared with it there."""
        N = len(self.x)
        log_prior = self.model.log_weights
        log_likelihood = self.model.log_joint(self.x) - log_prior
        q_c = self.q.mean(0)
        q_n_given_c = self.q / (N * q_c)
        distortion = (self.q * log_likelihood).sum() / N
        rate = (self.q * (self.q.log() - log_prior)).sum() / N
        aggregate = (q_c * (q_c.log() - log_prior)).sum()
        decoder_kl = (q_c * (q_n_given_c * (q_n_given_c.log() - log_likelihood)).sum(0)).sum()
        information = (self.q * (self.q.log() - q_c.log())).sum() / N
        return distortion, rate, aggregate, decoder_kl, information, torch.tensor(-math.log(N), dtype=torch.float64)


@pytest.fixture(params=[(kind, seed) for kind in (GaussianModel, MixtureModel) for seed in range(3)], ids=str)
def terms(request):
    kind, seed = request.param
    return kind(seed).terms()


@pytest.mark.parametrize("seed", range(3))
def test_evidence_is_elbo_plus_kl_on_probabilistic_pca(seed):
    model = correlated_ppca(4, seed=seed, correlation=0.4)
    x, _ = model.sample(5, generator(seed))
    q = random_gaussian(4, seed + 1, (5,))
    torch.testing.assert_close(model.elbo(x, q) + q.kl(model.posterior(x)), model.log_prob(x), **EXACT)


@pytest.mark.parametrize("seed", range(3))
def test_evidence_is_elbo_plus_kl_on_mixtures(seed):
    model = mixture(4, 3, seed=seed)
    x, _ = model.sample(6, generator(seed))
    q = torch.rand(6, 4, generator=generator(seed + 1), dtype=torch.float64)
    q /= q.sum(1, keepdim=True)
    kl = (q * (q.log() - model.responsibilities(x).log())).sum(1)
    torch.testing.assert_close(model.elbo(x, q) + kl, model.log_prob(x), **EXACT)


def test_the_rate_is_information_plus_mismatch(terms):
    _, rate, aggregate, _, information, _ = terms
    torch.testing.assert_close(rate, information + aggregate, **EXACT)


def test_the_mean_elbo_seen_from_the_code(terms):
    distortion, rate, aggregate, decoder_kl, _, log_data = terms
    torch.testing.assert_close(distortion - rate, -aggregate - decoder_kl + log_data, **EXACT)


@pytest.mark.parametrize(("alpha", "lambda_"), [(0.0, 1.0), (0.0, 5.0), (1.0, 10.0), (0.5, 2.0), (-1.0, 3.0)])
def test_infovae_in_its_three_written_forms(terms, alpha, lambda_):
    distortion, rate, aggregate, decoder_kl, information, log_data = terms
    weighted = distortion - (1 - alpha) * rate - (alpha + lambda_ - 1) * aggregate
    informed = distortion - (1 - alpha) * information - lambda_ * aggregate
    from_code = -lambda_ * aggregate - decoder_kl + alpha * information + log_data
    torch.testing.assert_close(weighted, informed, **EXACT)
    torch.testing.assert_close(weighted, from_code, **EXACT)
