"""Many models in one step: each is what `fit` would have trained, and none notices what becomes of another."""

import copy
import dataclasses

import numpy as np
import pytest
import torch

from tests import stats
from vaebench.vae import model as models
from vaebench.vae.config import run as config_run
from vaebench.vae.config.objective import Critic
from vaebench.vae.config.run import Model, Run, Train
from vaebench.vae.data import from_tensors
from vaebench.vae.data.memory_mapped import from_files
from vaebench.vae.ensemble import fit_many as many
from vaebench.vae.ensemble.fit_many import can_stack, fit_many
from vaebench.vae.errors import DivergedError, InputError
from vaebench.vae.evaluation.evaluate import evaluate
from vaebench.vae.objective import TCVAE
from vaebench.vae.training import checkpoint
from vaebench.vae.training.fit import fit
from vaebench.vae.training.setup import own_random_state
from vaebench.vae.training.state import load_model

SHORT = Run(model=Model(hidden=(12,)), train=Train(epochs=2, batch_size=128, device="cpu"))

# Each differs from the others in what it weighs and in how it moves; four latent sizes, groups of every kind.
SETTINGS = (
    {"model.latent": 3, "objective.beta": 4, "train.weight_decay": 0.3, "train.learning_rate": 8e-3},
    {"model.latent": 5, "train.schedule": "constant", "train.clip_norm": 5.0},
    {"model.latent": 2, "objective.beta": 0.5, "train.warmup_epochs": 2, "train.epochs": 3},
    {"model.latent": 5, "objective.alpha": 0.5, "objective.lambda": 10, "objective.beta": 2},
    {"model.latent": 3, "objective.alpha": 0.9, "objective.lambda": 3, "train.warmup_epochs": 3},
    {"model.latent": 2, "objective.alpha": 1, "objective.lambda": 30, "objective.kernel": "rbf"},
    {"model.latent": 4, "objective.lambda": 9, "objective.kernel": "rbf", "objective.bandwidth": "1,5"},
    {"model.latent": 2, "objective.lambda": 9, "objective.estimator": "v", "objective.bandwidth": 3},
    {"model.latent": 3, "objective.lambda": 5, "objective.divergence": "kl"},
    {"model.latent": 3, "objective.name": "tc_vae", "objective.w_tc": 6, "objective.w_mi": 0.5},
    {"model.latent": 3, "objective.name": "tc_vae", "objective.w_dim": 2, "train.warmup_epochs": 1},
    {"model.latent": 4, "objective.name": "capacity", "objective.capacity": 9, "objective.capacity_epochs": 3},
    {"model.latent": 2, "objective.name": "capacity", "objective.gamma": 5, "train.warmup_epochs": 2},
)
ARCHITECTURES = {
    "levels": {},
    "bits anew, dropout": {"data.binarise": "dynamic", "model.likelihood": "bernoulli", "model.dropout": 0.2},
    "sigma learned": {"model.likelihood": "gaussian", "model.learn_sigma": True, "model.hidden": "9,6"},
    "tanh": {"model.activation": "tanh", "train.epochs": 1},
    "linear": {"data.name": "linear", "data.size": 300, "model.network": "linear", "model.likelihood": "gaussian"},
    "no hidden layer": {"model.hidden": "auto", "train.epochs": 1, "model.likelihood": "logistic_mixture"},
    "sprites": {
        "data.name": "sprites",
        "data.size": 40,
        "model.hidden": "4",
        "model.likelihood": "bernoulli",
        "train.batch_size": 8,
        "train.epochs": 1,
    },
}


def runs(base=SHORT, settings=SETTINGS, **changes):
    """Return a run for each of the settings, with a seed and a sigma of its own."""
    return [
        base.replace(changes | {"train.seed": 37 + i, "model.sigma": 0.1 * (i + 1)} | own)
        for i, own in enumerate(settings)
    ]


def assert_alike(found, expected, *, tolerance=2e-5):
    """Assert that a result of the stack is that of a run of its own, up to sums in another order."""
    assert found.error is None
    assert found.config == expected.config
    assert found.best_epoch == expected.best_epoch
    weights, own = found.model.state_dict(), expected.model.state_dict()
    assert weights.keys() == own.keys()
    for name in own:
        torch.testing.assert_close(weights[name], own[name], rtol=tolerance, atol=tolerance, msg=name)
    for epoch, own_epoch in zip(found.history, expected.history, strict=True):
        del epoch["perf/images_per_s"], own_epoch["perf/images_per_s"]
        assert epoch == pytest.approx(own_epoch, rel=5 * tolerance, abs=5 * tolerance)


