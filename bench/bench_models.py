"""Training and evaluation of the reference VAEs, in images a second."""

import pytest
import torch

from vae import data
from vae import model as models
from vae.config import Model, Run, Train
from vae.train import fit

DIGITS = Run(
    model=Model(latent=8, hidden=(128,)),
    train=Train(epochs=10, patience=0, schedule="constant", clip_norm=100.0, device="cpu"),
)


@pytest.fixture(scope="module", autouse=True)
def two_threads():
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def splits():
    return data.load(DIGITS.data)


def bare_loop(splits, config):
    """Train as a person would by hand: textbook reparameterisation and KL, clipping, Adam, nothing else."""
    torch.manual_seed(config.train.seed)
    vae = models.build(config.model, splits.shape, splits.levels)
    optimizer = torch.optim.Adam(vae.parameters(), lr=config.train.learning_rate, fused=True)
    x_all = splits.train.stored
    for _ in range(config.train.epochs):
        for index in torch.randperm(len(x_all)).split(config.train.batch_size):
            x = x_all[index].float() / 16
            q = vae.encode(x)
            std = torch.exp(0.5 * q.logvar)
            z = q.mu + std * torch.randn_like(std)
            kl = -0.5 * torch.sum(1 + q.logvar - q.mu.pow(2) - q.logvar.exp(), dim=1)
            loss = (kl - vae.decode(z).log_prob(x)).mean()
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(vae.parameters(), config.train.clip_norm)
            optimizer.step()


@pytest.mark.parametrize("provider", ["bare loop", "fit", "fit, eager kernels"])
def bench_training_digits_mlp(interleaved, splits, provider):
    """Ten epochs of the digits at batch 64; `fit` also validates, and keeps the best weights."""
    eager = DIGITS.replace({"train.backend": "eager"})
    providers = {
        "bare loop": lambda: bare_loop(splits, DIGITS),
        "fit": lambda: fit(DIGITS, data=splits),
        "fit, eager kernels": lambda: fit(eager, data=splits),
    }
    interleaved("training, digits MLP 64-128-8, batch 64", provider, providers, rounds=15)
