"""Free-form inference on probabilistic PCA, whose best diagonal posterior and family gap are known."""

import pytest
import torch
from scipy.stats import norm

from tests import stats
from tests.exact_models import correlated_ppca, generator
from vaebench.vae.estimators.evidence import Estimate
from vaebench.vae.estimators.exact import FullGaussian
from vaebench.vae.estimators.posterior_fit import fit_posterior, inference_gaps
from vaebench.vae.prob.proposals import GaussianProposal


@pytest.fixture(scope="module")
def fitted():
    model = correlated_ppca(3, correlation=0.5)
    x, _ = model.sample(10, generator(0))
    amortised = GaussianProposal.prior(model.posterior(x).mean)

    def log_joint(z):
        return model.log_joint(x, z)

    return model, x, log_joint, amortised, fit_posterior(log_joint, amortised, generator=generator(1))


def closed_elbo(model, x, q):
    return model.elbo(x, FullGaussian(q.mu, torch.diag_embed(q.logvar.exp())))


def test_the_fitted_posterior_is_the_best_diagonal_one(fitted):
    model, x, _, _, q = fitted
    mu, logvar = model.best_diagonal(x)
    torch.testing.assert_close(q.mu, mu, atol=0.05, rtol=0)
    torch.testing.assert_close(q.logvar, logvar.clone(), atol=0.1, rtol=0)
    lost = closed_elbo(model, x, GaussianProposal(mu, logvar)) - closed_elbo(model, x, q)
    assert lost.min() >= 0
    assert lost.max() < 0.01


def test_fitting_leaves_its_start_alone(fitted):
    *_, amortised, _ = fitted
    assert amortised.mu.abs().max() == 0


def test_gaps_are_those_of_the_closed_form(fitted):
    """The gap of the family is KL(q || p(z|x)), computed without any bound; copies of one datum are independent."""
    model, x, _, amortised, q = fitted
    copies = x[:1].expand(4000, -1)
    one_amortised, one_q = (
        GaussianProposal(p.mu[:1].expand(4000, -1), p.logvar[:1].expand(4000, -1)) for p in (amortised, q)
    )
    log_p = Estimate(model.log_prob(copies), torch.zeros(4000, dtype=torch.float64), "exact", 1)

    def log_joint(z):
        return model.log_joint(copies, z)

    gaps = inference_gaps(log_joint, one_amortised, one_q, log_p, samples=100, generator=generator(3))
    kl = FullGaussian(q.mu, torch.diag_embed(q.logvar.exp())).kl(model.posterior(x))[0]
    amortisation = (closed_elbo(model, x, q) - closed_elbo(model, x, amortised))[0]
    for value, stderr, exact in (
        (gaps.family, gaps.family_stderr, kl),
        (gaps.amortisation, gaps.amortisation_stderr, amortisation),
    ):
        stats.assert_mean_equal(value, exact, discrepancy=0.1 * exact.item())
        stats.assert_coverage((value - exact).abs() <= norm.isf(0.005) * stderr, 0.99, discrepancy=0.03)
