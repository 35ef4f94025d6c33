"""What does a loss optimise? The weight that it gives to the KL, read off its gradients at random points."""

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.distributions import Normal

from vaebench import kernels
from vaebench.vae.errors import InputError
from vaebench.vae.model.adapted import moments_of
from vaebench.vae.prob.aggregate import stratified_log_weights
from vaebench.vae.prob.divergences import gaussian_kl

Loss = Callable[..., Tensor]
Likelihood = Literal["bernoulli", "bernoulli_logits", "gaussian"]

TOLERANCE = 1e-3
LONG_AFTER = 1_000


@dataclass(frozen=True)
class EffectiveWeights:
    """What a loss optimises, in units of the negative ELBO: L = c (E_q[-log p(x|z)] + kl KL).

    Attributes:
        kl: the weight of the KL relative to the likelihood's, after a warm-up; nan where the likelihood has none.
        likelihood: c times the size of the batch, 1 for a mean over the batch; scaling a loss does no harm.
        kl_at_end: the weight of the KL at the last step of training; nan as above.
        warnings: one sentence for each difference between the loss and what it claims to be.
    """

    kl: float
    likelihood: float
    kl_at_end: float
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class _Claim:
    likelihood: str
    sigma: float
    data_size: int | None


@dataclass(frozen=True)
class _Point:
    """Where gradients are taken: leaves output, mu, logvar and z."""

    x: Tensor
    output: Tensor
    mu: Tensor
    logvar: Tensor
    z: Tensor

    @property
    def code(self) -> list[Tensor]:
        return [self.mu, self.logvar, self.z]


@dataclass(frozen=True)
class _Weights:
    """The gradient of a loss in terms of the parts of an ELBO."""

    likelihood: float
    kl: float
    output_residual: float
    code_residual: float
    codes: Literal["closed", "drawn", "minibatch", "stratified"]

    @property
    def relative(self) -> float:
        """The weight of the KL relative to the likelihood's, nan where that is 0."""
        return self.kl / self.likelihood if self.likelihood else math.nan


