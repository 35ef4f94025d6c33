"""Flows as prior and posterior of the VAE: closed forms where they are linear, quadrature, and nothing changed."""

import math

import pytest
import torch
from torch import nn

from tests.exact_models import correlated_ppca, generator
from vaebench import kernels
from vaebench.vae import model as models
from vaebench.vae import objective as objectives
from vaebench.vae.config.objective import Batch
from vaebench.vae.config.run import Data, Eval, Model, Run, Train
from vaebench.vae.data import from_tensors, load
from vaebench.vae.errors import InputError
from vaebench.vae.estimators.exact import FullGaussian
from vaebench.vae.evaluation.evaluate import active_units, importance_nll, latent_metrics, measure
from vaebench.vae.flows import (
    LU,
    MAF,
    NSF,
    Autoregressive,
    Coupling,
    FlowDistribution,
    Inverse,
    RationalQuadratic,
    RealNVP,
)
from vaebench.vae.model import VAE
from vaebench.vae.model.likelihoods import Likelihood
from vaebench.vae.objective import InfoVAE
from vaebench.vae.prob.densities import DiagonalGaussian

K, C = 2, 3
SMALL = Run(model=Model(latent=3, hidden=(24,)), train=Train(device="cpu"), eval=Eval(samples=40, examples=40))


def shaken(module, scale=0.3):
    """Return the module in float64 with every parameter moved away from its start."""
    with torch.no_grad():
        for parameter in module.double().parameters():
            parameter += scale * torch.randn(parameter.shape, generator=generator(len(parameter)), dtype=torch.float64)
    return module


def moved_vae():
    """A VAE of two latents with both flows, whose encoder hands its input over as mu, logvar and context."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return shaken(
            VAE(
                nn.Identity(),
                nn.Linear(K, 2 * K + C),
                Likelihood("gaussian", (2 * K + C,)),
                K,
                prior_flow=RealNVP((K,), layers=2, hidden=(8,)),
                posterior_flow=Inverse(MAF(K, layers=2, hidden=(8,), context=C)),
                context=C,
            )
        )


def encoded():
    """One output of an encoder: mu, logvar and context."""
    return torch.tensor([[0.5, -0.8, -0.6, 0.2, 0.7, -1.0, 0.4]], dtype=torch.float64)


@pytest.fixture
def grid(monkeypatch):
    """Let draws be the nodes of a grid, one for each row of a batch; return the weights of an integral over them."""
    axis = torch.linspace(-8, 8, 65, dtype=torch.float64)
    eps = torch.cartesian_prod(axis, axis)

    def at_nodes(mu, logvar, **options):
        kl = 0.5 * (mu.square() + logvar.exp() - 1 - logvar).sum(-1)
        return mu + torch.exp(logvar / 2) * eps, kl

    monkeypatch.setattr(kernels, "reparam_kl", at_nodes)
    return torch.exp(-eps.square().sum(-1) / 2) / (2 * math.pi) * (axis[1] - axis[0]) ** 2


def test_the_estimated_kl_and_its_gradients_average_to_those_of_the_densities(grid):
    """E_q [log q(z|x) - log p(z)], where q's density at z inverts the flow that drew it."""
    model, h = moved_vae(), encoded()
    leaves = [h.requires_grad_(), *model.prior_flow.parameters(), *model.posterior_flow.parameters()]
    rows = h.expand(len(grid), -1)
    terms = objectives.terms(model, rows)
    assert terms.prior is not None
    q, context = model.encode_with_context(rows)
    log_q = FlowDistribution(model.posterior_flow, q, context).log_prob(terms.z)
    exact = (grid * (log_q - model.prior(terms.z).log_prob(terms.z))).sum()
    found = (grid * terms.kl).sum()
    torch.testing.assert_close(found, exact, rtol=0, atol=1e-8)
    assert not torch.allclose(terms.kl, log_q - model.prior(terms.z).log_prob(terms.z), atol=0.1)
    gradients = [torch.autograd.grad(value, leaves, retain_graph=True) for value in (found, exact)]
    for one, other in zip(*gradients, strict=True):
        assert other.abs().max() > 1e-3
        torch.testing.assert_close(one, other, rtol=0, atol=1e-7)


