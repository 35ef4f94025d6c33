"""The exactly solvable models, against torch.distributions, quadrature, enumeration and autograd."""

import math
import re

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from sklearn.decomposition import PCA
from torch.distributions import MultivariateNormal, Normal, kl_divergence

from tests import ROOT, stats
from tests.exact_models import correlated_ppca, generator, mixture, orthogonal_ppca
from vaebench.studies.experiments import vae_vs_flow
from vaebench.vae.config.run import Run
from vaebench.vae.data import load
from vaebench.vae.estimators.exact import FullGaussian, MixtureOfGaussians, ProbabilisticPCA, fit_beta_ppca, fit_ppca


@pytest.fixture
def model():
    return correlated_ppca(3, correlation=0.8)


@pytest.fixture
def x(model):
    return model.sample(6, generator(1))[0]


def random_gaussian(seed, K, B=()):
    g = generator(seed)
    factor = torch.randn(*B, K, K, generator=g, dtype=torch.float64)
    mean = torch.randn(*B, K, generator=g, dtype=torch.float64)
    return FullGaussian(mean, factor @ factor.mT + 0.2 * torch.eye(K, dtype=torch.float64))


def test_full_gaussian_is_that_of_torch_distributions():
    p, q = random_gaussian(0, 4, (5,)), random_gaussian(1, 4)
    p_torch, q_torch = (MultivariateNormal(d.mean, d.covariance) for d in (p, q))
    z = torch.randn(7, 5, 4, generator=generator(2), dtype=torch.float64)
    torch.testing.assert_close(p.log_prob(z), p_torch.log_prob(z))
    torch.testing.assert_close(p.kl(q), kl_divergence(p_torch, q_torch))
    assert torch.all(p.kl(p).abs() < 1e-10)


def test_full_gaussian_samples_have_its_moments():
    p = random_gaussian(3, 3)
    z = p.sample(20_000, generator(0))
    centred = z - p.mean
    stats.assert_mean_equal(z, p.mean, discrepancy=0.2)
    stats.assert_mean_equal(centred[:, :, None] * centred[:, None, :], p.covariance, discrepancy=0.6)


def test_ppca_evidence_is_the_integral_of_its_joint():
    model = correlated_ppca(2)
    x, _ = model.sample(6, generator(1))
    axis = torch.linspace(-8, 8, 321, dtype=torch.float64)
    log_cells = model.log_joint(x, torch.cartesian_prod(axis, axis)[:, None]) + 2 * math.log(axis[1] - axis[0])
    torch.testing.assert_close(log_cells.logsumexp(0), model.log_prob(x), rtol=1e-9, atol=0)


def test_ppca_log_prob_is_the_marginal_gaussian(model, x):
    covariance = model.weight @ model.weight.T + model.noise * torch.eye(6, dtype=torch.float64)
    torch.testing.assert_close(model.log_prob(x), MultivariateNormal(model.mean, covariance).log_prob(x))


def test_ppca_joint_is_likelihood_times_prior(model, x):
    z = torch.randn(4, 6, 3, generator=generator(5), dtype=torch.float64)
    likelihood = Normal(z @ model.weight.T + model.mean, math.sqrt(model.noise)).log_prob(x).sum(-1)
    torch.testing.assert_close(model.log_likelihood(x, z), likelihood)
    torch.testing.assert_close(model.log_joint(x, z), likelihood + Normal(0.0, 1.0).log_prob(z).sum(-1))


def test_ppca_posterior_is_joint_over_evidence(model, x):
    z = torch.randn(4, 6, 3, generator=generator(6), dtype=torch.float64)
    torch.testing.assert_close(model.posterior(x).log_prob(z), model.log_joint(x, z) - model.log_prob(x))


def test_ppca_elbo_is_the_mean_log_weight_of_its_q(model, x):
    q = random_gaussian(7, 3, (6,))
    q = FullGaussian(q.mean, 0.02 * q.covariance)
    z = q.sample(60_000, generator(0))
    log_w = model.log_joint(x, z) - q.log_prob(z)
    stats.assert_mean_equal(log_w, model.elbo(x, q), discrepancy=1.2)


