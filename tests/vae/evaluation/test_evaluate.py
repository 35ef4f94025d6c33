"""Evaluation against what is known: probabilistic PCA gives every figure of a linear VAE in closed form."""

import copy
import dataclasses
import math

import numpy as np
import pytest
import torch

from vaebench import kernels
from vaebench.vae import model as models
from vaebench.vae.config.run import Data, Eval, Model, Run, Train
from vaebench.vae.data import from_tensors, load
from vaebench.vae.data.linear import truth
from vaebench.vae.errors import InputError
from vaebench.vae.evaluation import likelihood
from vaebench.vae.evaluation.evaluate import (
    active_units,
    estimate_log_px,
    evaluate,
    evaluate_checkpoint,
    format_metric,
    importance_nll,
    latent_metrics,
    measure,
)
from vaebench.vae.objective import InfoVAE
from vaebench.vae.training.checkpoint import CURRENT
from vaebench.vae.training.fit import fit

CONFIG = Run(
    data=Data(name="linear", size=2000, features=8, rank=2, noise=0.5),
    model=Model(network="linear", latent=3, likelihood="gaussian", sigma=0.5),
    train=Train(device="cpu"),
    eval=Eval(samples=2000, examples=50),
)


@pytest.fixture(scope="module")
def splits():
    return load(CONFIG.data)


def set_logvar(model, logvar):
    """Undo the encoder's clamp, so that the posterior's logvar is the one given."""
    with torch.no_grad():
        model.encoder.logvar.copy_(models.LOGVAR_LIMIT * torch.atanh(logvar / models.LOGVAR_LIMIT))


@pytest.fixture(scope="module")
def exact(splits):
    """A linear VAE set to the true model, its third latent unused, with the best diagonal posterior."""
    model = models.build(CONFIG.model, splits.shape, levels=0)
    oracle = truth(CONFIG.data)
    with torch.no_grad():
        model.decoder[0].weight.copy_(torch.cat([oracle.weight, torch.zeros(8, 1)], 1))
        model.decoder[0].bias.copy_(oracle.mean)
        precision = torch.cat([oracle.precision().diagonal(), torch.ones(1)])
        matrix = torch.cat([torch.linalg.solve(oracle.precision(), oracle.weight.T) / oracle.noise, torch.zeros(1, 8)])
        model.encoder.mu.weight.copy_(matrix)
        model.encoder.mu.bias.copy_(-matrix @ oracle.mean)
        set_logvar(model, -precision.log())
    return model


def test_nll_is_the_exact_one_of_examples_spread_over_the_split(exact, splits):
    by_size = dataclasses.replace(splits.test, stored=splits.test.stored[splits.test.stored.norm(dim=1).argsort()])
    found = importance_nll(exact, by_size, CONFIG)
    expected = -truth(CONFIG.data).log_prob(by_size.batch()[::4].double()).mean().item()
    assert found["nll"] == pytest.approx(expected, abs=1e-4)
    assert found["nll_stderr"] < 1e-4
    assert found["nll_ess"] == pytest.approx(2000, rel=1e-3)
    assert (found["nll_unresolved"], found["nll_examples"]) == (0, 50)
    assert (found["nll_samples"], found["nll_rounds"]) == (2000, 1)
    assert 4000 < found["nll_evaluations"] < 4200  # 2000 draws are judged, and 2000 are the estimate


@pytest.mark.parametrize("factor", [0.01, 0.5, 3.0])
def test_the_width_of_the_encoders_posterior_changes_nothing(exact, splits, factor):
    other = copy.deepcopy(exact)
    set_logvar(other, exact.encode(splits.test.batch()).logvar[0].detach() + 2 * math.log(factor))
    found = importance_nll(other, splits.test, CONFIG.replace({"eval.samples": 100}))
    expected = -truth(CONFIG.data).log_prob(splits.test.batch()[::4].double()).mean().item()
    assert found["nll"] == pytest.approx(expected, abs=1e-4)
    assert found["nll_unresolved"] == 0


def test_few_samples_are_enough_for_a_gaussian_posterior(exact, splits):
    found = importance_nll(exact, splits.test, CONFIG.replace({"eval.samples": 10}))
    assert (found["nll_samples"], found["nll_unresolved"]) == (10, 0)
    assert found["nll_tail"] <= 0.7, "of 25 draws, the fewest that have a tail"


def test_an_estimate_that_is_at_hand_is_not_made_again(exact, splits, monkeypatch):
    whole = measure(exact, splits, CONFIG, split="valid")
    log_px = estimate_log_px(exact, splits.valid, CONFIG)
    assert whole["valid/nll"] == -log_px.value.mean().item()
    monkeypatch.setattr("vaebench.vae.evaluation.evaluate.model_log_likelihood", None)
    assert measure(exact, splits, CONFIG, split="valid", log_px=log_px) == whole


