"""vaebench beside pythae: the turns, the measurements and their errors; with pythae installed, what it trains."""

import argparse
import importlib.metadata
import math

import pytest
import torch

from tests.exact_models import generator
from vaebench.studies.experiments import library_training, vaebench_vs_pythae
from vaebench.studies.experiments.library_training import initial_vae
from vaebench.studies.experiments.output import save
from vaebench.studies.experiments.vaebench_vs_pythae import Measured
from vaebench.vae.data import from_tensors
from vaebench.vae.evaluation.likelihood import model_log_likelihood
from vaebench.vae.objective import IWAE, elbo, terms
from vaebench.vae.training.fit import fit

OPTIONS = argparse.Namespace(dataset="mnist", data_dir="nowhere", epochs=2, examples=8, threads=1, pythae="0.1.2")


def bits(count, seed):
    return (torch.rand(count, 1, 4, 4, generator=generator(seed)) < 0.4).to(torch.uint8)


def small(k, gradient="plain"):
    config = vaebench_vs_pythae.configure(OPTIONS, k, 0, gradient)
    return config.replace({"model.hidden": (6,), "model.latent": 2, "train.batch_size": 16, "data.binarise": "none"})


@pytest.fixture
def splits():
    return from_tensors(bits(64, 0), bits(16, 1), bits(16, 2), levels=2)


class AtOnce:
    """Turns that nobody waits for."""

    def __init__(self):
        self.calls = []

    def begin(self):
        self.calls.append("begin")

    def end(self):
        self.calls.append("end")


def test_trainings_in_turns_are_those_of_fit_and_are_read_when_they_are_done(splits, tmp_path, monkeypatch):
    configs = {"pythae": small(1), "other": small(3)}
    monkeypatch.setattr(
        vaebench_vs_pythae,
        "list_contenders",
        lambda *_: {name: ("vaebench", config) for name, config in configs.items()},
    )
    options = argparse.Namespace(folder=tmp_path, **vars(OPTIONS))
    group = vaebench_vs_pythae.measure_or_read(3, 0, splits, options)
    for name, config in configs.items():
        model = fit(config, data=splits, model=initial_vae(config, splits)).model
        expected = model_log_likelihood(model, splits.test.subsample(8).batch(), generator=generator(5))
        spread = 6 * expected.stderr.square().mean().sqrt() + 1e-3
        assert (group[name].log_px - expected.value).abs().max() < spread, name
        assert group[name].images_per_s > 0
        assert group[name].peak_mb > 50
    monkeypatch.setattr(vaebench_vs_pythae, "train_side_by_side", lambda *_: pytest.fail("it trained again"))
    again = vaebench_vs_pythae.measure_or_read(3, 0, splits, options)
    assert torch.equal(again["other"].log_px, group["other"].log_px)
    options.examples = 7
    with pytest.raises(pytest.fail.Exception, match="trained again"):
        vaebench_vs_pythae.measure_or_read(3, 0, splits, options)
    options.examples = 8
    with monkeypatch.context() as other:
        other.setattr(vaebench_vs_pythae, "code_version", lambda: "another")
        with pytest.raises(pytest.fail.Exception, match="trained again"):
            vaebench_vs_pythae.measure_or_read(3, 0, splits, options)
    (kept,) = tmp_path.iterdir()
    kept.write_bytes(kept.read_bytes()[:500])
    with pytest.raises(pytest.fail.Exception, match="trained again"):
        vaebench_vs_pythae.measure_or_read(3, 0, splits, options)


def test_what_stops_a_training_is_one_sentence(splits, monkeypatch):
    broken = small(1).replace({"model.likelihood": "gaussian", "train.learning_rate": 1e30})
    with pytest.raises(ValueError, match=r"^a training stopped: vaebench: .*Error: .*\.$"):
        vaebench_vs_pythae.train_side_by_side({"other": ("vaebench", broken)}, splits, 1)


def test_the_error_of_a_difference_has_parts_of_examples_and_of_seeds():
    """d_sn = a_s + b_n: means over seeds vary over examples as b, means over examples vary over seeds as a."""
    a, b = torch.tensor([0.0, 3.0, 6.0]), torch.tensor([1.0, -1.0, 2.0, 6.0])
    gap, stderr = vaebench_vs_pythae.difference([b + one for one in a])
    assert gap == pytest.approx(3 + 2)
    assert stderr == pytest.approx(math.sqrt(9 / 3 + 26 / 3 / 4))
    assert vaebench_vs_pythae.difference([b])[1] == pytest.approx(math.sqrt(26 / 3 / 4))
    assert all(map(math.isnan, vaebench_vs_pythae.difference([b[:0]]))), "none is resolved in every training"


