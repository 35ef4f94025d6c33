"""Estimators of log p(x) where it is known: where they are calibrated, and where they fail and say so."""

import itertools
import logging
import math

import numpy as np
import pytest
import torch
from scipy.stats import genpareto, norm
from torch.distributions import MultivariateNormal

from tests import stats
from tests.exact_models import correlated_ppca, generator, orthogonal_ppca
from vaebench.vae import model as models
from vaebench.vae.config.run import Model
from vaebench.vae.errors import InputError
from vaebench.vae.estimators import evidence
from vaebench.vae.estimators.evidence import (
    choose_width,
    elbo,
    estimate_from_log_weights,
    importance_sampling,
    iwae,
    riemann_sum,
    tail_shape,
    with_standard_prior,
)
from vaebench.vae.estimators.exact import FullGaussian
from vaebench.vae.prob.proposals import DefensiveMixture, GaussianProposal

NINETY_NINE = norm.isf(0.005)


class Problem:
    """Data of a probabilistic PCA with their joint, their log p(x) and the best diagonal q."""

    def __init__(self, model, data):
        self.model = model
        self.x, _ = model.sample(data, generator(0))
        self.log_p = model.log_prob(self.x)
        self.q = GaussianProposal(*model.best_diagonal(self.x))
        self.prior = GaussianProposal.prior(self.q.mu)

    def log_joint(self, z):
        return self.model.log_joint(self.x, z)

    def log_likelihood(self, z):
        return self.model.log_likelihood(self.x, z)


def covered(estimate, log_p):
    """Whether the 99 % interval of each estimate holds the truth."""
    return (estimate.value - log_p).abs() <= NINETY_NINE * estimate.stderr


@pytest.fixture(scope="module")
def narrow():
    """A q whose standard deviations are half the posterior's, K = 8."""
    problem = Problem(orthogonal_ppca(8), 200)
    return problem, problem.q.widen(0.5)


@pytest.mark.parametrize(
    ("K", "correlation", "width"), [(2, 0.1, 1.0), (2, 0.1, 2.0), (8, 0.05, 1.0), (8, 0.05, 1.5), (32, 0.02, 1.1)]
)
def test_importance_sampling_is_calibrated_where_its_weights_have_a_variance(K, correlation, width):
    problem = Problem(correlated_ppca(K, correlation=correlation), 1500)
    estimate = importance_sampling(problem.log_joint, problem.q.widen(width), samples=1500, generator=generator(1))
    assert estimate.kind == "unbiased"
    stats.assert_rate_at_most(estimate.ess <= 100, 0.001, discrepancy=0.02)
    stats.assert_rate_at_most(estimate.tail >= 0.5, 0.5, discrepancy=0.15)
    stats.assert_coverage(covered(estimate, problem.log_p), 0.99, discrepancy=0.04)
    stats.assert_mean_equal(estimate.value - problem.log_p, 0.0, discrepancy=0.02)


def test_the_prior_as_proposal_is_calibrated_in_two_dimensions():
    problem = Problem(orthogonal_ppca(2), 1500)
    estimate = importance_sampling(problem.log_joint, problem.prior, samples=5000, generator=generator(1))
    seen = estimate.ess > 100
    stats.assert_rate_at_most(~seen, 0.1, discrepancy=0.1)
    stats.assert_coverage(covered(estimate, problem.log_p)[seen], 0.99, discrepancy=0.04)


@pytest.mark.parametrize(("K", "most_covered", "lost"), [(8, 0.8, 0.3), (32, 0.01, 30)])
def test_the_prior_as_proposal_dies_with_the_dimension_and_says_so(K, most_covered, lost):
    problem = Problem(orthogonal_ppca(K), 300)
    estimate = importance_sampling(problem.log_joint, problem.prior, samples=2000, generator=generator(1))
    stats.assert_rate_at_most(covered(estimate, problem.log_p), most_covered, discrepancy=0.19)
    stats.assert_rate_at_most(estimate.ess >= 10, 0.5, discrepancy=0.25)
    stats.assert_rate_at_most(estimate.tail <= 0.7, 0.5, discrepancy=0.25)
    stats.assert_mean_at_most(estimate.value - problem.log_p, -lost, discrepancy=3 * lost)


def test_a_narrow_proposal_underestimates_by_half_a_nat_and_says_so(narrow):
    problem, q = narrow
    estimate = importance_sampling(problem.log_joint, q, samples=5000, generator=generator(1))
    stats.assert_mean_equal(estimate.value - problem.log_p, -0.40, discrepancy=0.30)
    stats.assert_rate_at_most(covered(estimate, problem.log_p), 0.8, discrepancy=0.19)
    stats.assert_rate_at_most(estimate.tail <= 0.7, 0.5, discrepancy=0.3)
    stats.assert_rate_at_most(estimate.ess >= 100, 0.5, discrepancy=0.3)


