"""Models of pythae with a Gaussian q(z|x), the prior N(0, I) and a pixelwise reconstruction loss."""

from typing import Any

from torch import Tensor, nn

from vaebench.vae.errors import InputError

# Each encodes to the moments of a Gaussian, and decodes what is drawn from it.
SERVED = (
    *("VAE", "BetaVAE", "BetaTCVAE", "DisentangledBetaVAE", "FactorVAE", "INFOVAE_MMD", "Adversarial_AE"),
    *("IWAE", "MIWAE", "PIWAE", "CIWAE"),
)
LOSSES = ("mse", "bce")


class PythaeMeans(nn.Module):
    """Encoder and decoder of a pythae model; `loss` is its reconstruction loss."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        name = type(model).__name__
        self.loss = getattr(model.model_config, "reconstruction_loss", None)
        if name not in SERVED or self.loss not in LOSSES:
            raise InputError(
                f"of pythae these models have a Gaussian q(z|x), the prior N(0, I) and a likelihood: "
                f"{', '.join(SERVED)}, with a reconstruction_loss of mse or bce; got {name} with {self.loss}."
            )
        self.encoder, self.decoder = model.encoder, model.decoder

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        found = self.encoder(x)
        return found.embedding, found.log_covariance

    def mean(self, z: Tensor) -> Tensor:
        reconstruction: Tensor = self.decoder(z)["reconstruction"]
        return reconstruction
