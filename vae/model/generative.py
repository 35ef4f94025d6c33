"""The interface of all models: what training, evaluation and pictures need of p(x|z), p(z) and q(z|x)."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.func import functional_call

from vaebench.vae.errors import InputError
from vaebench.vae.flows import Compose, FlowDistribution, Transform
from vaebench.vae.model.likelihoods import Likelihood, Noiseless
from vaebench.vae.prob.densities import Density, DiagonalGaussian, JointDensity, log_standard_normal
from vaebench.vae.prob.terms import Moved, Terms

# Maps mu and logvar, `(B, K)`, to draws z of the Gaussians and their KL from N(0, I), `(B, K)` and `(B,)`.
Draw = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class GivenLikelihood:
    """What is known of a p(x|z) that another library computes: its name, the shape of x, and its levels if discrete."""

    name: str
    shape: tuple[int, ...]
    levels: int = 0

    @property
    def discrete(self) -> bool:
        """Whether p(x|z) is a probability of data with levels, so that bits per dimension are defined."""
        return self.levels > 0


class GenerativeModel(nn.Module, ABC):
    """p(x|z) p(z) with an approximation q(z|x) of its posterior, where a flow may follow the Gaussian of q or p(z).

    Attributes:
        latent: K, the size of a code.
        likelihood: maps the raw output of the decoder to p(x|z), or describes the one of another library.
        prior_flow: maps codes to noise, if p(z) is not N(0, I).
        posterior_flow: the inverse of T, if q(z|x) is the distribution of T(z0) for z0 of the encoder's Gaussian.
    """

    latent: int
    likelihood: Likelihood | Noiseless | GivenLikelihood
    prior_flow: Transform | None
    posterior_flow: Transform | None

    @property
    @abstractmethod
    def settings(self) -> dict[str, object]:
        """Return the settings of a configuration that this model determines."""

    @property
    @abstractmethod
    def has_codes(self) -> bool:
        """Whether z summarises x and has noise; it does not where x and z determine each other."""

    @property
    @abstractmethod
    def passes(self) -> int:
        """Return the number of successive passes of a network that decoding takes."""

    @abstractmethod
    def encode_with_context(self, x: Tensor) -> tuple[DiagonalGaussian, Tensor | None]:
        """Return the Gaussian of z0 given x `(B, *shape)`, and the context of the posterior flow, `(B, context)`."""

    @abstractmethod
    def decode(self, z: Tensor) -> Density:
        """Return p(x|z) for codes `(..., latent)`, with batch axes `(...)`."""

    @abstractmethod
    def terms(self, x: Tensor, draw: Draw, generator: torch.Generator | None, samples: int = 1) -> Terms:
        """Return the terms of the objective at `samples` draws for each example `(B, *shape)`.

        Args:
            draw: draws the codes.
            generator: draws all other noise.
        """

    @abstractmethod
    def base_joint(self, x: Tensor) -> tuple[JointDensity, DiagonalGaussian]:
        """Return the joint of x and z0 as a function of z0 `(..., B, latent)`, and q(z0|x).

            log p(x, z0) = log p(x|z) + log p(z) + log |det dT/dz0|,    z = T(z0)

        Its integral over z0 is p(x), and log p(x, z0) - log q(z0|x) = log p(x, z) - log q(z|x). Estimators of p(x) can
        therefore sample z0, and T is never inverted. Without a posterior flow z0 is z. With the indices of some of the
        data as a second argument, the joint is that of these data alone.
        """

    def initialise(self, examples: Callable[[], Tensor], generator: torch.Generator) -> None:
        """Initialise the layers that depend on data from examples `(B, *shape)`; without such layers ask for none."""
        return

    def encode(self, x: Tensor) -> DiagonalGaussian:
        """Return q(z|x), or q(z0|x) if a posterior flow follows, for x `(B, *shape)`; of a flow, a point mass."""
        self._require_examples(x)
        return self.encode_with_context(x)[0]

    def transform(self, z0: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return z = T(z0) and log |det dT/dz0|, `(..., B, latent) -> (..., B, latent), (..., B)`."""
        return (self.posterior_flow or Compose()).inverse_and_log_det(z0, context)

    def prior(self, like: Tensor) -> FlowDistribution:
        """Return p(z) with one event for each code of a tensor `(..., latent)`."""
        standard = DiagonalGaussian(torch.zeros_like(like), torch.zeros_like(like))
        return FlowDistribution(self.prior_flow or Compose(), standard)

    def represent(self, x: Tensor) -> Tensor:
        """Return one code for each example, `(B, latent)`: the mean of q(z|x), or T(mean of z0) if there is a T."""
        q, context = self.encode_with_context(x)
        return self.transform(q.mu, context)[0]

    @torch.no_grad()
    def reconstruct(self, x: Tensor) -> Tensor:
        """Return E[x|z] at the code of each example, see `represent`, `(B, *shape) -> (B, *shape)`."""
        self._require_examples(x)
        return self.decode(self.represent(x)).mean

    def sample_prior(self, count: int, generator: torch.Generator | None = None) -> Tensor:
        """Draw codes of p(z), `(count, latent)`, by torch's own generator if none is given."""
        device = generator.device if generator is not None else next(self.parameters(), torch.empty(0)).device
        return self.prior(torch.zeros(count, self.latent, device=device)).rsample(generator)

    @torch.no_grad()
    def sample(self, count: int, generator: torch.Generator | None = None) -> Tensor:
        """Draw examples of p(x), `(count, *shape)`, by torch's own generator if none is given."""
        return self.decode(self.sample_prior(count, generator)).sample(generator)

    def _require_examples(self, x: Tensor) -> None:
        """Raise unless x is a batch of examples as a model is trained on them."""
        required = tuple(self.likelihood.shape)
        if not isinstance(x, Tensor) or not x.is_floating_point() or tuple(x.shape[1:]) != required:
            arrived = f"{x.dtype} of shape {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
            raise InputError(
                f"x must be a tensor of floats (B, {', '.join(map(str, required))}), levels scaled to 0 ... 1 as by "
                f"Split.batch(), got {arrived}."
            )


