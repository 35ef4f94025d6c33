"""The objective: special cases, invariants, decompositions by quadrature, one draw a step, and what is refused."""

import math

import pytest
import torch
from numpy.polynomial.hermite_e import hermegauss
from torch._dynamo.testing import CompileCounterWithBackend
from torch.distributions import Independent, Normal, kl_divergence

from tests import stats
from vaebench import kernels
from vaebench.vae import model as models
from vaebench.vae import objective as objectives
from vaebench.vae.config.run import Model, Run, Train
from vaebench.vae.data import from_tensors
from vaebench.vae.errors import InputError
from vaebench.vae.objective import InfoVAE
from vaebench.vae.objective.critics import permute_latents
from vaebench.vae.prob.densities import DiagonalGaussian
from vaebench.vae.prob.terms import Terms
from vaebench.vae.training.fit import fit

N, D, K = 12, 6, 3


def linear_model(sigma=0.4):
    torch.manual_seed(0)
    config = Model(network="linear", latent=K, likelihood="gaussian", sigma=sigma)
    return models.build(config, (D,), levels=0).double()


def data():
    return torch.randn(N, D, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def value_and_gradient(objective, model, seed=3):
    model.zero_grad()
    terms = objectives.terms(model, data(), seed=seed)
    generator = torch.Generator().manual_seed(5)
    value, _ = objectives.value(objective, terms, data_size=N, generator=generator)
    value.backward()
    gradient = torch.cat([p.grad.flatten() for p in model.parameters()])
    return value.item(), gradient


def assert_same(one, other):
    assert one[0] == pytest.approx(other[0], abs=1e-10)
    assert torch.allclose(one[1], other[1], rtol=0, atol=1e-10)


def test_the_elbo_equals_its_textbook_definition():
    """With torch.distributions as the oracle, at the same noise."""
    model = linear_model()
    x = data()
    found = value_and_gradient(objectives.vae(), model)
    model.zero_grad()
    q = model.encode(x)
    eps = kernels.normal_noise(3, (N, K), dtype=torch.float64)
    posterior = Independent(Normal(q.mu, torch.exp(q.logvar / 2)), 1)
    prior = Independent(Normal(torch.zeros_like(q.mu), torch.ones_like(q.mu)), 1)
    mean = model.decoder(q.mu + torch.exp(q.logvar / 2) * eps)
    expected = (Independent(Normal(mean, 0.4), 1).log_prob(x) - kl_divergence(posterior, prior)).mean()
    expected.backward()
    gradient = torch.cat([p.grad.flatten() for p in model.parameters()])
    # log sigma is a float32 buffer made double: sigma carries 1e-8
    assert found[0] == pytest.approx(expected.item(), rel=1e-6)
    assert torch.allclose(found[1], gradient, rtol=1e-6)


def test_names_that_coincide():
    assert objectives.vae() == objectives.beta_vae(1.0) == objectives.infovae(0.0, 1.0) == InfoVAE()
    assert objectives.mmd_vae(10.0) == objectives.infovae(1.0, 10.0)
    assert objectives.infovae(0.5, 3.0, estimator="v") == InfoVAE(alpha=0.5, lambda_=3.0, estimator="v")


def test_weights_of_the_kl_and_of_the_divergence():
    weights = InfoVAE(beta=2.0, alpha=0.25, lambda_=3.0).weights(epochs_done=0)
    assert weights == {"w_kl": 2 * 0.75, "w_d": 2 * 2.25}
    assert InfoVAE(beta=2.0).weights(epochs_done=0) == {"w_kl": 2.0, "w_d": 0.0}
    assert InfoVAE(alpha=0.6, lambda_=0.4 + 1e-13).w_d == 0, "1e-13 is a rounding"


def test_a_bandwidth_that_is_not_given_is_twice_the_latent_size():
    assert InfoVAE().resolve(latent=3).bandwidth == (6.0,)
    assert InfoVAE(bandwidth=(1.0, 2.0)).resolve(latent=3).bandwidth == (1.0, 2.0)


def test_codes_and_other_noise_have_generators_of_their_own():
    """A flow dequantises x with `noise`, and with `generator` where no other is given; codes never take `noise`."""
    flow = models.build(Model(kind="coupling", hidden=(8,), flow_layers=1), (D,), levels=256)
    x = (data().float().sigmoid() * 255).round() / 255
    seeded = lambda seed: torch.Generator().manual_seed(seed)  # noqa: E731
    draw = lambda model, a, b: objectives.terms(model, x, generator=seeded(a), noise=b and seeded(b)).z  # noqa: E731
    assert torch.equal(draw(flow, 1, 2), draw(flow, 3, 2))
    assert torch.equal(draw(flow, 2, None), draw(flow, 1, 2))
    assert not torch.equal(draw(flow, 1, 2), draw(flow, 1, 3))
    vae = linear_model().float()
    assert torch.equal(draw(vae, 1, 2), draw(vae, 1, 3))
    assert not torch.equal(draw(vae, 1, 2), draw(vae, 3, 2))


@pytest.mark.parametrize("alpha", [0.0, 0.4, 1.0])
def test_the_family_equals_its_formula_written_out(alpha):
    """Values and gradients against E log p(x|z) - beta ((1 - alpha) KL + (alpha + lambda - 1) MMD^2), rbf, c = 3, v."""
    model = linear_model()
    beta, lambda_ = 2.0, 5.0
    objective = InfoVAE(beta=beta, alpha=alpha, lambda_=lambda_, kernel="rbf", bandwidth=(3.0,), estimator="v")
    found = value_and_gradient(objective, model)
    model.zero_grad()
    x = data()
    q = model.encode(x)
    z = q.mu + torch.exp(q.logvar / 2) * kernels.normal_noise(3, (N, K), dtype=torch.float64)
    prior = torch.randn(N, K, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    k = lambda a, b: torch.exp(-(a[:, None] - b).square().sum(-1) / 3.0).mean()  # noqa: E731
    mmd2 = k(z, z) + k(prior, prior) - 2 * k(z, prior)
    kl = 0.5 * (q.mu**2 + q.logvar.exp() - 1 - q.logvar).sum(1).mean()
    log_px = model.decode(z).log_prob(x).mean()
    expected = log_px - beta * ((1 - alpha) * kl + (alpha + lambda_ - 1) * mmd2)
    expected.backward()
    assert_same(found, (expected.item(), torch.cat([p.grad.flatten() for p in model.parameters()])))


def test_beta_at_sigma_squared_is_a_vae_at_beta_sigma_squared():
    """Dividing by beta: value/beta differs by the Gaussian's constants alone, and the gradients are equal."""
    beta, variance = 3.0, 0.25
    narrow, wide = linear_model(math.sqrt(variance)), linear_model(math.sqrt(beta * variance))
    for model, v in ((narrow, variance), (wide, beta * variance)):
        model.likelihood.log_sigma = torch.tensor(0.5 * math.log(v), dtype=torch.float64)
    weighted = value_and_gradient(objectives.beta_vae(beta), narrow)
    plain = value_and_gradient(objectives.vae(), wide)
    constants = [-0.5 * D * math.log(2 * math.pi * v) for v in (variance, beta * variance)]
    assert (weighted[0] - constants[0]) / beta == pytest.approx(plain[0] - constants[1], abs=1e-10)
    assert torch.allclose(weighted[1] / beta, plain[1], rtol=0, atol=1e-10)


def test_the_mmd_vae_has_no_kl():
    model = linear_model()
    terms = objectives.terms(model, data(), seed=3)
    value, d = objectives.value(objectives.mmd_vae(7.0), terms, data_size=N, generator=torch.Generator().manual_seed(5))
    prior = torch.randn(N, K, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    expected = kernels.mmd2(terms.z, prior, backend="reference")
    assert d.item() == pytest.approx(expected.item(), abs=1e-12)
    assert value.item() == pytest.approx((terms.log_px.mean() - 7 * expected).item(), abs=1e-10)


def two_axis_decomposition(mu, logvar):
    """Return I, TC and the dimension-wise KL of q(z) = 1/N sum_n q(z|x_n) at K = 2, by 40-point Gauss quadrature."""
    nodes, weights = (torch.from_numpy(values) for values in hermegauss(40))
    weights = weights / weights.sum()
    eps = torch.cartesian_prod(nodes, nodes)
    w = torch.cartesian_prod(weights, weights).prod(1)
    z = mu[:, None] + torch.exp(logvar / 2)[:, None] * eps
    own = Normal(mu[:, None], torch.exp(logvar / 2)[:, None]).log_prob(z)
    every = Normal(mu, torch.exp(logvar / 2)).log_prob(z[:, :, None])
    marginals = every.logsumexp(2) - math.log(len(mu))
    joint = every.sum(-1).logsumexp(2) - math.log(len(mu))
    prior = Normal(0.0, 1.0).log_prob(z)
    expect = lambda values: (values * w).sum(1).mean().item()  # noqa: E731
    return (
        expect(own.sum(-1) - joint),
        expect(joint - marginals.sum(-1)),
        expect((marginals - prior).sum(-1)),
    )


@pytest.fixture(scope="module")
def posteriors():
    """Four correlated posteriors and 4 000 independent batches of one code from each."""
    mu = torch.tensor([[1.0, 0.8], [-1.0, -0.6], [0.3, 0.1], [2.0, 1.5]], dtype=torch.float64)
    logvar = torch.tensor([[-1.0, -0.5], [-0.8, -1.2], [0.2, -1.0], [-0.3, -0.4]], dtype=torch.float64)
    q = DiagonalGaussian(mu, logvar)
    noise = torch.randn(4000, 4, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return q, q.mu + torch.exp(q.logvar / 2) * noise


def penalties(objective, posteriors):
    """Return minus the objective of each batch, its reconstruction taken to be 0."""
    q, draws = posteriors
    kl = kl_divergence(Normal(q.mu, torch.exp(q.logvar / 2)), Normal(0.0, 1.0)).sum(1)
    zero = torch.zeros(4, dtype=torch.float64)
    terms = (Terms(zero, kl, z, q) for z in draws)
    return torch.stack([-objectives.value(objective, t, data_size=4)[0] for t in terms])


def test_infovae_weighs_information_by_beta_one_minus_alpha_and_the_aggregate_by_beta_lambda(posteriors):
    q, _ = posteriors
    mi, tc, dim_kl = two_axis_decomposition(q.mu, q.logvar)
    for beta, alpha, lambda_ in ((2.0, 0.6, 3.0), (0.5, -1.0, 2.5), (1.0, 1.0, 4.0)):
        objective = InfoVAE(beta=beta, alpha=alpha, lambda_=lambda_, divergence="kl")
        expected = beta * (1 - alpha) * mi + beta * lambda_ * (tc + dim_kl)
        stats.assert_mean_equal(penalties(objective, posteriors), expected, discrepancy=0.15 * expected)


def test_tc_vae_weighs_each_part_of_the_kl(posteriors):
    q, _ = posteriors
    mi, tc, dim_kl = two_axis_decomposition(q.mu, q.logvar)
    for weights in ((1.0, 1.0, 1.0), (0.0, 6.0, 1.0), (1.0, 0.0, 3.0)):
        objective = objectives.tc_vae(w_mi=weights[0], w_tc=weights[1], w_dim=weights[2])
        expected = weights[0] * mi + weights[1] * tc + weights[2] * dim_kl
        stats.assert_mean_equal(penalties(objective, posteriors), expected, discrepancy=0.2 * expected)


def normal_density(z, mu, logvar):
    return torch.exp(-0.5 * (z - mu) ** 2 / logvar.exp()) / torch.sqrt(2 * math.pi * logvar.exp())


def value_by_loops(objective, log_px, z, mu, logvar, weight):
    """Return the mean objective of a batch, term by term: q(z_b) = sum_c weight(b, c) prod_k N(z_bk; mu_ck, s_ck^2)."""
    B, K = z.shape
    total = torch.zeros((), dtype=torch.float64)
    for b in range(B):
        log_own = log_prior = log_marginals = kl = torch.zeros((), dtype=torch.float64)
        joint = torch.zeros((), dtype=torch.float64)
        for c in range(B):
            product = torch.ones((), dtype=torch.float64)
            for k in range(K):
                product = product * normal_density(z[b, k], mu[c, k], logvar[c, k])
            joint = joint + weight(b, c) * product
        for k in range(K):
            marginal = sum(weight(b, c) * normal_density(z[b, k], mu[c, k], logvar[c, k]) for c in range(B))
            log_marginals = log_marginals + marginal.log()
            log_own = log_own + normal_density(z[b, k], mu[b, k], logvar[b, k]).log()
            log_prior = log_prior - 0.5 * (z[b, k] ** 2 + math.log(2 * math.pi))
            kl = kl + 0.5 * (mu[b, k] ** 2 + logvar[b, k].exp() - 1 - logvar[b, k])
        if objective.name == "tc_vae":
            mi, tc, dim_kl = log_own - joint.log(), joint.log() - log_marginals, log_marginals - log_prior
            penalty = objective.w_mi * mi + objective.w_tc * tc + objective.w_dim * dim_kl
        else:
            aggregate = joint.log() - log_prior
            penalty = (1 - objective.alpha) * kl + (objective.alpha + objective.lambda_ - 1) * aggregate
            penalty = objective.beta * penalty
        total = total + log_px[b] - penalty
    return total / B


@pytest.mark.parametrize("data_size", [5, 6, 60_000])
@pytest.mark.parametrize(
    "objective",
    [
        objectives.infovae(0.0, 3.0, divergence="kl"),
        InfoVAE(beta=0.7, alpha=-1.0, lambda_=4.0, divergence="kl"),
        objectives.infovae(1.0, 2.0, divergence="kl"),
        objectives.tc_vae(),
        objectives.beta_tcvae(6.0),
        objectives.tc_vae(w_mi=0.3, w_tc=2.0, w_dim=5.0),
    ],
)
def test_objectives_with_a_density_of_the_codes_are_their_definitions_by_loops(objective, data_size):
    """Values and gradients of B = 5 data of N, at B = N with the exact mixture of N posteriors."""
    g = torch.Generator().manual_seed(4)
    mu, eps = (torch.randn(5, 3, generator=g, dtype=torch.float64) for _ in range(2))
    logvar = (torch.randn(5, 3, generator=g, dtype=torch.float64) - 0.5).requires_grad_()
    mu.requires_grad_()
    z = mu + torch.exp(logvar / 2) * eps
    log_px = -(z - 1).square().sum(1)
    q = DiagonalGaussian(mu, logvar)
    kl = kl_divergence(Normal(mu, torch.exp(logvar / 2)), Normal(0.0, 1.0)).sum(1)
    found, _ = objectives.value(objective, Terms(log_px, kl, z, q), data_size=data_size)

    def weight(b, c):
        if data_size == 5:
            return 1 / 5
        return 1 / data_size if b == c else (data_size - 1) / (data_size * 4)

    expected = value_by_loops(objective, log_px, z, mu, logvar, weight)
    assert found.item() == pytest.approx(expected.item(), abs=1e-6)
    for one, other in zip(
        *(torch.autograd.grad(v, (mu, logvar), retain_graph=True) for v in (found, expected)), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6)


def test_warmup_scales_every_weight_but_the_reconstruction():
    model = linear_model()
    terms = objectives.terms(model, data(), seed=3)
    for objective in (
        objectives.beta_vae(4.0),
        objectives.infovae(0.5, 3.0, divergence="kl"),
        objectives.tc_vae(w_tc=5),
    ):
        values = [objectives.value(objective, terms, data_size=N, warmup=w)[0].item() for w in (0.0, 0.25, 1.0)]
        assert values[0] == pytest.approx(terms.log_px.mean().item(), abs=1e-12)
        assert values[1] == pytest.approx(0.75 * values[0] + 0.25 * values[2], abs=1e-10)


@pytest.mark.parametrize("objective", [objectives.vae(), objectives.mmd_vae(5.0), objectives.tc_vae(w_tc=4.0)])
def test_a_training_step_draws_once(monkeypatch, objective):
    calls = []
    real = kernels.reparam_kl
    monkeypatch.setattr(kernels, "reparam_kl", lambda *args, **options: calls.append(1) or real(*args, **options))
    x = data().float()
    splits = from_tensors(x, x, x)
    config = Run(
        model=Model(network="linear", latent=2, likelihood="gaussian"),
        objective=objective,
        train=Train(epochs=5, batch_size=4, device="cpu"),
    )
    fit(config, data=splits)
    steps, validations = 5 * 3, 5
    assert len(calls) == steps + validations


@pytest.mark.parametrize("kind", ["mmd", "sliced", "permuted", "flow"])
def test_compiled_twice_at_most_for_batches_of_every_size(kind):
    """Without a generator, as in a loop of one's own, whose last batch is smaller."""
    objective = InfoVAE(lambda_=9.0, divergence="sliced" if kind == "sliced" else "mmd")
    flow = Model(kind="coupling", flow_layers=2, likelihood="gaussian")
    model = models.build(flow, (1, 2, 4), levels=16) if kind == "flow" else linear_model().float()

    def loss(x):
        if kind == "permuted":
            return (permute_latents(x) * x).mean()
        return objectives.value(objective, objectives.terms(model, x), data_size=N)[0]

    compiler = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(loss, backend=compiler)
    for rows in (12, 9, 7, 8):
        x = torch.rand(rows, *model.likelihood.shape).requires_grad_()
        losses, gradients = [], []
        for way in (loss, compiled):
            torch.manual_seed(rows)
            losses.append(way(x))
            gradients.append(torch.autograd.grad(losses[-1], x)[0])
        torch.testing.assert_close(*losses)
        torch.testing.assert_close(*gradients)
    assert 1 <= compiler.frame_count <= 2


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: objectives.infovae(0.0, 0.5), r"alpha \+ lambda - 1 >= 0"),
        (lambda: objectives.infovae(1.2, 1.0), r"alpha must be <= 1"),
        (lambda: objectives.beta_vae(-0.1), r"beta must be >= 0"),
        (lambda: objectives.mmd_vae(-1.0), r"alpha \+ lambda - 1 >= 0"),
        (lambda: objectives.tc_vae(w_tc=-1.0), r"w_tc must be >= 0"),
    ],
)
def test_weights_that_reward_mismatch_are_refused(build, message):
    with pytest.raises(InputError, match=message):
        build()
