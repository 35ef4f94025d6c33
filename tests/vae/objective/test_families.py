"""Objectives beyond the first two families, divergences that need draws alone: formulas, gradients, training."""

import dataclasses
import math
from types import SimpleNamespace

import pytest
import torch
from torch.distributions import MultivariateNormal, Normal

from tests.exact_models import generator
from tests.vae.objective.test_value import N, data, linear_model
from vaebench.vae import model as models
from vaebench.vae import objective as objectives
from vaebench.vae.config.objective import Batch, Critic
from vaebench.vae.config.run import Model, Run, Train
from vaebench.vae.errors import InputError
from vaebench.vae.flows import LU, FlowDistribution
from vaebench.vae.objective import InfoVAE
from vaebench.vae.objective.critics import Adversary
from vaebench.vae.prob.densities import DiagonalGaussian
from vaebench.vae.prob.divergences import sliced_wasserstein2, stein
from vaebench.vae.prob.terms import Terms
from vaebench.vae.training import epoch as epochs
from vaebench.vae.training.fit import fit

QUICK = Run(train=Train(epochs=2, batch_size=256, device="cpu")).replace({"model.hidden": (24,), "model.latent": 3})
DRAWS_ALONE = ("sliced", "stein", "adversarial")


def terms_of(z, kl=None, prior=None):
    """Return terms with these codes, log p(x|z) counting up from 0, and these KLs."""
    B = len(z)
    q = DiagonalGaussian(z, torch.zeros_like(z))
    return Terms(torch.arange(B).to(z), torch.zeros(B).to(z) if kl is None else kl, z, q, prior)


def codes(*shape, seed=0):
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64).requires_grad_()


def correlated_prior(B, K=2):
    """A learned prior N(0, (L^T L)^-1) and its density by another way."""
    matrix = torch.tensor([[1.5, 0.0], [-0.7, 0.6]], dtype=torch.float64)
    zero = torch.zeros(B, K, dtype=torch.float64)
    flow = LU(matrix)
    return flow, FlowDistribution(flow, DiagonalGaussian(zero, zero)), matrix.T @ matrix


def test_names_that_coincide():
    assert objectives.beta_tcvae(6.0) == objectives.tc_vae(w_tc=6.0)
    assert objectives.infovae(0.5, 3.0, divergence="stein") == InfoVAE(alpha=0.5, lambda_=3.0, divergence="stein")


def test_capacity_is_held_by_the_mean_of_the_batch():
    """KLs of 1 and 9 average to C = 5: no penalty, though each is 4 off; at three quarters of C the gap is 1.25."""
    kl = torch.tensor([1.0, 9.0], dtype=torch.float64, requires_grad=True)
    objective = objectives.capacity_vae(gamma=7.0, capacity=5.0, capacity_epochs=10)
    at = lambda **o: objectives.value(objective, terms_of(codes(2, 3), kl), data_size=N, **o)[0]  # noqa: E731
    assert at().item() == 0.5
    assert at(epochs_done=7.5).item() == 0.5 - 7 * 1.25
    assert at(epochs_done=7.5, warmup=0.5).item() == 0.5 - 0.5 * 7 * 1.25
    objective = dataclasses.replace(objective, capacity=6.0)
    at().backward()
    assert torch.equal(kl.grad, torch.tensor([3.5, 3.5], dtype=torch.float64)), "a rate below C is pushed up"


@pytest.mark.parametrize("flows", [{}, {"prior": "flow"}, {"posterior": "iaf"}])
def test_capacity_with_flows_errs_high_by_the_noise_of_its_kl_where_the_rate_is_held(flows):
    """E|X - C| of a normal X of mean C is sd sqrt(2 / pi); 5 sd away, and for a KL in closed form, it is |E X - C|."""
    batches, B = 3000, 64
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = models.build(Model(latent=3, hidden=(8,), likelihood="gaussian", **flows), (6,), levels=0).double()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 0.02 * torch.randn_like(parameter)
    x = torch.randn(B, 6, generator=generator(1), dtype=torch.float64)
    terms = objectives.terms(model, x.repeat(batches, 1), seed=2)
    kl = terms.kl.detach().reshape(batches, B)
    rate, sd = kl.mean().item(), kl.mean(1).std().item()
    assert (sd > 0.01) == bool(flows)

    def bias(capacity):
        objective = objectives.capacity_vae(gamma=1.0, capacity=capacity, capacity_epochs=0)
        reconstruction = (B - 1) / 2
        rows = zip(terms.z.detach().reshape(batches, B, 3), kl, strict=True)
        values = [objectives.value(objective, terms_of(z, row), data_size=N)[0].item() for z, row in rows]
        return reconstruction - sum(values) / batches - abs(rate - capacity)

    assert bias(rate) == pytest.approx(sd * math.sqrt(2 / math.pi), rel=0.05, abs=1e-9)
    assert bias(rate + 5 * sd) == pytest.approx(0, abs=0.02 * sd + 1e-9)