def linear_vae(model, x):
    """Return a VAE that is the correlated model around another prior, N(0, (L^T L)^-1), and has its exact posterior."""
    prior = torch.tensor([[1.5, 0.0], [-0.7, 0.6]], dtype=torch.float64)
    precision = prior.T @ prior + model.weight.T @ model.weight / model.noise
    root = torch.linalg.cholesky(precision).T
    matrix = root @ torch.linalg.solve(precision, model.weight.T) / model.noise
    encoder, decoder = nn.Linear(len(model.mean), 2 * K), nn.Linear(K, len(model.mean))
    likelihood = Likelihood("gaussian", (len(model.mean),), sigma=math.sqrt(model.noise))
    vae = VAE(encoder, decoder, likelihood, K, prior_flow=LU(prior), posterior_flow=LU(root)).double()
    vae.likelihood.log_sigma = torch.tensor(0.5 * math.log(model.noise), dtype=torch.float64)
    with torch.no_grad():
        encoder.weight.copy_(torch.cat([matrix, torch.zeros_like(matrix)]))
        encoder.bias.copy_(torch.cat([-matrix @ model.mean, torch.zeros(K, dtype=torch.float64)]))
        decoder.weight.copy_(model.weight)
        decoder.bias.copy_(model.mean)
    covariance = torch.linalg.inv(prior.T @ prior)
    marginal = FullGaussian(
        model.mean,
        model.weight @ covariance @ model.weight.T + model.noise * torch.eye(len(model.mean), dtype=torch.float64),
    )
    posterior = FullGaussian((x - model.mean) @ matrix.T @ torch.linalg.inv(root).T, torch.linalg.inv(precision))
    return vae, marginal, posterior, FullGaussian(torch.zeros(K, dtype=torch.float64), covariance)


def test_linear_flows_give_the_evidence_and_the_kl_of_full_gaussians(grid):
    model = correlated_ppca(K, correlation=0.4)
    x, _ = model.sample(30, generator(0))
    vae, marginal, posterior, prior = linear_vae(model, x)
    splits = from_tensors(x.float(), x.float(), x.float())
    log_joint, q = vae.base_joint(x)
    z0 = torch.randn(7, 30, K, generator=generator(1), dtype=torch.float64)
    at_any_code = log_joint(z0) - q.log_prob(z0)
    torch.testing.assert_close(at_any_code, marginal.log_prob(x).expand(7, -1), rtol=0, atol=1e-9)
    kl = (grid * objectives.terms(vae, x[:1].expand(len(grid), -1)).kl).sum()
    torch.testing.assert_close(kl, posterior.kl(prior)[0], rtol=0, atol=1e-8)
    found = importance_nll(vae.float(), splits.test, SMALL)
    assert found["nll"] == pytest.approx(-marginal.log_prob(x).mean().item(), abs=1e-4)
    assert found["nll_stderr"] < 1e-4
    assert found["nll_unresolved"] == 0
    assert found["nll_ess"] == pytest.approx(40, rel=1e-3)
    reached = vae.represent(x.float()).double()
    torch.testing.assert_close(reached, posterior.mean, rtol=0, atol=1e-4)


def test_the_joint_of_some_data_is_that_of_a_batch_of_them():
    config = SMALL.replace({"model.prior": "flow", "model.posterior": "iaf"}).model
    model = models.build(config, (1, 4, 4), 17).double().eval()
    x = torch.rand(6, 1, 4, 4, generator=generator(0), dtype=torch.float64)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator(1)))
    rows, z0 = torch.tensor([4, 0, 4]), torch.randn(5, 3, 3, generator=generator(2), dtype=torch.float64)
    log_joint, _ = model.base_joint(x)
    of_batch, _ = model.base_joint(x[rows])
    torch.testing.assert_close(log_joint(z0, rows), of_batch(z0))
    assert not torch.allclose(log_joint(z0, rows), model.base_joint(x[:3])[0](z0))