@pytest.mark.parametrize("cure", ["widened", "defensive"])
def test_a_wider_proposal_cures_it(narrow, cure):
    problem, q = narrow
    wide = q.widen(3.0)
    proposal = wide if cure == "widened" else DefensiveMixture(q, wide)
    estimate = importance_sampling(problem.log_joint, proposal, samples=5000, generator=generator(1))
    stats.assert_mean_equal(estimate.value - problem.log_p, 0.0, discrepancy=0.03)
    stats.assert_rate_at_most(estimate.ess <= 100, 0.01, discrepancy=0.15)
    stats.assert_rate_at_most(estimate.tail >= 0.7, 0.01, discrepancy=0.15)


def test_the_chosen_width_cures_a_narrow_proposal_and_spares_a_good_one(narrow):
    problem, q = narrow
    assert choose_width(problem.log_joint, q, samples=500, generator=generator(2)) in (2.0, 3.0)
    assert choose_width(problem.log_joint, problem.q, samples=500, generator=generator(2)) == 1.0


def test_bounds_are_ordered_in_expectation():
    problem = Problem(correlated_ppca(8, correlation=0.1), 1000)
    q = problem.q.widen(1.5)
    ladder = [
        elbo(problem.log_joint, q, samples=2000, generator=generator(1)),
        iwae(problem.log_joint, q, k=5, samples=2000, generator=generator(2)),
        iwae(problem.log_joint, q, k=50, samples=2000, generator=generator(3)),
    ]
    rungs = [estimate.value for estimate in ladder] + [problem.log_p]
    assert {estimate.kind for estimate in ladder} == {"lower"}
    for lower, upper in itertools.pairwise(rungs):
        stats.assert_mean_at_most(lower - upper, -0.01, discrepancy=0.03)


def test_elbo_and_iwae_errors_are_calibrated():
    problem = Problem(correlated_ppca(2, correlation=0.5), 1500)
    exact = problem.model.elbo(problem.x, FullGaussian(problem.q.mu, torch.diag_embed(problem.q.logvar.exp())))
    estimate = elbo(problem.log_joint, problem.q, samples=1000, generator=generator(1))
    stats.assert_coverage(covered(estimate, exact), 0.99, discrepancy=0.04)
    first, second = (iwae(problem.log_joint, problem.q, k=3, samples=600, generator=generator(seed)) for seed in (2, 3))
    apart = (first.value - second.value).abs() <= NINETY_NINE * torch.hypot(first.stderr, second.stderr)
    stats.assert_coverage(apart, 0.99, discrepancy=0.04)


def test_iwae_of_one_sample_is_the_elbo():
    problem = Problem(orthogonal_ppca(2), 5)
    bound = elbo(problem.log_joint, problem.prior, samples=8, generator=generator(0))
    one = iwae(problem.log_joint, problem.prior, k=1, samples=8, generator=generator(0))
    torch.testing.assert_close(one.value, bound.value)
    torch.testing.assert_close(one.stderr, bound.stderr)


@pytest.mark.parametrize("K", [1, 2])
def test_riemann_sum_is_exact_in_one_and_two_dimensions(K):
    problem = Problem(correlated_ppca(K), 20)
    estimate = riemann_sum(problem.log_joint, problem.q.mu, points=121)
    assert (estimate.value - problem.log_p).abs().max() < 1e-6
    assert estimate.stderr.max() < 1e-6
    assert (estimate.kind, estimate.cost) == ("exact", 121**K)


@pytest.mark.parametrize("K", [1, 2])
def test_riemann_sum_of_a_vae_in_single_precision_is_what_importance_sampling_finds(K):
    """Of 1500 data each: no bias, and 99 % of the intervals hold the quadrature."""
    with torch.random.fork_rng():
        torch.manual_seed(K)
        model = models.build(Model(latent=K, hidden=(8,), likelihood="gaussian", sigma=0.3), (3,), levels=0)
    prior = GaussianProposal.prior(torch.zeros(1500, K))
    x = model.decode(prior.sample(1, generator(0))[0]).sample(generator(1)).detach()
    log_joint, q = model.base_joint(x)
    exact = riemann_sum(log_joint, q.mu, points=41)
    assert exact.stderr.max() < 1e-4
    assert not exact.value.requires_grad
    found = importance_sampling(log_joint, prior, samples=1000, generator=generator(2))
    stats.assert_coverage(covered(found, exact.value), 0.99, discrepancy=0.04)
    stats.assert_mean_equal(found.value - exact.value, 0.0, discrepancy=0.02)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_riemann_sum_gives_codes_in_the_precision_asked_for_and_adds_in_double(dtype):
    def log_joint(z):
        assert z.dtype == dtype
        return torch.where(z.abs() < 5.5, 0.0, -torch.inf).to(dtype).sum(-1)

    estimate = riemann_sum(log_joint, torch.zeros(3, 1, dtype=dtype), points=4097)
    inside = torch.linspace(-6, 6, 4097, dtype=torch.float64).to(dtype).abs() < 5.5
    expected = math.log(inside.sum().item() * 12 / 4096)
    assert estimate.value.tolist() == pytest.approx([expected] * 3, abs=1e-12)


