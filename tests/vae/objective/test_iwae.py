"""The importance-weighted bound on probabilistic PCA: between ELBO and evidence, rising in k; both of its gradients."""

import dataclasses
import itertools
import math

import pytest
import torch
from torch import nn

from tests import stats
from tests.exact_models import generator, orthogonal_ppca
from vaebench import kernels
from vaebench.vae import objective as objectives
from vaebench.vae.config.objective import Batch
from vaebench.vae.config.run import Run
from vaebench.vae.data import load
from vaebench.vae.errors import InputError
from vaebench.vae.estimators.exact import FullGaussian
from vaebench.vae.flows import MAF, Inverse, RealNVP
from vaebench.vae.model import LOGVAR_LIMIT, VAE, Likelihood
from vaebench.vae.model.build import build
from vaebench.vae.objective import IWAE
from vaebench.vae.training.epoch import VALIDATION_ROWS, validate
from vaebench.vae.training.fit import fit

K, CONTEXT = 2, 3
OFFSET, WIDTH = torch.tensor([0.3, -0.2]).double(), torch.tensor([0.4, 0.2]).double()
ORDERS = (1, 4, 16, 64)
PPCA = orthogonal_ppca(K)
X = PPCA.sample(1, generator(3))[0]


class Outputs(nn.Module):
    """An encoder that returns a tensor of its own, whose gradient has a row for each example."""

    def __init__(self, outputs):
        super().__init__()
        self.outputs = outputs

    def forward(self, x):
        return self.outputs


def misplaced(count):
    """Return outputs of an encoder for `count` copies of X: a Gaussian beside the posterior, and wider.

    Under a much narrower one E w^4 is infinite, and no estimator's signal-to-noise rises.
    """
    mu, logvar = PPCA.best_diagonal(X)
    return outputs_of(mu + OFFSET, logvar + WIDTH, count)


def outputs_of(mu, logvar, count):
    """Return outputs of an encoder that give this Gaussian, after the soft clamp of the log variance."""
    unclamped = LOGVAR_LIMIT * torch.atanh(logvar / LOGVAR_LIMIT)
    return torch.cat([mu, unclamped], dim=1).expand(count, -1).contiguous()


def ppca_vae(outputs, **flows):
    decoder = nn.Linear(K, 2 * K).double()
    with torch.no_grad():
        decoder.weight.copy_(PPCA.weight)
        decoder.bias.copy_(PPCA.mean)
    likelihood = Likelihood("gaussian", (2 * K,), sigma=math.sqrt(PPCA.noise))
    return VAE(Outputs(outputs), decoder, likelihood, K, **flows).double()