def effective_weights(
    model: Any,
    loss: Loss,
    x: Tensor,
    *,
    likelihood: Likelihood = "bernoulli",
    sigma: float = 1.0,
    beta: float = 1.0,
    data_size: int | None = None,
    steps: int | None = None,
) -> EffectiveWeights:
    """Find the weight that a loss really gives to the KL relative to the likelihood that it claims to have.

    With o the decoder's output, the gradients of the loss L are compared with those of the parts of an ELBO:

        dL/do = a d/do sum_b -log p(x_b|o_b),    dL/d(mu, logvar) = b d/d(mu, logvar) sum_b KL_b,    weight = b / a

    at random outputs and codes, with two sizes of the batch. The weight of a correct loss is `beta`. Other values are
    explained by the number of elements, of latents, of examples, or the size of the batch.

    Args:
        model: has `encode(x)`, which returns (mu, logvar) or a Normal, and `decode(z)`; only their shapes are used.
        loss: `loss(output, x, mu, logvar)`, a scalar; it may also take `z` and `step` by these names.
        x: a batch of at least 4 examples.
        likelihood: what `output` means: probabilities, logits, or means of a Gaussian with this `sigma`.
        beta: the weight of the KL that the loss claims to have.
        data_size: the number of examples in the training set, for weights that depend on it.
        steps: the number of steps of a training, needed for a loss that takes `step`.

    Example:
        >>> class Model:
        ...     def encode(self, x):
        ...         return x[:, :2], x[:, :2]
        ...     def decode(self, z):
        ...         return z.repeat(1, 3)
        >>> def loss(output, x, mu, logvar):
        ...     kl = -0.5 * (1 + logvar - mu**2 - logvar.exp()).sum()
        ...     return torch.nn.functional.binary_cross_entropy(output, x) + kl / len(x)
        >>> found = effective_weights(Model(), loss, torch.rand(8, 6))
        >>> round(found.kl, 3), found.warnings
        (6.0, ('the likelihood is averaged over its 6 elements, and the KL is not',))
    """
    names = inspect.signature(loss).parameters
    if len(x) < 4:
        raise InputError(f"effective_weights needs a batch of at least 4 examples, got {len(x)}.")
    if ("step" in names) != (steps is not None):
        raise InputError(
            "effective_weights needs steps, the length of a training, for a loss with a step, and only then."
        )
    claim = _Claim(likelihood, sigma, data_size)
    point, smaller = (_point(model, x[:rows], claim) for rows in (2 * (len(x) // 2), len(x) // 2))
    end = {} if steps is None else {"step": steps - 1}
    # the phase of the last step, for a schedule of cycles
    late = {} if steps is None else {"step": LONG_AFTER * steps + steps - 1}
    found, half = _weights(loss, point, claim, late), _weights(loss, smaller, claim, late)
    at_end = _weights(loss, point, claim, end)
    differences = _differences(found, point, loss, claim, late)
    warnings = (*differences, *_mixtures(found, half, beta, point, claim), *_changes(found, at_end))
    return EffectiveWeights(found.relative, found.likelihood * len(point.x), at_end.relative, warnings)


def _point(model: Any, x: Tensor, claim: _Claim) -> _Point:
    """Return random leaves of the model's shapes, in double precision; codes are those of the random mu and logvar."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        encoded = model.encode(x)
        mean = encoded[0] if isinstance(encoded, tuple | list) else moments_of(encoded)[0]
        output = model.decode(mean)
    noise = [torch.randn(mean.shape, generator=generator, dtype=torch.float64) for _ in range(3)]
    mu, logvar = noise[0], 0.5 * noise[1] - 0.5
    z = mu + torch.exp(logvar / 2) * noise[2]
    draw = torch.rand if claim.likelihood == "bernoulli" else torch.randn
    o = draw(output.shape, generator=generator, dtype=torch.float64)
    o = 0.1 + 0.8 * o if claim.likelihood == "bernoulli" else o
    return _Point(x.detach().cpu().double(), *(one.requires_grad_() for one in (o, mu, logvar, z)))


def _weights(loss: Loss, point: _Point, claim: _Claim, step: dict[str, int]) -> _Weights:
    of_output, *of_code = _gradients(_value(loss, point, step), [point.output, *point.code])
    (likelihood,), output_residual = _fit(of_output, _gradients(_nll(point, claim), [point.output]))
    of_kl = _gradients(gaussian_kl(point.mu, point.logvar).sum(), point.code)
    (kl,), residual = _fit(_flat(of_code[:2]), [_flat(of_kl[:2])])
    if residual < TOLERANCE or not of_code[2].any():
        return _Weights(likelihood, kl, output_residual, residual, "closed")
    pointwise = [_flat(_gradients(one, point.code)) for one in _pointwise(point)]
    (kl_itself, conditional, prior), open_share = _fit(_flat(of_code), [_flat(of_kl), *pointwise])
    if open_share < TOLERANCE:
        unlike = abs(conditional + prior) > TOLERANCE * abs(conditional)
        return _Weights(likelihood, kl_itself + conditional, output_residual, 1.0 if unlike else open_share, "drawn")
    if claim.data_size is None:
        raise InputError("effective_weights needs data_size for a loss that estimates q(z) from a batch.")
    for weighting in ("stratified", "minibatch"):
        parts = [_flat(_gradients(one, point.code)) for one in _aggregates(point, claim.data_size, weighting)]
        (kl_itself, conditional, *_), open_share = _fit(_flat(of_code), [_flat(of_kl), *pointwise, *parts])
        if open_share < TOLERANCE:
            return _Weights(likelihood, kl_itself + conditional, output_residual, open_share, weighting)
    return _Weights(likelihood, kl, output_residual, residual, "closed")


def _value(loss: Loss, point: _Point, step: dict[str, int]) -> Tensor:
    codes = {"z": point.z} if "z" in inspect.signature(loss).parameters else {}
    return loss(point.output, point.x, point.mu, point.logvar, **codes, **step)


def _nll(point: _Point, claim: _Claim) -> Tensor:
    """Return sum_b -log p(x_b|o_b), up to a constant."""
    o, x = point.output, point.x.reshape(point.output.shape)
    if claim.likelihood == "gaussian":
        return (x - o).square().sum() / (2 * claim.sigma**2)
    if claim.likelihood == "bernoulli_logits":
        return torch.nn.functional.binary_cross_entropy_with_logits(o, x, reduction="sum")
    return torch.nn.functional.binary_cross_entropy(o, x, reduction="sum")


def _pointwise(point: _Point) -> list[Tensor]:
    """Return sums of log q(z|x) and, up to a constant, log p(z)."""
    conditional = Normal(point.mu, torch.exp(point.logvar / 2)).log_prob(point.z)
    return [conditional.sum(), -0.5 * point.z.square().sum()]


def _aggregates(point: _Point, data_size: int, weighting: str) -> list[Tensor]:
    """Return sums of log q(z) and sum_k log q_k(z_k), q(z) as estimated from the batch."""
    weights = stratified_log_weights(len(point.mu), data_size).double() if weighting == "stratified" else None
    joint, marginals = kernels.log_aggregate(point.z, point.mu, point.logvar, log_weights=weights)
    return [joint.sum(), marginals.sum()]


def _gradients(value: Tensor, leaves: list[Tensor]) -> list[Tensor]:
    found = torch.autograd.grad(value, leaves, allow_unused=True, retain_graph=True) if value.requires_grad else leaves
    return [
        torch.zeros_like(leaf) if one is None or one is leaf else one for one, leaf in zip(found, leaves, strict=True)
    ]


def _flat(tensors: list[Tensor]) -> Tensor:
    return torch.cat([one.flatten() for one in tensors])


def _fit(target: Tensor, parts: list[Tensor]) -> tuple[list[float], float]:
    """Return the weights of parts whose sum is nearest to a gradient, and the share of it that they leave open."""
    goal, columns = target.flatten(), torch.stack([part.flatten() for part in parts], 1)
    weights = torch.linalg.lstsq(columns, goal[:, None], driver="gelsd").solution[:, 0]
    size = float(goal.norm())
    return weights.tolist(), float((columns @ weights - goal).norm()) / size if size else 0.0


def _differences(found: _Weights, point: _Point, loss: Loss, claim: _Claim, step: dict[str, int]) -> list[str]:
    """Return what in the loss is no part of an ELBO, or rewards what it should penalise."""
    sentences = []
    if not found.likelihood:
        sentences.append("no gradient of the loss reaches the decoder's output as that of a likelihood")
    elif found.output_residual > TOLERANCE or found.likelihood < 0:
        sentences.append(f"the reconstruction is not the negative log-likelihood {claim.likelihood}")
    if found.code_residual > TOLERANCE:
        sentences.append("the term of mu and logvar is not KL(N(mu, exp(logvar)) || N(0, I))")
    if found.codes == "minibatch":
        sentences.append(
            "q(z) is estimated by equal weights of the minibatch, which overweighs an example's own posterior: "
            "the total correlation can come out negative; stratified weights are unbiased"
        )
    elif found.codes == "closed" and _rewards_mismatch(point, loss, step):
        sentences.append("the term of the codes rewards a mismatch between q(z) and p(z)")
    return sentences


def _rewards_mismatch(point: _Point, loss: Loss, step: dict[str, int]) -> bool:
    """Return whether codes that are twice as wide as the prior lower the loss by becoming wider still."""
    if "z" not in inspect.signature(loss).parameters:
        return False
    generator = torch.Generator().manual_seed(1)
    wide = (2 * torch.randn(point.z.shape, generator=generator, dtype=torch.float64)).requires_grad_()
    moved = _Point(point.x, point.output, point.mu, point.logvar, wide)
    (gradient,) = _gradients(_value(loss, moved, step), [wide])
    return float((gradient * wide.detach()).sum()) < 0


def _changes(found: _Weights, at_end: _Weights) -> list[str]:
    """Return how the weight of the KL at the last step differs from that long after."""
    kl, kl_at_end = found.relative, at_end.relative
    if not abs(kl_at_end - kl) > TOLERANCE * abs(kl):
        return []
    if _is_without_kl(found):
        return [f"the weight of the KL is {kl_at_end:.3g} at the last step, and does not stay"]
    return [f"the warm-up does not end: at the last step the KL has {kl_at_end / kl:.3g} of its weight"]


def _is_without_kl(weights: _Weights) -> bool:
    return abs(weights.kl) < 1e-9 * abs(weights.likelihood)


def _absences(found: _Weights, half: _Weights, beta: float, rows: int) -> list[str]:
    """Return what to say of a KL without weight, in both batches or in one of them."""
    if _is_without_kl(found) and _is_without_kl(half):
        return [] if beta == 0 else ["the KL has no weight: no gradient reaches mu and logvar from it"]
    without = rows if _is_without_kl(found) else rows // 2
    return [f"the KL has no weight in a batch of {without}, and one in another batch"]


def _mixtures(found: _Weights, half: _Weights, beta: float, point: _Point, claim: _Claim) -> list[str]:
    """Return which sums and means were mixed, from the factor between the weight of the KL and the claimed one."""
    if not found.likelihood or not half.likelihood:
        return []
    if _is_without_kl(found) or _is_without_kl(half):
        return _absences(found, half, beta, len(point.x))
    if beta == 0:
        return [f"the KL has the weight {found.relative:.3g}, and the loss claims none"]
    factor, of_half = (one.relative / beta for one in (found, half))
    sentences = ["the KL has the wrong sign: the loss rewards a large one"] if factor < 0 else []
    power = round(math.log2(abs(factor / of_half)))
    rest = abs(factor) / len(point.x) ** power
    by_batch = {
        1: "the KL grows with the size of the batch, relative to the likelihood",
        -1: "the KL is divided by the size of the batch once more than the likelihood",
    }
    if power:
        sentences.append(by_batch.get(power, f"the weight of the KL changes as batch^{power}"))
    known = [words for value, words in _explanations(point, claim) if abs(rest / value - 1) < TOLERANCE]
    unknown = (f"the KL has {rest:.3g} times the weight {beta:g} that the loss claims",)
    return [*sentences, *min(known, key=lambda words: len(words), default=unknown)]


def _explanations(point: _Point, claim: _Claim) -> list[tuple[float, tuple[str, ...]]]:
    """Return what factors of the weight mean that do not depend on the batch."""
    K, D, N = point.mu[0].numel(), point.output[0].numel(), claim.data_size
    factors: list[tuple[float, tuple[str, ...]]] = [
        (1.0, ()),
        (D, (f"the likelihood is averaged over its {D} elements, and the KL is not",)),
        (1 / K, (f"the KL is averaged over its {K} latents, and the likelihood is not",)),
        (D / K, (f"the likelihood is averaged over its {D} elements, and the KL over its {K} latents",)),
        (1 / D, (f"the KL is divided by the {D} elements of an example, and the likelihood is not",)),
    ]
    if N is not None:
        factors.append((1 / N, (f"the KL is divided by the {N} examples of the data set",)))
    if claim.likelihood != "gaussian":
        return factors
    missing = "the squared error lacks the factor 1 / (2 sigma^2) of a Gaussian likelihood"
    return factors + [(value / (2 * claim.sigma**2), (*words, missing)) for value, words in factors]