def test_riemann_sum_on_a_coarse_grid_says_that_it_is_coarse():
    problem = Problem(orthogonal_ppca(2), 200)
    estimate = riemann_sum(problem.log_joint, problem.q.mu, points=17)
    error = (estimate.value - problem.log_p).abs()
    assert error.max() > 1e-3
    stats.assert_rate_at_most(error > estimate.stderr, 0.1, discrepancy=0.25)


def gaussian_joint(centre, sd, log_p):
    """Return log N(z; centre, sd^2 R) + log_p of codes `(S, B, K)`, R with correlations 0.5."""
    K = centre.shape[-1]
    covariance = sd**2 * (0.5 * torch.eye(K, dtype=torch.float64) + 0.5)
    return lambda z: MultivariateNormal(centre, covariance).log_prob(z) + log_p


@pytest.mark.parametrize("K", [1, 2])
@pytest.mark.parametrize("sd", [0.15, 0.5, 1.0, 2.0])
def test_the_error_of_a_riemann_sum_holds_what_lies_beyond_its_grid(K, sd):
    """Centres from far inside the grid of radius 6 to far outside: refused, or the truth is within the error."""
    refused, errors = [], []
    for place in (0.0, 1.03, -2.5, 3.9, 4.4, -4.7, 5.0, 5.5, -6.0, 6.3, 8.0, -15.0, 200.0):
        centre = torch.full((1, K), 0.4, dtype=torch.float64)
        centre[0, -1] = place
        try:
            found = riemann_sum(gaussian_joint(centre, sd, 0.23), centre, points=121)
        except InputError:
            refused.append(place)
            continue
        errors.append(abs(found.value.item() - 0.23))
        assert errors[-1] <= found.stderr.item() + 1e-8, place
        assert found.stderr.item() <= 0.02
    beyond = {place: norm.cdf(6, abs(place), sd) for place in refused}
    assert {-6.0, 6.3, 8.0, -15.0, 200.0} <= set(refused)
    assert all(share < 0.995 for share in beyond.values()), "no centre is refused for mass that is not there"
    assert sd < 0.5 or max(errors) > 1e-4, "some mass beyond the grid is told as error"


def test_a_riemann_sum_counts_the_data_beyond_its_grid():
    centre = torch.tensor([[0.0], [8.0], [-1.0], [-7.0]], dtype=torch.float64)
    joint = gaussian_joint(centre, 0.5, 0.0)
    with pytest.raises(InputError, match=r"2 of 4 data .* \+-6.* raise radius"):
        riemann_sum(joint, centre, points=121)
    assert riemann_sum(joint, centre, points=241, radius=12.0).value.abs().max() < 1e-9
    with pytest.raises(InputError, match="3 of 3 data"):
        riemann_sum(lambda z: torch.zeros_like(z).sum(-1), torch.zeros(3, 1), points=5)


def test_riemann_sum_states_its_cost_first_and_refuses_what_it_cannot_pay(caplog):
    caplog.set_level(logging.INFO)
    stated = []
    riemann_sum(lambda z: stated.append(caplog.text) or -z.abs().sum(-1), torch.zeros(3, 2), points=5)
    assert "5^2 = 25 cells" in stated[0]
    with pytest.raises(ValueError, match=r"100 dimensions has 1.*e\+1\d\d cells, more than"):
        riemann_sum(lambda z: z.sum(-1), torch.zeros(3, 100), points=21)
    with pytest.raises(ValueError, match="odd and at least 3"):
        riemann_sum(lambda z: z.sum(-1), torch.zeros(3, 1), points=4)
    with pytest.raises(ValueError, match=r"shape \(B, K\), got \(3,\)"):
        riemann_sum(lambda z: z.sum(-1), torch.zeros(3), points=5)


@pytest.mark.parametrize("samples", [2, 99, 100, 199, 5000])
def test_the_samples_asked_for_are_the_samples_spent(samples, monkeypatch):
    monkeypatch.setattr(evidence, "ROWS_AT_ONCE", 300)
    rows = []

    def counting(z):
        rows.append(z.shape[0])
        assert z.shape[0] * z.shape[1] <= 300
        return z.sum(-1)

    proposal = GaussianProposal(torch.zeros(3, 2), torch.zeros(3, 2))
    for estimator in (importance_sampling, elbo):
        rows.clear()
        assert estimator(counting, proposal, samples=samples).cost == sum(rows) == samples


