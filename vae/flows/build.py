"""Flows of several layers by the names of the literature: each takes data, or codes, to noise."""

from collections.abc import Sequence

import torch

from vaebench.vae.errors import InputError
from vaebench.vae.flows.autoregressive import HIDDEN, Autoregressive
from vaebench.vae.flows.coupling import Coupling, alternating_mask, checkerboard_mask
from vaebench.vae.flows.elementwise import ElementMap
from vaebench.vae.flows.normalisation import ActivationNorm
from vaebench.vae.flows.splines import RationalQuadratic
from vaebench.vae.flows.transform import Compose, Transform


class MAF(Compose):
    """Masked autoregressive flow: affine autoregressive layers in alternating orders, with normalisations around them.

        z_i = (x_i - mu_i) / s_i,    (mu_i, log s_i) = network(x_<i, context)    in each layer

    Shapes: x `(..., features)`, context `(..., context)` -> z `(..., features)`, log |det dz/dx| `(...)`.
    Cost: forward `layers` passes of a network, inverse `layers * features`.

    Args:
        element: replaces the affine map of each element.

    Example:
        >>> flow = MAF(3, layers=2)
        >>> z, log_det = flow(torch.randn(5, 3))
        >>> z.shape, log_det.shape
        (torch.Size([5, 3]), torch.Size([5]))

    Reference: Papamakarios et al., Masked Autoregressive Flow for Density Estimation, 2017.
    """

    def __init__(
        self,
        features: int,
        *,
        layers: int = 4,
        hidden: Sequence[int] = HIDDEN,
        context: int = 0,
        element: ElementMap | None = None,
    ) -> None:
        order = torch.arange(features)
        orders = [order.flip(0) if i % 2 else order for i in range(layers)]
        maps = [Autoregressive(order, element=element, hidden=hidden, context=context) for order in orders]
        super().__init__(*_normalise(features, maps))


class RealNVP(Compose):
    """Affine couplings with alternating masks and normalisations around them, for flattened data of `shape`.

        z_a = x_a,    z_b = (x_b - mu) / s,    (mu, log s) = network(x_a)    in each layer

    Masks are a checkerboard for an image `(C, H, W)`, else every other element, and the opposite in turn.
    Shapes: x `(..., D)` -> z `(..., D)`, log |det dz/dx| `(...)`, D = prod(shape). Cost: `layers` passes, either way.

    Example:
        >>> flow, x = RealNVP((1, 4, 4), layers=2), torch.randn(5, 16)
        >>> z, log_det = flow(x)
        >>> torch.allclose(flow.inverse_and_log_det(z)[0], x)
        True

    Reference: Dinh et al., Density Estimation Using Real NVP, 2017.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        *,
        layers: int = 4,
        hidden: Sequence[int] = HIDDEN,
        element: ElementMap | None = None,
    ) -> None:
        features = torch.Size(shape).numel()
        if features < 2:
            raise InputError(f"a coupling flow needs at least two elements to couple, got {features}.")
        mask = checkerboard_mask((shape[0], shape[1], shape[2])) if len(shape) == 3 else alternating_mask(features)
        masks = [~mask if i % 2 else mask for i in range(layers)]
        super().__init__(*_normalise(features, [Coupling(mask, element=element, hidden=hidden) for mask in masks]))


class NSF(RealNVP):
    """Neural spline flow: `RealNVP` with a rational-quadratic spline m of `bins` pieces for each element.

        z_a = x_a,    z_b = m(x_b; theta),    theta = network(x_a)    in each layer

    Shapes and cost are those of `RealNVP`.

    Example:
        >>> flow = NSF((4,), layers=2, bins=4)
        >>> z, log_det = flow(torch.randn(5, 4))
        >>> z.shape, log_det.shape
        (torch.Size([5, 4]), torch.Size([5]))

    Reference: Durkan et al., Neural Spline Flows, 2019.
    """

    def __init__(
        self, shape: tuple[int, ...], *, layers: int = 4, bins: int = 8, hidden: Sequence[int] = HIDDEN
    ) -> None:
        super().__init__(shape, layers=layers, hidden=hidden, element=RationalQuadratic(bins))


def _normalise(features: int, layers: Sequence[Transform]) -> list[Transform]:
    """Return the layers with a normalisation before each of them and after the last."""
    return [*(part for layer in layers for part in (ActivationNorm(features), layer)), ActivationNorm(features)]
