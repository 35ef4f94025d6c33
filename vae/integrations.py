"""Use `kernels.reparam_kl` in autoencoders of other libraries, in the two usual forms of this step.

pair      `z = model.reparameterize(mu, logvar)`, with a KL that the loss computes from mu and logvar again
packed    `posterior = model.encode(x)` of moments `(B, 2C, ...)`, with `sample()`, `mode()` and `kl()`, as in
          latent-diffusion autoencoders; some return it as `model.encode(x).latent_dist`
"""

from typing import Any

import torch
from torch import Tensor, nn

from vaebench import kernels
from vaebench.vae.prob.divergences import gaussian_kl

_PAIR_METHODS = ("reparameterize", "reparametrize", "reparameterise", "reparametrise")


class Patched:
    """The object with which `patch` replaces a method: it holds the KL of the latest draw and can be removed.

    `copy.deepcopy(model)` is patched too, with an object of its own at `copied.reparameterize`. Under torch.func and
    reentrant checkpoints, read `kl` within the function and return it: outside, it has no gradient.

    Attributes:
        kl: KL(q(z|x) || N(0, I)) of each example in the latest draw, in nats, `(B,)`; None before the first draw.
    """

    def __init__(self, model: nn.Module, method: str) -> None:
        self.kl: Tensor | None = None
        self._model, self._method = model, method
        self._original, self._set_on_instance = getattr(model, method), method in vars(model)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self._method == "encode":
            return _replace_posterior(self._original(*args, **kwargs))
        return self._draw(*args, **kwargs)

    def __getstate__(self) -> dict[str, Any]:
        """Leave the KL out of copies of the model: it belongs to a graph, which cannot be copied."""
        return {**vars(self), "kl": None}

    def restore(self) -> None:
        """Give the model its original method back, unless this object is no longer in its place."""
        attributes = vars(self._model)
        if attributes.get(self._method) is not self:
            return
        del attributes[self._method]
        if self._set_on_instance:
            attributes[self._method] = self._original

    def _draw(self, mu: Tensor, logvar: Tensor) -> Tensor:
        z, self.kl = kernels.reparam_kl(mu, logvar)
        return z


def patch(model: nn.Module) -> Patched:
    """Let a model draw its codes and their KL in one fused pass.

    A method `reparameterize(mu, logvar)` is replaced by one that draws z and stores the KL in the returned object. In a
    model without it, `encode` is replaced by one that returns a `Posterior` instead of its own distribution.

    Example:
        >>> class Model(torch.nn.Module):
        ...     def reparameterize(self, mu, logvar):
        ...         return mu + torch.exp(0.5 * logvar) * torch.randn_like(mu)
        >>> model = Model()
        >>> fused = patch(model)
        >>> model.reparameterize(torch.zeros(3, 2), torch.zeros(3, 2)).shape, fused.kl
        (torch.Size([3, 2]), tensor([0., 0., 0.]))
    """
    method = next((name for name in (*_PAIR_METHODS, "encode") if callable(getattr(model, name, None))), None)
    if method is None:
        raise ValueError(
            f"patch needs a model with reparameterize(mu, logvar) or encode(x); {type(model).__name__} has neither."
        )
    is_patched = isinstance(getattr(model, method), Patched)
    if is_patched:
        raise ValueError(
            f"patch needs a model that is not patched, and this {type(model).__name__} is: "
            f"model.{method} is what patch returned, so use that, or restore() it first."
        )
    patched = Patched(model, method)
    vars(model)[method] = patched  # setattr would remove a submodule called encode, and rename its weights
    return patched


def halves(h: Tensor, dim: int = -1) -> tuple[Tensor, Tensor]:
    """Return `h.chunk(2, dim)`, without a copy in the backward pass where both gradients lie side by side in memory.

    The fused kernel writes dmu and dlogvar into one buffer laid out like h; the backward of `chunk` would copy them.
    """
    if h.shape[dim] % 2:
        raise ValueError(f"h must have an even number of entries along dim {dim}, got {h.shape[dim]}.")
    # torch.func needs a setup_context, which makes every other call three times as slow (17 us to 57 us).
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        first, second = h.chunk(2, dim)
    else:
        first, second = _Halves.apply(h, dim)
    return first, second


class Posterior:
    """N(mu, diag exp(logvar)) from packed moments `(B, 2C, ...)`, sampled together with its KL.

    The log variance is used as it is; the classes that this one replaces clamp it to [-30, 20].
    """

    def __init__(self, moments: Tensor) -> None:
        self.parameters = moments
        self.mean, self.logvar = halves(moments, 1)
        self._kl: Tensor | None = None

    @property
    def std(self) -> Tensor:
        return torch.exp(0.5 * self.logvar)

    @property
    def var(self) -> Tensor:
        return torch.exp(self.logvar)

    def mode(self) -> Tensor:
        return self.mean

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        z, self._kl = kernels.reparam_kl(self.mean, self.logvar, generator=generator)
        return z

    def kl(self) -> Tensor:
        """Return KL(q || N(0, I)), `(B,)`: of the latest draw, or computed anew if that lacks a gradient."""
        wants_gradient = torch.is_grad_enabled() and self.parameters.requires_grad
        if self._kl is None or (wants_gradient and not self._kl.requires_grad):
            dtype = torch.promote_types(self.mean.dtype, torch.float32)
            return gaussian_kl(self.mean.flatten(1).to(dtype), self.logvar.flatten(1).to(dtype))
        return self._kl


def _replace_posterior(encoded: Any) -> Any:
    """Replace the distribution in the result of `encode` by a `Posterior`, unless it is deterministic."""
    if isinstance(encoded, tuple) and len(encoded) == 1:
        return (_replace_posterior(encoded[0]),)
    inner = getattr(encoded, "latent_dist", encoded)
    moments = getattr(inner, "parameters", None)
    if not isinstance(moments, Tensor):
        raise TypeError(
            "patch needs encode to return packed moments as .parameters or .latent_dist.parameters, "
            f"got {type(encoded).__name__}."
        )
    if hasattr(inner, "scale"):
        raise TypeError(f"patch needs moments that are mu and logvar, got {type(inner).__name__}, which has a scale.")
    if getattr(inner, "deterministic", False):
        return encoded
    posterior = Posterior(moments)
    if inner is encoded:
        return posterior
    encoded.latent_dist = posterior
    return encoded


class _Halves(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, h: Tensor, dim: int) -> tuple[Tensor, Tensor]:
        ctx.shape, ctx.dim = h.shape, dim
        first, second = h.chunk(2, dim)
        return first, second

    @staticmethod
    def backward(ctx: Any, first: Tensor, second: Tensor) -> tuple[Tensor, None]:
        # A view from `first` over the memory of `second` hides the latter from autograd and from second derivatives.
        view = None if torch.is_grad_enabled() else _view_of_both(first, second, ctx.shape, ctx.dim)
        return torch.cat([first, second], ctx.dim) if view is None else view, None


def _view_of_both(first: Tensor, second: Tensor, shape: torch.Size, dim: int) -> Tensor | None:
    """Return one tensor of this shape over the memory of its two halves, or None where they are not adjacent."""
    strides = torch.empty(shape, device="meta").stride()
    try:
        adjacent = (
            first.stride() == second.stride() == strides
            and first.untyped_storage().data_ptr() == second.untyped_storage().data_ptr()
            and second.storage_offset() - first.storage_offset() == strides[dim] * (shape[dim] // 2)
        )
    except NotImplementedError:  # batched gradients, as in torch.func.vmap, have no storage
        return None
    return first.as_strided(shape, strides) if adjacent else None