def test_capacity_without_capacity_is_the_beta_vae():
    model, none = linear_model(), objectives.capacity_vae(gamma=3.0, capacity=0.0, capacity_epochs=0)
    terms = objectives.terms(model, data(), seed=3)
    one, other = (objectives.value(o, terms, data_size=N)[0] for o in (none, objectives.beta_vae(3.0)))
    assert one.item() == pytest.approx(other.item(), abs=1e-12)


def test_capacity_rises_while_it_trains_and_the_best_epoch_comes_after(monkeypatch):
    told, value = [], objectives.value

    def spy(objective, *arguments, **options):
        told.append((objective.weights(options["epochs_done"])["risen"], options["warmup"]))
        return value(objective, *arguments, **options)

    monkeypatch.setattr(objectives, "value", spy)
    settings = {"objective.name": "capacity", "objective.capacity": 4.0, "objective.capacity_epochs": 6}
    config = QUICK.replace({**settings, "train.epochs": 20, "train.patience": 3, "train.warmup_epochs": 4})
    result = fit(config)
    steps = len(told) // len(result.history)
    assert [c for c, _ in told[: 8 * steps]] == pytest.approx([min(1, i / steps / 6) for i in range(8 * steps)])
    assert [w for _, w in told[: 8 * steps]] == pytest.approx([min(1, i / steps / 4) for i in range(8 * steps)])
    scores = [epoch["valid/elbo"] for epoch in result.history]
    assert result.best_epoch == 6 + scores[5:].index(max(scores[5:]))
    assert 9 <= len(scores) <= 20
    assert [epoch["train/capacity"] for epoch in result.history[:7]] == pytest.approx(
        [4 * min(e, 6) / 6 for e in range(1, 8)]
    )
    assert result.history[-1]["train/rate"] == pytest.approx(4.0, abs=0.4)


def test_a_capacity_that_rises_to_the_end_keeps_the_last_epoch():
    config = QUICK.replace({"objective.name": "capacity", "objective.capacity_epochs": 9, "train.patience": 1})
    assert fit(config).best_epoch == 2
    assert "train/capacity" not in fit(QUICK).history[0]


def test_factor_vae_is_its_formula_with_the_exact_critic():
    """T = log q(z) - log prod_k q(z_k) of a correlated Gaussian, with mean TC."""
    root = torch.linalg.cholesky(torch.tensor([[1.0, 0.8], [0.8, 1.0]], dtype=torch.float64))
    z = codes(20_000, 2) @ root.T
    joint = MultivariateNormal(torch.zeros(2, dtype=torch.float64), scale_tril=root)
    T = lambda z: joint.log_prob(z) - Normal(0.0, 1.0).log_prob(z).sum(1)  # noqa: E731
    kl = torch.full((20_000,), 2.0, dtype=torch.float64)
    objective = objectives.factor_vae(5.0)
    found, d = objectives.value(objective, terms_of(z, kl), data_size=N, warmup=0.5, critic=T)
    assert d.item() == pytest.approx(-0.5 * math.log(1 - 0.64), abs=0.02)
    assert found.item() == pytest.approx(19_999 / 2 - 0.5 * (2 + 5 * d.item()), abs=1e-9)
    negatives = objectives.draw_negatives(objectives.factor_vae(5.0), terms_of(z), generator(1))
    assert abs(torch.corrcoef(negatives.T)[0, 1].item()) < 0.05
    assert torch.equal(negatives.sort(dim=0).values, z.detach().sort(dim=0).values)