def test_rows_are_means_over_seeds_beside_pythae(tmp_path):
    def group(shift, unresolved):
        resolved = torch.ones(4, dtype=torch.bool)
        ours = Measured(torch.full((4,), -90.0 + shift), resolved, 800.0, 300.0)
        known = torch.arange(4) >= unresolved
        poor = Measured(torch.where(known, -92.0, -192.0), known, 100.0, 400.0)
        return {"pythae": poor, "vaebench": ours}

    rows = vaebench_vs_pythae.compare(1, [group(0.0, 0), group(1.0, 1)])
    first, second = rows
    assert (first["trained by"], first["nll"], first["unresolved"]) == ("pythae", 104.5, 1)
    assert (second["nll"], second["unresolved"]) == (89.5, 0)
    assert second["above pythae's"] == -2.5, "the example that is not resolved in one of the trainings is left out"
    assert second["nll +-"] == pytest.approx(0.5)
    assert second["above pythae's +-"] == pytest.approx(0.5)
    assert (second["times pythae's"], second["peak MiB"]) == (8.0, 300.0)
    save(rows, vaebench_vs_pythae.plot([*rows, *vaebench_vs_pythae.compare(5, [group(0.0, 0)])]), tmp_path)


def test_without_pythae_one_sentence_tells_how_to_get_it(monkeypatch, capsys):
    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    assert vaebench_vs_pythae.main([]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "pip install pythae==0.1.2" in said


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("k", [1, 4])
def test_a_model_trained_by_pythae_is_the_same_model(k, splits):
    """Its probabilities and its loss are those of the VAE with its weights."""
    pytest.importorskip("pythae", reason="pip install pythae==0.1.2")
    turns, config = AtOnce(), small(k)
    weights = library_training.train_pythae(config, splits, turns)
    assert turns.calls == ["begin", "end"] * 2
    vae = initial_vae(config, splits)
    assert not torch.equal(weights["encoder.1.weight"], vae.state_dict()["encoder.1.weight"])
    vae.load_state_dict(vae.state_dict() | weights)
    x, z = splits.test.batch(), torch.randn(3, 2, generator=generator(3))
    encoder, decoder = library_training.wrap_networks(vae)
    assert torch.equal(decoder(z).reconstruction, vae.decode(z).mean)
    found = encoder(x)
    q = vae.encode(x)
    torch.testing.assert_close(found.embedding, q.mu)
    torch.testing.assert_close(found.log_covariance, q.logvar, rtol=1e-2, atol=1e-2)  # the VAE clamps it softly
    drawn = terms(vae, x, generator=generator(4), samples=k)
    assert_loss_is_that_of_pythae(k, vae, x, drawn)


def assert_loss_is_that_of_pythae(k, vae, x, drawn):
    """Compare the loss at these draws, or of IWAE its gradient in the decoder's weights."""
    from pythae import models

    encoder, decoder = library_training.wrap_networks(vae)
    settings = {"input_dim": (1, 4, 4), "latent_dim": 2, "reconstruction_loss": "bce"}
    mu, logvar = drawn.q.mu, drawn.q.logvar
    if k == 1:
        model = models.VAE(models.VAEConfig(**settings), encoder, decoder)
        loss, *_ = model.loss_function(decoder(drawn.z).reconstruction, x, mu, logvar, drawn.z)
        torch.testing.assert_close(-elbo(drawn).mean(), loss)
        return
    model = models.IWAE(models.IWAEConfig(number_samples=k, **settings), encoder, decoder)
    z = drawn.z.transpose(0, 1)
    recon = decoder(z.reshape(-1, 2)).reconstruction.reshape(len(x), k, -1)
    wide = [values[:, None].expand(-1, k, -1) for values in (mu, logvar)]
    loss, *_ = model.loss_function(recon, x, *wide, z)
    bound, _ = IWAE(samples=k, gradient="plain").value(drawn, {"warmup": 1.0}, None)
    parameters = list(vae.parameters())
    for theirs, ours in zip(
        torch.autograd.grad(loss, parameters, retain_graph=True), torch.autograd.grad(-bound, parameters), strict=True
    ):
        torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-5)