class Waves(torch.nn.Module):
    """A decoder under which the posterior has hundreds of narrow modes."""

    def forward(self, z):
        return 3 * torch.cos(20 * z).repeat(1, 3)[:, :8]


def test_an_estimate_that_cannot_be_trusted_has_no_standard_error(exact, splits):
    other = copy.deepcopy(exact)
    other.decoder = Waves()
    found = importance_nll(other, splits.test, CONFIG.replace({"eval.samples": 50}))
    assert found["nll_unresolved"] > 40
    assert "nll_stderr" not in found
    assert found["nll_rounds"] > 3
    assert found["nll_ess"] < 100


@pytest.mark.parametrize(
    ("metrics", "shown"),
    [
        ({"test/nll": 1918.5, "test/nll_stderr": 0.0123, "test/nll_unresolved": 0.0}, "1918.500 ± 0.012"),
        ({"test/nll": 1918.5, "test/nll_unresolved": 3.0}, "<= 1918.500 (3 of 1000 examples unresolved)"),
        ({"test/bits_per_dim": 3.5, "test/nll_unresolved": 3.0}, "<= 3.500 (3 of 1000 examples unresolved)"),
        ({"test/bits_per_dim": 3.5, "test/nll_unresolved": 0.0}, "3.500"),
        ({"valid/nll": 3.5, "valid/nll_unresolved": 0.3}, "<= 3.500 (1 of 1000 examples unresolved)"),
        ({"test/elbo": -2000.0, "test/nll_unresolved": 3.0}, "-2000.000"),
    ],
)
def test_an_nll_is_a_bound_while_examples_are_unresolved(metrics, shown):
    name = next(iter(metrics))
    assert format_metric({**metrics, "test/nll_examples": 1000.0, "valid/nll_examples": 1000.0}, name) == shown


def test_a_default_evaluation_costs_no_more_than_500_samples_and_the_choice_among_four_widths_did(exact, splits):
    found = importance_nll(exact, splits.test, CONFIG.replace({"eval.samples": Eval().samples}))
    assert found["nll_evaluations"] < 500 + 4 * 50


def test_large_examples_are_decoded_a_few_at_a_time(exact, splits, monkeypatch):
    config = CONFIG.replace({"eval.samples": 30})
    whole, rows = importance_nll(exact, splits.test, config), []
    decode = exact.decode
    monkeypatch.setattr(exact, "decode", lambda z: rows.append(z.shape[0] * z.shape[1]) or decode(z), raising=False)
    monkeypatch.setitem(likelihood.ELEMENTS_AT_ONCE, "cpu", 40 * 8 + 1)
    assert importance_nll(exact, splits.test, config) == pytest.approx(whole, rel=1e-4, abs=1e-5)
    assert max(rows) == 40


