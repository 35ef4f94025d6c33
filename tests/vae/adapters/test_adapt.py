"""The adapters on the real libraries where they are installed, and their choices on models that look like theirs."""

import math
import sys
import types

import numpy as np
import pytest
import torch
from torch import nn
from torch.distributions import Normal, kl_divergence

from tests import linear_vae
from tests.exact_models import generator
from vaebench.vae.adapters.adapt import adapt, load_saved
from vaebench.vae.adapters.gaussian import fit_sigma
from vaebench.vae.config.run import Model
from vaebench.vae.data import Data, from_tensors, load
from vaebench.vae.errors import InputError
from vaebench.vae.evaluation.enclosure import enclose
from vaebench.vae.evaluation.likelihood import model_log_likelihood
from vaebench.vae.model.build import build


def image_splits(channels=1, side=8, count=60, levels=256):
    images = torch.randint(0, levels, (count, channels, side, side), generator=generator(0), dtype=torch.uint8)
    return from_tensors(images[:40], images[40:50], images[50:], levels=levels)


def of_library(name, kind):
    """Return a class as if a library had it."""
    return type(kind.__name__, (kind,), {"__module__": f"{name}.models"})


class Means:
    """E[x|z] is the code itself, and q has no noise to speak of."""

    def encode(self, x):
        return x, torch.full_like(x, -30.0)

    def mean(self, z):
        return z + 0.3


def test_sigma_is_fitted_to_the_residuals_of_the_validation_split():
    x = torch.randn(50, 4, generator=generator(0))
    assert fit_sigma(Means(), from_tensors(x, x, x).valid) == pytest.approx(0.3, rel=1e-4)
    noisy = Means()
    noisy.encode = lambda x: (x, torch.zeros_like(x))
    x = torch.randn(5000, 4, generator=generator(0))
    assert fit_sigma(noisy, from_tensors(x, x, x).valid) == pytest.approx(math.sqrt(1.09), rel=0.02)


class AutoencoderKL(nn.Module):
    """Codes are means over quarters of an image, decoded by repetition; images are in [-1, 1]."""

    def encode(self, x):
        mean = nn.functional.avg_pool2d(x, 4)
        return types.SimpleNamespace(latent_dist=types.SimpleNamespace(mean=mean, logvar=torch.full_like(mean, -8.0)))

    def decode(self, z):
        return types.SimpleNamespace(sample=z.repeat_interleave(4, 2).repeat_interleave(4, 3))


def test_an_autoencoder_of_diffusers_takes_images_around_0_and_is_measured_in_0_to_1():
    splits = image_splits(3)
    found = adapt(of_library("diffusers", AutoencoderKL)(), splits)
    x = splits.test.batch()
    residual = x - nn.functional.avg_pool2d(x, 4).repeat_interleave(4, 2).repeat_interleave(4, 3)
    assert found.model.latent == 12
    assert found.sigma == found.fitted_sigma == pytest.approx(residual.square().mean().sqrt().item(), rel=0.05)
    q = found.model.encode(x)
    by_hand = Normal(x - residual, found.sigma).log_prob(x).flatten(1).sum(-1)
    torch.testing.assert_close(found.model.decode(q.mu).log_prob(x), by_hand, rtol=1e-4, atol=1e-2)
    assert found.notes[0].endswith("fitted to the validation split")
    given = adapt(of_library("diffusers", AutoencoderKL)(), splits, sigma=0.5)
    assert given.sigma == 0.5
    assert given.fitted_sigma == found.fitted_sigma
    with pytest.raises(InputError, match="sigma"):
        adapt(of_library("diffusers", AutoencoderKL)(), splits, sigma=0.0)


class VAE(nn.Module):
    """What the adapter reads of a model of pythae: the code is the mean of each row."""

    def __init__(self, loss):
        super().__init__()
        self.model_config = types.SimpleNamespace(reconstruction_loss=loss)

    def encoder(self, x):
        return types.SimpleNamespace(embedding=x.flatten(2).mean(1), log_covariance=torch.zeros(len(x), 64))

    def decoder(self, z):
        return {"reconstruction": torch.sigmoid(z)}


def test_sigma_of_pythae_is_the_one_of_its_loss_alone():
    splits = image_splits()
    given = {sigma: adapt(of_library("pythae", VAE)("mse"), splits, sigma=sigma) for sigma in (None, 1.0, 0.5, "fit")}
    told = {sigma: "trained for another posterior" in " ".join(found.notes) for sigma, found in given.items()}
    assert told == {None: False, 1.0: False, 0.5: True, "fit": True}
    with pytest.raises(InputError, match="leave --sigma out"):
        adapt(of_library("pythae", VAE)("bce"), image_splits(levels=2), sigma=1.0)