def test_each_divergence_is_that_of_its_name_and_weighed_as_the_others_are():
    z = codes(12, 3)
    T = lambda z: (2 * z).sum(1) + 1  # noqa: E731
    exact = {
        "sliced": sliced_wasserstein2(z, projections=5, generator=generator(3)),
        "stein": stein(z, -z, kernel="rbf", bandwidth=(2.0, 9.0))[0],
        "adversarial": T(z).mean(),
    }
    for name in DRAWS_ALONE:
        objective = InfoVAE(
            beta=2.0, alpha=0.5, lambda_=3.0, divergence=name, projections=5, kernel="rbf", bandwidth=(2.0, 9.0)
        )
        found, d = objectives.value(objective, terms_of(z), data_size=N, warmup=0.25, critic=T, generator=generator(3))
        assert d.item() == pytest.approx(exact[name].item(), abs=1e-12)
        assert found.item() == pytest.approx(5.5 - 0.25 * 2 * 2.5 * d.item(), abs=1e-12)


@pytest.mark.parametrize("learned", [False, True])
def test_the_gradient_of_stein_moves_codes_along_phi(learned):
    z = codes(9, 2)
    flow, prior, precision = correlated_prior(9)
    terms = terms_of(z, prior=prior if learned else None)
    objective = InfoVAE(alpha=1.0, lambda_=2.0, divergence="stein", kernel="rbf")
    d = objective.estimate(terms, Batch(data_size=N))
    ksd2, phi = stein(z, -z @ precision if learned else -z, kernel="rbf")
    assert d.item() == pytest.approx(ksd2.item(), abs=1e-12)
    d.backward()
    torch.testing.assert_close(z.grad, -phi / 9)
    assert (flow.factors.grad is not None) == learned


@pytest.mark.parametrize("divergence", ["stein", "adversarial"])
def test_a_learned_prior_is_given_the_gradient_of_the_kl(divergence):
    """Without draws from the prior it is -E grad log p(z); the critic's own gradient reaches the codes alone."""
    z = codes(9, 2)
    flow, prior, _ = correlated_prior(9)
    objective = InfoVAE(alpha=1.0, lambda_=2.0, divergence=divergence)
    T = lambda z: z.square().sum(1)  # noqa: E731
    objective.estimate(terms_of(z, prior=prior), Batch(data_size=N, critic=T)).backward()
    (exact,) = torch.autograd.grad(-prior.log_prob(z.detach()).mean(), flow.factors)
    torch.testing.assert_close(flow.factors.grad, exact)
    if divergence == "adversarial":
        torch.testing.assert_close(z.grad, 2 * z.detach() / 9)


def test_the_critic_is_shown_draws_of_the_models_own_prior():
    _, prior, precision = correlated_prior(40_000)
    z = torch.zeros(40_000, 2, dtype=torch.float64)
    objective = InfoVAE(alpha=1.0, lambda_=2.0, divergence="adversarial")
    own = objectives.draw_negatives(objective, terms_of(z, prior=prior), generator(0))
    torch.testing.assert_close(torch.cov(own.T), torch.linalg.inv(precision), rtol=0.05, atol=0.05)
    standard = objectives.draw_negatives(objective, terms_of(z), generator(0))
    torch.testing.assert_close(torch.cov(standard.T), torch.eye(2, dtype=torch.float64), rtol=0.05, atol=0.05)


@pytest.mark.parametrize("objective", [InfoVAE(lambda_=2.0, divergence="adversarial"), objectives.factor_vae(1.0)])
def test_a_critic_that_is_missing_is_named(objective):
    with pytest.raises(ValueError, match=r"objective\.(divergence = adversarial|name = factor_vae) needs critic=T"):
        objectives.value(objective, terms_of(codes(4, 2)), data_size=N)