@pytest.mark.parametrize("changes", ARCHITECTURES.values(), ids=ARCHITECTURES.keys())
def test_each_model_of_a_stack_is_its_run_alone(changes):
    settings = [own | {name: value for name, value in changes.items() if name in own} for own in SETTINGS]
    configs = runs(settings=settings, **changes)
    before = torch.get_rng_state()
    results = fit_many(configs)
    assert torch.equal(torch.get_rng_state(), before), "torch's own generator was disturbed"
    for result, config in zip(results, configs, strict=True):
        assert_alike(result, fit(config))


def test_batches_are_those_of_fit_to_the_last_short_one():
    """Of 21 examples in batches of 4 the last one is left out; of 22 there is a batch of two."""
    x = torch.randn(22, 3, generator=torch.Generator().manual_seed(0))
    base = Run(model=Model(network="linear", latent=2, likelihood="gaussian"))
    base = base.replace({"train.epochs": 3, "train.batch_size": 4, "train.device": "cpu", "objective.lambda": 4})
    for size in (21, 22):
        data = from_tensors(x[:size], x, x)
        configs = [base.replace({"train.seed": seed}) for seed in range(3)]
        for result, config in zip(fit_many(configs, data=data), configs, strict=True):
            assert_alike(result, fit(config, data=data))


def test_data_that_stay_in_files_are_read_and_tossed_alike(tmp_path):
    numbers = np.random.default_rng(0)
    paths = [tmp_path / f"{name}.npy" for name in ("train", "valid", "test")]
    for path in paths:
        np.save(path, numbers.integers(0, 5, (70, 1, 4, 4), dtype=np.uint8))
    data = from_files(*paths, levels=5)
    base = SHORT.replace({"data.binarise": "dynamic", "model.likelihood": "bernoulli", "train.batch_size": 16})
    configs = runs(base, SETTINGS[:3])
    for result, config in zip(fit_many(configs, data=data), configs, strict=True):
        assert_alike(result, fit(config, data=data))


def test_in_bfloat16_too():
    configs = runs(settings=SETTINGS[:4], **{"train.precision": "bfloat16"})
    for result, config in zip(fit_many(configs), configs, strict=True):
        assert result.history[-1]["valid/elbo"] == pytest.approx(fit(config).history[-1]["valid/elbo"], rel=5e-3)


def test_what_a_model_is_worth_is_measured_alike():
    """The tail of the weights is fitted to a few of the largest, and the cost turns on how many examples pass."""
    configs = runs(settings=SETTINGS[:6:2], **{"eval.samples": 20, "eval.examples": 30})
    for result, config in zip(fit_many(configs), configs, strict=True):
        found, expected = evaluate(result), evaluate(fit(config))
        for metrics in (found, expected):
            del metrics["perf/images_per_s"], metrics["perf/peak_memory_mb"]
        for name in ("test/nll_tail", "test/nll_rounds", "test/nll_evaluations"):
            assert found.pop(name) == pytest.approx(expected.pop(name), rel=0.1)
        assert found == pytest.approx(expected, rel=1e-3, abs=1e-4)


def test_checkpoints_are_those_of_fit(tmp_path):
    """Moments, best weights, random states and all; dropout and bits drawn anew move every generator."""
    configs = runs(**ARCHITECTURES["bits anew, dropout"])
    places = [tmp_path / str(i) for i in range(len(configs))]
    results = fit_many(configs, folders=places)
    for i, (config, place, result) in enumerate(zip(configs, places, results, strict=True)):
        fit(config, folder=tmp_path / f"alone {i}")
        (found, meta), (own, own_meta) = (
            checkpoint.read(folder / checkpoint.CURRENT) for folder in (place, tmp_path / f"alone {i}")
        )
        assert found.keys() == own.keys()
        for name in own:
            assert found[name].dtype == own[name].dtype
            exact = name.startswith("rng.") or name.endswith(".step")
            torch.testing.assert_close(found[name], own[name], rtol=0 if exact else 1e-3, atol=0 if exact else 3e-5)
        assert meta.keys() == own_meta.keys()
        assert {name: meta[name] for name in ("config", "data", "shape", "epoch", "best_epoch")} == {
            name: own_meta[name] for name in ("config", "data", "shape", "epoch", "best_epoch")
        }
        model, loaded = load_model(place / checkpoint.CURRENT)
        assert loaded == result.config
        assert all(torch.equal(a, b) for a, b in zip(model.parameters(), result.model.parameters(), strict=True))


