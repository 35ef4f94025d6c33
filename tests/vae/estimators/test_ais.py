"""Annealed importance sampling: unbiased at any number of temperatures, and a bracket that closes around the truth."""

from dataclasses import replace

import pytest
import torch

from tests import stats
from tests.exact_models import correlated_ppca, generator, orthogonal_ppca
from vaebench.vae.estimators import ais
from vaebench.vae.estimators.ais import Path, anneal, anneal_back, sigmoid_schedule, tune_steps
from vaebench.vae.estimators.evidence import importance_sampling
from vaebench.vae.estimators.mcmc import hmc_transition
from vaebench.vae.prob.proposals import GaussianProposal


def path_for(model, x, temperatures, start=None, leapfrog_steps=5):
    start = start or GaussianProposal.prior(model.posterior(x).mean)
    return Path(lambda z: model.log_joint(x, z), start, sigmoid_schedule(temperatures), leapfrog_steps)


@pytest.fixture(scope="module")
def small():
    """One datum 25 000 times over, K = 2: each copy gives an independent estimate."""
    model = orthogonal_ppca(2)
    x = model.sample(1, generator(0))[0].expand(25_000, -1)
    return model, x, torch.full((7, 1), 0.4, dtype=torch.float64)


def test_the_schedule_is_the_scaled_sigmoid():
    schedule = sigmoid_schedule(10)
    assert schedule[0] == 0
    assert schedule[-1] == 1
    assert len(schedule) == 11
    steps = schedule.diff()
    torch.testing.assert_close(steps, steps.flip(0))
    sigmoid = torch.sigmoid(torch.tensor([-4.0, -3.2, 4.0], dtype=torch.float64))
    torch.testing.assert_close(schedule[1], (sigmoid[1] - sigmoid[0]) / (sigmoid[2] - sigmoid[0]))


@pytest.mark.parametrize(
    "bad", [torch.tensor([0.1, 1.0]), torch.tensor([0.0, 0.5]), torch.tensor([0.0, 0.6, 0.5, 1.0])]
)
def test_a_schedule_that_is_none_is_refused(bad):
    with pytest.raises(ValueError, match="from 0 to 1"):
        Path(lambda z: z.sum(-1), GaussianProposal(torch.zeros(1, 1), torch.zeros(1, 1)), bad)
    with pytest.raises(ValueError, match="at least 1"):
        sigmoid_schedule(0)


@pytest.mark.parametrize("chains", [0, 1])
def test_one_chain_is_refused_before_it_runs(chains):
    """Its standard error would be nan, and none at all have no mean."""
    model = orthogonal_ppca(2)
    x, _ = model.sample(3, generator(0))
    path, steps = path_for(model, x, 3), torch.full((4, 3), 0.4, dtype=torch.float64)
    exact = model.posterior(x).sample(chains, generator(1))
    path = replace(path, log_joint=lambda z: pytest.fail("the model ran"))
    with pytest.raises(ValueError, match=f"chains must be at least 2, .* got {chains}"):
        anneal(path, steps, chains=chains)
    with pytest.raises(ValueError, match=f"chains must be at least 2, .* got {chains}"):
        anneal_back(path, steps, exact)


def test_weights_are_unbiased_with_few_temperatures(small):
    model, x, steps = small
    estimate = anneal(path_for(model, x, 6), steps, chains=2, generator=generator(1))
    stats.assert_mean_equal((estimate.value - model.log_prob(x)).exp(), 1.0, discrepancy=0.1)


def test_inverse_weights_are_unbiased_backwards(small):
    """From a start narrower than the posterior, where the inverse weights have a variance."""
    model, x, steps = small
    mu, logvar = model.best_diagonal(x)
    path = path_for(model, x, 6, start=GaussianProposal(mu + 0.1, logvar - 0.7))
    exact = model.posterior(x).sample(2, generator(1))
    estimate = anneal_back(path, steps, exact, generator=generator(2))
    assert estimate.kind == "upper"
    stats.assert_mean_equal((model.log_prob(x) - estimate.value).exp(), 1.0, discrepancy=0.1)


@pytest.mark.parametrize(("temperatures", "step"), [(7, 0.0), (1, 1.0)], ids=["standing still", "one temperature"])
def test_chains_that_do_not_move_make_it_importance_sampling_from_the_start(temperatures, step):
    model = correlated_ppca(3)
    x, _ = model.sample(4, generator(0))
    path = path_for(model, x, temperatures)
    steps = torch.full((temperatures + 1, 4), step, dtype=torch.float64)
    still = anneal(path, steps, chains=9, generator=generator(1))
    sampled = importance_sampling(path.log_joint, path.start, samples=9, generator=generator(1))
    torch.testing.assert_close(still.value, sampled.value)
    torch.testing.assert_close(still.ess, sampled.ess)


def test_steps_stay_frozen_in_the_runs_that_count(monkeypatch):
    """Each temperature gets its own step as it was tuned, forward and backward, whatever the chains accept."""
    model = orthogonal_ppca(2)
    x, _ = model.sample(3, generator(0))
    path, taken = path_for(model, x, 5), []

    def recording(log_density, state, step, *rest):
        taken.append(step.clone())
        return hmc_transition(log_density, state, step, *rest)

    monkeypatch.setattr(ais, "hmc_transition", recording)
    steps = torch.rand(6, 3, generator=generator(1), dtype=torch.float64)
    anneal(path, steps, chains=4, generator=generator(2))
    torch.testing.assert_close(torch.stack(taken), steps[1:5])
    taken.clear()
    anneal_back(path, steps, model.posterior(x).sample(4, generator(3)), generator=generator(4))
    torch.testing.assert_close(torch.stack(taken), steps[1:5].flip(0))


@pytest.mark.slow
def test_annealing_from_a_fitted_start_is_within_two_hundredths_of_a_nat_in_32_dimensions():
    model = correlated_ppca(32)
    x, _ = model.sample(120, generator(0))
    path = path_for(model, x, 1200, start=GaussianProposal(*model.best_diagonal(x)), leapfrog_steps=2)
    estimate = anneal(path, tune_steps(path, generator=generator(1)), chains=16, generator=generator(2))
    stats.assert_mean_equal(estimate.value - model.log_prob(x), 0.0, discrepancy=0.02)
    assert estimate.cost == 16 * (1 + 1199 * 3)


@pytest.mark.slow
def test_annealing_from_the_prior_brackets_the_truth_in_32_dimensions():
    model = correlated_ppca(32)
    x, _ = model.sample(100, generator(0))
    path = path_for(model, x, 1500, leapfrog_steps=2)
    steps = tune_steps(path, generator=generator(1))
    lower = anneal(path, steps, chains=8, generator=generator(2))
    upper = anneal_back(path, steps, model.posterior(x).sample(8, generator(3)), generator=generator(4))
    log_p = model.log_prob(x)
    stats.assert_mean_at_most(lower.value - log_p, 0.0, discrepancy=0.3)
    stats.assert_mean_at_most(log_p - upper.value, 0.0, discrepancy=0.3)
    stats.assert_mean_at_most(upper.value - lower.value, 0.1, discrepancy=0.4)
