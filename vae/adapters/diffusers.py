"""Autoencoders of diffusers whose `encode(x).latent_dist` is a diagonal Gaussian, such as AutoencoderKL."""

from typing import Any

import torch
from torch import Tensor, nn

from vaebench.vae.errors import InputError


class DiffusersMeans(nn.Module):
    """Encoder and decoder of a diffusers autoencoder.

    Args:
        centred: whether the model takes images in [-1, 1] where the data are in [0, 1]; means are mapped back.
    """

    def __init__(self, model: Any, *, centred: bool) -> None:
        super().__init__()
        self.model, self.centred = model, centred

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        encoded = self.model.encode(2 * x - 1 if self.centred else x)
        posterior = getattr(encoded, "latent_dist", None)
        mu, logvar = getattr(posterior, "mean", None), getattr(posterior, "logvar", None)
        if not isinstance(mu, Tensor) or not isinstance(logvar, Tensor) or getattr(posterior, "deterministic", False):
            raise InputError(
                f"an audit needs a diffusers autoencoder whose encode(x).latent_dist has mean and logvar, such as "
                f"AutoencoderKL; got {type(self.model).__name__}."
            )
        return mu, logvar

    def mean(self, z: Tensor) -> Tensor:
        decoded = self.model.decode(z).sample
        return torch.as_tensor(0.5 * (decoded + 1) if self.centred else decoded)
