"""Unused settings change no result, and used settings change it: each run is trained with both values."""

import contextlib

import pytest

from vaebench.vae.config.run import SETTINGS, Run
from vaebench.vae.config.unused import unused
from vaebench.vae.errors import InputError
from vaebench.vae.training.fit import fit

SMALL = {
    "model.hidden": "6,5",
    "model.latent": 3,
    "train.epochs": 1,
    "train.batch_size": 720,
    "train.device": "cpu",
    "train.warmup_epochs": 0,
}
FLOW = {"model.kind": "coupling", "model.flow_layers": 2}
CRITIC = {"objective.critic_hidden": 4, "objective.critic_learning_rate": 0.01}
RUNS = {
    "vae": {},
    "infovae": {"objective.lambda": 3, "objective.estimator": "v"},
    "no-weights": {"objective.beta": 0},
    "sliced": {"objective.lambda": 3, "objective.divergence": "sliced", "model.prior": "flow"},
    "adversarial": {"objective.lambda": 3, "objective.divergence": "adversarial", "model.network": "linear", **CRITIC},
    "factor-vae": {"objective.name": "factor_vae", "model.likelihood": "logistic_mixture", **CRITIC},
    "tc-vae": {"objective.name": "tc_vae", "model.network": "conv", "model.hidden": "6"},
    "capacity": {"objective.name": "capacity", "objective.capacity": 9},
    "iwae": {"objective.name": "iwae"},
    "linear": {"data.name": "linear", "data.size": 500, "model.likelihood": "gaussian", "model.posterior": "iaf"},
    "plain": {"data.name": "linear", "data.size": 500, "model.likelihood": "gaussian", "model.hidden": ""},
    "flow": FLOW,
    "flow-mmd": {**FLOW, "objective.lambda": 3},
}
OTHER = {
    "data.side": 32,
    "data.channels": 1,
    "data.size": 400,
    "data.features": 12,
    "data.rank": 2,
    "data.noise": 0.7,
    "model.network": "linear",
    "model.latent": 2,
    "model.hidden": "4",
    "model.dense": "7",
    "model.activation": "relu",
    "model.dropout": 0.5,
    "model.likelihood": "gaussian",
    "model.components": 2,
    "model.sigma": 0.3,
    "model.learn_sigma": True,
    "model.prior": "flow",
    "model.posterior": "iaf",
    "model.flow_layers": 3,
    "model.spline_bins": 4,
    "objective.beta": 0.5,
    "objective.alpha": 0.5,
    "objective.lambda": 2,
    "objective.divergence": "stein",
    "objective.kernel": "rbf",
    "objective.bandwidth": 3,
    "objective.estimator": "v",
    "objective.projections": 5,
    "objective.critic_hidden": "3",
    "objective.critic_learning_rate": 0.1,
    "objective.w_mi": 2,
    "objective.w_tc": 2,
    "objective.w_dim": 2,
    "objective.gamma": 4,
    "objective.capacity": 5,
    "objective.capacity_epochs": 7,
    "objective.samples": 3,
    "objective.gradient": "plain",
}
OF_A_FAMILY = {name for name in SETTINGS if name.startswith("objective.")} - {"objective.name"}
CONDITIONAL = OF_A_FAMILY | {name for name, (_, field) in SETTINGS.items() if field.metadata["used"] is not None}


@pytest.mark.parametrize("kind", RUNS)
def test_a_setting_is_unused_where_another_value_gives_the_same_result(kind):
    run = Run().replace(SMALL | RUNS[kind])
    expected = _outcome(run)
    same, different = set(), set()
    for name in CONDITIONAL:
        value = Run().flat()[name] if run.flat()[name] == OTHER[name] else OTHER[name]
        with contextlib.suppress(InputError):
            (same if _outcome(run.replace({name: value})) == expected else different).add(name)
    assert min(len(same), len(different)) > 4
    assert same == unused(run) & (same | different)


def test_every_setting_of_model_and_objective_is_known():
    always = {
        "data.name",
        "data.dir",
        "data.cache",
        "data.seed",
        "data.binarise",
        "model.kind",
        "model.build",
        "objective.name",
    }
    settings = {name for name in Run().flat() if name.startswith(("data.", "model.", "objective."))}
    assert settings == CONDITIONAL | always


def _outcome(run):
    """Return the metrics of the training except its speed."""
    (epoch,) = fit(run).history
    return {name: value for name, value in epoch.items() if name != "perf/images_per_s"}


def test_a_model_of_ones_own_may_read_every_setting_of_the_model():
    own = unused(Run().replace({"model.build": "mine.py:build"}))
    assert {"model.dense", "model.components", "model.flow_layers"} <= unused(Run())
    assert not any(name.startswith("model.") for name in own)
    assert "objective.gamma" in own
