"""The reference VAE: encode -> q(z|x), decode -> p(x|z), with optional flows. It returns densities, not a loss."""

from typing import final

from torch import Tensor, nn

from vaebench.vae.errors import InputError
from vaebench.vae.flows import Transform
from vaebench.vae.model.generative import GaussianModel
from vaebench.vae.model.likelihoods import Likelihood, soft_clamp
from vaebench.vae.prob.densities import Density, DiagonalGaussian, at_least_single

LOGVAR_LIMIT = 15.0


@final
class VAE(GaussianModel):
    """An encoder, a decoder and a likelihood around a code of size `latent`.

    Bring your own networks: the encoder maps `(B, *shape)` to `(B, 2 * latent)`, mu beside logvar; the decoder maps
    `(B, latent)` to `(B, P * shape[0], *shape[1:])` with P = `likelihood.parameters_per_element`.

    Flows, if given, map codes to noise. With a prior flow f, p(z) = N(f(z); 0, I) |det df/dz|. A posterior flow is used
    in its inverse direction, z = T(z0), with z0 from the encoder's Gaussian. T also depends on `context` further
    outputs of the encoder, which then returns `(B, 2 * latent + context)`.
    """

    likelihood: Likelihood

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        likelihood: Likelihood,
        latent: int,
        *,
        prior_flow: Transform | None = None,
        posterior_flow: Transform | None = None,
        context: int = 0,
    ) -> None:
        super().__init__()
        self.encoder, self.decoder, self.likelihood, self.latent = encoder, decoder, likelihood, latent
        self.prior_flow, self.posterior_flow, self.context = prior_flow, posterior_flow, context

    def extra_repr(self) -> str:
        return f"latent={self.latent}, context={self.context}"

    @property
    def settings(self) -> dict[str, object]:
        return {
            "model.kind": "vae",
            "model.latent": self.latent,
            "model.likelihood": self.likelihood.name,
            "model.prior": "normal" if self.prior_flow is None else "flow",
            "model.posterior": "gaussian" if self.posterior_flow is None else "iaf",
            **({"model.components": self.likelihood.components} if self.likelihood.name == "logistic_mixture" else {}),
        }

    def encode_with_context(self, x: Tensor) -> tuple[DiagonalGaussian, Tensor | None]:
        """Return q(z|x), or q(z0|x), and the context; logvar is softly clamped to +-15, only here."""
        h = self.encoder(x)
        required = (x.shape[0], 2 * self.latent + self.context)
        if not isinstance(h, Tensor) or h.shape != required:
            arrived = tuple(h.shape) if isinstance(h, Tensor) else type(h).__name__
            width = "2 * latent + context" if self.context else "2 * latent"
            raise InputError(f"the encoder must return (B, {width}) = {required}, one tensor, got {arrived}.")
        moments, context = at_least_single(h), None
        if self.context:
            moments, context = moments.split([2 * self.latent, self.context], dim=1)
        mu, logvar = moments.chunk(2, dim=1)
        return DiagonalGaussian(mu, soft_clamp(logvar, LOGVAR_LIMIT)), context

    def decode(self, z: Tensor) -> Density:
        raw = at_least_single(self.decoder(z.reshape(-1, self.latent)))
        density: Density = self.likelihood(raw.reshape(*z.shape[:-1], *raw.shape[1:]))
        return density
