"""The policy for log p(x): exact for a Gaussian posterior, calibrated for others, and honest where it fails."""

import math
from dataclasses import replace

import pytest
import torch
from scipy.stats import norm

from tests import stats
from tests.exact_models import LOG_2PI, Modes, correlated_ppca, generator
from vaebench.vae.estimators import adaptive
from vaebench.vae.estimators import log_likelihood as module
from vaebench.vae.estimators.evidence import Estimate, riemann_sum
from vaebench.vae.estimators.log_likelihood import Policy, log_likelihood
from vaebench.vae.prob.proposals import GaussianProposal

NINETY_NINE = norm.isf(0.005)


def covered(estimate, log_p):
    return (estimate.value - log_p).abs() <= NINETY_NINE * estimate.stderr


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("K", [2, 8, 32, 64])
def test_probabilistic_pca_is_exact_in_one_attempt(K, dtype):
    """From a q whose mean is off by a standard deviation and whose width is half: the weights are all p(x)."""
    model = correlated_ppca(K, correlation=0.3 / K**0.5)
    x, _ = model.sample(30, generator(0))
    mu, logvar = model.best_diagonal(x)
    q = GaussianProposal((mu + torch.exp(0.5 * logvar)).to(dtype), (logvar - 2 * math.log(2)).to(dtype))
    single = replace(model, weight=model.weight.to(dtype), mean=model.mean.to(dtype))
    found = log_likelihood(lambda z, rows: single.log_joint(x.to(dtype)[rows], z), q, generator=generator(1))
    assert (found.value - model.log_prob(x)).abs().max() < 1e-4
    assert found.ess.tolist() == pytest.approx([200] * 30, rel=1e-4)
    assert found.stderr.max() < 1e-3
    assert found.passed.all()
    assert found.kind == "unbiased"
    assert found.unresolved == 0
    assert found.rounds.tolist() == [1] * 30
    assert found.cost < 700  # of 500 draws from q, and 200 to choose its width


@pytest.mark.slow
def test_a_skewed_posterior_is_calibrated():
    """z ~ N(0, I), counts x ~ Poisson(exp(z W + b)) in two dimensions, against quadrature."""
    B, draws = 1500, generator(0)
    W, b = torch.randn(2, 4, generator=draws, dtype=torch.float64), torch.tensor([-1.0, 0.0, 0.5, -0.5]).double()
    x = torch.poisson(torch.exp(torch.randn(B, 2, generator=draws, dtype=torch.float64) @ W + b), generator=draws)

    def log_joint(z, rows):
        rate = z @ W + b
        log_px_given = (x[rows] * rate - torch.exp(rate) - torch.lgamma(x[rows] + 1)).sum(-1)
        return log_px_given - 0.5 * (z.square() + LOG_2PI).sum(-1)

    exact = riemann_sum(lambda z: log_joint(z, torch.arange(B)), torch.zeros(B, 2).double(), points=121)
    q = GaussianProposal(torch.zeros(B, 2).double(), torch.full((B, 2), -1.0).double())
    found = log_likelihood(log_joint, q, generator=generator(1))
    assert found.passed.all()
    stats.assert_coverage(covered(found, exact.value), 0.99, discrepancy=0.04)
    stats.assert_mean_equal(found.value - exact.value, 0.0, discrepancy=0.01)
    stats.assert_mean_equal((found.value - exact.value).exp(), 1.0, discrepancy=0.01)


@pytest.mark.parametrize("distance", [0.8, 1.6])
def test_two_modes_within_reach_of_q_are_calibrated(distance):
    modes = Modes(1500, distance)
    found = log_likelihood(modes, modes.q.widen(2.0), generator=generator(1))
    stats.assert_rate_at_most(~found.passed, 0.01, discrepancy=0.04)
    stats.assert_coverage(covered(found, modes.log_p)[found.passed], 0.99, discrepancy=0.04)
    stats.assert_mean_equal(found.value - modes.log_p, 0.0, discrepancy=0.02)


def test_modes_that_no_gaussian_holds_are_told_and_bounded_from_below():
    """Eight narrow modes on a line in six dimensions, of which a fit sees one and the guard at times another."""
    modes = Modes(120, 4.0, K=6, sd=0.15, pi=(0.3, *[0.1] * 7))
    q = modes.q.widen(10.0)
    found = log_likelihood(modes, q, policy=Policy(rounds=1, annealed=0), generator=generator(1))
    assert found.unresolved == (~found.passed).sum() > 0
    assert found.kind == "lower"
    stats.assert_mean_at_most((found.value - modes.log_p)[~found.passed], 0.0, discrepancy=1.0)


def heavy_tailed(data):
    """log p(x, z) = log p_b + sum_k log Cauchy(z_k): weights by a Gaussian have no variance."""
    log_p = torch.linspace(-90, -10, data, dtype=torch.float64)
    return (lambda z, rows: log_p[rows] - (math.log(math.pi) + torch.log1p(z.square())).sum(-1)), log_p


