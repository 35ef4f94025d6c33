"""Log-densities and samplers: Gaussians, Bernoulli, the discretised logistic and its mixtures, a point mass.

Every density has batch axes first and `event_ndim` event axes last. `log_prob` sums over the event, in nats, and
broadcasts over the batch: parameters `(S, B, *event)` and data `(B, *event)` give `(S, B)`. Parameters broadcast
against each other too; samples and means have their common shape.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from vaebench.vae.prob.draws import normal_like, uniform_like

LOG_2PI = math.log(2 * math.pi)

LogDensity = Callable[[Tensor], Tensor]
# Maps codes `(S, b, K)` and the indices `(b,)` of their data to log p(x_b, z_sb), `(S, b)`.
IndexedLogDensity = Callable[[Tensor, Tensor], Tensor]


class JointDensity(Protocol):
    """log p(x, z) as a function of z `(..., B, K)`, for all data or for the indexed ones: serves as either of both."""

    def __call__(self, z: Tensor, rows: Tensor | None = None, /) -> Tensor:
        """Return log p(x, z), `(..., B)`."""


class Density(ABC):
    """A distribution over events of `event_ndim` axes with a known log-density."""

    event_ndim: int

    @abstractmethod
    def log_prob_elementwise(self, x: Tensor) -> Tensor:
        """Return log p of each element, `(*batch, *event)`, in nats."""

    @abstractmethod
    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """Draw one event for each batch entry, `(*batch, *event)`."""

    @property
    @abstractmethod
    def mean(self) -> Tensor:
        """Return the expected event, `(*batch, *event)`."""

    def log_prob(self, x: Tensor) -> Tensor:
        """Return log p(x), summed over the event, `(*batch,)`."""
        return self.log_prob_elementwise(x).flatten(-self.event_ndim).sum(-1)


@dataclass(frozen=True)
class DiagonalGaussian(Density):
    """N(mu, diag(exp(logvar))).

        log p(x) = -1/2 sum_k ( ((x_k - mu_k) exp(-logvar_k / 2))^2 + logvar_k + log 2 pi )

    Example:
        >>> DiagonalGaussian(torch.zeros(2), torch.zeros(2)).log_prob(torch.zeros(2))
        tensor(-1.8379)
    """

    mu: Tensor
    logvar: Tensor
    event_ndim: int = 1

    def log_prob_elementwise(self, x: Tensor) -> Tensor:
        return -0.5 * (((x - self.mu) * torch.exp(-0.5 * self.logvar)) ** 2 + self.logvar + LOG_2PI)

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        return self.mu + torch.exp(0.5 * self.logvar) * normal_like(self.mean, generator)

    @property
    def mean(self) -> Tensor:
        return _broadcast(self.mu, self.logvar)


def at_least_single(x: Tensor) -> Tensor:
    """Return parameters of a density in float32 where they are of half precision, as autocast makes them."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def log_standard_normal(z: Tensor) -> Tensor:
    """Return log N(z_k; 0, 1) = -(z_k^2 + log 2 pi) / 2 of each element."""
    return -0.5 * (z.square() + LOG_2PI)


@dataclass(frozen=True)
class Gaussian(Density):
    """N(mu, sigma^2 I) with one positive scalar tensor sigma: the likelihood of continuous data.

    log p(x) = -1/2 sum_d ( (x_d - mu_d)^2 / sigma^2 + log sigma^2 + log 2 pi )
    """

    mu: Tensor
    sigma: Tensor
    event_ndim: int = 1

    def log_prob_elementwise(self, x: Tensor) -> Tensor:
        return -0.5 * (((x - self.mu) / self.sigma) ** 2 + LOG_2PI) - torch.log(self.sigma)

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        return self.mu + self.sigma * normal_like(self.mean, generator)

    @property
    def mean(self) -> Tensor:
        return _broadcast(self.mu, self.sigma)


class PointMass(DiagonalGaussian):
    """All probability at one point, N(point, 0): log p is infinite there and minus infinite elsewhere."""

    def __init__(self, point: Tensor, event_ndim: int = 1) -> None:
        dtype = point.dtype if point.is_floating_point() else None
        logvar = torch.full((), -torch.inf, dtype=dtype, device=point.device)
        super().__init__(point, logvar.expand_as(point), event_ndim)

    def log_prob_elementwise(self, x: Tensor) -> Tensor:
        return torch.where(x == self.mu, torch.inf, -torch.inf)

    def log_prob(self, x: Tensor) -> Tensor:
        return torch.where((x == self.mu).flatten(-self.event_ndim).all(-1), torch.inf, -torch.inf)

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        return self.mu


@dataclass(frozen=True)
class Bernoulli(Density):
    """Independent bits with P(x_d = 1) = sigmoid(logits_d).

    log p(x) = sum_d ( x_d logits_d - softplus(logits_d) )
    """

    logits: Tensor
    event_ndim: int = 1

    def log_prob_elementwise(self, x: Tensor) -> Tensor:
        return x * self.logits - F.softplus(self.logits)

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        return torch.bernoulli(self.mean, generator=generator)

    @property
    def mean(self) -> Tensor:
        return torch.sigmoid(self.logits)


