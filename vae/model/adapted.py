"""A trained VAE of any library as a `GenerativeModel`, so that everything that measures our models measures it too."""

import contextlib
import math
from collections.abc import Iterator
from typing import Any, Protocol, final

import torch
from torch import Tensor
from torch.distributions import Distribution, Independent, Normal
from torch.nn.attention import SDPBackend, sdpa_kernel

from vaebench.vae.errors import InputError, sentence
from vaebench.vae.model.generative import GaussianModel, GivenLikelihood
from vaebench.vae.prob.densities import Density, DiagonalGaussian

LARGEST_SEED = 2**62


class Source(Protocol):
    """A model that someone else has written: what an `AdaptedModel` calls."""

    def encode(self, x: Tensor, /) -> Any:
        """Return q(z|x) for x `(B, *shape)`: mu and logvar, `(B, *code)` each, or a `Normal`, independent or not."""

    def decode(self, z: Tensor, /) -> Distribution:
        """Return p(x|z) for codes `(B, *code)`, as a distribution over `(B, ...)` with as many elements as x."""


class ConditionalSource(Protocol):
    """The same with covariates of x, on which p(x|z) depends."""

    def encode(self, x: Tensor, /) -> Any:
        """Return q(z|x) as above; the covariates are the last columns of x."""

    def decode(self, z: Tensor, covariates: Tensor, /) -> Distribution:
        """Return p(x|z) of the other columns, for codes `(B, *code)` and covariates `(B, C)`."""


