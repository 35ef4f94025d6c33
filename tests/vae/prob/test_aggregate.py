"""The aggregated posterior: its parts against quadrature, its minibatch weights against all minibatches."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy.stats import norm

from tests import stats
from vaebench import kernels
from vaebench.vae.prob import aggregate as module
from vaebench.vae.prob.aggregate import aggregate, stratified_log_weights


@pytest.fixture
def posteriors():
    """Six posteriors in two dimensions, float64."""
    g = torch.Generator().manual_seed(3)
    return torch.randn(6, 2, generator=g, dtype=torch.float64), torch.randn(6, 2, generator=g, dtype=torch.float64) - 1


def quadrature(mu, logvar):
    """Return mi, kl_aggregate, tc and dim_kl of posteriors `(N, 2)` by sums over a fine grid."""
    axis = np.linspace(-9, 9, 1201)
    cell = (axis[1] - axis[0]) ** 2
    sigma = np.exp(logvar.numpy() / 2)
    one, two = (norm.pdf(axis[:, None], mu[:, k].numpy(), sigma[:, k]) for k in range(2))
    joint, prior = one @ two.T / len(mu), np.outer(norm.pdf(axis), norm.pdf(axis))
    marginals = [one.mean(1), two.mean(1)]

    def kl(p, q, volume):
        return float((p * np.log(np.maximum(p, 1e-300) / np.maximum(q, 1e-300))).sum() * volume)

    entropy_given_x = (0.5 * np.log(2 * np.pi * np.e) + logvar.numpy() / 2).sum(1).mean()
    entropy = -float((joint * np.log(np.maximum(joint, 1e-300))).sum() * cell)
    dim_kl = [kl(m, norm.pdf(axis), math.sqrt(cell)) for m in marginals]
    return [entropy - entropy_given_x, kl(joint, prior, cell), kl(joint, np.outer(*marginals), cell), *dim_kl]


@pytest.mark.parametrize("codes_at_once", [2, 1024])
def test_every_part_agrees_with_quadrature(posteriors, monkeypatch, codes_at_once):
    monkeypatch.setattr(module, "CODES_AT_ONCE", codes_at_once)
    g = torch.Generator().manual_seed(0)
    runs = [aggregate(*posteriors, samples=20, generator=g) for _ in range(120)]
    found = [[run.mi, run.kl_aggregate, run.tc, *run.dim_kl.tolist()] for run in runs]
    stats.assert_mean_equal(found, quadrature(*posteriors), discrepancy=0.08)


def test_the_parts_add_up_to_the_mean_kl():
    g = torch.Generator().manual_seed(1)
    mu, logvar = torch.randn(300, 4, generator=g), torch.randn(300, 4, generator=g) - 1
    runs = [aggregate(mu, logvar, generator=g) for _ in range(200)]
    exact = 0.5 * (mu**2 + logvar.exp() - 1 - logvar).sum(1).mean().item()
    assert runs[0].mean_kl == pytest.approx(exact, rel=1e-5)
    for run in runs:
        assert run.kl_aggregate == pytest.approx(run.tc + run.dim_kl.sum().item(), abs=1e-4)
    stats.assert_mean_equal([run.mi + run.kl_aggregate for run in runs], exact, discrepancy=0.15)


def test_standard_errors_are_not_too_small():
    g = torch.Generator().manual_seed(2)
    mu, logvar = torch.randn(200, 3, generator=g), torch.randn(200, 3, generator=g)
    runs = [aggregate(mu, logvar, generator=g) for _ in range(800)]
    for name in ("mi", "kl_aggregate", "tc"):
        values = np.array([getattr(run, name) for run in runs])
        errors = (values - values.mean()) / [getattr(run, f"{name}_stderr") for run in runs]
        stats.assert_mean_at_most(errors**2, 1.0, discrepancy=1.0)


@pytest.mark.parametrize("samples", [1, 16])
def test_standard_errors_are_over_the_data_and_more_codes_of_each_do_not_lower_them(samples):
    """Narrow posteriors far apart: log q(z) - log p(z) is |mu|^2 / 2 but for a constant, whatever the code."""
    mu = 10.0 * torch.arange(-2, 3)[:, None].double()
    logvar = torch.full_like(mu, -14.0)
    found = aggregate(mu, logvar, samples=samples, generator=torch.Generator().manual_seed(0))
    expected = (mu.square() / 2).std().item() / math.sqrt(5)
    assert found.kl_aggregate_stderr == pytest.approx(expected, rel=0.01)
    assert found.dim_kl_stderr.tolist() == pytest.approx([expected], rel=0.01)


def test_mutual_information_saturates_at_log_n_and_says_so():
    apart, zero = 50.0 * torch.arange(8.0)[:, None], torch.zeros(8, 1)
    g = torch.Generator().manual_seed(0)
    full, none = aggregate(apart, zero, generator=g), aggregate(zero, zero, generator=g)
    assert full.mi == pytest.approx(math.log(8), abs=1e-5)
    assert full.saturated
    assert none.mi == pytest.approx(0, abs=1e-5)
    assert not none.saturated
    assert full.log_n == pytest.approx(math.log(8))


@pytest.mark.parametrize(("B", "N"), [(2, 6), (3, 6), (6, 6)])
def test_stratified_weights_are_unbiased_over_all_minibatches(posteriors, B, N):
    """The other members of a code's minibatch are a uniform draw without replacement."""
    mu, logvar = (part[:N] for part in posteriors)
    density_NN = torch.distributions.Normal(mu, (logvar / 2).exp()).log_prob(mu[:, None]).sum(-1).exp()
    weights = stratified_log_weights(B, N).double().exp()
    for own in range(N):
        others = itertools.combinations([n for n in range(N) if n != own], B - 1)
        estimates = [(weights[0] * density_NN[own, [own, *rest]]).sum() for rest in others]
        assert torch.stack(estimates).mean().item() == pytest.approx(density_NN[own].mean().item(), rel=1e-6)