def test_a_stopped_stack_goes_on_as_if_it_had_not_stopped_also_with_models_of_other_ages(tmp_path):
    class StopEarlyError(BaseException):
        pass

    def stop(number, epoch, metrics):
        if epoch == 3 and number == 4:
            raise StopEarlyError

    configs = runs(settings=SETTINGS[:5], **ARCHITECTURES["bits anew, dropout"], **{"train.checkpoint_epochs": 2})
    configs = [config.replace({"train.epochs": 5, "train.patience": 0}) for config in configs]
    whole = fit_many(configs)
    places = [tmp_path / str(i) for i in range(5)]
    with pytest.raises(StopEarlyError):
        fit_many(configs, folders=places, report=stop)
    with pytest.raises(StopEarlyError):
        fit(configs[2], folder=places[2], report=lambda epoch, metrics: stop(4, epoch - 1, metrics))
    alone = fit(configs[0], folder=places[0])
    for result, expected in zip([alone, *fit_many(configs, folders=places)[1:]], whole, strict=True):
        assert_alike(dataclasses.replace(result), dataclasses.replace(expected), tolerance=3e-4)


def trajectory(result):
    return [{name: value for name, value in epoch.items() if "perf" not in name} for epoch in result.history]


def test_models_leave_and_the_others_do_not_notice():
    """One diverges, one is pruned, one runs out of patience, one has fewer epochs: each leaves a smaller stack."""

    class PrunedError(Exception):
        pass

    def prune(number, epoch, metrics):
        if (number, epoch) == (2, 2):
            raise PrunedError

    base = SHORT.replace({"train.epochs": 6, "train.patience": 0, "model.latent": 3})
    changes = [{}, {"train.learning_rate": 1e18, "train.clip_norm": 1e30}, {}, {"train.epochs": 3}, {}]
    restless = {"train.learning_rate": 0.05, "train.schedule": "constant", "train.epochs": 9, "model.latent": 2}
    changes.append(restless | {"train.patience": 1})
    configs = [base.replace({"train.seed": i} | own) for i, own in enumerate(changes)]
    results = fit_many(configs, report=prune)
    with pytest.raises(DivergedError) as alone:
        fit(configs[1])
    where = str(alone.value).split(":")[0]
    assert isinstance(results[1].error, DivergedError)
    assert str(results[1].error).startswith(where)
    assert isinstance(results[2].error, PrunedError)
    assert [len(results[i].history) for i in (0, 2, 3, 4)] == [6, 2, 3, 6]
    assert len(results[1].history) < 3
    assert len(results[5].history) == results[5].best_epoch + 1 < 9
    for i in (0, 3, 4, 5):
        assert_alike(results[i], fit(configs[i]), tolerance=3e-4)


@pytest.mark.parametrize("latent", [3, 8])
def test_a_model_that_diverges_changes_no_bit_of_another(latent):
    """In its place stands a model that is pruned when it would diverge, so that there are as many at every step."""

    def prune(number, epoch, metrics):
        if number == 0 and epoch == 1:
            raise RuntimeError("pruned")

    others = runs(settings=SETTINGS[:5])
    healthy = SHORT.replace({"model.latent": latent, "train.seed": 99, "objective.lambda": 2})
    diverging = healthy.replace({"train.learning_rate": 1e18, "train.clip_norm": 1e30})
    (bad, *found), (pruned, *expected) = (fit_many([one, *others], report=prune) for one in (diverging, healthy))
    assert isinstance(bad.error, DivergedError)
    assert len(pruned.history) == 1
    for one, other in zip(found, expected, strict=True):
        assert trajectory(one) == trajectory(other)
        pairs = zip(one.model.state_dict().values(), other.model.state_dict().values(), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)


