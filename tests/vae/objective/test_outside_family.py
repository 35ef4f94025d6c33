"""A family of objectives from outside the package: these lines are all that it takes to train, sweep and report it."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
import torch

from vaebench.studies import report, sweep, train
from vaebench.vae.config import run as configs
from vaebench.vae.config.fields import field
from vaebench.vae.config.objective import Batch, Objective, Weight
from vaebench.vae.config.run import Run
from vaebench.vae.config.unused import unused
from vaebench.vae.errors import InputError
from vaebench.vae.prob.terms import Terms
from vaebench.vae.training import checkpoint
from vaebench.vae.training.fit import fit
from vaebench.vae.training.state import load_model


# --- the family, as its author writes it ---
@dataclass(frozen=True)
class FreeBits(Objective):
    """E_q[log p(x|z)] - max(KL, free): no pressure on the first `free` nats of each example (Kingma et al., 2016)."""

    name: ClassVar[str] = "free_bits"
    sentence: ClassVar[str] = "the evidence lower bound with some nats for nothing"

    free: float = field(2.0, "Nats of each example that cost nothing.", at_least=0)

    def weights(self, epochs_done: float) -> dict[str, float]:
        return {"free": self.free}

    def value(self, terms: Terms, weights: Mapping[str, Weight], batch: Batch) -> tuple[torch.Tensor, None]:
        rate = torch.maximum(terms.kl, torch.as_tensor(weights["free"]).to(terms.kl))
        return (terms.log_px - weights["warmup"] * rate).mean(), None

    def describe(self, epochs: int) -> str:
        return f"weight of KL 1 beyond {self.free:g} nats"


# --- what it is tested with ---
SMALL = {"train.epochs": 2, "model.hidden": "16", "model.latent": 2, "train.device": "cpu"}
SMALL |= {"eval.examples": 20, "eval.labels": "none", "eval.codes": 100}


@pytest.fixture(autouse=True)
def _registered():
    configs.register(FreeBits)
    yield
    configs.unregister("free_bits")


def settings(**more):
    chosen = SMALL | {"objective.name": "free_bits"} | more
    return [part for name, value in chosen.items() for part in ("--set", f"{name}={value}")]


def test_it_has_settings_that_are_described_checked_and_unused_elsewhere():
    assert "objective.free" in configs.describe()
    assert "objective.free" in unused(Run())
    assert "objective.free" not in unused(Run().replace({"objective.name": "free_bits"}))
    with pytest.raises(InputError, match=r"objective\.free must be >= 0, got -1\.0: Nats of each example"):
        Run().replace({"objective.free": -1})


def test_it_is_the_elbo_without_free_nats_and_the_reconstruction_with_many():
    small = Run().replace(SMALL)
    free = small.replace({"objective.name": "free_bits", "objective.free": 0})
    elbo = fit(small).history[-1]["train/objective"]
    assert fit(free).history[-1]["train/objective"] == pytest.approx(elbo, rel=1e-6)
    epoch = fit(free.replace({"objective.free": 1e3})).history[-1]
    assert epoch["train/objective"] == pytest.approx(-epoch["train/distortion"] - 1e3, rel=1e-5)


@pytest.fixture
def _elsewhere():
    """Registers again what a test took out of the table, for the end of the module's fixture."""
    yield
    configs.register(FreeBits)


@pytest.mark.usefixtures("_elsewhere")
def test_runs_of_other_families_are_read_where_it_is_not_registered(tmp_path):
    fit(Run().replace(SMALL | {"train.epochs": 1}), folder=tmp_path)
    (tmp_path / "config.toml").write_text(configs.to_toml(Run().replace({"objective.beta": 3})))
    configs.unregister("free_bits")
    assert load_model(tmp_path / checkpoint.CURRENT)[1].objective.name == "infovae"
    assert configs.from_toml(tmp_path / "config.toml").objective.beta == 3
    fit(Run().replace(SMALL | {"train.epochs": 1}), folder=tmp_path)


@pytest.mark.usefixtures("_elsewhere")
def test_its_own_runs_need_it_to_be_registered(tmp_path):
    run = Run().replace(SMALL | {"train.epochs": 1, "objective.name": "free_bits", "objective.free": 3})
    fit(run, folder=tmp_path)
    (tmp_path / "config.toml").write_text(configs.to_toml(run))
    assert configs.from_toml(tmp_path / "config.toml") == run
    configs.unregister("free_bits")
    for read, name in ((load_model, checkpoint.CURRENT), (configs.from_toml, "config.toml")):
        with pytest.raises(InputError, match=r"got 'free_bits'; register your own family first\."):
            read(tmp_path / name)


def test_it_trains_from_the_command_line(tmp_path, capsys):
    assert train.main([*settings(), "--folder", str(tmp_path), "--tracking-uri", "none"]) == 0
    assert "weight of KL 1 beyond 2 nats" in capsys.readouterr().out
    assert 'name = "free_bits"' in (tmp_path / "config.toml").read_text()


def test_it_is_swept_and_reported(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("space.toml").write_text("[objective]\nfree = { low = 0.5, high = 4.0 }\n")
    options = ["--space", "space.toml", "--trials", "2", "--workers", "1", "--tracking-uri", "none"]
    assert sweep.main([*options, "--study", "bits", *settings()]) == 0
    out = capsys.readouterr().out
    assert "--set objective.name=free_bits" in out
    assert "objective.free" in out or " free" in out
    assert report.main(["bits"]) == 0
