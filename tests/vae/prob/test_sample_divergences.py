"""Sliced Wasserstein and Stein: against assignment, automatic differentiation, and closed forms for Gaussians."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment
from scipy.special import gammaln
from scipy.stats import norm
from torch.func import grad, jacrev

from tests import stats
from tests.exact_models import generator
from vaebench.vae.prob.divergences import sliced_wasserstein2, stein

KERNELS = {
    "rbf": lambda z, other, c: torch.exp(-(z - other).square().sum() / c),
    "imq": lambda z, other, c: c / (c + (z - other).square().sum()),
}
MEAN, SCALE = torch.tensor([1.0, -0.5, 0.3], dtype=torch.float64), 0.7


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


def test_sliced_is_the_cheapest_assignment_along_each_direction():
    z, prior = normal(15, 4), 0.5 + normal(15, 4, seed=1)
    directions = normal(4, 6, seed=2).numpy()
    costs = []
    for u in (directions / np.linalg.norm(directions, axis=0)).T:
        cost = np.square((z.numpy() @ u)[:, None] - prior.numpy() @ u)
        costs.append(cost[linear_sum_assignment(cost)].mean())
    found = sliced_wasserstein2(z, prior=prior, projections=6, generator=generator(2))
    assert found.item() == pytest.approx(np.mean(costs), abs=1e-12)


def test_sliced_of_a_line_is_the_distance_of_the_quantiles():
    """In one dimension N(m, s^2) is m^2 + (s - 1)^2 away from N(0, 1), whatever the order of the rows."""
    quantiles = torch.from_numpy(norm.ppf((np.arange(4000) + 0.5) / 4000))[:, None]
    shuffled = quantiles[torch.randperm(4000, generator=generator(0))]
    found = sliced_wasserstein2(-0.8 + 1.7 * shuffled, prior=quantiles, generator=generator(1))
    assert found.item() == pytest.approx(0.8**2 + 0.7**2, abs=2e-3)


def resemblance(B):
    """1/B sum_b (E e_(b))^2 of B sorted standard normals: what two samples have in common, 1 for infinitely many."""
    e, b = np.linspace(-9, 9, 4001), np.arange(1, B + 1)[:, None]
    constant = gammaln(B + 1) - gammaln(b) - gammaln(B - b + 1)
    density = np.exp(constant + (b - 1) * norm.logcdf(e) + (B - b) * norm.logsf(e) + norm.logpdf(e))
    return np.mean(np.trapezoid(e * density, e, axis=1) ** 2)


def test_sliced_of_gaussians_is_the_closed_form_but_for_the_size_of_the_batch():
    """E = |m|^2 / K + s^2 + 1 - 2 s A_B, which becomes |m|^2 / K + (s - 1)^2 as A_B becomes 1."""
    B = 16
    exact = MEAN.square().mean().item() + SCALE**2 + 1 - 2 * SCALE * resemblance(B)
    g = generator(0)
    codes = MEAN + SCALE * torch.randn(6000, B, 3, generator=g, dtype=torch.float64)
    found = [sliced_wasserstein2(z, projections=8, generator=g).item() for z in codes]
    stats.assert_mean_equal(found, exact, discrepancy=0.05)
    at_prior = [sliced_wasserstein2(z, projections=8, generator=g).item() for z in (codes - MEAN) / SCALE]
    stats.assert_mean_equal(at_prior, 2 - 2 * resemblance(B), discrepancy=0.02)
    assert 2 - 2 * resemblance(B) == pytest.approx(0.28, abs=0.005)
    assert 2 - 2 * resemblance(128) == pytest.approx(0.044, abs=0.0005)


def test_the_gradient_of_sliced_reaches_codes_and_prior():
    z, prior = (normal(7, 3, seed=seed).requires_grad_() for seed in (0, 1))

    def sliced(z, prior):
        return sliced_wasserstein2(z, prior=prior, projections=4, generator=generator(2))

    assert torch.autograd.gradcheck(sliced, (z, prior))


def by_autograd(z, score, kernel, bandwidths):
    """KSD^2 and phi over all pairs of different codes, every derivative by automatic differentiation."""

    def k(one, other):
        return torch.stack([KERNELS[kernel](one, other, c) for c in bandwidths]).mean()

    B = len(z)
    total, phi = 0.0, torch.zeros_like(z)
    for i, j in itertools.permutations(range(B), 2):
        own, other = z[j], z[i]
        twice = torch.trace(jacrev(grad(k, argnums=0), argnums=1)(own, other))
        d_own, d_other = grad(k, argnums=0)(own, other), grad(k, argnums=1)(own, other)
        total = total + k(own, other) * (score[i] @ score[j]) + score[j] @ d_other + score[i] @ d_own + twice
        phi[i] += (k(own, other) * score[j] + d_own) / (B - 1)
    return total / (B * (B - 1)), phi


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("bandwidths", [(3.0,), (0.7, 5.0)])
def test_stein_is_its_definition_by_automatic_differentiation(kernel, bandwidths):
    """With a score that is no linear function of z, as that of a flow is not."""
    z = normal(6, 3)
    score = -z + torch.sin(2 * z.roll(1, dims=1))
    ksd2, phi = stein(z, score, kernel=kernel, bandwidth=bandwidths)
    exact = by_autograd(z, score, kernel, bandwidths)
    torch.testing.assert_close((ksd2, phi), exact, rtol=0, atol=1e-12)


def test_stein_takes_2k_and_a_number_for_its_bandwidth():
    z = normal(6, 3)
    default, number, several = (stein(z, -z, bandwidth=c) for c in (None, 6.0, (6.0,)))
    assert torch.equal(default[0], number[0])
    assert torch.equal(number[1], several[1])


def closed_ksd2(mean, s, c):
    """Of N(m, s^2 I) from N(0, I) with rbf: E k d(z).d(z'), d(z) = (1/s^2 - 1) z - m/s^2, where the scores differ."""
    K, alpha, flat = len(mean), 1 / s**2 - 1, 1 + 4 * s**2 / c
    return flat ** (-K / 2) * (mean.square().sum().item() + alpha**2 * K * s**2 / 2 * (1 - 1 / flat))


def closed_phi(z, mean, s, c):
    """E [k(z', z) (-z') + dk/dz'] over z' ~ N(m, s^2 I): k tilts q to N(u, v I) of mass Z."""
    v = 1 / (1 / s**2 + 2 / c)
    u = v * (mean / s**2 + 2 * z / c)
    mass = (1 + 2 * s**2 / c) ** (-len(mean) / 2) * torch.exp(
        -(z - mean).square().sum(-1, keepdim=True) / (c + 2 * s**2)
    )
    return mass * (-u - 2 / c * (u - z))


def test_stein_of_gaussians_averages_to_the_closed_forms():
    c, g = 4.0, generator(0)
    own = torch.tensor([0.5, 1.0, -1.5], dtype=torch.float64)
    ksd2, phi = [], []
    for _ in range(3000):
        codes = MEAN + SCALE * torch.randn(32, 3, generator=g, dtype=torch.float64)
        ksd2.append(stein(codes, -codes, kernel="rbf", bandwidth=c)[0].item())
        codes[0] = own
        phi.append(stein(codes, -codes, kernel="rbf", bandwidth=c)[1][0])
    exact = closed_ksd2(MEAN, SCALE, c)
    stats.assert_mean_equal(ksd2, exact, discrepancy=0.1 * exact)
    stats.assert_mean_equal(torch.stack(phi), closed_phi(own[None], MEAN, SCALE, c)[0], discrepancy=0.03)


@pytest.mark.parametrize("kernel", KERNELS)
def test_stein_is_zero_on_average_at_the_prior(kernel):
    """With each code beside itself, as in the V form, KSD^2 would be 0.19 here."""
    codes = normal(4000, 16, 2)
    found = [stein(z, -z, kernel=kernel) for z in codes]
    stats.assert_mean_equal([ksd2.item() for ksd2, _ in found], 0.0, discrepancy=0.03)
    stats.assert_mean_equal([phi[0].tolist() for _, phi in found], 0.0, discrepancy=0.03)


def test_moving_along_phi_lowers_the_kl_by_the_discrepancy():
    """d/de KL(law of z + e phi(z) || p) = -KSD^2 at e = 0, by quadrature."""
    mean, s, c = torch.tensor([0.8], dtype=torch.float64), 0.6, 2.0
    z = torch.linspace(-5, 5, 4001, dtype=torch.float64)[:, None]
    q = torch.from_numpy(norm.pdf(z.numpy(), 0.8, 0.6))

    def kl_after(e):
        """E [log q(z) - log T'(z) - log p(T z)], T z = z + e phi(z), but for E log q, which e does not change."""
        moved = z + e * closed_phi(z, mean, s, c)
        slope = torch.gradient(moved[:, 0], spacing=float(z[1] - z[0]))[0][:, None]
        return torch.trapezoid((q * (-torch.log(slope) + moved.square() / 2))[:, 0], z[:, 0]).item()

    slope = (kl_after(1e-4) - kl_after(-1e-4)) / 2e-4
    assert slope == pytest.approx(-closed_ksd2(mean, s, c), rel=1e-4)
    assert math.isclose(closed_ksd2(0 * mean, 1.0, c), 0.0, abs_tol=1e-15)


def test_half_precision_blocks_do_not_reach_them():
    """Differences of distances would be lost in bfloat16."""
    z = normal(64, 8).float()
    plain = (sliced_wasserstein2(z, generator=generator(1)), *stein(z, -z))
    with torch.autocast("cpu", torch.bfloat16):
        inside = (sliced_wasserstein2(z, generator=generator(1)), *stein(z, -z))
    exact = (sliced_wasserstein2(z, generator=generator(1)), *stein(z.double(), -z.double()))
    for one, other, third in zip(plain, inside, exact, strict=True):
        assert torch.equal(one, other)
        torch.testing.assert_close(one, third.float(), rtol=1e-4, atol=1e-5)


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"z and prior must both be \(B, K\), got \(3, 2\) and \(4, 2\)"):
        sliced_wasserstein2(torch.zeros(3, 2), prior=torch.zeros(4, 2))
    with pytest.raises(ValueError, match=r"B >= 2, got \(1, 2\) and \(1, 2\)"):
        stein(torch.zeros(1, 2), torch.zeros(1, 2))