def flow_vae(outputs):
    """Return the same with learned flows as prior and posterior, away from the identity."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        prior, posterior = RealNVP((K,), layers=2, hidden=(8,)), MAF(K, layers=2, hidden=(8,), context=CONTEXT)
        with torch.no_grad():
            for parameter in itertools.chain(prior.parameters(), posterior.parameters()):
                parameter += 0.2 * torch.randn_like(parameter)
    return ppca_vae(outputs, prior_flow=prior, posterior_flow=Inverse(posterior), context=CONTEXT)


def bounds(objective, model, count, seed):
    """Return the bound of each of `count` copies of X, all independent, without the mean over the batch."""
    terms = objectives.terms(model, X.expand(count, -1), seed=seed, samples=objective.draws)
    log_w = objective.log_weights(terms)
    return log_w.logsumexp(0) - math.log(len(log_w))


def gradients(objective, build, outputs, seed, **options):
    """Return the gradient of each copy of X in the outputs of its encoder, `(count, 2K)`, in nats an example."""
    leaf = outputs.clone().requires_grad_()
    terms = objectives.terms(build(leaf), X.expand(len(leaf), -1), seed=seed, samples=objective.draws)
    value, _ = objectives.value(objective, terms, data_size=len(leaf), **options)
    (gradient,) = torch.autograd.grad(len(leaf) * value, leaf)
    return gradient


def test_the_bound_rises_from_the_elbo_towards_the_evidence():
    count = 20_000
    mu, logvar = PPCA.best_diagonal(X)
    mu, logvar = mu + OFFSET, logvar + WIDTH
    elbo = PPCA.elbo(X, FullGaussian(mu, torch.diag_embed(logvar.exp()))).item()
    evidence = PPCA.log_prob(X).item()
    model = ppca_vae(misplaced(count))
    means = {k: bounds(IWAE(samples=k), model, count, seed=k).detach() for k in ORDERS}
    stats.assert_mean_equal(means[1], elbo, discrepancy=0.1)
    for few, many in itertools.pairwise(ORDERS):
        stats.assert_mean_at_most(means[few] - means[many], 0, discrepancy=0.1)
    stats.assert_mean_at_most(means[ORDERS[-1]], evidence, discrepancy=0.05)
    assert elbo < means[4].mean() < means[64].mean() < evidence + 1e-3
    assert evidence - means[64].mean() < 0.05 * (evidence - elbo)


def test_with_the_exact_posterior_the_bound_is_the_evidence_without_noise():
    exact = outputs_of(*PPCA.best_diagonal(X), 9)
    found = bounds(IWAE(samples=3), ppca_vae(exact), 9, seed=0)
    torch.testing.assert_close(found, PPCA.log_prob(X).expand(9), rtol=0, atol=1e-6)
    dreg = gradients(IWAE(samples=3), ppca_vae, exact, seed=0)
    torch.testing.assert_close(dreg, torch.zeros_like(dreg), rtol=0, atol=1e-6)
    assert gradients(IWAE(samples=3, gradient="plain"), ppca_vae, exact, seed=0).abs().max() > 0.01


@pytest.mark.parametrize("build", [ppca_vae, flow_vae])
@pytest.mark.parametrize("warmup", [1.0, 0.4])
def test_dreg_has_the_mean_of_the_plain_gradient(build, warmup):
    count = 60_000
    extra = torch.linspace(-1, 1, CONTEXT).double().expand(count, -1) if build is flow_vae else misplaced(count)[:, :0]
    outputs = torch.cat([misplaced(count), extra], dim=1)
    found = [
        gradients(IWAE(samples=4, gradient=name), build, outputs, seed=1, warmup=warmup) for name in ("dreg", "plain")
    ]
    stats.assert_mean_equal(found[0] - found[1], torch.zeros(outputs.shape[1]), discrepancy=0.1)
    assert found[1].mean(0).abs().max() > 0.2, "a gradient to tell apart from zero"


def test_in_the_weights_of_flows_and_decoder_too():
    """Means over batches of 100 copies, of a random direction in the parameters of each part."""
    outputs = torch.cat([misplaced(100), torch.zeros(100, CONTEXT).double()], dim=1)
    model = flow_vae(outputs)
    parts = (model.posterior_flow, model.prior_flow, model.decoder)
    directions = [[torch.randn(p.shape, generator=generator(5)).to(p) for p in part.parameters()] for part in parts]
    found = {"dreg": [], "plain": []}
    for seed, name in itertools.product(range(300), found):
        objective = IWAE(samples=4, gradient=name)
        terms = objectives.terms(model, X.expand(100, -1), seed=seed, samples=4)
        model.zero_grad()
        objectives.value(objective, terms, data_size=100)[0].backward()
        along = [
            sum((p.grad * d).sum() for p, d in zip(part.parameters(), direction, strict=True))
            for part, direction in zip(parts, directions, strict=True)
        ]
        found[name].append(torch.stack(along))
    dreg, plain = (torch.stack(found[name]) for name in ("dreg", "plain"))
    stats.assert_mean_equal((dreg - plain)[:, 0], 0, discrepancy=0.2 * plain[:, 0].mean().item())
    torch.testing.assert_close(dreg[:, 1:], plain[:, 1:])  # parameters of p: one estimator


def test_the_signal_to_noise_of_dreg_rises_with_k_where_that_of_plain_falls():
    """Of the gradient in the posterior's mean and log variance; sqrt(k) is the rate of both, up and down."""
    count = 20_000
    ratios = {}
    for name, k in itertools.product(("dreg", "plain"), ORDERS):
        sample = gradients(IWAE(samples=k, gradient=name), ppca_vae, misplaced(count), seed=7)
        ratios[name, k] = (sample.mean(0).norm() / sample.std(0).norm()).item()
    for few, many in itertools.pairwise(ORDERS[1:]):
        assert ratios["dreg", many] > 1.5 * ratios["dreg", few]
    for few, many in itertools.pairwise(ORDERS):
        assert ratios["plain", many] < 0.6 * ratios["plain", few]
    assert ratios["dreg", 64] > 50 * ratios["plain", 64]


