"""The fit to a posterior: exact for Gaussians, the mode of any other, and q itself where there is none."""

import math

import pytest
import torch

from tests.exact_models import correlated_ppca, generator
from vaebench.vae.estimators.joint import CountedJoint
from vaebench.vae.estimators.laplace import find_mode, fit_laplace
from vaebench.vae.prob.proposals import GaussianProposal


def fit(log_joint, q):
    joint = CountedJoint(log_joint, q.mu, 10_000)
    return fit_laplace(joint, joint.rows, q), joint


@pytest.mark.parametrize("K", [1, 2, 8, 32, 64])
def test_the_fit_is_the_posterior_of_probabilistic_pca_however_poor_q_is(K):
    model = correlated_ppca(K, correlation=0.3 / K**0.5)
    x, _ = model.sample(9, generator(0))
    q = GaussianProposal(
        torch.randn(9, K, generator=generator(1), dtype=torch.float64), torch.full_like(x[:, :K], -3.0)
    )
    fitted, _ = fit(lambda z, rows: model.log_joint(x[rows], z), q)
    torch.testing.assert_close(fitted.mu, model.posterior(x).mean, rtol=0, atol=1e-8)
    torch.testing.assert_close(fitted.covariance, model.posterior(x).covariance.expand(9, K, K), rtol=0, atol=1e-8)


def test_the_climb_finds_the_mode_of_a_curved_valley():
    """log p = -(1 - u)^2 - 20 (v - u^2)^2 of Rosenbrock has its mode, of value 0, at (1, 1)."""

    def log_joint(z, rows):
        u, v = z.unbind(-1)
        return -((1 - u) ** 2) - 20 * (v - u**2) ** 2

    q = GaussianProposal(torch.randn(50, 2, generator=generator(0), dtype=torch.float64), torch.zeros(50, 2).double())
    joint = CountedJoint(log_joint, q.mu, 10_000)
    reached = find_mode(joint, joint.rows, q.mu, torch.diag_embed(q.logvar.exp()))
    assert log_joint(reached, None).min() > -0.05
    assert joint.spent.max() <= 2 * 61
    fitted = fit_laplace(joint, joint.rows, q)
    assert log_joint(fitted.mu, None).min() > -0.02


@pytest.mark.parametrize("logvar", [-16.0, -4.0, 2.0])
def test_the_width_of_q_does_not_matter_where_the_mode_is_far_away(logvar):
    """z_k ~ log Gamma(3) has the mode log 3 and the precision 3 there; the climb starts 4 away."""
    q = GaussianProposal(torch.full((5, 3), math.log(3) - 4), torch.full((5, 3), logvar))
    fitted, joint = fit(lambda z, rows: (3 * z - z.exp()).sum(-1), q)
    torch.testing.assert_close(fitted.mu, torch.full((5, 3), math.log(3)), rtol=0, atol=0.02)
    torch.testing.assert_close(fitted.std, torch.full((5, 3), 3**-0.5), rtol=0, atol=0.02)
    assert joint.spent.max() < 100


def test_data_that_have_arrived_cost_no_more():
    """One datum starts at its mode, the other one far away: the first pays for one gradient."""
    centre = torch.tensor([[0.0, 0.0], [5.0, -8.0]], dtype=torch.float64)
    rows_seen = []

    def log_joint(z, rows):
        rows_seen.append(rows.tolist())
        return -((z - centre[rows]) ** 4).sum(-1)

    q = GaussianProposal(torch.zeros_like(centre), torch.zeros_like(centre))
    joint = CountedJoint(log_joint, q.mu, 10_000)
    find_mode(joint, joint.rows, q.mu, torch.diag_embed(q.logvar.exp()))
    assert joint.spent[0] == 2
    assert joint.spent[1] > 10
    assert all(rows == [1] for rows in rows_seen[1:])


def test_a_posterior_flatter_than_the_prior_gets_the_width_of_the_prior_or_of_a_wider_q():
    q = GaussianProposal(torch.zeros(2, 1), torch.tensor([[0.0], [2.0]]))
    fitted, _ = fit(lambda z, rows: -0.5 * 0.01 * z.square().sum(-1), q)
    assert fitted.std[:, 0].tolist() == pytest.approx([1.0, torch.tensor(1.0).exp().item()], rel=1e-5)


@pytest.mark.parametrize("bad", ["value", "infinite", "far"])
def test_where_nothing_finite_is_found_q_serves_and_the_others_are_fitted(bad):
    """The spoilt datum has no value, no finite slope, or a slope that leads to where there is no value."""

    def log_joint(z, rows):
        spoilt = (rows == 1).to(z.dtype)
        factor = {"value": torch.nan, "infinite": torch.inf, "far": 1e30}[bad]
        good = -2 * (z - 1).square().sum(-1)
        return good + torch.where(spoilt > 0, factor, 0.0) * z.exp().sum(-1)

    q = GaussianProposal(torch.full((3, 2), 0.3), torch.full((3, 2), -1.4))
    fitted, _ = fit(log_joint, q)
    assert fitted.mu.isfinite().all()
    assert fitted.std.isfinite().all()
    if bad != "far":
        torch.testing.assert_close(fitted.mu[1], q.mu[1])
        torch.testing.assert_close(fitted.std[1], torch.exp(0.5 * q.logvar[1]))


def test_a_datum_without_a_value_leaves_the_others_alone():
    scale = torch.tensor([1.0, torch.nan, 1.0])
    q = GaussianProposal(torch.full((3, 2), 0.3), torch.full((3, 2), -1.4))
    fitted, _ = fit(lambda z, rows: -2 * scale[rows] * (z - 1).square().sum(-1), q)
    torch.testing.assert_close(fitted.mu, torch.tensor([[1.0, 1.0], [0.3, 0.3], [1.0, 1.0]]))
    torch.testing.assert_close(fitted.std[::2], torch.full((2, 2), 0.5))


def test_in_single_precision_a_step_that_only_rounding_makes_worse_is_taken():
    """At log p near -2000 one unit of the last place is 1e-4; the fit stays within 0.001 standard deviations."""
    model = correlated_ppca(8, correlation=0.1)
    x, _ = model.sample(40, generator(0))
    single, weight, mean = x.float(), model.weight.float(), model.mean.float()

    def log_joint(z, rows):
        squares = (single[rows] - mean - z @ weight.T).square().sum(-1) / model.noise
        return -0.5 * (squares + z.square().sum(-1)) - 2000

    q = GaussianProposal(torch.zeros(40, 8), torch.zeros(40, 8))
    fitted, _ = fit(log_joint, q)
    posterior = model.posterior(x)
    off = (fitted.mu.double() - posterior.mean) / posterior.covariance.diagonal().sqrt()
    assert off.abs().max() < 2e-3
    torch.testing.assert_close(fitted.covariance.double(), posterior.covariance.expand(40, 8, 8), rtol=0, atol=1e-5)
