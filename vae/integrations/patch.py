"""The one call that finds out what a model is and lets it use the kernels."""

from collections.abc import Sequence
from typing import Any

from vaebench.vae.errors import InputError
from vaebench.vae.integrations import (
    diffusers,
    encode,
    multivae,
    pythae,
    reparameterize,
    scvi,
    torch_distributions,
)
from vaebench.vae.integrations.adapter import Adapter, Patched

# Libraries come before the shapes that any model may have.
ADAPTERS: tuple[Adapter, ...] = (
    diffusers.ADAPTER,
    scvi.ADAPTER,
    multivae.ADAPTER,
    pythae.ADAPTER,
    reparameterize.ADAPTER,
    torch_distributions.ADAPTER,
    encode.ADAPTER,
)


def patch(model: Any, *, latent_shape: Sequence[int] = (8,)) -> Patched:
    """Let a model of another library draw its codes and their KL in one call of the kernel.

    The model's own methods are run on a few fixed inputs first, in train and in eval mode. What is the textbook's draw
    is replaced, and only in the mode where it is; what is not stays as it is, or the model is refused with an
    `InputError` of one sentence. Other models of the same class, and the library, stay as they are.

    Args:
        model: a model of diffusers, scvi-tools, MultiVae or pythae, or any other one that has
            `reparameterize(mu, logvar)`, calls `torch.distributions.Normal`, or encodes to a distribution.
        latent_shape: the shape of a code in the inputs of the probe of `reparameterize`.

    Example:
        >>> class Model(torch.nn.Module):
        ...     def reparameterize(self, mu, logvar):
        ...         return mu + torch.exp(0.5 * logvar) * torch.randn_like(mu)
        >>> model = Model()
        >>> with patch(model) as patched:
        ...     z = model.reparameterize(torch.zeros(3, 2), torch.zeros(3, 2))
        >>> z.shape, patched.kl
        (torch.Size([3, 2]), tensor([0., 0., 0.]))
    """
    if Patched.of(model) is not None:
        raise InputError(f"patch needs a model that is not patched, and this {type(model).__name__} is; restore() it.")
    for adapter in ADAPTERS:
        try:
            replacements = adapter.find(model, latent_shape)
        except ValueError as error:
            raise InputError(f"{type(model).__name__}: {error}.") from error
        if replacements:
            return Patched(model, replacements)
    looked_for = "; ".join(adapter.looks_for for adapter in ADAPTERS)
    raise InputError(f"patch found nothing to replace in {type(model).__name__}; it looked for {looked_for}.")