def test_ppca_best_diagonal_is_where_the_elbo_is_stationary_and_its_gap_is_the_family_gap(model, x):
    mu, logvar = (part.clone().requires_grad_() for part in model.best_diagonal(x))
    elbo = model.elbo(x, FullGaussian(mu, torch.diag_embed(logvar.exp())))
    for gradient in torch.autograd.grad(elbo.sum(), (mu, logvar)):
        assert gradient.abs().max() < 1e-10
    torch.testing.assert_close(model.log_prob(x) - elbo, model.family_gap().expand(6))
    assert model.family_gap() > 0.05


def test_ppca_samples_have_its_moments(model):
    drawn, z = model.sample(20_000, generator(0))
    centred = drawn - model.mean
    stats.assert_mean_equal(centred[:, :, None] * centred[:, None, :], model.marginal().covariance, discrepancy=3.0)
    stats.assert_mean_equal(centred[:, :, None] * z[:, None, :], model.weight, discrepancy=0.5)


def test_maximum_likelihood_is_not_beaten_by_a_numerical_optimiser():
    x = correlated_ppca(2, correlation=0.3).sample(200, generator(0))[0]
    fitted = fit_ppca(x, 2)

    def loss(flat):
        flat = torch.tensor(flat, requires_grad=True)
        candidate = ProbabilisticPCA(flat[:8].reshape(4, 2), x.mean(0), flat[8].exp())
        value = -candidate.log_prob(x).mean()
        (gradient,) = torch.autograd.grad(value, flat)
        return value.item(), gradient.numpy()

    start = np.random.default_rng(0).normal(size=9)
    found = minimize(loss, start, jac=True, method="BFGS")
    assert -found.fun == pytest.approx(fitted.log_prob(x).mean().item(), abs=1e-7)


@pytest.mark.parametrize("beta", [0.5, 1.0, 4.0])
def test_beta_fit_is_not_beaten_by_a_numerical_optimiser_of_the_beta_elbo(beta):
    """With the best q for each weight, the beta-weighted bound is a function of the weight alone."""
    noise = 0.7
    x = correlated_ppca(2, correlation=0.3).sample(200, generator(0))[0]
    fitted = fit_beta_ppca(x, 2, beta=beta, noise=noise)

    def bound(weight):
        """The bound at the best q, that of the posterior of noise beta * s^2."""
        q = ProbabilisticPCA(weight, x.mean(0), beta * noise).posterior(x)
        p = ProbabilisticPCA(weight, x.mean(0), noise)
        kl = q.kl(FullGaussian(torch.zeros(2, dtype=torch.float64), torch.eye(2, dtype=torch.float64)))
        return (p.elbo(x, q) - (beta - 1) * kl).mean()

    def loss(flat):
        flat = torch.tensor(flat, requires_grad=True)
        value = -bound(flat.reshape(4, 2))
        (gradient,) = torch.autograd.grad(value, flat)
        return value.item(), gradient.numpy()

    found = minimize(loss, np.random.default_rng(0).normal(size=8), jac=True, method="BFGS")
    assert -found.fun == pytest.approx(bound(fitted.weight).item(), abs=1e-7)


def test_beta_fit_keeps_the_directions_above_beta_times_the_noise():
    model = orthogonal_ppca(4)
    x = model.sample(20_000, generator(0))[0]
    eigenvalues = np.linalg.eigvalsh(np.cov(x.numpy().T))[::-1]
    for beta in (0.5, 3.0, 7.0, 20.0):
        fitted = fit_beta_ppca(x, 4, beta=beta, noise=1.0)
        assert int((fitted.weight.square().sum(0) > 0).sum()) == min(4, int((eigenvalues > beta).sum()))


def test_a_fit_with_no_noise_left_is_refused():
    with pytest.raises(ValueError, match="between 1 and 3"):
        fit_ppca(torch.zeros(5, 4), 4)


def test_mixture_is_that_of_torch_distributions():
    model = mixture()
    x, _ = model.sample(50, generator(0))
    components = MultivariateNormal(model.means, model.covariances)
    torch_model = torch.distributions.MixtureSameFamily(
        torch.distributions.Categorical(logits=model.log_weights), components
    )
    torch.testing.assert_close(model.log_prob(x), torch_model.log_prob(x))
    posterior = (model.log_weights + components.log_prob(x[:, None])).exp() / torch_model.log_prob(x).exp()[:, None]
    torch.testing.assert_close(model.responsibilities(x), posterior)


