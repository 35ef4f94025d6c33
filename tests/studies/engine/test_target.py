"""What a study optimises: the quick estimate that prunes, held to the evidence of a linear model."""

import numpy as np
import pytest
import torch
from scipy import stats as distributions

from vaebench.studies.engine.study import target
from vaebench.studies.engine.study.space import load_space
from vaebench.studies.engine.study.target import TARGETS, check_target, quick_nll
from vaebench.vae.config.run import Run
from vaebench.vae.data import from_tensors
from vaebench.vae.errors import InputError
from vaebench.vae.model.build import build

D, SIGMA = 5, 0.5
LINEAR = Run().replace(
    {
        "model.network": "linear",
        "model.likelihood": "gaussian",
        "model.latent": 1,
        "model.sigma": SIGMA,
        "eval.examples": 200,
        "train.device": "cpu",
    }
)


@pytest.fixture(scope="module")
def exact():
    """Return a linear VAE of one latent whose q(z|x) is the posterior, its splits, and log p(x) of the second one."""
    draws = torch.Generator().manual_seed(0)
    W, b, z, noise = (torch.randn(shape, generator=draws) for shape in ((D, 1), (D,), (300, 1), (300, D)))
    x = z @ W.T + b + SIGMA * noise
    splits = from_tensors(x[:70], x[70:270], x[270:])
    model = build(LINEAR.model, splits.shape, splits.levels)
    precision = 1 + W.square().sum() / SIGMA**2
    with torch.no_grad():
        model.decoder[0].weight.copy_(W)
        model.decoder[0].bias.copy_(b)
        model.encoder.mu.weight.copy_(W.T / SIGMA**2 / precision)
        model.encoder.mu.bias.copy_(-W.T @ b / SIGMA**2 / precision)
        model.encoder.logvar.fill_(15 * torch.atanh(-precision.log() / 15))
    evidence = distributions.multivariate_normal(b.numpy(), (W @ W.T).numpy() + SIGMA**2 * np.eye(D))
    return model, splits, evidence.logpdf(splits.valid.batch().double().numpy())


@pytest.mark.parametrize("examples", [200, 20])
def test_the_quick_nll_is_the_evidence_of_examples_spread_over_the_split(exact, examples):
    """At most 64 of them. With the posterior as q, every weight is p(x)."""
    model, splits, log_px = exact
    used = min(target.QUICK_EXAMPLES, examples)
    rows = splits.valid.subsample(used).batch()
    chosen = [int((splits.valid.batch() == row).all(1).nonzero()) for row in rows]
    assert len(set(chosen)) == used
    found = quick_nll(model, splits.valid, LINEAR.replace({"eval.examples": examples}))
    assert found == pytest.approx(-log_px[chosen].mean(), abs=1e-4)


def test_the_quick_nll_is_of_the_model_without_dropout():
    x = torch.rand(60, D, generator=torch.Generator().manual_seed(0))
    splits = from_tensors(x, x, x)
    config = LINEAR.replace({"model.network": "mlp", "model.hidden": (16,), "model.dropout": 0.5})
    model = build(config.model, splits.shape, splits.levels)
    expected = quick_nll(model.eval(), splits.valid, config)
    assert quick_nll(model.train(), splits.valid, config) == expected


def test_the_gap_of_information_needs_factors_codes_and_a_score_of_labels():
    x = torch.rand(6, 3)
    labels = torch.arange(12).reshape(6, 2)
    factors = from_tensors(x, x, x, labels=[labels] * 3, label_names=("a", "b"))
    classes = from_tensors(x, x, x, labels=[labels[:, :1]] * 3, label_names=("class",))
    space = load_space("beta")
    check_target(TARGETS["mig"], space, Run(), factors)
    check_target(TARGETS["nll"], space, Run(), classes)
    refused = {
        "needs factors of variation": (Run(), classes),
        "needs codes, which model.kind = coupling does not have": (Run().replace({"model.kind": "coupling"}), factors),
        "needs eval.labels = fast or all, got none": (Run().replace({"eval.labels": "none"}), factors),
    }
    for message, (base, splits) in refused.items():
        with pytest.raises(InputError, match=message):
            check_target(TARGETS["mig"], space, base, splits)


def test_the_gap_of_information_is_refused_where_some_models_of_a_space_have_no_codes(tmp_path):
    x, labels = torch.rand(6, 3), torch.arange(12).reshape(6, 2)
    factors = from_tensors(x, x, x, labels=[labels] * 3, label_names=("a", "b"))
    path = tmp_path / "choices.toml"
    path.write_text('[model]\nkind = { choices = ["vae", "coupling"] }\nnetwork = { choices = ["mlp", "residual"] }\n')
    with pytest.raises(InputError, match=r"needs codes, which model\.kind = coupling does not have"):
        check_target(TARGETS["mig"], load_space(str(path)), Run(), factors)
    path.write_text('[model]\nnetwork = { choices = ["mlp", "residual"] }\n')
    check_target(TARGETS["mig"], load_space(str(path)), Run(), factors)


def test_the_quick_nll_of_a_flow_is_its_own_likelihood():
    x = torch.rand(90, D, generator=torch.Generator().manual_seed(0))
    splits = from_tensors(x, x, x)
    config = LINEAR.replace({"model.kind": "coupling", "model.hidden": (8,), "eval.examples": 90})
    model = build(config.model, splits.shape, splits.levels).eval()
    rows = splits.valid.subsample(target.QUICK_EXAMPLES).batch()
    _, log_px = model.encode_and_log_prob(rows)
    assert quick_nll(model, splits.valid, config) == pytest.approx(-log_px.mean().item(), rel=1e-5)


def test_which_targets_are_means_over_examples():
    assert [name for name, one in TARGETS.items() if one.is_paired] == ["nll"]
