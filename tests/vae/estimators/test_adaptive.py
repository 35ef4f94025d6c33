"""Proposals that improve with their draws: still unbiased for p(x), and better after each refit."""

import math

import pytest
import torch

from tests import stats
from tests.exact_models import Modes, generator
from vaebench.vae.estimators import adaptive
from vaebench.vae.estimators.adaptive import FittedProposal, anneal, calibrate, follow_gradients, refit
from vaebench.vae.estimators.evidence import estimate_from_log_weights
from vaebench.vae.estimators.joint import CountedJoint
from vaebench.vae.estimators.laplace import fit_laplace
from vaebench.vae.prob.proposals import FullGaussianProposal, GaussianProposal


def refitted(data, samples, *, distance=1.8, seed=1):
    """Return modes, and a proposal refitted to draws from one that sees a single mode and the guard."""
    modes = Modes(data, distance)
    joint = CountedJoint(modes, modes.q.mu, 100_000)
    fitted = fit_laplace(joint, joint.rows, modes.q)
    first = calibrate(joint, joint.rows, fitted, modes.q.widen(3.0), generator(seed))
    z = first.mixture.sample(samples, generator(seed + 1))
    log_w = joint(z, joint.rows) - first.mixture.log_prob(z)
    return modes, joint, first, refit(first, z, log_w), z, log_w


def test_a_refit_covers_what_the_guard_has_found():
    _, joint, first, second, *_ = refitted(200, 400)
    fresh = [p.mixture.sample(400, generator(9)) for p in (first, second)]
    ess = [
        estimate_from_log_weights(joint(z, joint.rows) - p.mixture.log_prob(z), "unbiased", 400).ess.median()
        for p, z in zip((first, second), fresh, strict=True)
    ]
    assert ess[1] > 2 * ess[0]


def test_fresh_weights_of_a_refit_are_unbiased():
    modes, joint, _, second, *_ = refitted(20_000, 30, distance=1.0)
    z = second.mixture.sample(4, generator(9))
    weights = (joint(z, joint.rows) - second.mixture.log_prob(z) - modes.log_p).exp().mean(0)
    stats.assert_mean_equal(weights, 1.0, discrepancy=0.1)


def test_a_refit_has_the_moments_of_the_posterior_where_many_draws_tell_them():
    modes, _, _, second, *_ = refitted(50, 40_000)
    pi = modes.log_pi.exp()
    mean = (pi[:, None] * modes.means).sum(1)
    centred = modes.means - mean[:, None]
    between = torch.einsum("c,bci,bcj->bij", pi, centred, centred)
    covariance = between + modes.sd**2 * torch.eye(2).double()
    torch.testing.assert_close(second.gaussian.mu, mean, rtol=0, atol=0.15)
    torch.testing.assert_close(second.gaussian.covariance, covariance, rtol=0, atol=0.15)


def test_one_draw_with_all_the_weight_hardly_moves_a_proposal():
    gaussian = FullGaussianProposal(torch.zeros(1, 16), torch.ones(1, 16), torch.eye(16)[None])
    one = torch.ones(1)
    proposal = FittedProposal(gaussian, one, GaussianProposal.prior(torch.zeros(1, 16)), 0 * one)
    z = torch.zeros(200, 1, 16)
    z[0] = 3.0
    log_w = torch.full((200, 1), -50.0)
    log_w[0] = 0.0
    found = refit(proposal, z, log_w).gaussian
    torch.testing.assert_close(found.mu, torch.full((1, 16), 3.0 / 9))
    assert found.std.min() > 0.99
    assert refit(proposal, z, log_w * torch.nan).gaussian.std.isfinite().all()


def gradient_problem(log_joint, mu, std, data=40):
    """Return a joint and a proposal with this mean and standard deviation in each of four dimensions."""
    K, one = 4, torch.ones(data, dtype=torch.float64)
    axes = torch.linalg.qr(torch.randn(data, K, K, generator=generator(0), dtype=torch.float64)).Q
    gaussian = FullGaussianProposal(one[:, None] * torch.full((K,), mu), one[:, None] * torch.full((K,), std), axes)
    q = GaussianProposal(gaussian.mu, 2 * gaussian.std.log())
    return CountedJoint(log_joint, q.mu, 100_000), FittedProposal(gaussian, one, q, 0 * one)


