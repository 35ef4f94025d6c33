"""Networks and the reference VAE: shapes, the clamp of logvar, likelihoods, and your own encoder and decoder."""

import pytest
import torch
from torch import nn

from vaebench.vae import model as models
from vaebench.vae.config.run import Model
from vaebench.vae.errors import InputError
from vaebench.vae.model.autoencoder import LOGVAR_LIMIT, VAE, soft_clamp
from vaebench.vae.model.likelihoods import Likelihood
from vaebench.vae.prob.densities import DiagonalGaussian

IMAGES = [(1, 8, 8), (1, 28, 28), (3, 32, 32), (1, 64, 64), (3, 64, 64)]


@pytest.mark.parametrize("shape", IMAGES)
@pytest.mark.parametrize("network", ["mlp", "conv", "residual", "linear"])
@pytest.mark.parametrize("likelihood", ["gaussian", "discretised_logistic", "logistic_mixture"])
def test_every_network_fits_every_image(network, shape, likelihood):
    hidden = (16, 8) if shape[1] > 8 else (16,)
    config = Model(network=network, latent=5, hidden=hidden, dense=(12,), likelihood=likelihood)
    model = models.build(config, shape, levels=0 if likelihood == "gaussian" else 256)
    x = torch.rand(3, *shape)
    q = model.encode(x)
    assert isinstance(q, DiagonalGaussian)
    assert q.mu.shape == q.logvar.shape == (3, 5)
    p = model.decode(q.mu)
    assert p.mean.shape == x.shape
    assert p.log_prob(x).shape == (3,)


def test_every_parameter_receives_a_gradient():
    for network in ("mlp", "conv", "residual", "linear"):
        config = Model(network=network, latent=4, hidden=(16,), dense=(9,), likelihood="gaussian", learn_sigma=True)
        model = models.build(config, (1, 16, 16), levels=0)
        q = model.encode(torch.rand(6, 1, 16, 16))
        z = q.mu + torch.exp(q.logvar / 2)
        (model.decode(z).log_prob(torch.rand(6, 1, 16, 16)).sum()).backward()
        silent = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
        assert not silent


def test_codes_with_sample_axes_decode_like_each_of_them():
    model = models.build(Model(latent=3, hidden=(16,)), (1, 8, 8), levels=17)
    z_SBK = torch.randn(4, 5, 3)
    x = torch.randint(0, 17, (5, 1, 8, 8)) / 16
    together = model.decode(z_SBK).log_prob(x)
    assert together.shape == (4, 5)
    for s in range(4):
        assert torch.allclose(together[s], model.decode(z_SBK[s]).log_prob(x), atol=1e-4)


def test_the_clamp_is_the_identity_near_zero_and_never_passes_its_limit():
    x = torch.tensor([-1e30, -100.0, -0.1, 0.0, 0.1, 100.0, 1e30], dtype=torch.float64, requires_grad=True)
    y = soft_clamp(x, LOGVAR_LIMIT)
    assert (y.abs() <= LOGVAR_LIMIT).all()
    assert torch.allclose(y[2:5], x[2:5], atol=1e-5)
    y.sum().backward()
    assert x.grad.isfinite().all()
    assert x.grad[3] == 1


def test_a_decoder_of_ones_own_is_held_to_its_contract():
    likelihood = Likelihood("bernoulli", (1, 8, 8), levels=2)
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(64, 6))
    decoder = nn.Sequential(nn.Linear(3, 64), nn.Unflatten(1, (1, 8, 8)))
    model = VAE(encoder, decoder, likelihood, latent=3)
    assert model.decode(model.encode(torch.rand(2, 1, 8, 8)).mu).mean.shape == (2, 1, 8, 8)
    with pytest.raises(InputError, match=r"must return \(B, 2 \* latent\) = \(2, 8\), one tensor, got \(2, 6\)"):
        VAE(encoder, decoder, likelihood, latent=4).encode(torch.rand(2, 1, 8, 8))
    narrow = VAE(encoder, decoder, Likelihood("discretised_logistic", (1, 8, 8), levels=17), latent=3)
    with pytest.raises(InputError, match=r"decoder must return \(B, 2, 8, 8\) .* got \(B, 1, 8, 8\)"):
        narrow.decode(torch.rand(2, 3))


@pytest.mark.parametrize(
    ("name", "levels", "message"),
    [
        ("bernoulli", 17, r"bernoulli needs data of 2 levels, got 17"),
        ("bernoulli", 0, r"bernoulli needs data of 2 levels, got continuous data"),
        ("discretised_logistic", 0, r"discretised_logistic needs data with at least 2 levels, got continuous data"),
        ("logistic_mixture", 0, r"logistic_mixture needs data with at least 2 levels, got continuous data"),
        ("poisson", 0, r"must be one of bernoulli, gaussian, discretised_logistic, logistic_mixture .* got 'poisson'"),
    ],
)
def test_likelihoods_refuse_data_they_cannot_describe(name, levels, message):
    with pytest.raises(InputError, match=message):
        Likelihood(name, (1, 8, 8), levels=levels)


@pytest.mark.parametrize("network", ["conv", "residual"])
@pytest.mark.parametrize(("shape", "hidden"), [((1, 7, 7), (8,)), ((64,), (8,)), ((1, 8, 16), (8,)), ((1, 8, 8), ())])
def test_convolutions_refuse_what_they_cannot_halve(network, shape, hidden):
    with pytest.raises(InputError, match=f"{network} needs"):
        models.build(Model(network=network, hidden=hidden), shape, levels=17)


@pytest.mark.parametrize("network", ["conv", "residual"])
@pytest.mark.parametrize(("side", "hidden", "halvings"), [(8, (8, 16), 1), (16, (8,) * 6, 2), (28, (4, 8, 16), 2)])
def test_widths_beyond_the_halvings_are_refused(network, side, hidden, halvings):
    """An image of 28 pixels is halved to 14 and to 7; a third width would be in no layer."""
    said = rf"halves images of {side} pixels to \d pixels in {halvings} steps, .* give at most {halvings}\."
    with pytest.raises(InputError, match=said):
        models.build(Model(network=network, hidden=hidden), (1, side, side), levels=17)
    models.build(Model(network=network, hidden=hidden[:halvings]), (1, side, side), levels=17)


@pytest.mark.parametrize("sizes", [{"latent": 10**8}, {"hidden": (10**6, 10**6)}, {"hidden": (10**10, 10**10)}])
def test_a_model_that_no_memory_holds_is_refused_before_it_is_built(sizes):
    with pytest.raises(InputError, match=r"needs at least [\d,]+ GB to be trained|more than can be counted") as refusal:
        models.require_memory(Model(**sizes), (1, 8, 8), 17)
    if sizes == {"latent": 10**8}:  # 256 x 2K and 2K to encode, 256 K to decode, and the layers between
        parameters = 770 * 10**8 + 64 * 256 + 256 + 2 * (256 * 256 + 256) + 256 + 256 * 128 + 128
        said = f"a model of {parameters:.3g} parameters needs at least {16 * parameters / 1e9:,.0f} GB"
        assert said in str(refusal.value)
    models.require_memory(Model(), (1, 8, 8), 17)


def test_half_precision_networks_give_single_precision_densities():
    model = models.build(Model(latent=3, hidden=(16,)), (1, 8, 8), levels=17)
    with torch.autocast("cpu", torch.bfloat16):
        q = model.encode(torch.rand(2, 1, 8, 8))
        log_prob = model.decode(q.mu).log_prob(torch.rand(2, 1, 8, 8))
    assert q.logvar.dtype == log_prob.dtype == torch.float32
