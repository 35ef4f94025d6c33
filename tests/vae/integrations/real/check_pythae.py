"""VAE, BetaVAE, IWAE and RHVAE of pythae, as installed."""

import pytest
import torch
from pythae.models import IWAE, RHVAE, VAE, AutoModel, BetaVAE, BetaVAEConfig, IWAEConfig, RHVAEConfig, VAEConfig

from tests.vae.integrations.real import common
from vaebench.vae import patch

X = torch.rand(16, 1, 5, 5, generator=torch.Generator().manual_seed(0))
NOISE = [(torch, "randn_like", lambda x: common.kernel_noise(x.shape, x.dtype))]
MODELS = {
    "vae_mse": lambda: VAE(VAEConfig(input_dim=(1, 5, 5), latent_dim=4, reconstruction_loss="mse")),
    "vae_bce": lambda: VAE(VAEConfig(input_dim=(1, 5, 5), latent_dim=4, reconstruction_loss="bce")),
    "beta_vae": lambda: BetaVAE(BetaVAEConfig(input_dim=(1, 5, 5), latent_dim=4, beta=3.0)),
    "iwae": lambda: IWAE(IWAEConfig(input_dim=(1, 5, 5), latent_dim=4, number_samples=3)),
}


@pytest.fixture(params=MODELS)
def make(request):
    def build():
        torch.manual_seed(0)
        return MODELS[request.param]()

    return build


def loss(model):
    return model({"data": X}).loss


def test_a_training_is_that_of_the_unpatched_model(make, monkeypatch):
    common.assert_same_training(make, loss, monkeypatch, NOISE)


def test_weights_and_copies(make):
    common.assert_stored_and_copied(make, loss)


def test_it_is_saved_and_loaded_by_the_library(make, tmp_path):
    common.assert_saved_by_the_library(make, AutoModel, str(tmp_path))


def test_it_compiles():
    common.assert_compiled(MODELS["vae_mse"], loss)


@pytest.mark.parametrize("name", ["vae_mse", "vae_bce", "beta_vae"])
def test_the_kl_of_the_loss_is_that_of_the_draw(name):
    model = MODELS[name]()
    patched = patch(model)
    output = model({"data": X})
    assert output.reg_loss.item() == patched.kl.mean().item()


def test_a_weight_that_changes_while_training_is_followed():
    model = MODELS["beta_vae"]()
    with patch(model):
        model.beta = 0.0
        output = model({"data": X})
        torch.testing.assert_close(output.loss, output.recon_loss)


def test_the_noise_that_a_hamiltonian_model_asks_for_is_that_of_its_draw():
    model = RHVAE(RHVAEConfig(input_dim=(1, 5, 5), latent_dim=4))
    patch(model)
    mu, std = torch.randn(6, 4), torch.rand(6, 4) + 0.1
    z, eps = model._sample_gauss(mu, std)
    torch.testing.assert_close(z, mu + std * eps)
