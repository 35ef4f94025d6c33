"""AutoencoderKL and AutoencoderOobleck of diffusers, as installed."""

import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderKLTemporalDecoder, AutoencoderOobleck
from diffusers.models.autoencoders import vae as module
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

from tests.vae.integrations.real import common
from vaebench.vae import InputError, patch

X = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
NOISE = [
    (module, "randn_tensor", lambda shape, generator=None, device=None, dtype=None: common.kernel_noise(shape, dtype))
]


def make():
    torch.manual_seed(0)
    blocks = {"down_block_types": ("DownEncoderBlock2D",), "up_block_types": ("UpDecoderBlock2D",)}
    return AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, latent_channels=4, **blocks)


def loss(model):
    posterior = model.encode(X).latent_dist
    reconstruction = model.decode(posterior.sample()).sample
    return (reconstruction - X).square().sum((1, 2, 3)).mean() + 0.1 * posterior.kl().mean()


def test_a_training_is_that_of_the_unpatched_model(monkeypatch):
    common.assert_same_training(make, loss, monkeypatch, NOISE)


def test_weights_and_copies():
    common.assert_stored_and_copied(make, loss)


def test_it_is_saved_and_loaded_by_the_library(tmp_path):
    model = make()
    patch(model)
    model.save_pretrained(tmp_path)
    again = AutoencoderKL.from_pretrained(tmp_path)
    torch.testing.assert_close(again.encode(X).latent_dist.mean, model.encode(X).latent_dist.mean)


def test_it_compiles_as_one_graph():
    common.assert_compiled(make, loss, fullgraph=True)


@pytest.mark.parametrize("wrapped", [True, False])
def test_the_posterior_is_theirs_in_all_else(wrapped):
    plain, model = make(), make()
    patch(model)
    x = X * 200 - 100  # logvar beyond the clamp
    own, fused = ((m.encode(x).latent_dist if wrapped else m.encode(x, return_dict=False)[0]) for m in (plain, model))
    assert isinstance(fused, DiagonalGaussianDistribution)
    with torch.no_grad():
        for posterior in (own, fused):
            posterior.logvar = (posterior.logvar * 100).clamp(-30, 20)
            posterior.std, posterior.var = posterior.logvar.div(2).exp(), posterior.logvar.exp()
    assert fused.mode().equal(own.mode())
    assert fused.nll(own.mean).equal(own.nll(own.mean))
    assert fused.nll(own.mean, dims=[1]).equal(own.nll(own.mean, dims=[1]))
    assert fused.kl(own).equal(own.kl(own))
    torch.testing.assert_close(fused.kl(), own.kl())
    seeded = [posterior.sample(generator=torch.Generator().manual_seed(5)) for posterior in (own, fused)]
    assert seeded[0].equal(seeded[1])


def test_logvar_is_clamped_and_its_gradient_is_theirs():
    gradients = []
    for replaced in (False, True):
        model = make()
        if replaced:
            patch(model)
        model.quant_conv.weight.data *= 100.0
        posterior = model.encode(X).latent_dist
        assert {-30.0, 20.0} <= set(posterior.logvar.unique().tolist())
        posterior.kl().sum().backward()
        gradients.append(model.quant_conv.weight.grad)
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=0)


def test_a_deterministic_posterior_stays_one():
    model = make()
    patch(model)
    posterior = type(model.encode(X).latent_dist)(torch.randn(2, 8, 3, 3), deterministic=True)
    assert posterior.sample().equal(posterior.mean)
    assert posterior.kl().equal(torch.zeros(1))
    assert posterior.nll(posterior.mean).equal(torch.zeros(1))


def test_moments_of_videos_keep_the_axes_that_theirs_keep():
    model = make()
    patch(model)
    fused = type(model.encode(X).latent_dist)(torch.randn(2, 8, 3, 4, 5))
    own = DiagonalGaussianDistribution(fused.parameters)
    torch.testing.assert_close(fused.kl(), own.kl())
    fused.sample()
    torch.testing.assert_close(fused.kl(), own.kl())
    assert fused.kl().shape == (2, 5)


def test_another_autoencoder_of_the_library():
    model = AutoencoderKLTemporalDecoder(block_out_channels=(32,), down_block_types=("DownEncoderBlock2D",))
    with patch(model):
        assert "Fused" in type(model.encode(X).latent_dist).__name__
    assert type(model.encode(X).latent_dist) is DiagonalGaussianDistribution


def test_oobleck_is_refused_with_the_reason():
    model = AutoencoderOobleck(
        encoder_hidden_size=8, decoder_channels=8, channel_multiples=[1], downsampling_ratios=[2]
    )
    with pytest.raises(InputError, match=r"OobleckDiagonalGaussianDistribution cannot be drawn .* two halves"):
        patch(model)
