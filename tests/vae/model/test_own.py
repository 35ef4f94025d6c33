"""A model of one's own, named by `model.build`: trained, resumed and loaded as any other, and known by its source."""

from pathlib import Path

import pytest
import torch
from torch import nn

from vaebench.vae import VAE, Likelihood, Run, fit, load
from vaebench.vae import model as models
from vaebench.vae.errors import InputError
from vaebench.vae.training import checkpoint
from vaebench.vae.training.setup import own_random_state
from vaebench.vae.training.state import load_model

PAIR = """
from torch import nn

def build(config, shape):
    D, K = shape[0] * shape[1] * shape[2], config.latent
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(D, 12), nn.Tanh(), nn.Linear(12, 2 * K))
    decoder = nn.Sequential(nn.Linear(K, 12), nn.Tanh(), nn.Linear(12, 2 * D), nn.Unflatten(1, (2, 8, 8)))
    return encoder, decoder
"""
WHOLE = """
from dataclasses import dataclass
from torch import nn
from vaebench.vae import VAE, Likelihood

@dataclass
class Sizes:
    latent: "int" = 3

def build(config, shape):
    sizes = Sizes()
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(64, 2 * sizes.latent))
    decoder = nn.Sequential(nn.Linear(sizes.latent, 64), nn.Unflatten(1, (1, 8, 8)))
    return VAE(encoder, decoder, Likelihood("gaussian", shape, sigma=0.4), sizes.latent)
"""
SETTINGS = {"model.build": "mine.py:build", "model.latent": 2, "train.epochs": 2, "train.device": "cpu"}


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def by_hand():
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.Tanh(), nn.Linear(12, 4))
    decoder = nn.Sequential(nn.Linear(2, 12), nn.Tanh(), nn.Linear(12, 128), nn.Unflatten(1, (2, 8, 8)))
    return VAE(encoder, decoder, Likelihood("discretised_logistic", (1, 8, 8), levels=17), 2)


def same(first, second):
    """Return whether two models have the same weights."""
    pairs = zip(first.state_dict().items(), second.state_dict().items(), strict=True)
    return all(name == other and torch.equal(one, two) for (name, one), (other, two) in pairs)


def test_it_trains_as_the_same_model_given_in_python():
    Path("mine.py").write_text(PAIR)
    config = Run().replace(SETTINGS)
    ours = fit(config)
    with own_random_state(config.train.seed, torch.device("cpu")):
        theirs = fit(config.replace({"model.build": "none"}), model=by_hand())
    assert same(ours.model, theirs.model)
    assert ours.history[-1]["valid/elbo"] == theirs.history[-1]["valid/elbo"]


def test_a_whole_model_brings_its_own_likelihood_and_latent_size():
    Path("mine.py").write_text(WHOLE)
    result = fit(Run().replace(SETTINGS))
    assert (result.model.latent, result.config.model.latent) == (3, 3)
    assert result.config.model.likelihood == "gaussian"


def test_a_checkpoint_is_loaded_with_it_and_the_training_resumed(tmp_path):
    Path("mine.py").write_text(PAIR)
    fit(Run().replace(SETTINGS), folder=tmp_path / "run")
    loaded, config = load_model(tmp_path / "run" / checkpoint.CURRENT)
    assert config.model.build == "mine.py:build"
    assert same(fit(Run().replace(SETTINGS), folder=tmp_path / "run").model, loaded)


def test_an_edited_source_is_told_and_a_moved_one_is_the_same(tmp_path):
    Path("mine.py").write_text(PAIR)
    folder = tmp_path / "run"
    fit(Run().replace(SETTINGS), folder=folder)
    Path("sub").mkdir()
    Path("mine.py").rename("sub/mine.py")
    fit(Run().replace(SETTINGS | {"model.build": "sub/mine.py:build"}), folder=folder)
    Path("sub/mine.py").write_text(PAIR.replace("Tanh", "ReLU"))
    said = r"was trained with another source of model\.build = sub/mine\.py:build; put that file back"
    with pytest.raises(InputError, match=said):
        fit(Run().replace(SETTINGS | {"model.build": "sub/mine.py:build"}), folder=folder)
    with pytest.raises(InputError, match=r"another source|cannot read the model's file mine\.py"):
        load_model(folder / checkpoint.CURRENT)
    loaded, _ = load_model(folder / checkpoint.CURRENT, by_hand())
    assert loaded.latent == 2


def test_an_edited_file_is_imported_again():
    x = torch.zeros(1, 1, 8, 8)
    for value in (1.0, 2.0):
        text = PAIR.replace("return encoder", f"nn.init.constant_(encoder[3].bias, {value})\n    return encoder")
        Path("mine.py").write_text(text.replace("nn.Tanh()", "nn.Hardshrink(9.0)"))
        model = models.build(Run().replace(SETTINGS).model, (1, 8, 8), 17)
        assert model.encode(x).mu.tolist() == [[value, value]]


@pytest.mark.parametrize(
    ("text", "build", "message"),
    [
        (PAIR, "mine.py", r"must be FILE\.py:FUNCTION, or none, got 'mine\.py'"),
        (PAIR, "mine:build", r"must be FILE\.py:FUNCTION"),
        (PAIR, "yours.py:build", r"cannot read the model's file yours\.py: No such file"),
        (PAIR, "mine.py:make", r"mine\.py has no function make"),
        ("def build(:", "mine.py:build", "raised SyntaxError"),
        ("import nowhere", "mine.py:build", "raised ModuleNotFoundError: No module named 'nowhere'"),
        ("def build(config, shape):\n    return 1 / 0", "mine.py:build", "raised ZeroDivisionError: division by zero"),
        ("def build(config):\n    return 1", "mine.py:build", "raised TypeError"),
        ("def build(config, shape):\n    return 3", "mine.py:build", "two modules, or a GenerativeModel, got int"),
        (
            PAIR.replace("2 * K", "K"),
            "mine.py:build",
            r"does not fit data of shape .*: the encoder must return",
        ),
        (PAIR.replace("2 * D", "D"), "mine.py:build", r"does not fit data of shape \(1, 8, 8\)"),
    ],
)
def test_what_cannot_be_a_model_is_one_sentence(text, build, message):
    Path("mine.py").write_text(text)
    with pytest.raises(InputError, match=message) as refusal:
        fit(Run().replace(SETTINGS | {"model.build": build}), data=load(Run().data))
    assert "\n" not in str(refusal.value)