def test_stratified_weights_stand_on_the_diagonal_and_ignore_the_order():
    weights = stratified_log_weights(4, 10).exp()
    expected = torch.full((4, 4), 9 / 30).fill_diagonal_(1 / 10)
    torch.testing.assert_close(weights, expected)
    torch.testing.assert_close(weights.sum(1), torch.ones(4))
    torch.testing.assert_close(stratified_log_weights(10, 10).exp(), torch.full((10, 10), 0.1))


def published_weights(N, B):
    """The rule in print: 1/N for the own datum, (N - M)/(NM) for one other, 1/M for the rest."""
    M = B - 1
    weights = torch.full((B, B), 1 / M)
    weights.fill_diagonal_(1 / N)
    return weights.index_put((torch.arange(B), torch.arange(B).roll(-1)), torch.tensor((N - M) / (N * M)))


def column_weights(N, B):
    """What becomes of it where a stride of B is taken for that of the diagonal, B + 1: two columns are filled."""
    M = B - 1
    weights = torch.full((B, B), 1 / M)
    weights.view(-1)[::B] = 1 / N
    weights.view(-1)[1::B] = (N - M) / (N * M)
    return weights.index_put((torch.tensor(M), torch.tensor(0)), torch.tensor((N - M) / (N * M)))


def total_correlation(weights, mu, logvar):
    z, _ = kernels.reparam_kl(mu, logvar, seed=0)
    joint, marginals = kernels.log_aggregate(z, mu, logvar, log_weights=weights.log().to(mu))
    return (joint - marginals.sum(1)).mean().item()


def test_other_rules_for_the_weights_give_other_figures():
    """Codes along a line, well apart, where TC is log N: the batch is the whole set, so the estimate has no excuse."""
    N = 8
    mu, logvar = (20.0 * torch.arange(N))[:, None].expand(N, 3).double(), torch.zeros(N, 3).double()
    ours = total_correlation(stratified_log_weights(N, N).exp(), mu, logvar)
    assert ours == pytest.approx(2 * math.log(N), abs=1e-6), "K - 1 times log N"
    assert total_correlation(column_weights(N, N), mu, logvar) > ours + 0.1
    near = 0.02 * mu
    ours, published, turned = (
        total_correlation(weights, near, logvar)
        for weights in (stratified_log_weights(N, N).exp(), published_weights(N, N), published_weights(N, N).mT)
    )
    assert abs(published - ours) > 0.01
    assert abs(published - turned) > 0.001, "it depends on the order of the batch"


@pytest.mark.parametrize(("B", "N"), [(1, 5), (6, 5)])
def test_a_batch_of_impossible_size_is_refused(B, N):
    with pytest.raises(ValueError, match="2 <= B <= N"):
        stratified_log_weights(B, N)


def test_bad_posteriors_are_refused():
    with pytest.raises(ValueError, match="N >= 2"):
        aggregate(torch.zeros(1, 2), torch.zeros(1, 2))
    with pytest.raises(ValueError, match="samples must be at least 1"):
        aggregate(torch.zeros(3, 2), torch.zeros(3, 2), samples=0)