def test_a_tail_that_no_gaussian_holds_is_told():
    log_joint, _ = heavy_tailed(40)
    q = GaussianProposal(torch.zeros(40, 8).double(), torch.zeros(40, 8).double())
    found = log_likelihood(log_joint, q, policy=Policy(rounds=2, annealed=0), generator=generator(1))
    assert found.unresolved > 4
    assert found.kind == "lower"
    failed = (found.ess < 100) | (found.tail > 0.7)
    assert found.passed.tolist() == (~failed).tolist()


def test_only_what_fails_is_escalated_with_twice_the_samples_each_time():
    """Half of the data are Gaussian, half heavy-tailed."""
    heavy, log_p = heavy_tailed(20)
    calls = []

    def log_joint(z, rows):
        calls.append((len(z), rows.tolist()))
        normal = log_p[rows] - 0.5 * (z.square() + LOG_2PI).sum(-1)
        return torch.where(rows < 10, normal, heavy(z, rows))

    q = GaussianProposal(torch.zeros(20, 8).double(), torch.zeros(20, 8).double())
    found = log_likelihood(log_joint, q, policy=Policy(samples=60, rounds=2, annealed=0), generator=generator(1))
    sizes = {samples: rows for samples, rows in calls if samples in (120, 240)}
    assert set(sizes[240]) <= set(sizes[120]) <= set(range(10, 20))
    assert found.rounds[:10].tolist() == [1] * 10
    for datum in range(20):
        attempts = 1 + (datum in sizes[120]) + (datum in sizes[240])
        assert found.rounds[datum] == attempts
        assert sum(samples for samples, rows in calls if datum in rows and samples >= 60) >= 60 * (2**attempts - 1)
    torch.testing.assert_close(found.value[:10], log_p[:10], rtol=0, atol=1e-9)


def test_the_draws_of_an_earlier_attempt_enter_no_estimate():
    """One draw of the first attempt alone has a weight of e^1000."""

    def log_joint(z, rows):
        log_p = -0.5 * (z.square() + LOG_2PI).sum(-1)
        if len(z) == 150:
            log_p[7] += 1000
        return log_p

    q = GaussianProposal(torch.zeros(20, 2).double(), torch.zeros(20, 2).double())
    found = log_likelihood(log_joint, q, policy=Policy(samples=150, annealed=0), generator=generator(1))
    assert found.rounds.min() == 2
    assert found.passed.all()
    assert (found.value.abs() < 6 * found.stderr).all()
    assert found.stderr.max() < 0.1


def test_the_draws_that_judge_enter_no_estimate():
    """log p(x) is 1 nat higher from the second set of draws on: the first one only judges the proposal."""
    sets = []

    def log_joint(z, rows):
        sets.extend([len(z)] * (len(z) == 150))
        return -0.5 * (z.square() + LOG_2PI).sum(-1) + (len(sets) > 1)

    q = GaussianProposal(torch.zeros(20, 2).double(), torch.zeros(20, 2).double())
    found = log_likelihood(log_joint, q, policy=Policy(samples=150), generator=generator(1))
    assert found.rounds.tolist() == [1] * 20
    torch.testing.assert_close(found.value, torch.ones(20).double())


def test_the_chains_that_judge_enter_no_estimate(monkeypatch):
    """The second annealing says 1 nat more than the first one, by which the data pass."""
    heavy, _ = heavy_tailed(20)
    values = iter([0.0, 1.0])

    def anneal(joint, rows, *fitted, chains, **options):
        value, good = torch.full((2, len(rows)), next(values)).double(), torch.full((len(rows),), 1.0 * chains)
        return Estimate(value[0], 0 * value[0], "unbiased", 1, good.double(), 0 * good.double())

    monkeypatch.setattr(module.adaptive, "anneal", anneal)
    q = GaussianProposal(torch.zeros(20, 8).double(), torch.zeros(20, 8).double())
    found = log_likelihood(heavy, q, policy=Policy(samples=60, rounds=0), generator=generator(1))
    annealed = found.rounds == 2
    assert annealed.any()
    assert found.value[annealed].tolist() == [1.0] * int(annealed.sum())


def test_evaluations_are_those_of_the_model(monkeypatch):
    """Counted by the forward passes, and for each of those in a graph by its passes back; annealing included."""
    heavy, _ = heavy_tailed(6)
    forward, backward, grad = torch.zeros(6).double(), torch.zeros(6).double(), torch.autograd.grad
    last = []

    def log_joint(z, rows):
        forward.index_add_(0, rows, torch.full((len(rows),), len(z)).double())
        last[:] = [rows, len(z)]
        return heavy(z, rows)

    def counting(*arguments, **options):
        passes = last[1] * (2 if options.get("retain_graph") else 1)
        backward.index_add_(0, last[0], torch.full((len(last[0]),), passes).double())
        return grad(*arguments, **options)

    monkeypatch.setattr(torch.autograd, "grad", counting)
    q = GaussianProposal(torch.full((6, 3), 0.3).double(), torch.zeros(6, 3).double())
    policy = Policy(samples=50, rounds=1, temperatures=4, chains=25)
    found = log_likelihood(log_joint, q, policy=policy, generator=generator(4))
    assert (found.rounds >= 3).any(), "some data were annealed"
    assert found.evaluations.tolist() == (forward + backward).tolist()
    assert found.cost == math.ceil(found.evaluations.mean())