def test_gradients_lead_to_a_gaussian_posterior_and_leave_it_alone_there():
    """Precision 3 I, mean 1: a start half as wide and half a unit off; and a start at the posterior."""
    joint, proposal = gradient_problem(lambda z, rows: -1.5 * (z - 1).square().sum(-1), 0.5, 0.3)
    for _ in range(4):
        proposal = follow_gradients(joint, joint.rows, proposal, generator(1))
    torch.testing.assert_close(proposal.gaussian.mu, torch.ones(40, 4).double(), rtol=0, atol=1e-3)
    torch.testing.assert_close(
        proposal.gaussian.covariance, torch.eye(4).double().expand(40, 4, 4) / 3, rtol=0, atol=1e-3
    )
    joint, there = gradient_problem(lambda z, rows: -1.5 * (z - 1).square().sum(-1), 1.0, 3**-0.5)
    found = follow_gradients(joint, joint.rows, there, generator(1)).gaussian
    torch.testing.assert_close(found.mu, there.gaussian.mu)
    torch.testing.assert_close(found.covariance, there.gaussian.covariance)
    assert joint.spent.tolist() == [2 * 2 * 64] * 40


def test_gradients_lead_to_the_best_gaussian_of_a_skewed_posterior():
    """For z ~ log Gamma(3) the Gaussian nearest in KL(N || p) has variance 1/3 and mean log 3 - 1/6."""
    joint, proposal = gradient_problem(lambda z, rows: (3 * z - z.exp()).sum(-1), math.log(3), 0.4)
    for _ in range(3):
        proposal = follow_gradients(joint, joint.rows, proposal, generator(1))
    assert proposal.gaussian.mu.mean() == pytest.approx(math.log(3) - 1 / 6, abs=0.02)
    assert proposal.gaussian.covariance.diagonal(dim1=1, dim2=2).mean() == pytest.approx(1 / 3, abs=0.02)


def test_gradients_that_are_not_finite_move_nothing():
    scale = torch.ones(40, dtype=torch.float64)
    scale[3] = torch.nan
    joint, proposal = gradient_problem(lambda z, rows: -1.5 * scale[rows] * (z - 1).square().sum(-1), 0.5, 0.3)
    found = follow_gradients(joint, joint.rows, proposal, generator(1)).gaussian
    torch.testing.assert_close(found.mu[3], proposal.gaussian.mu[3])
    assert (found.mu[4] - proposal.gaussian.mu[4]).abs().min() > 0.1
    assert found.std.isfinite().all()


@pytest.mark.parametrize("shape", ["gaussian", "skewed"])
def test_calibration_moves_the_mean_of_a_skewed_posterior_and_of_no_gaussian(shape):
    """z_k ~ log Gamma(3): mode log 3, mean digamma(3) = 0.9228."""
    B, K = 200, 4

    def log_joint(z, rows):
        return (3 * z - z.exp()).sum(-1) if shape == "skewed" else -0.5 * 3 * (z - 1).square().sum(-1)

    q = GaussianProposal(torch.zeros(B, K).double(), torch.zeros(B, K).double())
    joint = CountedJoint(log_joint, q.mu, 100_000)
    fitted = fit_laplace(joint, joint.rows, q)
    found = calibrate(joint, joint.rows, fitted, q, generator(1))
    if shape == "gaussian":
        torch.testing.assert_close(found.gaussian.mu, fitted.mu)
        assert (found.share.max(), found.width.max()) == (0, 1)
        return
    assert fitted.mu.mean() == pytest.approx(math.log(3), abs=1e-3)
    assert found.gaussian.mu.mean() == pytest.approx(0.9228, abs=0.03)
    assert found.share.min() == pytest.approx(min(adaptive.GUARD_SHARES))


def test_the_width_grows_with_the_tails():
    """Students t of 5 degrees in 2 dimensions wants more than its curvature says; a uniform-like density less."""

    def heavy(z, rows):
        return -3.5 * torch.log1p(z.square().sum(-1) / 5)

    def light(z, rows):
        return -0.5 * z.square().sum(-1) - 0.3 * z.square().sum(-1) ** 2

    widths = []
    for log_joint in (heavy, light):
        q = GaussianProposal(torch.zeros(300, 2).double(), torch.full((300, 2), -6.0).double())
        joint = CountedJoint(log_joint, q.mu, 100_000)
        found = calibrate(joint, joint.rows, fit_laplace(joint, joint.rows, q), q, generator(1))
        widths.append(found.width.mean())
    assert widths[0] > 1.15
    assert widths[1] < 1.05


def test_annealing_from_the_fitted_gaussian_is_unbiased():
    """A few temperatures, an oblong start: the weights have mean p(x)."""
    modes = Modes(4000, 1.2)
    spread = torch.tensor([0.3, 1.2], dtype=torch.float64).expand(4000, 2)
    turn = torch.tensor([[0.8, -0.6], [0.6, 0.8]], dtype=torch.float64).expand(4000, 2, 2)
    fitted = FullGaussianProposal(modes.means.mean(1), spread, turn)
    joint = CountedJoint(modes, modes.q.mu, 100_000)
    options = {"temperatures": 6, "chains": 4, "generator": generator(3), "progress": False}
    found = anneal(joint, joint.rows, fitted, **options)
    stats.assert_mean_equal((found.value - modes.log_p).exp(), 1.0, discrepancy=0.1)
