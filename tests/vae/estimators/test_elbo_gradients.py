"""Gradients of the ELBO of probabilistic PCA, estimated and in closed form."""

import dataclasses
import math

import pytest
import torch

from tests import stats
from tests.exact_models import correlated_ppca, generator
from vaebench.vae.estimators.elbo_gradients import model_gradient, pathwise, score_function
from vaebench.vae.estimators.exact import FullGaussian
from vaebench.vae.prob.proposals import GaussianProposal

COPIES = 4000


@pytest.fixture(scope="module")
def problem():
    """A model, one datum many times over, and a q that is not the best."""
    model = correlated_ppca(2, correlation=0.3)
    x, _ = model.sample(1, generator(0))
    mu, logvar = model.best_diagonal(x)
    return model, x.expand(COPIES, -1), (mu + 0.3).expand(COPIES, -1), (logvar + 0.2).expand(COPIES, -1)


def closed_form(model, x, mu, logvar):
    """d ELBO / d mu = W^T (x - m - W mu) / s^2 - mu,    d ELBO / d logvar = 1/2 (1 - P_kk exp(logvar_k))."""
    by_mu = (x - model.mean - mu @ model.weight.T) @ model.weight / model.noise - mu
    return by_mu, 0.5 * (1 - model.precision().diagonal() * logvar.exp())


def estimators(model, x):
    def log_joint(z):
        return model.log_joint(x, z)

    def constant(mu, logvar):
        fresh = GaussianProposal(mu, logvar)
        z = fresh.sample(50, generator(99))
        return (log_joint(z) - fresh.log_prob(z)).mean(0)

    def scored(baseline):
        return lambda mu, logvar, **options: score_function(
            log_joint, mu, logvar, baseline=constant(mu, logvar) if baseline == "constant" else baseline, **options
        )

    return {
        "pathwise": lambda *q, **options: pathwise(log_joint, *q, **options),
        "plain": scored("none"),
        "baseline": scored("constant"),
        "leave_one_out": scored("leave_one_out"),
    }


@pytest.mark.parametrize("name", ["pathwise", "plain", "baseline", "leave_one_out"])
def test_estimators_have_the_closed_form_gradient_as_their_mean(problem, name):
    model, x, mu, logvar = problem
    gradient = estimators(model, x)[name](mu, logvar, samples=8, generator=generator(1))
    by_mu, by_logvar = closed_form(model, x[0], mu[0], logvar[0])
    scale = 6.0 if name == "plain" else 0.7
    stats.assert_mean_equal(gradient.mu.mean(0), by_mu, discrepancy=scale)
    stats.assert_mean_equal(gradient.logvar.mean(0), by_logvar, discrepancy=scale)


def test_pathwise_keeps_the_digits_of_its_noise_where_q_is_narrow_and_far():
    """At mu = 30 and sigma = e^-10, where codes of single precision are sigma / 24 apart."""
    mu, logvar, slope = torch.full((5, 2), 30.0), torch.full((5, 2), -20.0), 1e6
    found = pathwise(lambda z: slope * z.sum(-1), mu, logvar, samples=7, generator=generator(0))
    eps = torch.randn(7, 5, 2, generator=generator(0)).double()
    noise = (found.logvar.double() - 0.5) / (0.5 * slope)
    torch.testing.assert_close(noise, math.exp(-10) * eps, rtol=1e-5, atol=1e-11)


def test_closed_form_is_the_gradient_of_the_closed_bound(problem):
    """The oracle above against autograd through the exact ELBO."""
    model, x, mu, logvar = (part[:3] if isinstance(part, torch.Tensor) else part for part in problem)
    mu, logvar = mu.clone().requires_grad_(), logvar.clone().requires_grad_()
    bound = model.elbo(x, FullGaussian(mu, torch.diag_embed(logvar.exp()))).sum()
    for found, expected in zip(
        torch.autograd.grad(bound, (mu, logvar)), closed_form(model, x, mu, logvar), strict=True
    ):
        torch.testing.assert_close(found, expected.expand(3, -1))


def test_variances_are_ordered_and_fall_with_the_samples(problem):
    model, x, mu, logvar = problem
    found = {}
    for name, estimate in estimators(model, x).items():
        for samples in (4, 16):
            gradient = estimate(mu, logvar, samples=samples, generator=generator(1))
            found[name, samples] = gradient.mu.mean(0).var(0).sum().item()
    for name in ("pathwise", "plain", "baseline"):
        assert found[name, 4] / found[name, 16] == pytest.approx(4, rel=0.2)
    assert found["pathwise", 4] < found["baseline", 4] < found["plain", 4]
    assert found["leave_one_out", 16] < 0.5 * found["plain", 16]


def test_model_gradient_has_the_closed_form_as_its_mean():
    """d ELBO / d W = [(x - m - W mu) mu^T - W C] / s^2, C the covariance of q, averaged over the data."""
    model = correlated_ppca(2, correlation=0.3)
    x, _ = model.sample(5, generator(0))
    q = GaussianProposal(*model.best_diagonal(x))

    def log_joint(parameters, z):
        return dataclasses.replace(model, **parameters).log_joint(x, z)

    parameters = {"weight": model.weight, "mean": model.mean}
    gradient = model_gradient(log_joint, parameters, q.sample(5000, generator(1)))
    residual = x - model.mean - q.mu @ model.weight.T
    spread = model.weight * q.logvar[0].exp()
    stats.assert_mean_equal(gradient["weight"], (residual.T @ q.mu / 5 - spread) / model.noise, discrepancy=0.5)
    stats.assert_mean_equal(gradient["mean"], residual.mean(0) / model.noise, discrepancy=0.5)


def test_leave_one_out_needs_two_samples():
    with pytest.raises(ValueError, match="at least 2 samples"):
        score_function(lambda z: z.sum(-1), torch.zeros(1, 1), torch.zeros(1, 1), samples=1, baseline="leave_one_out")
