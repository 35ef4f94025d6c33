"""Markov chains: what they converge to, how they adapt, and their diagnostics against loops and closed forms."""

import numpy as np
import pytest
import torch
from scipy import stats as scipy_stats
from torch.distributions import MultivariateNormal

from tests import stats
from tests.exact_models import correlated_ppca, generator, mixture
from vaebench.vae.estimators.mcmc import (
    ChainState,
    effective_sample_size,
    gibbs,
    hmc,
    hmc_transition,
    metropolis_hastings,
    r_hat,
    random_walk,
    tune_step,
)

GUMBEL = scipy_stats.gumbel_r()
TARGET = MultivariateNormal(
    torch.tensor([1.0, -1.0], dtype=torch.float64), torch.tensor([[1.0, 0.8], [0.8, 2.0]], dtype=torch.float64)
)


def log_gumbel(z):
    """An asymmetric target in one dimension."""
    return (-z - torch.exp(-z)).sum(-1)


def from_normal(C, B, K, seed=0):
    return torch.randn(C, B, K, generator=generator(seed), dtype=torch.float64)


def log_wide(z):
    """The density of a proposal N(1, 2^2), up to a constant."""
    return -0.5 * ((z - 1) / 2).square().sum(-1)


def propose_wide(z, generator):
    """An independence proposal: draws of N(1, 2^2) whatever the state, with a correction for its density."""
    proposed = 1 + 2 * torch.randn(len(z), 1, 1, generator=generator).double()
    return proposed, log_wide(z) - log_wide(proposed)


def assert_acceptance(chains, low, high):
    rates = chains.acceptance.flatten()
    stats.assert_mean_at_most(rates, high, discrepancy=0.1)
    stats.assert_mean_at_most(-rates, -low, discrepancy=0.1)


@pytest.mark.parametrize("propose", [random_walk(2.0), propose_wide], ids=["random_walk", "independent"])
def test_metropolis_hastings_keeps_its_target(propose):
    chains = metropolis_hastings(
        log_gumbel, from_normal(8000, 1, 1), propose, samples=1, warmup=60, generator=generator(1)
    )
    stats.assert_distribution(chains.samples[-1, :, 0, 0], GUMBEL.cdf, discrepancy=0.06)
    assert_acceptance(chains, 0.2, 0.8)


def test_warm_up_is_thrown_away_and_the_rest_kept():
    chains = metropolis_hastings(log_gumbel, from_normal(3, 2, 1), random_walk(1.0), samples=7, warmup=5)
    assert chains.samples.shape == (7, 3, 2, 1)
    assert chains.acceptance.shape == (3, 2)


def test_hmc_keeps_a_correlated_target():
    start = from_normal(4000, 1, 2)
    step, warm = tune_step(TARGET.log_prob, start, warmup=60, generator=generator(1))
    chains = hmc(TARGET.log_prob, warm, step, samples=15, leapfrog_steps=5, generator=generator(2))
    z = chains.samples[-1, :, 0]
    centred = z - TARGET.mean
    stats.assert_mean_equal(z, TARGET.mean, discrepancy=0.3)
    stats.assert_mean_equal(centred[:, :, None] * centred[:, None, :], TARGET.covariance_matrix, discrepancy=0.6)
    stats.assert_distribution(z[:, 0], scipy_stats.norm(1, 1).cdf, discrepancy=0.1)


def test_hmc_keeps_an_asymmetric_target_even_with_a_coarse_step():
    """Only the acceptance test keeps the target where the leapfrog errs this much."""
    step = torch.tensor([1.5], dtype=torch.float64)
    chains = hmc(log_gumbel, from_normal(8000, 1, 1), step, samples=40, leapfrog_steps=3, generator=generator(1))
    assert_acceptance(chains, 0.3, 0.9)
    stats.assert_distribution(chains.samples[-1, :, 0, 0], GUMBEL.cdf, discrepancy=0.06)


def test_tuning_reaches_its_target_for_each_datum_by_itself():
    scales = torch.tensor([0.01, 1.0, 100.0], dtype=torch.float64)

    def log_density(z):
        return -0.5 * (z / scales[:, None]).square().sum(-1)

    start = from_normal(64, 3, 5) * scales[:, None]
    step, warm = tune_step(log_density, start, warmup=150, generator=generator(1))
    chains = hmc(log_density, warm, step, samples=50, generator=generator(2))
    torch.testing.assert_close(chains.acceptance.mean(0), torch.full((3,), 0.8, dtype=torch.float64), atol=0.1, rtol=0)
    torch.testing.assert_close(step / scales, (step / scales).mean().expand(3), rtol=0.3, atol=0)