def test_reports_number_the_runs_see_their_models_and_cannot_change_the_history():
    configs = runs(settings=SETTINGS[:3])
    built = []
    for config in configs:
        with own_random_state(config.train.seed, torch.device("cpu")):
            built.append(models.build(config.model, (1, 8, 8), 17))
    seen = []

    def report(number, epoch, metrics):
        weight = built[number].encoder[1].weight.detach().clone()
        seen.append((number, epoch, metrics.copy(), weight))
        metrics.clear()

    results = fit_many(configs, models=built, report=report)
    for i, (result, config) in enumerate(zip(results, configs, strict=True)):
        assert result.model is built[i]
        own = [(epoch, metrics) for number, epoch, metrics, _ in seen if number == i]
        assert own == list(enumerate(result.history, start=1))
        first, last = [weight for number, _, _, weight in seen if number == i][:2]
        assert not torch.equal(first, last)
        assert_alike(result, fit(config))


@pytest.mark.parametrize(
    "changes",
    [
        {"data.binarise": "dynamic", "model.likelihood": "bernoulli", "model.dropout": 0.2},
        {"train.ema": 0.9, "model.network": "conv"},
        {"objective.name": "factor_vae", "model.latent": 3},
        {"model.kind": "coupling"},
    ],
    ids=["bits anew, dropout", "average, convolutions", "critic", "flow"],
)
def test_one_after_another_each_model_has_the_bits_of_its_run_alone(changes, tmp_path):
    """Also those that cannot be stacked, also after a stop."""

    class StopError(BaseException):
        pass

    def stop(number, epoch, metrics):
        if epoch == 2 and number == 1:
            raise StopError

    configs = [
        SHORT.replace({"train.epochs": 3, "train.checkpoint_epochs": 1, "train.seed": 5 + i} | changes) for i in (0, 1)
    ]
    before = torch.get_rng_state()
    with pytest.raises(StopError):
        fit_many(configs, stacking="never", report=stop, folders=[tmp_path / "0", tmp_path / "1"])
    results = fit_many(configs, stacking="never", folders=[tmp_path / "0", tmp_path / "1"])
    assert torch.equal(torch.get_rng_state(), before)
    for result, config in zip(results, configs, strict=True):
        expected = fit(config)
        assert trajectory(result) == trajectory(expected)
        pairs = zip(result.model.state_dict().values(), expected.model.state_dict().values(), strict=True)
        assert all(torch.equal(one, other) for one, other in pairs)


@pytest.mark.parametrize("faster", [True, False])
def test_auto_goes_on_with_the_faster_way_and_the_results_are_the_same(faster, monkeypatch):
    """A clock that only an epoch of the slower way moves."""
    clock, ways = [0.0], []
    configs = runs(settings=SETTINGS[:3], **ARCHITECTURES["bits anew, dropout"], **{"train.patience": 0})
    configs = [config.replace({"train.epochs": 7}) for config in configs]

    def spend(stacked, train):
        def call(*arguments):
            clock[0] += float(stacked != faster)
            ways.append(stacked)
            return train(*arguments)

        return call

    monkeypatch.setattr(many, "run_epoch", spend(True, many.run_epoch))
    monkeypatch.setattr(many, "_train_alone", spend(False, many._train_alone))
    monkeypatch.setattr(many.time, "process_time", lambda: clock[0])
    results = fit_many(configs, stacking="auto")
    tried = [True, True, *[False] * 6]
    assert ways == tried + ([True] * 3 if faster else [False] * 9)
    for result, config in zip(results, configs, strict=True):
        assert_alike(result, fit(config), tolerance=3e-4)


def test_auto_trains_one_model_and_those_that_cannot_be_stacked_as_fit_does():
    convolutions = [SHORT.replace({"model.network": "conv", "train.seed": seed}) for seed in (0, 1)]
    for configs in ([SHORT], convolutions):
        for result, config in zip(fit_many(configs, stacking="auto"), configs, strict=True):
            assert trajectory(result) == trajectory(fit(config))