@final
class AdaptedModel(GaussianModel):
    """`encode` and `decode` of another library around p(z) = N(0, I), with codes of any shape, flattened to K.

    Covariates are the last C columns of x `(B, D + C)`. They are given, not modelled: log p(x) is that of the other D
    columns given them, and examples drawn from the model have the covariates of the given rows, one after the other.

    Args:
        source: a trained model.
        examples: a few examples `(N, *shape)`, at least one, on which encode and decode are tried.
        levels: the number of values of an element of x; 0 where it is continuous. With covariates it is not used: bits
            per dimension are of all of x.
        covariates: the covariates of some examples, `(N, C)`.
    """

    covariates: Tensor

    def __init__(
        self,
        source: Source | ConditionalSource,
        examples: Tensor,
        levels: int = 0,
        *,
        covariates: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.source, self.prior_flow, self.posterior_flow = source, None, None
        self.register_buffer("covariates", examples.new_zeros(1, 0) if covariates is None else covariates)
        self.shape = tuple(examples.shape[1:])
        name = type(source).__name__
        with torch.no_grad(), _keep_random_state(examples.device):
            mu = self._encode_twice(examples, name)
            self.code_shape, self.latent = tuple(mu.shape[1:]), math.prod(mu.shape[1:])
            given = self._split(examples)[1]
            with checking(True):
                p = _call(f"{name}.decode", self.code_shape, lambda: self._decode(mu.flatten(1), given))
            self.layout = self._find_layout(p, name, len(examples))
            self._require_support(p, examples)
        discrete = bool(getattr(_support(p), "is_discrete", False)) and not self.covariates.shape[1]
        self.likelihood = GivenLikelihood(type(_unwrap(p)).__name__, self.shape, levels if discrete else 0)

    def extra_repr(self) -> str:
        return f"latent={self.latent}, likelihood={self.likelihood.name}"

    @property
    def settings(self) -> dict[str, object]:
        return {"model.latent": self.latent}

    def encode_with_context(self, x: Tensor) -> tuple[DiagonalGaussian, None]:
        mu, logvar = moments_of(self.source.encode(x))
        return DiagonalGaussian(mu.flatten(1), logvar.flatten(1)), None

    def decode(self, z: Tensor) -> Density:
        return AdaptedDensity(self, z)

    def distribution(self, z: Tensor, covariates: Tensor) -> Distribution:
        """Return p(x|z) of the library for codes `(R, K)` and their covariates `(R, C)`."""
        # A search for a mode may try codes where parameters are not finite. An error would end it there, while a
        # density that is not a number is a step that is not taken.
        with checking(False):
            return self._decode(z, covariates)

    def _decode(self, z: Tensor, covariates: Tensor) -> Distribution:
        codes = z.reshape(-1, *self.code_shape)
        # Of torch's attention on a CPU, only the plain kernel has the second derivatives that a Hessian in z needs.
        with sdpa_kernel(SDPBackend.MATH):
            given: Any = self.source.decode
            p: Distribution = given(codes, covariates) if covariates.shape[-1] else given(codes)
        return p

    def _encode_twice(self, examples: Tensor, name: str) -> Tensor:
        """Return mu of the examples; refuse an encoder with noise of its own, such as dropout."""
        first, second = (
            _call(f"{name}.encode", self.shape, lambda: moments_of(self.source.encode(examples))) for _ in range(2)
        )
        if not all(
            torch.allclose(*pair, rtol=1e-3, atol=1e-5, equal_nan=True) for pair in zip(first, second, strict=True)
        ):
            raise InputError(f"{name}.encode(x) must give the same q(z|x) each time; put the model into eval mode.")
        return first[0]

    def _split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the modelled part of x and its covariates, `(..., D), (..., C)`; without covariates x as it is."""
        count = self.covariates.shape[1]
        return (x[..., : x.shape[-1] - count], x[..., x.shape[-1] - count :]) if count else (x, x.new_zeros(len(x), 0))

    def _find_layout(self, p: Distribution, name: str, count: int) -> tuple[int, ...]:
        """Return the shape of an example as the distribution has it, which may be flat."""
        if not isinstance(p, Distribution):
            raise InputError(
                f"{name}.decode must return a distribution of torch.distributions over x, got {type(p).__name__}."
            )
        drawn = _call(f"{name}.decode(z).sample", self.code_shape, p.sample)
        layout, modelled = tuple(drawn.shape), math.prod(self.shape) - self.covariates.shape[1]
        if layout[:1] != (count,) or math.prod(layout[1:]) != modelled:
            raise InputError(
                f"{name}.decode must return a distribution over {(count, *self.shape)} for {count} codes, "
                f"got one over {layout}."
            )
        return layout[1:]

    def _require_support(self, p: Distribution, examples: Tensor) -> None:
        """Refuse data that p(x|z) gives no probability, such as grey levels under a Bernoulli distribution."""
        support, values = _support(p), self._split(examples)[0].reshape(-1, *self.layout)
        try:
            inside = support is None or bool(support.check(values).all())
        except NotImplementedError:
            return
        if not inside:
            kind = type(_unwrap(p)).__name__
            advice = "; data of levels become bits by --set data.binarise=static" if kind == "Bernoulli" else ""
            raise InputError(f"p(x|z) is {kind}, which gives some values of the data no probability{advice}.")


class AdaptedDensity(Density):
    """p(x|z) of an `AdaptedModel` for codes `(..., K)`: decoded when x is known, whose covariates may matter."""

    def __init__(self, model: AdaptedModel, z: Tensor) -> None:
        self.model, self.z, self.event_ndim = model, z, len(model.shape)

    def log_prob_elementwise(self, x: Tensor) -> Tensor:
        found = self._log_prob(x)
        if found.shape[1:] != self.model.layout:
            raise InputError(f"{self.model.likelihood.name} has no densities of single elements.")
        return found.reshape(*self.z.shape[:-1], *self.model.shape)

    def log_prob(self, x: Tensor) -> Tensor:
        return self._log_prob(x).flatten(1).sum(-1).reshape(self.z.shape[:-1])

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        covariates = self._next_covariates()
        p = self.model.distribution(self._codes(), covariates)
        if generator is None:
            return self._complete(p.sample(), covariates)
        # torch's distributions draw from its global generator alone
        seed = torch.randint(LARGEST_SEED, (), generator=generator, device=generator.device).item()
        with _keep_random_state(self.z.device):
            torch.manual_seed(int(seed))
            return self._complete(p.sample(), covariates)

    @property
    def mean(self) -> Tensor:
        covariates = self._next_covariates()
        return self._complete(self.model.distribution(self._codes(), covariates).mean, covariates)

    def _log_prob(self, x: Tensor) -> Tensor:
        """Return log p as the distribution has it, `(R, ...)`, one row for each code."""
        rows = x.expand(*self.z.shape[:-1], *self.model.shape).reshape(-1, *self.model.shape)
        values, covariates = self.model._split(rows)
        p = self.model.distribution(self._codes(), covariates)
        with checking(False):
            found = p.log_prob(values.reshape(-1, *self.model.layout))
        return found if found.ndim > 1 else found[:, None]

    def _codes(self) -> Tensor:
        return self.z.reshape(-1, self.model.latent)

    def _next_covariates(self) -> Tensor:
        given = self.model.covariates
        return given[torch.arange(len(self._codes()), device=given.device) % len(given)]

    def _complete(self, values: Tensor, covariates: Tensor) -> Tensor:
        if covariates.shape[1]:
            values = torch.cat([values.flatten(1), covariates], dim=-1)
        return values.reshape(*self.z.shape[:-1], *self.model.shape)


def moments_of(encoded: Any) -> tuple[Tensor, Tensor]:
    """Return mu and logvar, `(B, *code)` each, of what an encoder returned: themselves, or a `Normal`."""
    if isinstance(encoded, tuple | list) and len(encoded) == 2 and all(isinstance(part, Tensor) for part in encoded):
        mu, logvar = encoded
        if mu.shape != logvar.shape or mu.ndim < 2:
            raise InputError(
                "encode must return mu and logvar of one shape (B, K), "
                f"got {tuple(mu.shape)} and {tuple(logvar.shape)}."
            )
        return mu, logvar
    unwrapped = _unwrap(encoded) if isinstance(encoded, Distribution) else encoded
    if not isinstance(unwrapped, Normal):
        raise InputError(
            "encode must return (mu, logvar), or a Normal or an Independent(Normal) of torch.distributions: "
            f"a Gaussian with a diagonal covariance; got {type(unwrapped).__name__}."
        )
    return unwrapped.loc, 2 * unwrapped.scale.log()


@contextlib.contextmanager
def checking(checked: bool) -> Iterator[None]:
    """Let torch's distributions check their parameters and values, or accept any."""
    before: bool = Distribution._validate_args
    Distribution.set_default_validate_args(checked)
    try:
        yield
    finally:
        Distribution.set_default_validate_args(before)


def _keep_random_state(device: torch.device) -> "contextlib.AbstractContextManager[None]":
    """Leave the states of torch's generators, of the CPU and of a GPU, as they were before the block."""
    return torch.random.fork_rng(devices=[device] if device.type == "cuda" else [])


def _support(p: Distribution) -> Any:
    """Return the support of an element as the distribution tells it; None where it does not."""
    try:
        return _unwrap(p).support
    except (NotImplementedError, AttributeError):
        return None


def _unwrap(p: Distribution) -> Distribution:
    while isinstance(p, Independent):
        p = p.base_dist
    return p


def _call(name: str, shape: tuple[int, ...], function: Any) -> Any:
    """Return the result of a call of foreign code; an error of its own becomes a sentence."""
    try:
        return function()
    except InputError:
        raise
    except Exception as error:
        raise InputError(
            f"{name} fails on a tensor (B, {', '.join(map(str, shape))}): {sentence(error).rstrip('.:')}."
        ) from error