def test_flows_that_change_nothing_give_todays_figures():
    """Fresh layers are the identity: every figure but those that a flow leaves unknown is what it was.

    The estimate of log p(x) chooses widths and further attempts by its draws, where a rounding may decide.
    """
    splits = load(Data())
    torch.manual_seed(0)
    plain = models.build(SMALL.model, splits.shape, splits.levels).eval()
    before = measure(plain, splits, SMALL)
    flows = {
        "prior_flow": NSF((3,), layers=2, bins=4),
        "posterior_flow": Inverse(MAF(3, layers=2, element=RationalQuadratic(4))),
    }
    for name, flow in flows.items():
        moved = VAE(plain.encoder, plain.decoder, plain.likelihood, 3, **{name: flow})
        after = measure(moved, splits, SMALL)
        unknown = set() if name == "prior_flow" else {m for m in before if m.startswith("latent/")} - set(after)
        assert before.keys() - after.keys() == unknown
        drawn = set() if name == "prior_flow" else {"latent/mmd2", "latent/log_det_cov"}
        judged = {m for m in after if m.startswith("test/nll")}
        same = after.keys() - drawn - judged
        assert {m: after[m] for m in same} == pytest.approx({m: before[m] for m in same}, abs=2e-3)
        error = math.hypot(before["test/nll_stderr"], after["test/nll_stderr"])
        assert after["test/nll"] == pytest.approx(before["test/nll"], abs=4 * error)
        assert error < 0.02
        assert after["latent/log_det_cov"] == pytest.approx(before["latent/log_det_cov"], abs=0.3), "of 1 439 draws"
    assert unknown == {f"latent/{name}" for name in ("mi", "mi_stderr", "log_n", "tc", "tc_stderr")} | {
        "latent/kl_aggregate",
        "latent/kl_aggregate_stderr",
    }


@pytest.mark.parametrize(("divergence", "close"), [("mmd", 0.03), ("kl", 0.3)])
def test_the_aggregated_divergence_is_that_from_the_models_own_prior(divergence, close):
    """Codes drawn from the learned prior itself: MMD^2 and KL are about 0, and far from it for N(0, I)."""
    prior = LU(torch.tensor([[0.2, 0.1], [0.0, 0.3]]))
    mu = FlowDistribution(prior, DiagonalGaussian(torch.zeros(1500, 2), torch.zeros(1500, 2))).rsample(generator(0))
    h = torch.cat([mu, torch.full((1500, 2), -2.0)], dim=1)
    objective = InfoVAE(alpha=1.0, lambda_=2.0, divergence=divergence)

    def d(prior_flow):
        model = VAE(nn.Identity(), nn.Linear(2, 4), Likelihood("gaussian", (4,)), 2, prior_flow=prior_flow)
        terms = objectives.terms(model, h, generator=generator(1))
        return objective.estimate(terms, Batch(data_size=1500, generator=generator(2))), model

    own, model = d(prior)
    assert abs(own.item()) < close
    assert d(None)[0].item() > 5 * close
    prior.zero_grad()
    own.backward()
    assert prior.factors.grad.abs().max() > 0, "the prior learns from D too"
    found = latent_metrics(model, from_tensors(h, h, h).train, SMALL)
    assert abs(found["latent/kl_aggregate"]) < 0.3
    assert abs(found["latent/mmd2"]) < 0.005