def test_mixture_samples_have_its_moments():
    model = mixture()
    x, c = model.sample(20_000, generator(0))
    weights = model.log_weights.exp()
    onehot = torch.nn.functional.one_hot(c, 3).double()
    stats.assert_mean_equal(onehot, weights, discrepancy=0.05)
    stats.assert_mean_equal(x, weights @ model.means, discrepancy=0.3)
    second = torch.einsum("c,cij->ij", weights, model.covariances + model.means[:, :, None] * model.means[:, None, :])
    stats.assert_mean_equal(x[:, :, None] * x[:, None, :], second, discrepancy=2.0)


def test_em_makes_the_bound_tight_and_then_raises_it_at_every_step():
    overlapping = mixture(seed=4)
    truth = MixtureOfGaussians(overlapping.log_weights, 3 * overlapping.means, overlapping.covariances)
    x, _ = truth.sample(300, generator(0))
    identity = torch.eye(2, dtype=torch.float64).expand(3, 2, 2)
    model = MixtureOfGaussians(torch.full((3,), -math.log(3), dtype=torch.float64), truth.means, identity)
    previous = -math.inf
    for _ in range(30):
        log_p = model.log_prob(x)
        q = model.responsibilities(x)
        torch.testing.assert_close(model.elbo(x, q), log_p, rtol=1e-12, atol=1e-12)
        assert log_p.mean().item() >= previous - 1e-12
        raised = model.em_step(x)
        assert raised.elbo(x, q).mean() >= log_p.mean() - 1e-12
        model, previous = raised, log_p.mean().item()
    assert model.log_prob(x).mean() > truth.log_prob(x).mean()
    assert model.log_weights.exp().sum().item() == pytest.approx(1)


def test_mixture_elbo_is_a_bound_and_counts_an_empty_class_as_nothing():
    model = mixture()
    x, _ = model.sample(20, generator(0))
    q = torch.rand(20, 3, generator=generator(1), dtype=torch.float64)
    q = q / q.sum(1, keepdim=True)
    by_hand = sum(q[:, c] * (model.log_joint(x)[:, c] - q[:, c].log()) for c in range(3))
    torch.testing.assert_close(model.elbo(x, q), by_hand)
    assert torch.all(model.elbo(x, q) < model.log_prob(x))
    certain = torch.nn.functional.one_hot(torch.zeros(20, dtype=torch.int64), 3).double()
    torch.testing.assert_close(model.elbo(x, certain), model.log_joint(x)[:, 0])


def test_the_readme_names_the_bits_of_models_without_a_network():
    """Bits per dimension of test digits: 17 equal levels, independent pixels, PCA of the default latent size.

    A pixel's histogram counts each level once more than the training split has it: without this, unseen levels cost
    infinitely many bits. PCA, here scikit-learn's too, is a density of dequantised levels, whose cells have width 1.
    """
    splits, K = load(Run().data), Run().model.latent
    train, test = (split.stored.flatten(1).numpy().astype(int) for split in (splits.train, splits.test))
    counts = np.stack([np.bincount(pixel, minlength=17) for pixel in train.T]) + 1.0
    shares = counts / counts.sum(1, keepdims=True)
    bits = {"equal": math.log2(17), "histogram": -np.log2(shares[np.arange(64), test]).mean()}
    assert bits["histogram"] == pytest.approx(vae_vs_flow.pixel_histogram(splits))
    random = np.random.default_rng(0)
    x, y = train + random.random(train.shape), np.concatenate([test + random.random(test.shape) for _ in range(10)])
    bits["pca"] = -fit_ppca(torch.tensor(x), K).log_prob(torch.tensor(y)).mean().item() / (64 * math.log(2))
    assert bits["pca"] == pytest.approx(-PCA(K).fit(x).score(y) / (64 * math.log(2)), abs=2e-3)
    readme = " ".join((ROOT / "README.md").read_text().split())
    named = re.search(r"likely levels would cost ([\d.]+), .* histogram, ([\d.]+), .* same size ([\d.]+),", readme)
    assert named, "the README says what the digits cost without a network"
    assert [float(number) for number in named.groups()] == [round(value, 2) for value in bits.values()]
