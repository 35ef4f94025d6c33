"""The gradients of IWAE on probabilistic PCA: moments at k = 1 in closed form, and the rates and limits of large k."""

import math

import pytest
import torch

from tests import stats
from vaebench.studies.experiments import signal_to_noise
from vaebench.studies.experiments.output import save
from vaebench.vae.estimators.exact import FullGaussian
from vaebench.vae.objective import IWAE

QS = tuple(signal_to_noise.LOG_WIDENING)


def parts(q):
    """Return the problem, P, the distance of q's mean from the posterior's, and q's standard deviations."""
    problem = signal_to_noise.build(q)
    shift = problem.mu[0] - problem.model.posterior(problem.x).mean[0]
    return problem, problem.model.precision().diagonal(), shift, torch.exp(0.5 * problem.logvar[0])


def known_variance(q, gradient):
    """Var of -P (d + s e) and 1/2 s e of it, or with e / s added, from E e^2 = 1, E e^4 = 3."""
    _, P, d, s = parts(q)
    slope = (1 / s - P * s) if gradient == "dreg" else -P * s
    return torch.cat([slope.square(), 0.25 * s.square() * ((P * d).square() + 2 * slope.square())])


def exact_mean(problem):
    """Return the gradient of the ELBO's closed form by automatic differentiation, `(2K,)`."""
    leaf = torch.cat([problem.mu, problem.logvar], dim=1).requires_grad_()
    mu, logvar = leaf.chunk(2, dim=1)
    bound = problem.model.elbo(problem.x, FullGaussian(mu, torch.diag_embed(logvar.exp())))
    return torch.autograd.grad(bound.sum(), leaf)[0][0]


@pytest.mark.parametrize("q", QS)
@pytest.mark.parametrize("gradient", signal_to_noise.GRADIENTS)
def test_at_one_draw_mean_variance_and_ratio_are_those_of_the_closed_form(q, gradient):
    problem = parts(q)[0]
    mean, variance = exact_mean(problem), known_variance(q, gradient)
    sample = signal_to_noise.draw_gradients(problem, IWAE(samples=1, gradient=gradient), 20_000)
    stats.assert_mean_equal(sample, mean, discrepancy=0.3)
    stats.assert_mean_equal((sample - mean).square(), variance, discrepancy=0.1 * variance.sum().item())
    ratio = (mean.norm() / variance.sum().sqrt()).item()
    assert signal_to_noise.exact_ratio(problem, gradient) == pytest.approx(ratio, rel=1e-9)


@pytest.mark.parametrize("q", QS)
def test_the_leading_mean_is_minus_half_the_gradient_of_the_second_moment_of_the_weights(q):
    """E r^2 = prod P s / sqrt(c) exp(P d^2 / (s^2 c)), c = 2 P - 1 / s^2, and E r^2 h = -1/2 grad E r^2 = -E r^2 g."""
    problem, P, d, _ = parts(q)
    shift, logvar = d.clone().requires_grad_(), problem.logvar[0].clone().requires_grad_()
    variance = logvar.exp()
    c = 2 * P - 1 / variance
    second = (P * variance.sqrt() / c.sqrt() * torch.exp(P * shift.square() / (variance * c))).prod()
    slope = 0.5 * torch.cat(torch.autograd.grad(second, (shift, logvar)))
    for gradient, sign in (("dreg", -1), ("plain", 1)):
        density, r, g = signal_to_noise.integrands(problem, gradient)
        assert density.sum().item() == pytest.approx(1, abs=1e-9)
        assert (density * r).sum().item() == pytest.approx(1, abs=1e-9)
        assert (density * r.square()).sum().item() == pytest.approx(second.item(), rel=1e-9)
        torch.testing.assert_close((density * r.square()) @ g, sign * slope, rtol=1e-8, atol=1e-9)


def test_the_ratio_of_dreg_rises_like_sqrt_k_and_that_of_plain_falls_so(tmp_path):
    rows = [row for q in QS for row in signal_to_noise.measure(q, 20_000, orders=(1, 4, 64))]
    save(rows, signal_to_noise.plot(rows), tmp_path)
    found = {(row["q"], row["gradient"], row["k"]): row for row in rows}
    for (_, _, k), row in found.items():
        assert math.isnan(row["exact"]) == (k > 1)
        if k == 1:
            assert row["ratio"] == pytest.approx(row["exact"], rel=0.05)
    for gradient, error in (("dreg", 0.05), ("plain", 0.2)):
        row = found["wider q", gradient, 64]
        assert row["ratio"] == pytest.approx(row["limit"], rel=error)
    assert found["wider q", "dreg", 64]["ratio"] > 3 * found["wider q", "dreg", 4]["ratio"]
    assert found["wider q", "plain", 64]["ratio"] < found["wider q", "plain", 4]["ratio"] / 3
    assert found["narrower q", "dreg", 64]["ratio"] < found["narrower q", "dreg", 1]["ratio"]
    assert math.isnan(found["narrower q", "dreg", 64]["limit"])
