"""A linear VAE trained by `fit` finds the optimum that probabilistic PCA has in closed form.

Reference: Lucas et al., Don't Blame the ELBO! A Linear VAE Perspective on Posterior Collapse, 2019.
"""

from dataclasses import replace

import pytest
import torch

from vaebench.vae.config.run import Data, Model, Run, Train
from vaebench.vae.data import load
from vaebench.vae.estimators.exact import ProbabilisticPCA, fit_ppca
from vaebench.vae.objective import InfoVAE
from vaebench.vae.training.fit import fit

DATA = Data(name="linear", size=4000, features=12, rank=4, noise=0.5)
TRAIN = Train(epochs=150, batch_size=400, learning_rate=3e-2, patience=0, device="cpu")


def learned_model(vae):
    """Return the probabilistic PCA model that a linear decoder is."""
    layer = vae.decoder[0]
    sigma = vae.likelihood.log_sigma.exp().item()
    return ProbabilisticPCA(layer.weight.detach().double(), layer.bias.detach().double(), sigma**2)


def test_it_comes_within_a_twentieth_of_a_nat_of_maximum_likelihood():
    model = Model(network="linear", latent=4, likelihood="gaussian", sigma=1.0, learn_sigma=True)
    result = fit(Run(DATA, model, train=TRAIN))
    train = result.splits.train.batch().double()
    best = fit_ppca(train, 4).log_prob(train).mean().item()
    found = learned_model(result.model).log_prob(train).mean().item()
    bound = result.history[-1]["train/elbo"]
    assert best - 0.05 < found <= best
    assert bound == pytest.approx(found, abs=0.05), "at the optimum the bound is tight"
    assert result.model.likelihood.log_sigma.exp().item() == pytest.approx(0.5, rel=0.02)


@pytest.mark.parametrize(("beta", "kept"), [(2.0, 4), (7.8, 3), (16.6, 2)])
def test_beta_keeps_exactly_the_directions_above_beta_times_the_noise(beta, kept):
    """The latents offered are 8; the eigenvalues are 9.4, 5.8, 3.1, 1.2 and eight near the noise's 0.25."""
    splits = load(DATA)
    train = splits.train.batch().double()
    eigenvalues = torch.linalg.eigvalsh(torch.cov(train.T, correction=0)).flip(0)
    threshold = beta * DATA.noise**2
    assert ((eigenvalues / threshold - 1).abs() >= 0.25).all(), "too close to the threshold to tell"
    assert int((eigenvalues > threshold).sum()) == kept
    model = Model(network="linear", latent=8, likelihood="gaussian", sigma=DATA.noise)
    result = fit(Run(DATA, model, InfoVAE(beta=beta), TRAIN), data=splits)
    strengths = torch.linalg.svdvals(result.model.decoder[0].weight.detach()).double() ** 2
    assert int((strengths > 0.1 * threshold).sum()) == kept
    assert (strengths[kept:] < 0.01 * threshold).all()
    active = int((result.model.encode(splits.train.batch()).mu.var(0) > 0.01).sum())
    assert active == kept


@pytest.mark.slow
def test_the_kept_directions_have_the_predicted_strength():
    """Squared singular values lambda_i - beta sigma^2; the directions take their time to turn into place."""
    splits = load(DATA)
    train = splits.train.batch().double()
    eigenvalues = torch.linalg.eigvalsh(torch.cov(train.T, correction=0)).flip(0)
    model = Model(network="linear", latent=8, likelihood="gaussian", sigma=DATA.noise)
    patient = replace(TRAIN, batch_size=100, learning_rate=1e-2, epochs=400)
    result = fit(Run(DATA, model, InfoVAE(beta=7.8), patient), data=splits)
    strengths = torch.linalg.svdvals(result.model.decoder[0].weight.detach()).double() ** 2
    assert torch.allclose(strengths[:3], eigenvalues[:3] - 7.8 * DATA.noise**2, rtol=0.03)
