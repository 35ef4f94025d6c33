"""The moving average of the weights: its definition, that training does not depend on it, and where it is used."""

import pytest
import torch

from tests.vae.training.test_fit import RESTLESS, StopEarlyError, assert_identical, stop_after, tensors_of
from vaebench.vae import model as models
from vaebench.vae.training import checkpoint
from vaebench.vae.training.averaging import Average
from vaebench.vae.training.epoch import validate
from vaebench.vae.training.fit import fit
from vaebench.vae.training.state import load_model

DECAY = 0.9
AVERAGED = RESTLESS.replace({"train.ema": DECAY})


def raw_weights(folder):
    return {name: tensor for name, tensor in tensors_of(folder).items() if name.startswith("own.")}


def test_the_average_is_the_weighted_mean_of_every_steps_weights():
    weights = torch.randn(7, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    parameter = torch.nn.Parameter(torch.full((3,), 1e6, dtype=torch.float64))
    average = Average.start([parameter], DECAY)
    for t, value in enumerate(weights, start=1):
        with torch.no_grad():
            parameter.copy_(value)
        average.update()
        shares = torch.tensor([DECAY ** (t - s) for s in range(1, t + 1)], dtype=torch.float64)
        exact = (shares[:, None] * weights[:t]).sum(0) / shares.sum()
        torch.testing.assert_close(average.stored[0], exact, rtol=1e-12, atol=1e-12)
    average.swap()
    assert torch.equal(average.stored[0], weights[-1])
    torch.testing.assert_close(parameter.detach(), exact)
    average.swap()
    assert torch.equal(parameter, weights[-1])


@pytest.mark.parametrize("kind", ["vae", "coupling"])
def test_training_goes_on_with_its_own_weights_as_if_there_were_no_average(tmp_path, kind):
    """Bit for bit; a flow starts its layers from data, after the average was made."""
    config = RESTLESS.replace({"model.kind": kind, "train.epochs": 3, "train.patience": 0})
    if kind == "coupling":
        config = config.replace({"objective.lambda": 1.0, "objective.alpha": 0.0, "data.binarise": "none"})
    plain = fit(config, folder=tmp_path / "plain")
    averaged = fit(config.replace({"train.ema": DECAY}), folder=tmp_path / "averaged")
    raw = raw_weights(tmp_path / "averaged")
    parameters = list(plain.model.parameters())
    assert len(raw) == len(parameters) > 3
    for i, parameter in enumerate(parameters):
        assert torch.equal(raw[f"own.{i}"], parameter)
    assert averaged.history[-1]["valid/elbo"] != plain.history[-1]["valid/elbo"]
    assert averaged.history[-1]["train/elbo"] == plain.history[-1]["train/elbo"]


def test_an_average_without_memory_is_the_weights_after_every_step(tmp_path):
    """With d near 0 the average of t steps is w_t, which a step has just moved."""
    config = AVERAGED.replace({"train.ema": 1e-12, "train.epochs": 1, "train.patience": 0})
    result = fit(config, folder=tmp_path)
    raw = raw_weights(tmp_path)
    for i, parameter in enumerate(result.model.parameters()):
        torch.testing.assert_close(parameter, raw[f"own.{i}"], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("patience", [0, 30])
def test_the_average_is_validated_reported_kept_and_loaded(tmp_path, monkeypatch, patience):
    latest, held, elbos = [], [], []
    update = Average.update

    def spy(average):
        update(average)
        latest[:] = [tensor.clone() for tensor in average.stored]

    def report(epoch, metrics):
        held.append(latest.copy())
        elbos.append(metrics["valid/elbo"])
        for parameter, average in zip(model.parameters(), latest, strict=True):
            assert torch.equal(parameter, average)

    monkeypatch.setattr(Average, "update", spy)
    config = AVERAGED.replace({"train.patience": patience})
    model = models.build(config.model, (1, 8, 8), 2)
    result = fit(config, model=model, folder=tmp_path, report=report)
    kept = result.best_epoch - 1 if patience else -1
    for parameter, average in zip(result.model.parameters(), held[kept], strict=True):
        assert torch.equal(parameter, average)
    again = validate(result.model, result.splits.valid, result.config)["valid/elbo"]
    assert again == pytest.approx(elbos[kept], abs=1e-9)
    assert_identical(load_model(tmp_path / checkpoint.CURRENT)[0].state_dict(), result.model.state_dict())


@pytest.mark.parametrize("stopped_after", [1, 2, 3, 5])
def test_a_stopped_run_goes_on_bit_for_bit(tmp_path, stopped_after):
    """Checkpoints fall on epochs 2, 4 and 6, of weights, their average and a critic, each with its moments."""
    config = AVERAGED.replace({"objective.divergence": "adversarial", "objective.critic_hidden": (8,)})
    fit(config, folder=tmp_path / "whole")
    with pytest.raises(StopEarlyError):
        fit(config, folder=tmp_path / "parts", report=stop_after(stopped_after))
    fit(config, folder=tmp_path / "parts")
    whole = tensors_of(tmp_path / "whole")
    assert_identical(tensors_of(tmp_path / "parts"), whole)
    kinds = {name.partition(".")[0] for name in whole}
    assert kinds == {"model", "best", "own", "optimizer", "critic", "critic_optimizer", "rng"}


def test_a_model_is_loaded_without_the_state_of_its_training(tmp_path):
    config = AVERAGED.replace({"train.epochs": 1, "objective.divergence": "adversarial", "train.patience": 0})
    result = fit(config, folder=tmp_path)
    tensors, meta = checkpoint.read(tmp_path / checkpoint.CURRENT)
    model_alone = {name: tensor for name, tensor in tensors.items() if name.startswith("model.")}
    checkpoint.write(tmp_path / ".", model_alone, meta)
    assert_identical(load_model(tmp_path / checkpoint.CURRENT)[0].state_dict(), result.model.state_dict())
