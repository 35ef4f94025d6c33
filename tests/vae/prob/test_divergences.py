"""Divergences from the prior: against torch.distributions, in float64 where float32 cancels, and under the null."""

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.stats import norm
from torch.distributions import Normal, kl_divergence

from tests import stats
from tests.reparam_kl_oracle import exact_expm1_minus_identity, long, near_and_far
from vaebench.vae.prob.divergences import gaussian_kl, mmd2_to_prior


def test_gaussian_kl_is_that_of_torch_distributions():
    g = torch.Generator().manual_seed(0)
    mu, logvar = torch.randn(2, 7, 3, generator=g, dtype=torch.float64)
    expected = kl_divergence(Normal(mu, (0.5 * logvar).exp()), Normal(torch.zeros(()), torch.ones(()))).sum(-1)
    torch.testing.assert_close(gaussian_kl(mu, logvar), expected, rtol=1e-12, atol=0)


def test_gaussian_kl_keeps_its_digits_near_the_prior():
    mu, logvar = torch.full((1, 4), 1e-4), torch.full((1, 4), 1e-3)
    exact = gaussian_kl(mu.double(), logvar.double())
    assert (gaussian_kl(mu, logvar).double() / exact - 1).abs().item() < 1e-3
    textbook = -0.5 * (1 + logvar - mu**2 - logvar.exp()).sum(-1)
    assert (textbook.double() / exact - 1).abs().item() > 1e-2


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_gaussian_kl_is_right_to_3e_6_of_itself(dtype):
    logvar = near_and_far(dtype)
    found, right = long(gaussian_kl(0 * logvar[:, None], logvar[:, None])), exact_expm1_minus_identity(logvar) / 2
    assert (np.abs(found - right) <= 3e-6 * right).all()


def test_gaussian_kl_is_zero_at_the_prior_and_only_there():
    zero = torch.zeros(1, 2)
    assert gaussian_kl(zero, zero).item() == 0
    assert gaussian_kl(zero + 0.1, zero).item() > 0
    assert gaussian_kl(zero, zero - 0.1).item() > 0


def test_mmd_to_the_prior_is_unbiased_at_the_prior_and_grows_away_from_it():
    g = torch.Generator().manual_seed(0)
    codes = torch.randn(400, 100, 2, generator=g, dtype=torch.float64)
    at_prior = [mmd2_to_prior(z, generator=g).item() for z in codes]
    shifted = [mmd2_to_prior(z + 1, generator=g).item() for z in codes]
    stats.assert_mean_equal(at_prior, 0.0, discrepancy=0.003)
    assert min(shifted) > max(at_prior)


@pytest.mark.parametrize("kernel", ["rbf", "imq"])
def test_mmd_of_a_shifted_gaussian_is_that_of_quadrature(kernel):
    def similarity(shift, c=2.0):
        """E k(x, y), where x - y ~ N(shift, 2)."""
        k = (lambda d: np.exp(-(d**2) / c)) if kernel == "rbf" else (lambda d: c / (c + d**2))
        return quad(lambda d: k(d) * norm.pdf(d, shift, np.sqrt(2)), -20, 20)[0]

    g = torch.Generator().manual_seed(1)
    exact = 2 * similarity(0.0) - 2 * similarity(1.0)
    estimates = [
        mmd2_to_prior(1 + torch.randn(100, 1, generator=g, dtype=torch.float64), kernel=kernel, generator=g).item()
        for _ in range(400)
    ]
    stats.assert_mean_equal(estimates, exact, discrepancy=0.03)
