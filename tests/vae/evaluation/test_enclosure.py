"""log p(x) of simulated data lies between annealing forwards and annealing backwards from the exact posterior draw."""

import math

import pytest
import torch
from scipy.stats import norm
from torch import nn

from tests import stats
from tests.exact_models import correlated_ppca, generator
from vaebench.vae import model as models
from vaebench.vae.errors import InputError
from vaebench.vae.estimators import ais
from vaebench.vae.estimators.evidence import riemann_sum
from vaebench.vae.evaluation import enclosure
from vaebench.vae.evaluation.enclosure import Enclosure, enclose, simulate
from vaebench.vae.flows import MAF, Inverse, RealNVP
from vaebench.vae.model import VAE
from vaebench.vae.model.likelihoods import Likelihood
from vaebench.vae.training.streams import evaluation_generator

K, C = 2, 3
FEW = {"temperatures": 5, "chains": 2}


def shaken(module, scale=0.3):
    """Return the module in float64 with every parameter moved away from its start."""
    with torch.no_grad():
        for i, parameter in enumerate(module.double().parameters()):
            parameter += scale * torch.randn(parameter.shape, generator=generator(i), dtype=torch.float64)
    return module


def untrained_iaf():
    """Return an inverse autoregressive flow of two latents that depends on a context."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return shaken(Inverse(MAF(K, layers=2, hidden=(8,), context=C)))


def ppca_vae(ppca, posterior_flow=None):
    """Return the VAE whose prior, decoder and likelihood are those of probabilistic PCA, with any encoder."""
    D, size = ppca.weight.shape
    context = C if posterior_flow is not None else 0
    likelihood = Likelihood("gaussian", (D,), sigma=math.sqrt(ppca.noise))
    encoder, decoder = nn.Linear(D, 2 * size + context), nn.Linear(size, D)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        encoder.reset_parameters()
    vae = VAE(encoder, decoder, likelihood, size, posterior_flow=posterior_flow, context=context).double()
    vae.likelihood.log_sigma = torch.tensor(0.5 * math.log(ppca.noise), dtype=torch.float64)
    with torch.no_grad():
        decoder.weight.copy_(ppca.weight)
        decoder.bias.copy_(ppca.mean)
    return vae


def bits_or_levels(name, **flows):
    """Return a VAE of five elements with two latents, whose decoder is far from linear."""
    levels = 2 if name == "bernoulli" else 4
    likelihood = Likelihood(name, (5,), levels=levels)
    outputs = 5 * likelihood.parameters_per_element
    with torch.random.fork_rng():
        torch.manual_seed(1)
        decoder = nn.Sequential(nn.Linear(K, 16), nn.Tanh(), nn.Linear(16, outputs))
        return shaken(VAE(nn.Linear(5, 2 * K), decoder, likelihood, K, **flows))


def integrate(model, x):
    """Return log p(x) by quadrature over both latents."""

    def log_joint(z):
        return model.decode(z).log_prob(x) + model.prior(z).log_prob(z)

    with torch.no_grad():
        return riemann_sum(log_joint, x.new_zeros(len(x), K), points=121).value


def exact_bounds(model, log_prob, examples, seed=3, **options):
    """Return an enclosure and the exact log p(x) of its examples."""
    found = enclose(model, examples, seed=seed, **options)
    x, _ = simulate(model, torch.zeros(examples, model.latent).double(), evaluation_generator(seed, "cpu"))
    return found, log_prob(x)


def assert_unbiased(found, log_p, discrepancy=0.1):
    """Forwards E w = p(x), backwards E 1/w = 1/p(x), for every number of chains and temperatures."""
    stats.assert_mean_equal((found.lower - log_p).exp(), 1.0, discrepancy=discrepancy)
    stats.assert_mean_equal((log_p - found.upper).exp(), 1.0, discrepancy=discrepancy)


@pytest.mark.parametrize("flow", [False, True], ids=["gaussian", "iaf"])
def test_both_bounds_of_probabilistic_pca_are_unbiased_whatever_the_posterior(flow):
    """p(x) does not depend on q, nor on the flow T of an untrained posterior, in whose base space it is measured."""
    ppca = correlated_ppca(K, correlation=0.2)
    iaf = untrained_iaf() if flow else None
    found, log_p = exact_bounds(ppca_vae(ppca, iaf), ppca.log_prob, 3000, **FEW)
    assert_unbiased(found, log_p)


def test_the_exact_evidence_lies_within_a_narrow_interval():
    ppca = correlated_ppca(8)
    found, log_p = exact_bounds(ppca_vae(ppca), ppca.log_prob, 800, temperatures=30, chains=8)
    stats.assert_mean_at_most(found.lower - log_p, 0.0, discrepancy=0.05)
    stats.assert_mean_at_most(log_p - found.upper, 0.0, discrepancy=0.05)
    stats.assert_mean_at_most(found.upper - found.lower, 0.03, discrepancy=0.1)
    low, high = found.interval
    assert low < log_p.mean() < high < low + 0.1


@pytest.mark.slow
@pytest.mark.parametrize(("name", "discrepancy"), [("bernoulli", 0.1), ("discretised_logistic", 0.2)])
def test_both_bounds_are_unbiased_for_discrete_data(name, discrepancy):
    model = bits_or_levels(name)
    assert_unbiased(*exact_bounds(model, lambda x: integrate(model, x), 1500, temperatures=10, chains=2), discrepancy)


@pytest.mark.slow
def test_both_bounds_are_unbiased_with_a_flow_as_prior():
    with torch.random.fork_rng():
        torch.manual_seed(2)
        flow = RealNVP((K,), layers=2, hidden=(8,))
    model = bits_or_levels("bernoulli", prior_flow=flow)
    assert_unbiased(*exact_bounds(model, lambda x: integrate(model, x), 1500, temperatures=10, chains=2))


def test_a_simulated_code_is_a_draw_from_the_posterior_in_the_space_of_z0():
    """T takes z0 back to a z that made x: in probabilistic PCA, whitened by the exact posterior, it is N(0, I)."""
    ppca = correlated_ppca(K, correlation=0.2)
    model = ppca_vae(ppca, untrained_iaf())
    with torch.no_grad():
        x, z0 = simulate(model, torch.zeros(20_000, K).double(), generator(0))
        z, _ = model.transform(z0, model.encode_with_context(x)[1])
    posterior = ppca.posterior(x)
    u = torch.linalg.solve_triangular(torch.linalg.cholesky(posterior.covariance), (z - posterior.mean).mT, upper=False)
    for row in u:
        stats.assert_distribution(row, norm.cdf, discrepancy=0.05)
    assert (z0 - z).abs().mean() > 0.1


def log_excess(found, log_p):
    """Return how many standard errors the mean of exp(log p - upper) is above 1, its value for an upper bound."""
    mean, stderr = enclosure.mean_and_stderr((log_p - found.upper).exp())
    return (mean - 1) / stderr


def test_an_inexact_posterior_draw_is_no_upper_bound(monkeypatch):
    """Planted: the chains back begin at draws from the start, which is wider than the posterior."""
    anneal_back, ppca = ais.anneal_back, correlated_ppca(8)

    def inexact(path, steps, exact, **options):
        return anneal_back(path, steps, path.start.sample(len(exact), generator(9)), **options)

    right, log_p = exact_bounds(ppca_vae(ppca), ppca.log_prob, 1000, temperatures=2, chains=2)
    monkeypatch.setattr(enclosure.ais, "anneal_back", inexact)
    wrong, _ = exact_bounds(ppca_vae(ppca), ppca.log_prob, 1000, temperatures=2, chains=2)
    assert abs(log_excess(right, log_p)) < 5
    assert log_excess(wrong, log_p) > 8
    assert wrong.width[0] < -5 * wrong.width[1]


def test_codes_in_place_of_those_of_the_base_space_are_no_posterior_draws(monkeypatch):
    """Planted: with a posterior flow the code z is taken for z0."""
    ppca = correlated_ppca(K, correlation=0.2)
    model = ppca_vae(ppca, untrained_iaf())
    right, log_p = exact_bounds(model, ppca.log_prob, 1000, temperatures=2, chains=2)

    def forgetful(model, like, source):
        x, z0 = simulate(model, like, source)
        return x, model.transform(z0, model.encode_with_context(x)[1])[0]

    monkeypatch.setattr(enclosure, "simulate", forgetful)
    wrong = enclose(model, 1000, seed=3, temperatures=2, chains=2)
    assert (right.upper < log_p - 1).double().mean() < 0.02
    assert (wrong.upper < log_p - 1).double().mean() > 0.1


def test_blocks_of_examples_share_nothing_but_the_generator(monkeypatch):
    """However few codes there are in one call, the simulated data are the same, and the bounds as wide."""
    ppca = correlated_ppca(K)
    whole = enclose(ppca_vae(ppca), 40, temperatures=20, chains=4)
    seen, path = [], ais.whitened_path
    monkeypatch.setattr(enclosure, "codes_at_once", lambda x: 4 * 4 * 7)
    monkeypatch.setattr(
        enclosure.ais, "whitened_path", lambda f, start, T: seen.append(len(start)) or path(f, start, T)
    )
    parts = enclose(ppca_vae(ppca), 40, temperatures=20, chains=4)
    assert seen == [7] * 5 + [5]
    torch.testing.assert_close(parts.lower, whole.lower, rtol=0, atol=1.0)
    torch.testing.assert_close(parts.upper, whole.upper, rtol=0, atol=1.0)
    torch.testing.assert_close(parts.estimate.value, whole.estimate.value, rtol=0, atol=1e-3)
    assert parts.evaluations == whole.evaluations


def test_the_same_seed_gives_the_same_figures_and_no_gradient():
    model = ppca_vae(correlated_ppca(K))
    first, second = (enclose(model, 10, seed=5, **FEW) for _ in range(2))
    assert first.metrics() == second.metrics()
    assert enclose(model, 10, seed=6, **FEW).metrics() != first.metrics()
    assert not first.upper.requires_grad
    assert all(parameter.grad is None for parameter in model.parameters())


def by_hand(lower, upper, value, passed):
    """Return an enclosure of two examples with these figures."""
    zero = torch.zeros(2)
    estimate = enclosure.CheckedEstimate(
        torch.tensor(value), zero + 0.5, "lower", 10, passed=torch.tensor(passed), rounds=zero, evaluations=zero
    )
    return Enclosure(torch.tensor(lower), torch.tensor(upper), estimate, 100.0)


def test_few_examples_have_no_verdict():
    """Three standard errors of a handful of examples are exceeded by chance, here by a hundred."""
    count = enclosure.FEWEST_JUDGED
    outside = {"enclosure/excess": -100.0, "enclosure/excess_stderr": 1.0, "enclosure/unresolved": 0.0}
    assert "below the lower bound" in enclosure.find_estimate_outside(outside | {"enclosure/examples": count})
    assert enclosure.find_estimate_outside(outside | {"enclosure/examples": count - 1}) == ""


def test_errors_are_those_of_differences_over_the_examples():
    """Two examples far from each other: their distance is no error, the spread of each difference is."""
    found = by_hand([-100.0, -10.0], [-99.0, -8.0], [-99.5, -9.5], [True, True])
    assert found.width == (1.5, 0.5)
    assert found.interval == (-56.0, -52.5)
    assert found.shortfall == (1.0, 0.5)
    assert found.excess == (0.5, 0.0)
    metrics = found.metrics()
    assert metrics["enclosure/lower"] == -55.0
    assert metrics["enclosure/upper"] == -53.5
    assert metrics["enclosure/log_px"] == -54.5
    assert (metrics["enclosure/shortfall"], metrics["enclosure/shortfall_stderr"]) == (1.0, 0.5)
    assert (metrics["enclosure/excess"], metrics["enclosure/excess_stderr"]) == (0.5, 0.0)
    assert "on simulated data log p(x) lies within [-56.000, -52.500]: the mean of 2 examples" in str(found)
    assert (
        "the estimate is -54.500, and the upper bound without its error, -53.500, lies 1.000 ± 0.500 nats above it"
        in str(found)
    )


def test_an_estimate_that_is_a_bound_is_told_as_one():
    found = by_hand([-100.0, -10.0], [-99.0, -8.0], [-99.5, -9.5], [True, False])
    assert "the estimate is >= -54.500 (1 of 2 examples unresolved)" in str(found)
    assert found.metrics()["enclosure/unresolved"] == 1


def test_the_estimate_is_made_by_the_policy_of_the_run():
    found = enclose(ppca_vae(correlated_ppca(K)), 4, policy=enclosure.Policy(samples=30), **FEW)
    assert found.estimate.ess.max().item() == pytest.approx(30)


def test_models_without_a_posterior_and_single_examples_are_refused():
    with pytest.raises(InputError, match="nothing to enclose"):
        enclose(models.FlowModel(RealNVP((4,), layers=2, hidden=(8,)), (4,)))
    with pytest.raises(InputError, match="at least 2 examples"):
        enclose(ppca_vae(correlated_ppca(K)), 1)


@pytest.mark.parametrize("distance", [0.5, 1.0])
@pytest.mark.parametrize(("figure", "told"), [("excess", "below the lower bound"), ("shortfall", "above the upper")])
def test_an_estimate_is_outside_from_three_standard_errors_on(figure, told, distance):
    figures = {"enclosure/unresolved": 0.0, "enclosure/excess": 1.0, "enclosure/shortfall": 1.0}
    figures |= {"enclosure/excess_stderr": 0.1, "enclosure/shortfall_stderr": 0.1}
    outside = figures | {f"enclosure/{figure}": -distance}
    assert told in enclosure.find_estimate_outside(outside | {f"enclosure/{figure}_stderr": 0.99 * distance / 3})
    assert not enclosure.find_estimate_outside(outside | {f"enclosure/{figure}_stderr": 1.01 * distance / 3})
    assert not enclosure.find_estimate_outside(figures)