def test_in_distribution_a_stack_ends_where_runs_alone_do():
    """Other seeds together than alone: by then rounding has grown, and in the long run only distributions compare."""
    base = SHORT.replace(ARCHITECTURES["linear"] | {"model.latent": 4, "objective.beta": 2, "model.sigma": 0.5})
    base = base.replace({"train.batch_size": 48, "train.epochs": 16, "train.learning_rate": 0.05})
    together = fit_many([base.replace({"train.seed": seed}) for seed in range(45)])
    alone = [fit(base.replace({"train.seed": seed})) for seed in range(45, 90)]
    final = [[result.history[-1]["valid/elbo"] for result in results] for results in (together, alone)]
    stats.assert_mean_equal([a - b for a, b in zip(*final, strict=True)], 0, discrepancy=3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model.kind": "coupling"}, r"model\.kind = coupling cannot be trained in a stack; vae can\."),
        ({"model.network": "conv"}, r"model\.network = conv cannot be trained in a stack; mlp and linear can\."),
        ({"model.prior": "flow"}, r"model\.prior = flow cannot"),
        ({"model.posterior": "iaf"}, r"model\.posterior = iaf cannot"),
        ({"train.batch_size": 64}, r"train\.batch_size must be the same for all runs of a stack, got 128 and 64\."),
        ({"model.hidden": "12,12"}, r"model\.hidden must be the same .* got 12 and 12,12"),
        ({"data.seed": 1}, r"data\.seed must be the same"),
        (
            {"objective.name": "factor_vae"},
            r"objective\.name = factor_vae cannot .* infovae and tc_vae and capacity can",
        ),
        ({"objective.divergence": "stein"}, r"objective\.divergence = stein cannot"),
        ({"model.network": "residual"}, r"model\.network = residual cannot"),
        ({"train.ema": 0.9}, r"train\.ema = 0\.9 is nothing that a stack knows of; leave it at 0\.0"),
        ({"train.precision": "bfloat16"}, r"train\.precision must be the same"),
    ],
)
def test_what_cannot_be_stacked_is_refused_with_the_reason(changes, message):
    configs = [SHORT, SHORT.replace(changes)]
    with pytest.raises(InputError, match=f"cannot be trained together: {message}"):
        fit_many(configs)
    assert can_stack(configs) is not None
    assert can_stack([SHORT, SHORT]) is None


@pytest.mark.parametrize("lacking", [{"draws": 2}, {"critic": Critic()}])
def test_a_family_of_many_draws_or_with_a_critic_is_refused_whatever_it_says(lacking, monkeypatch):
    """A step of a stack has neither, so that the models would train for something else."""
    own = SHORT.replace({"objective.name": "tc_vae"})
    assert can_stack([own]) is None
    for name, value in lacking.items():
        monkeypatch.setattr(TCVAE, name, value)
    assert own.objective.stacking(3) is not None
    assert "objective.name = tc_vae cannot be trained in a stack" in can_stack([own])


def test_a_setting_that_a_stack_does_not_know_must_be_at_its_default(monkeypatch):
    section, field = config_run.SETTINGS["train.clip_norm"]
    undeclared = copy.copy(field)
    undeclared.metadata = {**field.metadata, "stack": None}
    monkeypatch.setitem(config_run.SETTINGS, "train.clip_norm", (section, undeclared))
    assert can_stack([SHORT, SHORT.replace({"train.seed": 1})]) is None
    reason = can_stack([SHORT.replace({"train.clip_norm": 3})])
    assert reason == "train.clip_norm = 3.0 is nothing that a stack knows of; leave it at 100.0."


def test_what_else_is_refused(tmp_path):
    built = [models.build(SHORT.model, (1, 8, 8), 17) for _ in range(2)]
    other = models.build(dataclasses.replace(SHORT.model, dropout=0.5), (1, 8, 8), 17)
    for options, message in (
        ({"folders": [tmp_path, tmp_path]}, "a folder of its own for each of 2 runs, got 2"),
        ({"folders": [tmp_path]}, "a folder of its own for each of 2 runs, got 1"),
        ({"models": built * 2}, "a model of its own for each of 2 runs, got 4"),
        ({"models": built[:1] * 2}, "a model of its own for each of 2 runs, got 2"),
        ({"models": [built[0], other]}, r"a model of a stack must be what vae\.model\.build makes of its run"),
    ):
        with pytest.raises(InputError, match=message):
            fit_many([SHORT, SHORT], **options)
    with pytest.raises(InputError, match="there is no run to train"):
        fit_many([])
    with pytest.raises(InputError, match="bernoulli needs data of 2 levels"):
        fit_many([SHORT.replace({"model.likelihood": "bernoulli"})])