@pytest.mark.parametrize("codes_at_once", [3, 700])
def test_blocks_of_any_size_give_the_same_estimates(codes_at_once):
    modes = Modes(12, 1.6)
    q = modes.q.widen(2.0)
    policy = Policy(samples=100, annealed=0)
    whole = log_likelihood(modes, q, policy=policy, generator=generator(1))
    sizes = []

    def recording(z, rows):
        sizes.append(z.shape[0] * z.shape[1])
        return modes(z, rows)

    parts = log_likelihood(recording, q, policy=policy, codes_at_once=codes_at_once, generator=generator(1))
    assert max(sizes) <= codes_at_once
    for name in ("value", "stderr", "ess", "tail", "passed", "rounds", "evaluations"):
        torch.testing.assert_close(getattr(parts, name), getattr(whole, name))


def test_data_are_fitted_a_few_hundred_at_a_time(monkeypatch):
    modes = Modes(10, 0.8)
    monkeypatch.setattr(module, "DATA_AT_ONCE", 4)
    largest = []
    found = log_likelihood(
        lambda z, rows: largest.append(len(rows)) or modes(z, rows), modes.q.widen(2.0), generator=generator(1)
    )
    assert max(largest) == 4
    assert (found.value - modes.log_p).abs().max() < 0.5
    assert not found.value.isnan().any()


def test_few_failures_are_annealed_and_many_are_not():
    modes = Modes(12, 1.6)
    q = modes.q.widen(2.0)
    few = log_likelihood(modes, q, policy=Policy(samples=30, rounds=0), generator=generator(1))
    many = log_likelihood(modes, q, policy=Policy(samples=30, rounds=0, annealed=0), generator=generator(1))
    failed = ~many.passed
    assert failed.any()
    assert (few.rounds == 1 + failed.long()).all()
    assert (many.rounds == 1).all()
    torch.testing.assert_close(few.value[~failed], many.value[~failed])
    assert (few.evaluations[failed] > 32 * 49 * 10).all()


def test_data_that_fail_by_a_short_annealing_are_annealed_four_times_as_slowly(monkeypatch):
    """No weight passes below 30 temperatures, and every one does above."""
    modes, asked = Modes(12, 1.6), []
    short = adaptive.anneal

    def anneal(joint, rows, fitted, *, temperatures, **options):
        asked.append((temperatures, len(rows)))
        found = short(joint, rows, fitted, temperatures=temperatures, **options)
        return replace(found, tail=torch.full_like(found.value, 0.0 if temperatures > 30 else 9.9))

    monkeypatch.setattr(module.adaptive, "anneal", anneal)
    policy = Policy(samples=30, rounds=0, temperatures=10)
    found = log_likelihood(modes, modes.q.widen(2.0), policy=policy, generator=generator(1))
    failed = found.rounds == 3
    assert found.passed.all()
    assert asked == [(10, failed.sum()), (40, failed.sum()), (40, failed.sum())]
    assert (found.value - modes.log_p).abs().max() < 0.5


@pytest.mark.parametrize("samples", [2, 10, 24])
def test_fewer_samples_than_a_tail_needs_are_raised_to_as_many(samples):
    """Cauchy weights: of two draws the effective sample size is always above one, which is half of them."""
    log_joint, _ = heavy_tailed(60)
    q = GaussianProposal(torch.zeros(60, 8).double(), torch.zeros(60, 8).double())
    found = log_likelihood(log_joint, q, policy=Policy(samples=samples, rounds=0, annealed=0), generator=generator(1))
    assert found.tail.isfinite().all()
    assert (found.tail[found.passed] <= 0.7).all()
    assert found.unresolved > 10


@pytest.mark.slow
def test_chains_whose_tail_cannot_be_judged_resolve_nothing():
    """Two modes fail by 30 draws; 24 chains have a tail of four weights, 25 one of five."""
    modes = Modes(12, 1.6)
    resolved = []
    for chains in (24, 25):
        policy = Policy(samples=30, rounds=0, chains=chains)
        found = log_likelihood(modes, modes.q.widen(2.0), policy=policy, generator=generator(1))
        resolved.append(found.passed[found.rounds == 2])
    assert not resolved[0].any()
    assert resolved[1].any()


def test_one_sample_is_refused():
    with pytest.raises(ValueError, match="at least 2"):
        log_likelihood(lambda z, rows: z.sum(-1), GaussianProposal.prior(torch.zeros(1, 1)), policy=Policy(samples=1))


def test_a_datum_without_a_value_is_unresolved_and_leaves_the_others_alone():
    scale = torch.tensor([1.0, torch.nan, 1.0])
    q = GaussianProposal(torch.zeros(3, 2), torch.zeros(3, 2))
    found = log_likelihood(
        lambda z, rows: -0.5 * scale[rows] * (z.square() + LOG_2PI).sum(-1), q, generator=generator(0)
    )
    assert found.passed.tolist() == [True, False, True]
    assert found.value[::2].abs().max() < 1e-5