def test_iwae_spends_whole_groups():
    proposal = GaussianProposal(torch.zeros(3, 2), torch.zeros(3, 2))
    for k, samples in ((3, 10), (10, 10), (0, 10)):
        with pytest.raises(ValueError, match="two groups of k >= 1"):
            iwae(lambda z: z.sum(-1), proposal, k=k, samples=samples)


def test_one_sample_is_refused():
    with pytest.raises(ValueError, match="at least 2"):
        importance_sampling(lambda z: z.sum(-1), GaussianProposal(torch.zeros(3, 2), torch.zeros(3, 2)), samples=1)


@pytest.mark.parametrize("count", [0, 1])
def test_log_weights_of_your_own_must_be_two(count):
    with pytest.raises(ValueError, match=f"at least 2, since one draw has no standard error, got {count}"):
        estimate_from_log_weights(torch.zeros(count, 3), "unbiased", cost=count)


@pytest.mark.parametrize("shape", [0.2, 0.5, 0.9])
def test_tail_shape_finds_that_of_a_generalised_pareto_distribution(shape):
    uniform = torch.rand(4000, 300, generator=generator(0), dtype=torch.float64)
    log_w = torch.from_numpy(genpareto(shape).ppf(uniform.numpy())).log()
    found = tail_shape(log_w)
    stats.assert_mean_equal(found, shape, discrepancy=0.08)


def test_tail_shape_is_that_of_the_paper_step_by_step():
    """Appendix C of Vehtari et al.: 30 + sqrt(M) values of theta, their profile likelihood, and the prior of k."""
    S = 400
    log_w = 1.5 * torch.randn(S, 3, generator=generator(0), dtype=torch.float64)
    M = min(S // 5, math.ceil(3 * math.sqrt(S)))
    for column, found in zip(log_w.T.numpy(), tail_shape(log_w), strict=True):
        weights = np.sort(np.exp(column - column.max()))
        x = weights[-M:] - weights[-M - 1]
        m = 30 + math.floor(math.sqrt(M))
        thetas, likelihoods = [], []
        for j in range(1, m + 1):
            theta = 1 / x[-1] + (1 - math.sqrt(m / (j - 0.5))) / (3 * x[math.floor(M / 4 + 0.5) - 1])
            k = np.mean(np.log(1 - theta * x))
            thetas.append(theta)
            likelihoods.append(M * (math.log(-theta / k) - k - 1))
        shares = [1 / sum(math.exp(other - own) for other in likelihoods) for own in likelihoods]
        k = np.mean(np.log(1 - sum(share * theta for share, theta in zip(shares, thetas, strict=True)) * x))
        assert found.item() == pytest.approx((M * k + 10 * 0.5) / (M + 10), rel=1e-9)


def test_tail_shape_at_its_ends():
    assert tail_shape(torch.zeros(100, 3)).tolist() == [-math.inf] * 3
    assert torch.isnan(tail_shape(torch.zeros(24, 3))).all()


def test_standard_prior_joins_a_likelihood():
    problem = Problem(orthogonal_ppca(3), 4)
    z = problem.q.sample(5, generator(0))
    torch.testing.assert_close(with_standard_prior(problem.log_likelihood)(z), problem.log_joint(z))


def test_mean_over_the_data():
    estimate = evidence.Estimate(torch.tensor([1.0, 3.0]), torch.tensor([3.0, 4.0]), "lower", 7)
    assert estimate.mean() == (2.0, 2.5)


@pytest.mark.parametrize("share", [0.2, 0.5])
def test_proposals_draw_from_the_density_that_they_state(share):
    first = GaussianProposal(torch.tensor([[-1.0]], dtype=torch.float64), torch.tensor([[-2.0]], dtype=torch.float64))
    proposal = DefensiveMixture(first, first.widen(4.0), share)
    axis = torch.linspace(-15, 15, 6001, dtype=torch.float64)
    density = proposal.log_prob(axis[:, None, None])[:, 0].exp()
    assert (density.sum() * (axis[1] - axis[0])).item() == pytest.approx(1, abs=1e-9)
    drawn = proposal.sample(10_000, generator(0))[:, 0, 0]
    narrow, wide = norm(-1, math.exp(-1)), norm(-1, 4 * math.exp(-1))
    stats.assert_distribution(drawn, lambda z: (1 - share) * narrow.cdf(z) + share * wide.cdf(z), discrepancy=0.06)