def test_without_flows_nothing_is_computed_differently(monkeypatch):
    """Bit for bit: one draw, its KL in closed form, and no number drawn beside it."""
    splits = load(Data())
    model, x = models.build(SMALL.model, splits.shape, splits.levels), splits.train.batch()[:50]
    first, second = generator(3), generator(3)
    monkeypatch.setattr(model, "transform", None)
    terms = objectives.terms(model, x, generator=first)
    mu, logvar = model.encoder(x).chunk(2, dim=1)
    z, kl = kernels.reparam_kl(mu, 15 * torch.tanh(logvar / 15), generator=second)
    assert torch.equal(terms.z, z)
    assert torch.equal(terms.kl, kl)
    assert torch.equal(terms.log_px, model.decode(z).log_prob(x))
    assert terms.prior is None
    assert torch.equal(first.get_state(), second.get_state())
    assert not any("flow" in name for name in model.state_dict())


def test_units_are_active_where_their_mean_moves_although_single_draws_do():
    """q(z|x) of width 1: the mean of 16 draws varies by 1/16 and more over x, whether or not x moves it."""
    D = 2 * K + C
    h = torch.zeros(800, D)
    h[:, 0] = 0.5 * torch.randn(800, generator=generator(0))
    model = VAE(nn.Identity(), nn.Linear(K, D), Likelihood("gaussian", (D,)), K, context=C)
    assert active_units(model, from_tensors(h, h, h).train, generator(0)) == 1
    model.posterior_flow = Inverse(MAF(K, layers=1, hidden=(8,), context=C))
    assert active_units(model, from_tensors(h, h, h).train, generator(1)) == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"objective.name": "tc_vae", "model.posterior": "iaf"}, r"tc_vae needs q\(z_k\|x\) .* = gaussian|iaf; use"),
        ({"objective.name": "tc_vae", "model.prior": "flow"}, r"tc_vae needs .* model\.prior = flow"),
        ({"objective.name": "tc_vae", "model.kind": "coupling"}, r"tc_vae needs .* model\.kind = coupling"),
        (
            {"objective.lambda": 3.0, "objective.divergence": "kl", "model.posterior": "iaf"},
            r"divergence = kl needs .* model\.posterior = iaf; use mmd",
        ),
        (
            {"objective.lambda": 3.0, "objective.divergence": "kl", "model.kind": "autoregressive"},
            r"divergence = kl needs .* model\.kind = autoregressive",
        ),
    ],
)
def test_objectives_that_need_a_density_nobody_knows_are_refused(changes, message):
    with pytest.raises(InputError, match=message):
        SMALL.replace(changes)


@pytest.mark.parametrize("network", ["mlp", "conv", "linear"])
def test_the_configuration_builds_the_flows_that_it_names(network):
    """Layers and bins as many as it says, and T, once it is more than the identity, another one for another x."""
    config = Model(network=network, hidden=(8,), prior="flow", posterior="iaf", flow_layers=3, spline_bins=5)
    model = shaken(models.build(config, (1, 8, 8), levels=17)).float()
    prior = [layer for layer in model.prior_flow.modules() if isinstance(layer, Coupling)]
    posterior = [layer for layer in model.posterior_flow.modules() if isinstance(layer, Autoregressive)]
    assert [layer.element.bins for layer in (*prior, *posterior)] == [5] * 6
    assert [layer.by_level[0].item() for layer in posterior] == [0, 7, 0]
    _, context = model.encode_with_context(torch.rand(2, 1, 8, 8, generator=generator(0)))
    z0 = torch.randn(1, 8, generator=generator(1)).expand(2, 8)
    z, _ = model.transform(z0, context)
    assert (z[0] - z[1]).abs().max() > 1e-3


def test_modules_print_their_sizes():
    printed = str(models.build(SMALL.replace({"model.prior": "flow", "model.posterior": "iaf"}).model, (1, 8, 8), 17))
    for text in (
        "latent=3, context=32",
        "Likelihood(discretised_logistic, shape=(1, 8, 8), levels=17, parameters_per_element=2)",
        "prior_flow): RealNVP(",
        "ActivationNorm(features=3)",
        "unchanged=2, mapped=1, element=Affine(limit=3.0)",
        "transform): MAF(",
        "features=3, levels=3, element=Affine(limit=3.0)",
    ):
        assert text in printed
    assert str(LU(torch.eye(5))) == "LU(features=5)"