@pytest.mark.parametrize("flows", [{}, {"model.prior": "flow", "model.posterior": "iaf"}, {"model.kind": "coupling"}])
@pytest.mark.parametrize("divergence", DRAWS_ALONE)
def test_divergences_of_draws_train_with_and_without_flows(divergence, flows):
    """With alpha 1 nothing but D weighs on codes and prior: both must move, and D is what is logged."""
    settings = {
        "objective.alpha": 1.0,
        "objective.lambda": 3.0,
        "objective.divergence": divergence,
        "model.hidden": (8,),
    }
    small = {"model.flow_layers": 1, "train.epochs": 1, "objective.critic_hidden": (8,)}
    result = fit(QUICK.replace({**settings, **small, **flows}))
    (epoch,) = result.history
    assert math.isfinite(epoch["train/divergence"])
    assert ("train/critic_loss" in epoch) == (divergence == "adversarial")
    if result.model.prior_flow is not None:
        fresh = FlowDistribution(result.model.prior_flow, DiagonalGaussian(torch.zeros(5, 3), torch.zeros(5, 3)))
        z = torch.randn(5, 3, generator=generator(0))
        assert not torch.allclose(fresh.log_prob(z), fresh.base.log_prob(z), atol=1e-3), "the prior has not moved"


@pytest.mark.parametrize("divergence", ["mmd", *DRAWS_ALONE])
def test_descending_each_divergence_takes_a_gaussian_to_the_prior(divergence):
    objective = InfoVAE(alpha=1.0, lambda_=2.0, divergence=divergence, critic_hidden=(16,), critic_learning_rate=1e-2)
    mean, log_scale = torch.tensor([1.5, -1.0]).requires_grad_(), torch.tensor([-0.7, 0.5]).requires_grad_()
    optimizer, g = torch.optim.Adam([mean, log_scale], lr=2e-2), generator(0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        adversary = Adversary.start(objective.critic or Critic(), 2, torch.device("cpu"))
    for i in range(600):
        optimizer.param_groups[0]["lr"] = 2e-2 * (1 - i / 600)
        terms = terms_of(mean + log_scale.exp() * torch.randn(128, 2, generator=g))
        d = objective.estimate(terms, Batch(data_size=128, critic=adversary, generator=g))
        optimizer.zero_grad()
        d.backward()
        optimizer.step()
        adversary.step(terms.z, objectives.draw_negatives(objective, terms, g))
    assert mean.abs().max() < 0.15
    assert log_scale.abs().max() < 0.15


def test_the_critic_is_trained_once_a_batch_with_the_codes_of_the_step(monkeypatch):
    shown, stepped = [], []
    step, real = Adversary.step, epochs.take_step
    monkeypatch.setattr(Adversary, "step", lambda self, *draws: shown.append(draws) or step(self, *draws))
    monkeypatch.setattr(epochs, "take_step", lambda *a: stepped.append(real(*a)) or stepped[-1])
    config = QUICK.replace({"objective.name": "factor_vae", "objective.critic_hidden": (8,)})
    losses = [epoch["train/critic_loss"] for epoch in fit(config).history]
    assert len(shown) == len(stepped) == 12
    assert all(len(z) == len(negatives) == len(s.kl) for (z, negatives), s in zip(shown, stepped, strict=True))
    assert losses == pytest.approx([math.log(4)] * 2, abs=0.3)


def test_capacity_of_a_flow_of_its_own_is_refused():
    with pytest.raises(
        InputError, match=r"name = capacity needs KL\(q\(z\|x\)\|\|p\(z\)\), not known with model\.kind = coupling"
    ):
        QUICK.replace({"objective.name": "capacity", "model.kind": "coupling"})


@pytest.mark.parametrize(("kernel", "bandwidth"), [("imq", (2.0,)), ("imq", (6.0, 1.5)), ("rbf", (0.5, 4.0, 9.0))])
def test_an_mmd_of_stacked_models_is_that_of_codes_in_units_of_their_bandwidths(kernel, bandwidth):
    z, prior = codes(2, 9, 3).detach()

    def estimate(objective, unit):
        batch = SimpleNamespace(prior_samples=prior / unit, generator=None)
        return objective.estimate(terms_of(z / unit), batch)

    own = InfoVAE(lambda_=5.0, kernel=kernel, bandwidth=bandwidth)
    stacking = own.stacking(3)
    torch.testing.assert_close(estimate(stacking.objective, stacking.bandwidth**0.5), estimate(own, 1.0))
    wider = InfoVAE(lambda_=2.0, kernel=kernel, bandwidth=tuple(4 * width for width in bandwidth)).stacking(8)
    assert wider.key == stacking.key
    assert wider.bandwidth == 4 * stacking.bandwidth
    assert InfoVAE(lambda_=5.0, kernel=kernel, bandwidth=(*bandwidth, 1.0)).stacking(3).key != stacking.key