def test_the_step_stays_frozen_while_samples_count():
    """On a flat target nothing is rejected and a transition moves by exactly L * step * momentum."""
    step = torch.tensor([0.3], dtype=torch.float64)
    start = from_normal(500, 1, 4)
    chains = hmc(lambda z: 0 * z.sum(-1), start, step, samples=200, leapfrog_steps=7, generator=generator(1))
    moves = chains.samples.diff(dim=0) / (7 * 0.3)
    for part in (moves[:90], moves[-90:]):
        stats.assert_mean_equal(part.square().mean((1, 2, 3)), 1 + 0.2**2 / 3, discrepancy=0.3)
    assert chains.acceptance.min() == 1


def test_a_transition_is_reversible_up_to_its_acceptance():
    """With steps ten times smaller the energy error falls a hundredfold: the leapfrog is of second order."""

    def rejected(size, steps):
        state = ChainState.at(log_gumbel, torch.full((2000, 1, 1), 0.5, dtype=torch.float64))
        _, acceptance = hmc_transition(log_gumbel, state, torch.tensor([size]).double(), steps, generator(0))
        return (1 - acceptance).mean().item()

    assert rejected(0.05, 20) == pytest.approx(rejected(0.5, 2) / 100, rel=0.2)


def test_gibbs_samples_the_posterior_of_probabilistic_pca():
    model = correlated_ppca(2, correlation=0.5)
    x, _ = model.sample(1, generator(0))
    states = gibbs(model.gibbs_updates(x), from_normal(5000, 1, 2), samples=1, warmup=40, generator=generator(1))
    z, posterior = states[-1][:, 0], model.posterior(x)
    centred = z - posterior.mean
    stats.assert_mean_equal(z, posterior.mean[0], discrepancy=0.1)
    stats.assert_mean_equal(centred[:, :, None] * centred[:, None, :], posterior.covariance, discrepancy=0.1)


def test_gibbs_samples_the_joint_of_a_mixture():
    model = mixture()
    start = (from_normal(5000, 1, 2)[:, 0], torch.zeros(5000, dtype=torch.int64))
    [(x, c)] = gibbs(model.gibbs_updates(), start, samples=1, warmup=100, generator=generator(1))
    weights = model.log_weights.exp()
    stats.assert_mean_equal(torch.nn.functional.one_hot(c, 3).double(), weights, discrepancy=0.1)
    stats.assert_mean_equal(x, weights @ model.means, discrepancy=0.6)


def test_r_hat_is_the_textbook_formula():
    samples = np.random.default_rng(0).normal(size=(101, 3)).cumsum(0)
    halves = [samples[:50, c] for c in range(3)] + [samples[-50:, c] for c in range(3)]
    within = np.mean([np.var(half, ddof=1) for half in halves])
    between = 50 * np.var([np.mean(half) for half in halves], ddof=1)
    expected = np.sqrt((49 / 50 * within + between / 50) / within)
    assert r_hat(torch.from_numpy(samples)).item() == pytest.approx(expected, rel=1e-12)


def test_r_hat_tells_chains_that_agree_from_chains_that_do_not():
    agreed = from_normal(1000, 4, 100)
    apart, adrift = agreed + torch.arange(4.0)[:, None], agreed + torch.linspace(0, 3, 1000)[:, None, None]
    for found in (r_hat(agreed) >= 1.01, r_hat(apart) <= 1.3, r_hat(adrift) <= 1.1):
        stats.assert_rate_at_most(found, 0.01, discrepancy=0.25)


@pytest.mark.parametrize("memory", [0.0, 0.5, 0.9, -0.3])
def test_effective_sample_size_of_an_autoregression(memory):
    """An AR(1) chain of n draws is worth n (1 - a) / (1 + a)."""
    noise = np.random.default_rng(0).normal(size=(2000, 4, 100))
    start = noise[:1] / np.sqrt(1 - memory**2)
    chain = np.concatenate([start, noise[1:]])
    for t in range(1, 2000):
        chain[t] += memory * chain[t - 1]
    found = effective_sample_size(torch.from_numpy(chain)) / (8000 * (1 - memory) / (1 + memory))
    stats.assert_mean_at_most(found, 1.1, discrepancy=0.15)
    stats.assert_mean_at_most(-found, -0.9, discrepancy=0.15)


def test_effective_sample_size_counts_disagreement_between_chains():
    samples = from_normal(500, 4, 1) + 10 * torch.arange(4.0)[:, None]
    assert effective_sample_size(samples).item() < 10


@pytest.mark.parametrize("diagnostic", [r_hat, effective_sample_size])
def test_too_few_draws_are_refused(diagnostic):
    with pytest.raises(ValueError, match="at least 4 draws"):
        diagnostic(torch.zeros(3, 2))