def test_the_density_of_q_at_constant_parameters_is_the_density():
    outputs = torch.cat([misplaced(50), torch.ones(50, CONTEXT).double()], dim=1)
    terms = objectives.terms(flow_vae(outputs), X.expand(50, -1), seed=2, samples=3)
    assert terms.z.shape == (3, 50, K)
    torch.testing.assert_close(terms.log_q(constant=True), terms.log_q())


def test_its_value_is_that_of_the_draw_in_low_precision_too():
    """The density is known from the way there; the way back may round an input otherwise, and has its gradient."""
    outputs = torch.cat([misplaced(50), torch.ones(50, CONTEXT).double()], dim=1)
    model = flow_vae(outputs.float().requires_grad_()).float()
    with torch.autocast("cpu", torch.bfloat16):
        terms = objectives.terms(model, X.float().expand(50, -1), seed=2, samples=3)
        constant = terms.log_q(constant=True)
        assert ((terms.moved.log_prob(terms.z) - constant).abs() < 1e-4).float().mean() > 0.9
        assert torch.equal(constant, terms.log_q())
    assert torch.autograd.grad(constant.sum(), terms.z)[0].abs().max() > 0.1


def test_without_a_gradient_the_flow_is_not_inverted():
    outputs = torch.cat([misplaced(50), torch.ones(50, CONTEXT).double()], dim=1)
    model, calls = flow_vae(outputs), []
    terms = objectives.terms(model, X.expand(50, -1), seed=2, samples=3)
    moved = dataclasses.replace(terms.moved, log_prob=lambda z: calls.append(z) or terms.moved.log_prob(z))
    spied = dataclasses.replace(terms, moved=moved)
    objectives.value(IWAE(samples=3), spied, data_size=50)
    assert len(calls) == 1
    objectives.value(IWAE(samples=3), dataclasses.replace(spied, z=terms.z.detach()), data_size=50)
    assert len(calls) == 1


def test_a_validation_decodes_no_more_rows_at_once_than_with_one_draw():
    config = Run().replace({"objective.name": "iwae", "objective.samples": 8, "model.hidden": (4,), "model.latent": 2})
    split = load(config.data).train
    model = build(config.model, (1, 8, 8), 17)
    rows = []
    model.decoder.register_forward_hook(lambda layer, inputs, output: rows.append(inputs[0].shape[:-1].numel()))
    validate(model, split, config)
    assert max(rows) <= VALIDATION_ROWS
    assert sum(rows) == 8 * len(split)


def test_one_call_of_the_kernel_draws_all_codes(monkeypatch):
    calls, real = [], kernels.reparam_kl
    monkeypatch.setattr(
        kernels, "reparam_kl", lambda mu, *rest, **options: calls.append(mu.shape) or real(mu, *rest, **options)
    )
    model = ppca_vae(misplaced(6))
    terms = objectives.terms(model, X.expand(6, -1), seed=0, samples=5)
    assert calls == [(30, K)]
    assert terms.log_px.shape == terms.kl.shape == (5, 6)
    assert terms.z.flatten(0, 1).unique(dim=0).shape == (30, K)


@pytest.mark.parametrize("changes", [{}, {"model.prior": "flow", "model.posterior": "iaf"}, {"objective.samples": 1}])
def test_it_trains_and_keeps_the_epoch_with_the_best_bound(changes):
    config = Run().replace({"objective.name": "iwae", "train.epochs": 3, "train.device": "cpu", "model.latent": 3})
    config = config.replace({"model.hidden": (16,), "model.flow_layers": 1, "objective.samples": 4, **changes})
    result = fit(config)
    history = result.history
    assert history[-1]["train/objective"] > history[0]["train/objective"]
    if config.objective.samples > 1:
        scores = [epoch["valid/bound"] for epoch in history]
        assert all(epoch["valid/bound"] > epoch["valid/elbo"] for epoch in history)
        assert history[-1]["train/objective"] > history[-1]["train/elbo"]
    else:
        scores = [epoch["valid/elbo"] for epoch in history]
    assert result.best_epoch == 1 + scores.index(max(scores))


def test_what_it_needs_is_refused_where_it_is_not_known():
    with pytest.raises(
        InputError, match=r"objective\.name = iwae needs q\(z\|x\) at its draws, not known with model\.k"
    ):
        Run().replace({"objective.name": "iwae", "model.kind": "coupling"})
    with pytest.raises(InputError, match=r"objective\.samples must be >= 1, got 0: k, the codes"):
        IWAE(samples=0)
    assert IWAE().stacking(3) is None
    assert Batch(data_size=3).critic is None