def test_models_of_ours_and_plain_objects_are_taken_as_they_are():
    splits = load(Data())
    model = build(Model(latent=2, hidden=(8,)), splits.shape, splits.levels)
    assert adapt(model, splits).model is model
    x, _ = linear_vae.exact().ppca.sample(30, generator(0))
    splits = from_tensors(x[:20].float(), x[20:25].float(), x[25:].float())
    assert adapt(linear_vae.exact(), splits).model.likelihood.name == "Normal"


class Held:
    """A plain object whose networks are in an attribute, a list and the class."""

    shared = nn.Dropout()

    def __init__(self):
        self.drop, self.more = nn.Dropout(), {"one": nn.Dropout()}

    def encode(self, x):
        return self.drop(self.shared(self.more["one"](x))), torch.zeros_like(x)

    def decode(self, z):
        return Normal(z, 1.0)


def test_networks_inside_a_plain_object_are_put_into_eval_mode_and_sigma_is_refused():
    x = torch.randn(30, 4, generator=generator(0))
    splits, model = from_tensors(x[:20], x[20:25], x[25:]), Held()
    adapt(model, splits)
    assert not any(one.training for one in (model.drop, model.more["one"], model.shared))
    with pytest.raises(InputError, match=r"p\(x\|z\) of Held has its own; leave --sigma out"):
        adapt(model, splits, sigma=1.0)


class SCANVAE(nn.Module):
    z_encoder = None


def test_modules_of_scvi_with_another_prior_are_refused():
    kind = type("SCANVAE", (type("VAE", (SCANVAE,), {}),), {"__module__": "scvi.module"})
    counts = torch.ones(30, 4)
    with pytest.raises(InputError, match="can be audited; got SCANVAE"):
        adapt(kind(), from_tensors(counts, counts, counts))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (linear_vae.NoDecoder(), "NoDecoder has no decode."),
        (
            of_library("diffusers", linear_vae.NoDecoder)(),
            "latent_dist has mean and logvar, such as AutoencoderKL",
        ),
        (of_library("scvi", linear_vae.NoDecoder)(), "a module of scvi-tools takes counts (N, G) as floats"),
    ],
)
def test_models_that_cannot_be_adapted_are_one_sentence(model, message):
    with pytest.raises(InputError, match=message.replace("(", r"\(").replace(")", r"\)")):
        adapt(model, image_splits())


def test_folders_without_a_model_and_missing_libraries_are_one_sentence(tmp_path, monkeypatch):
    with pytest.raises(InputError, match="holds no model: there is neither a checkpoint of vaebench"):
        load_saved(tmp_path)
    (tmp_path / "model_config.json").touch()
    (tmp_path / "model.pt").touch()
    monkeypatch.setitem(sys.modules, "pythae", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match="needs the package pythae, which is not installed here"):
        load_saved(tmp_path)


@pytest.fixture
def pythae():
    return pytest.importorskip("pythae.models", reason="pythae is not installed", exc_type=ImportError)


@pytest.mark.parametrize(("loss", "sigma", "levels"), [("mse", None, 256), ("mse", "fit", 256), ("bce", None, 2)])
def test_a_saved_model_of_pythae_has_the_elbo_of_its_own_loss(pythae, tmp_path, loss, sigma, levels):
    """loss = -(ELBO), up to the constant of the Gaussian, at the same noise."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = pythae.VAEConfig(input_dim=(1, 8, 8), latent_dim=3, reconstruction_loss=loss)
        pythae.VAE(config).save(str(tmp_path))
    model, splits = load_saved(tmp_path), image_splits(levels=levels)
    found = adapt(model, splits, sigma=sigma)
    x = splits.test.batch()
    with torch.random.fork_rng():
        torch.manual_seed(1)
        own = model({"data": x})
        torch.manual_seed(1)
        terms = found.model.terms(x, draw_like_pythae, None)
    assert found.model.latent == 3
    assert terms.kl.mean().item() == pytest.approx(own.reg_loss.item(), rel=1e-4)
    if sigma == "fit":
        assert found.sigma == found.fitted_sigma < 1
        return
    constant = 32 * math.log(2 * math.pi) if loss == "mse" else 0.0
    assert -terms.log_px.mean().item() == pytest.approx(own.recon_loss.item() + constant, rel=1e-5)
    log_px = model_log_likelihood(found.model, x, generator=generator(0))
    with torch.random.fork_rng():
        torch.manual_seed(2)
        assert log_px.mean()[0] == pytest.approx(model.get_nll(x, n_samples=2000, batch_size=500), abs=0.05)


def draw_like_pythae(mu, logvar):
    """Draw as torch's global generator does, with the KL of torch.distributions."""
    std = torch.exp(0.5 * logvar)
    z = mu + torch.randn_like(std) * std
    return z, kl_divergence(Normal(mu, std), Normal(0.0, 1.0)).sum(-1)