@dataclass(frozen=True)
class DiscretisedLogistic(Density):
    """A logistic variable rounded to n levels 0, 1/(n-1), ..., 1, where the outer levels take the tails.

        P(x) = F((x + h - mu) / s) - F((x - h - mu) / s),    F = sigmoid, h = 1 / (2 (n - 1)), s = exp(log_scale)

    With b > a the two arguments, log P = log F(b) + log F(-a) + log(1 - exp(a - b)), and a - b = -2 h / s does not
    depend on mu: nothing cancels however far x lies in a tail. The lowest level has log F(b) alone, the highest
    log F(-a) alone. Values and gradients stay finite: where 1 / s or |x - mu| / s would exceed a quarter of the largest
    number of the dtype, s is replaced by the smallest scale that does not, exp(-87) in single precision for
    |x - mu| <= 1.

    Reference: Kingma et al., Improving Variational Inference with Inverse Autoregressive Flow, 2016.
    """

    mu: Tensor
    log_scale: Tensor
    levels: int
    event_ndim: int = 1

    def log_prob_elementwise(self, x: Tensor) -> Tensor:
        half_step = 0.5 / (self.levels - 1)
        difference = x - self.mu
        inverse_scale = _inverse_scale(self.log_scale, difference)
        centred = difference * inverse_scale
        half_width = half_step * inverse_scale
        below_upper = F.logsigmoid(centred + half_width)
        above_lower = F.logsigmoid(half_width - centred)
        log_width = torch.log(-torch.expm1(-2 * half_width))
        not_lowest, not_highest = (x >= half_step).to(x.dtype), (x <= 1 - half_step).to(x.dtype)
        return below_upper * not_highest + above_lower * not_lowest + log_width * (not_lowest * not_highest)

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        u = uniform_like(_broadcast(self.mu, self.log_scale), generator)
        x = self.mu + torch.exp(self.log_scale) * torch.logit(u, eps=1e-6)
        return (x.clamp(0, 1) * (self.levels - 1)).round() / (self.levels - 1)

    @property
    def mean(self) -> Tensor:
        """Return E[x] = (1/(n-1)) sum over the n - 1 cell borders of P(x above the border)."""
        step = 1 / (self.levels - 1)
        borders = torch.arange(self.levels - 1, dtype=self.mu.dtype, device=self.mu.device) * step + step / 2
        inverse_scale = _inverse_scale(self.log_scale, 1 + self.mu.abs())
        return reduce(torch.add, (torch.sigmoid((self.mu - border) * inverse_scale) for border in borders)) * step


@dataclass(frozen=True)
class LogisticMixture(Density):
    """A mixture of M discretised logistics for each element; elements are independent.

        log P(x) = logsumexp_m ( log pi_m + log P_m(x) ),    pi = softmax(logits)

    Shapes: logits, mu, log_scale `(*batch, M, *event)`.

    Reference: Salimans et al., PixelCNN++, 2017.

    Example:
        >>> zero = torch.zeros(2, 1)
        >>> bits = LogisticMixture(zero, torch.tensor([[0.0], [1.0]]), zero - 6, levels=2)
        >>> bits.mean, bits.log_prob(torch.tensor([1.0])).exp()
        (tensor([0.5000]), tensor(0.5000))
    """

    logits: Tensor
    mu: Tensor
    log_scale: Tensor
    levels: int
    event_ndim: int = 1

    @property
    def components(self) -> DiscretisedLogistic:
        """Return the M densities of each element, as a batch."""
        return DiscretisedLogistic(self.mu, self.log_scale, self.levels, self.event_ndim)

    @property
    def component_logits(self) -> Tensor:
        """Return the logits in the shape of the components: one logit may be shared by all M of them."""
        return _broadcast(self.logits, self.mu, self.log_scale)

    @property
    def axis(self) -> int:
        """Return the axis of the components."""
        return -self.event_ndim - 1

    def log_prob_elementwise(self, x: Tensor) -> Tensor:
        each = self.components.log_prob_elementwise(x.unsqueeze(self.axis))
        log_joint = self.component_logits.log_softmax(self.axis) + each
        # The gradient exp(log_joint - result) of logsumexp has no digits left where the result is large
        largest = log_joint.detach().amax(self.axis, keepdim=True)
        return largest.squeeze(self.axis) + torch.logsumexp(log_joint - largest, self.axis)

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """Draw a component, the first of M exponential arrivals with rates pi, and then an event from it."""
        logits, *others = torch.broadcast_tensors(self.logits, self.mu, self.log_scale)
        arrivals = torch.empty_like(logits).exponential_(generator=generator)
        chosen = (logits - arrivals.log()).argmax(self.axis, keepdim=True)
        mu, log_scale = (values.gather(self.axis, chosen).squeeze(self.axis) for values in others)
        return DiscretisedLogistic(mu, log_scale, self.levels, self.event_ndim).sample(generator)

    @property
    def mean(self) -> Tensor:
        return (self.component_logits.softmax(self.axis) * self.components.mean).sum(self.axis)


def _inverse_scale(log_scale: Tensor, distance: Tensor) -> Tensor:
    """Return 1/s, so bounded that distance / s is a number; the gradient in log_scale is -1/s there too."""
    with torch.no_grad():
        smallest = distance.abs().clamp(min=1).log() - math.log(torch.finfo(distance.dtype).max / 4)
        excess = (smallest - log_scale).clamp(min=0)
    return torch.exp(-(log_scale + excess))


def _broadcast(first: Tensor, *others: Tensor) -> Tensor:
    """Return the first parameter in the common shape of all, without a copy."""
    return torch.broadcast_tensors(first, *others)[0]
