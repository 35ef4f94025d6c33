"""Gaussians with a full covariance and mixtures with a guard, against torch.distributions in float64."""

import math

import pytest
import torch
from torch.distributions import MultivariateNormal, Normal

from tests import stats
from tests.exact_models import generator
from vaebench.vae.prob.proposals import DefensiveMixture, FullGaussianProposal, GaussianProposal

B, K = 3, 4


def covariances(condition=30.0):
    """Return covariances `(B, K, K)` whose eigenvalues span a condition number."""
    axes = torch.linalg.qr(torch.randn(B, K, K, generator=generator(0), dtype=torch.float64)).Q
    values = torch.logspace(0, -math.log10(condition), K, dtype=torch.float64)
    return axes @ torch.diag(values) @ axes.mT


@pytest.fixture
def mu():
    return torch.randn(B, K, generator=generator(1), dtype=torch.float64)


@pytest.mark.parametrize("width", [1.0, 1.3, torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)])
@pytest.mark.parametrize("source", ["covariance", "precision"])
def test_densities_are_those_of_a_multivariate_normal(mu, width, source):
    if source == "covariance":
        gaussian = FullGaussianProposal.from_covariance(mu, covariances())
    else:
        least = torch.zeros(B, dtype=torch.float64)
        gaussian = FullGaussianProposal.from_precision(mu, torch.linalg.inv(covariances()), least)
    z = torch.randn(7, B, K, generator=generator(2), dtype=torch.float64)
    scale = torch.as_tensor(width, dtype=torch.float64).expand(B)[:, None, None] ** 2
    oracle = MultivariateNormal(mu, covariances() * scale)
    widened = gaussian.widen(width)
    torch.testing.assert_close(widened.log_prob(z), oracle.log_prob(z))
    torch.testing.assert_close(widened.covariance, covariances() * scale)
    torch.testing.assert_close(widened.colour(widened.whiten(z)), z)
    rows = torch.tensor([2, 0])
    torch.testing.assert_close(widened.select(rows).log_prob(z[:, rows]), oracle.log_prob(z)[:, rows])


def test_a_width_multiplies_standard_deviations(mu):
    narrow = GaussianProposal(mu, torch.full_like(mu, 0.3))
    z = torch.randn(5, *mu.shape, generator=torch.Generator().manual_seed(0), dtype=mu.dtype)
    wide = Normal(mu, 1.7 * math.exp(0.15)).log_prob(z).sum(-1)
    torch.testing.assert_close(narrow.widen(1.7).log_prob(z), wide)


def test_draws_have_the_mean_and_the_covariance(mu):
    gaussian = FullGaussianProposal.from_covariance(mu, covariances())
    z = gaussian.sample(20_000, generator(3))
    stats.assert_mean_equal(z, mu, discrepancy=0.1)
    centred = z - mu
    stats.assert_mean_equal(centred[..., :, None] * centred[..., None, :], covariances(), discrepancy=0.15)


@pytest.mark.parametrize("condition", [1e6, 1e12])
def test_a_nearly_singular_covariance_fails_nowhere_in_single_precision(mu, condition):
    """A Cholesky factor of it does not exist in float32."""
    gaussian = FullGaussianProposal.from_covariance(mu.float(), covariances(condition).float())
    z = gaussian.sample(500, generator(4))
    assert gaussian.log_prob(z).isfinite().all()
    least = torch.ones(B)
    indefinite = -torch.linalg.inv(covariances()).float()
    assert FullGaussianProposal.from_precision(mu.float(), indefinite, least).std.tolist() == [[1.0] * K] * B


def test_a_share_for_each_datum(mu):
    """Shares 0, 1/4 and 1: the first alone, both, the second alone."""
    first = FullGaussianProposal.from_covariance(mu, covariances())
    second = GaussianProposal(mu + 50, torch.zeros_like(mu))
    share = torch.tensor([0.0, 0.25, 1.0], dtype=torch.float64)
    mixture = DefensiveMixture(first, second, share)
    z = mixture.sample(4000, generator(5))
    from_second = (z - mu).mean(-1) > 25
    assert (from_second[:, 0].sum(), from_second[:, 2].sum()) == (0, 4000)
    stats.assert_mean_equal(from_second[:, 1], 0.25, discrepancy=0.08)
    z = z[:5]
    expected = (1 - share) * first.log_prob(z).exp() + share * second.log_prob(z).exp()
    torch.testing.assert_close(mixture.log_prob(z).exp(), expected)