def test_models_of_pythae_without_a_gaussian_posterior_are_refused(pythae):
    model = pythae.VAMP(pythae.VAMPConfig(input_dim=(1, 8, 8), latent_dim=3))
    with pytest.raises(InputError, match="with a reconstruction_loss of mse or bce; got VAMP with mse"):
        adapt(model, image_splits())


def test_an_autoencoder_of_diffusers_is_loaded_and_measured(tmp_path):
    diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed", exc_type=ImportError)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        diffusers.AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            block_out_channels=(8, 8),
            norm_num_groups=4,
            latent_channels=1,
        ).save_pretrained(tmp_path)
    model, splits = load_saved(tmp_path), image_splits(3)
    found = adapt(model, splits)
    assert found.model.code_shape == (1, 4, 4)
    x = splits.test.batch()
    posterior = model.encode(2 * x - 1).latent_dist
    q = found.model.encode(x)
    torch.testing.assert_close(q.mu.reshape(posterior.mean.shape), posterior.mean)
    torch.testing.assert_close(q.logvar.reshape(posterior.mean.shape), posterior.logvar)
    mean = 0.5 * (model.decode(posterior.mean).sample + 1)
    torch.testing.assert_close(found.model.decode(q.mu).mean, mean)


def scvi_model(**settings):
    """Return a model of scvi-tools on synthetic counts, trained for an epoch."""
    pytest.importorskip("scvi", reason="scvi-tools is not installed", exc_type=ImportError)
    import anndata
    import scvi

    anndata.settings.allow_write_nullable_strings = True  # pandas 3 has no other strings
    with torch.random.fork_rng():
        scvi.settings.seed = 0
        adata = scvi.data.synthetic_iid(batch_size=60, n_genes=30)
        scvi.model.SCVI.setup_anndata(adata, batch_key="batch", labels_key="labels")
        model = scvi.model.SCVI(adata, n_latent=3, n_hidden=16, **settings)
        model.train(max_epochs=1, train_size=0.7, accelerator="cpu", logger=False, enable_progress_bar=False)
    return model


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("settings", [{}, {"gene_likelihood": "nb", "dispersion": "gene-batch"}], ids=["zinb", "nb"])
def test_a_saved_model_of_scvi_has_the_reconstruction_loss_of_its_own(tmp_path, settings):
    model = scvi_model(**settings)
    model.save(str(tmp_path), save_anndata=True, overwrite=True)
    found = adapt(load_saved(tmp_path), None)
    sizes = [len(part) for part in (found.splits.train, found.splits.valid, found.splits.test)]
    assert sizes == [84, 18, 18]
    assert sorted(found.splits.train.stored[:, :30].sum(1).tolist()) == sorted(
        np.asarray(model.adata.X)[model.train_indices].sum(1).tolist()
    )
    x = found.splits.test.batch()
    q = found.model.encode(x)
    z = q.sample(generator(0))
    tensors = {"X": x[:, :30], "batch": x[:, 31:32].long(), "labels": x[:, 32:33].long()}
    module = model.module.eval()
    inferred = module.inference(tensors["X"], tensors["batch"])
    torch.testing.assert_close(q.mu, inferred["qz"].loc)
    generated = module.generative(z, inferred["library"], tensors["batch"], y=tensors["labels"])
    loss = module.loss(tensors, inferred, generated)
    own = next(iter(loss.reconstruction_loss.values()))
    torch.testing.assert_close(found.model.decode(z).log_prob(x), -own, rtol=1e-4, atol=1e-3)
    drawn = found.model.sample(5, generator(1))
    assert torch.equal(drawn[:, 30:], found.splits.valid.batch()[:5, 30:])
    assert enclose(found.model, 2, temperatures=3, chains=2).width[0] > -5


@pytest.mark.filterwarnings("ignore")
def test_a_module_of_scvi_takes_an_array_of_counts():
    model = scvi_model()
    counts = torch.tensor(np.asarray(model.adata.X)).float()
    single = type(model)(model.adata, n_latent=3, n_hidden=16).module
    found = adapt(single, from_tensors(counts[:80], counts[80:100], counts[100:]))
    assert found.splits.shape == (33,)
    assert found.splits.test.stored[0, 30].item() == pytest.approx(math.log(counts[100].sum().item()))


@pytest.mark.filterwarnings("ignore")
def test_a_latent_library_size_is_refused():
    with pytest.raises(InputError, match="needs use_observed_lib_size = True"):
        adapt(scvi_model(use_observed_lib_size=False), None)
