"""What happens before the first step: the device, and the layers that start from data."""

import pytest
import torch

from vaebench.vae.config.run import Run, Train
from vaebench.vae.data import from_tensors
from vaebench.vae.model.build import build
from vaebench.vae.training import setup
from vaebench.vae.training.fit import fit


@pytest.mark.parametrize(
    ("setting", "has_gpu", "expected"),
    [
        ("auto", True, "cuda"),
        ("auto", False, "cpu"),
        ("cpu", True, "cpu"),
        ("cpu", False, "cpu"),
        ("cuda", True, "cuda"),
    ],
)
def test_auto_is_the_gpu_where_there_is_one(monkeypatch, setting, has_gpu, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_gpu)
    assert setup.pick_device(Train(device=setting)).type == expected


def test_a_folder_is_made_and_left_empty(tmp_path):
    assert setup.open_folder(tmp_path / "a" / "b") == tmp_path / "a" / "b"
    assert list((tmp_path / "a" / "b").iterdir()) == []


def test_layers_start_from_examples_spread_over_the_training_split_and_not_again_when_a_run_goes_on(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(setup, "INITIAL_ROWS", 10)
    x = torch.arange(91.0)[:, None].expand(91, 3).contiguous()
    splits = from_tensors(x, x[:9], x[:9])
    config = Run().replace(
        {"model.network": "linear", "model.latent": 2, "model.likelihood": "gaussian", "train.device": "cpu"}
    )
    seen = []
    for _ in range(2):
        model = build(config.model, splits.shape, splits.levels)
        model.initialise = lambda examples, generator: seen.append(examples())
        fit(config.replace({"train.epochs": 1}), data=splits, model=model, folder=tmp_path)
    (examples,) = seen
    assert examples[:, 0].tolist() == [0, 10, 20, 30, 40, 50, 60, 70, 80, 90]
