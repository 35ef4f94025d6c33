"""Methods like `z = model.reparameterize(mu, logvar)` by the kernel."""

import inspect
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from .. import Scale, normal_noise, reparam_kl
from ..shared.accumulate import reduce_kl
from ..shared.noise import draw_seed
from .closed_form import can_draw, elementwise_kl
from .probe import find_scale, unchanged


class FusedDraw:
    """A callable in the place of a model's method that draws a code; it also measures the KL of the code from N(0, I).

    The model's own method still serves every call that is no textbook draw: with further arguments, with tensors of
    different shapes, and in a mode (train, eval) where the probe found that it does something else, for example
    returns mu.

    Under torch.func and reentrant checkpoints, read `kl` within the function and return it: outside, it has no
    gradient.
    """

    def __init__(self, model: Any, method: str, scales: dict[bool, Scale | None], returns_noise: bool) -> None:
        self._model, self._original = model, getattr(model, method)
        self._names = _parameters(self._original)
        self._scales, self._returns_noise = scales, returns_noise
        self._scale = next(scale for scale in scales.values() if scale is not None)
        self._kl: Tensor | None = None
        self._latest: tuple[Tensor, Tensor, Tensor] | None = None

    @property
    def kl(self) -> Tensor | None:
        """KL(q(z|x) || N(0, I)) of each example in the latest call, in nats, `(B,)`; None before the first."""
        if self._kl is None and self._latest is not None:
            mu, spread, _ = self._latest
            logvar = spread if self._scale == "logvar" else spread.log() * (2 if self._scale == "std" else 1)
            self._kl = reduce_kl(elementwise_kl(mu, logvar), "sample")
        return self._kl

    def kl_of(self, mu: Tensor, z: Tensor) -> Tensor | None:
        """Return the KL if z is the very tensor that the latest call drew from this mu, otherwise None."""
        mine = self._latest is not None and self._latest[0] is mu and self._latest[2] is z
        return self.kl if mine else None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        mu, spread, others = (*args, False) if len(args) == 2 and not kwargs else self._read(args, kwargs)
        scale = self._scales[getattr(self._model, "training", True)]
        self._kl = self._latest = None
        if scale is None or others or not can_draw(mu, spread):
            result = self._original(*args, **kwargs)
            if can_draw(mu, spread):
                self._latest = mu, spread, mu
            return result
        seed = draw_seed(mu.device, None) if self._returns_noise else None
        z, self._kl = reparam_kl(mu, spread, scale=scale, seed=seed)
        self._latest = mu, spread, z
        return z if seed is None else (z, normal_noise(seed, mu.shape, device=mu.device, dtype=mu.dtype))

    def __getstate__(self) -> dict[str, Any]:
        """Leave the KL out of copies of the model: it belongs to a graph, which cannot be copied."""
        return {**vars(self), "_kl": None, "_latest": None}

    def _read(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any, bool]:
        """Return mu, the spread, and whether there are further arguments."""
        given = dict(zip(self._names, args, strict=False)) | kwargs
        mu, spread = (given.pop(name, None) for name in self._names[:2])
        return mu, spread, bool(given) or len(args) > len(self._names)


def fuse_draw(model: Any, method: str = "reparameterize", *, shape: Sequence[int] = (8,)) -> FusedDraw:
    """Probe `model.method(mu, spread)` in train and in eval mode, and return a draw by the kernel to put in its place.

    The spread may be a logvar, a standard deviation or a variance; the result may be z or `(z, eps)`. A ValueError of
    one sentence says what it is if it is nothing of these. `shape` is that of a code, `(8,)` unless told otherwise.

    Example:
        >>> class Model(torch.nn.Module):
        ...     def reparameterize(self, mu, std):
        ...         return mu + std * torch.randn_like(std) if self.training else mu
        >>> model = Model()
        >>> model.reparameterize = fuse_draw(model)
        >>> model.reparameterize(torch.zeros(3, 2), torch.ones(3, 2)).shape, model.reparameterize.kl
        (torch.Size([3, 2]), tensor([0., 0., 0.]))
        >>> model.eval().reparameterize(torch.ones(1, 2), torch.ones(1, 2))
        tensor([[1., 1.]])
    """
    own = getattr(model, method)
    device = next((p.device for p in model.parameters()), None) if isinstance(model, nn.Module) else None
    found: dict[bool, tuple[Scale, bool] | None] = {}
    for training in (True, False):
        try:
            with unchanged(model, training=training):
                found[training] = find_scale(own, shape, device)
        except Exception as error:
            if training:
                raise ValueError(_refusal(method, shape, error)) from error
            found[training] = None
    in_training, in_eval = found[True], found[False]
    assert in_training is not None
    scales = {True: in_training[0], False: in_eval[0] if in_eval == in_training else None}
    return FusedDraw(model, method, scales, returns_noise=in_training[1])


def _refusal(method: str, shape: Sequence[int], error: Exception) -> str:
    what = str(error) if isinstance(error, ValueError) else f"it raised {type(error).__name__} ({error})"
    return f"{method}(mu, spread) cannot be replaced: on fixed inputs of shape (B, {', '.join(map(str, shape))}) {what}"


def _parameters(function: Any) -> list[str]:
    """Return the names of a function's positional parameters, without self."""
    kinds = inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD
    return [name for name, one in inspect.signature(function).parameters.items() if one.kind in kinds]