def test_log_likelihoods_of_a_model_are_those_of_each_example_and_leave_no_gradients(exact, splits):
    x = splits.test.batch()[:7]
    found = likelihood.model_log_likelihood(exact, x, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(found.value.double(), truth(CONFIG.data).log_prob(x.double()), rtol=0, atol=1e-4)
    assert not found.value.requires_grad
    assert all(parameter.grad is None for parameter in exact.parameters())


def test_of_a_large_set_few_codes_make_up_the_aggregate(exact, splits):
    found = latent_metrics(exact, splits.train, CONFIG.replace({"eval.codes": 400}))
    whole = latent_metrics(exact, splits.train, CONFIG)
    assert found["latent/log_n"] == pytest.approx(math.log(400))
    stderr = math.hypot(found["latent/mi_stderr"], whole["latent/mi_stderr"])
    assert abs(found["latent/mi"] - whole["latent/mi"]) < 6 * stderr < 0.5


def test_active_units_count_the_latents_that_move(exact, splits):
    found = latent_metrics(exact, splits.train, CONFIG)
    assert found["latent/active_units"] == 2
    assert found["latent/log_n"] == pytest.approx(math.log(len(splits.train)))
    assert found["latent/mi"] <= found["latent/log_n"]


def test_units_are_active_where_the_variance_of_their_mean_is_above_a_hundredth():
    """Means with variances just below and just above 0.01, over 11 examples: dividing by 11 would add a tenth."""
    x = torch.linalg.qr(torch.randn(11, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)).Q
    x = (x - x.mean(0)) / x.std(0, correction=1)
    variances = torch.tensor([0.00995, 0.01005, 0.0, 0.0108], dtype=torch.float64)
    config = CONFIG.replace({"model.latent": 4})
    splits = from_tensors(*[x.float()] * 3)
    model = models.build(config.model, splits.shape, levels=0)
    with torch.no_grad():
        model.encoder.mu.weight.copy_(variances.sqrt().diag())
        model.encoder.mu.bias.fill_(3.0)
    means = x.numpy() * variances.sqrt().numpy() + 3
    assert np.var(means, axis=0, ddof=1) == pytest.approx(variances.numpy())
    assert latent_metrics(model, splits.train, config)["latent/active_units"] == 2
    assert active_units(model, splits.train, torch.Generator()) == 2
    with torch.no_grad():
        model.encoder.mu.weight[0, 0] = 0.01005**0.5
    assert latent_metrics(model, splits.train, config)["latent/active_units"] == 3
    assert active_units(model, splits.train, torch.Generator()) == 3


def test_the_parts_of_the_rate_add_up(exact, splits):
    found = latent_metrics(exact, splits.train, CONFIG)
    with torch.no_grad():
        q = exact.encode(splits.train.batch())
    rate = 0.5 * (q.mu**2 + q.logvar.exp() - 1 - q.logvar).sum(1).mean().item()
    stderr = math.hypot(found["latent/mi_stderr"], found["latent/kl_aggregate_stderr"])
    assert found["latent/mi"] + found["latent/kl_aggregate"] == pytest.approx(rate, abs=6 * stderr)


def test_bits_per_dim_are_for_discrete_data_only(exact, splits):
    assert not any("bits" in name for name in measure(exact, splits, CONFIG))
    images = torch.randint(0, 2, (300, 1, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    discrete = from_tensors(images[:200], images[200:250], images[250:], levels=2)
    config = Run(
        model=Model(latent=2, hidden=(8,)),
        objective=InfoVAE(),
        train=Train(learning_rate=1e-2, device="cpu"),
        eval=Eval(50),
    )
    found = evaluate(fit(config, data=discrete))
    assert found["test/bits_per_dim"] == pytest.approx(found["test/nll"] / (16 * math.log(2)))
    assert 0.8 < found["test/bits_per_dim"] < 1.6, (
        "random bits cost one bit each, and a little for what was learned by heart"
    )
    assert found["perf/images_per_s"] > 0
    assert found["perf/peak_memory_mb"] > 50


def test_a_checkpoint_has_the_metrics_of_its_run(tmp_path):
    config = CONFIG.replace({"train.epochs": 2, "eval.samples": 20})
    result = fit(config, folder=tmp_path)
    found = evaluate_checkpoint(tmp_path / CURRENT)
    assert found == measure(result.model, result.splits, result.config)
    on_valid = evaluate_checkpoint(tmp_path / CURRENT, split="valid")
    assert on_valid == measure(result.model, result.splits, result.config, split="valid")
    assert {name.partition("/")[0] for name in on_valid} == {"valid", "latent"}
    x = torch.randn(30, 8)
    with pytest.raises(InputError, match="is of a run on other data than yours"):
        evaluate_checkpoint(tmp_path / CURRENT, data=from_tensors(x, x, x))
    with pytest.raises(InputError, match="split must be one of train, valid, test, got 'validation'"):
        measure(result.model, result.splits, result.config, split="validation")


def test_latent_metrics_against_their_definitions(exact, splits):
    """tc and mmd2 written out again, in float64, for codes of which one repeats another."""
    exact = copy.deepcopy(exact)
    with torch.no_grad():
        exact.encoder.mu.weight[2] = exact.encoder.mu.weight[0]
    found = latent_metrics(exact, splits.train, CONFIG)
    generator = torch.Generator().manual_seed(CONFIG.eval.seed)
    with torch.no_grad():
        q = exact.encode(splits.train.batch())
    log_q = torch.distributions.Normal(q.mu.double(), torch.exp(q.logvar / 2).double())
    z = q.mu + torch.exp(q.logvar / 2) * torch.randn(q.mu.shape, generator=generator)
    every = log_q.log_prob(z.double()[:, None])
    joint = every.sum(-1).logsumexp(1) - math.log(len(z))
    marginals = (every.logsumexp(1) - math.log(len(z))).sum(-1)
    tc = (joint - marginals).mean().item()
    assert found["latent/tc"] == pytest.approx(tc, abs=8 * found["latent/tc_stderr"])
    assert tc > 16 * found["latent/tc_stderr"], "a sign would not be seen"
    prior = torch.randn(z.shape, generator=generator)
    mmd2 = kernels.mmd2(z, prior, backend="reference").item()
    assert found["latent/mmd2"] == pytest.approx(mmd2, rel=0.3)


def test_evaluation_repeats_itself(exact, splits):
    assert measure(exact, splits, CONFIG) == measure(exact, splits, CONFIG)