class GaussianModel(GenerativeModel):
    """A model whose encoder returns a Gaussian, so that z summarises x and has noise, and one pass decodes it."""

    @property
    def has_codes(self) -> bool:
        return True

    @property
    def passes(self) -> int:
        return 1

    def terms(self, x: Tensor, draw: Draw, generator: torch.Generator | None, samples: int = 1) -> Terms:
        """Encode x, draw `samples` codes for each example in one call, decode them.

        Where prior or posterior is a flow, z = T(z0) and, from the KL of the Gaussians in closed form,

            KL(q(z|x) || p(z)) = E [ KL(q(z0|x) || N(0, I)) + log N(z0; 0, I) - log |det dT/dz0| - log p(z) ]

        is estimated at the drawn codes.
        """
        q, context = self.encode_with_context(x)
        if samples == 1:
            z, kl = draw(q.mu, q.logvar)
        else:
            rows, k_kl = draw(q.mu.repeat(samples, 1), q.logvar.repeat(samples, 1))
            z, kl = rows.unflatten(0, (samples, -1)), k_kl.unflatten(0, (samples, -1))
        if self.prior_flow is None and self.posterior_flow is None:
            return Terms(self.decode(z).log_prob(x), kl, z, q)
        z0, (z, log_det) = z, self.transform(z, context)
        prior = self.prior(z)
        kl = kl + log_standard_normal(z0).sum(-1) - log_det - prior.log_prob(z)
        moved = None
        if self.posterior_flow is not None:
            moved = Moved(z0, log_det, partial(_constant_log_prob, self.posterior_flow, q, context))
        return Terms(self.decode(z).log_prob(x), kl, z, q, prior, moved)

    def base_joint(self, x: Tensor) -> tuple[JointDensity, DiagonalGaussian]:
        q, context = self.encode_with_context(x)

        def log_joint(z0: Tensor, rows: Tensor | None = None) -> Tensor:
            chosen, own = (x, context) if rows is None else (x[rows], None if context is None else context[rows])
            z, log_det = self.transform(z0, own)
            return self.decode(z).log_prob(chosen) + self.prior(z).log_prob(z) + log_det

        return log_joint, q


def _constant_log_prob(flow: Transform, q: DiagonalGaussian, context: Tensor | None, z: Tensor) -> Tensor:
    """Return log q(z|x) = log N(f(z); mu, exp(logvar)) + log |det df/dz|, f the flow, with a gradient in z alone."""
    constants = {name: parameter.detach() for name, parameter in flow.named_parameters()}
    own = context if context is None else context.detach()
    z0, log_det = functional_call(flow, constants, (z, own))
    return DiagonalGaussian(q.mu.detach(), q.logvar.detach()).log_prob(z0) + log_det
