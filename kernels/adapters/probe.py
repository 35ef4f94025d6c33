"""What a method that draws a code does, found out on fixed inputs: which scale it takes, and in which mode it draws."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from .. import Scale

ROWS = 512
SEED = 20_131_220
# A standard normal fails the check of its moments with a chance of 6e-7, and the seed makes this one outcome for ever.
DEVIATIONS = 5.0

# Beyond the probe's own logvar, where a clamp shows; -30 is the lower bound of latent diffusion's own clamp.
WIDE = (-30.0, -12.0, 12.0)

# What a spread must be for a standard deviation sigma, by the name of the scale.
SPREADS: dict[Scale, Callable[[Tensor], Tensor]] = {
    "logvar": lambda sigma: 2 * sigma.log(),
    "std": lambda sigma: sigma,
    "var": torch.square,
}


def fixed_inputs(shape: Sequence[int], device: torch.device | None = None) -> tuple[Tensor, Tensor]:
    """Return a mu and a logvar, `(ROWS, *shape)`, the same at every call."""
    generator = torch.Generator().manual_seed(SEED)
    mu, logvar = (torch.randn(ROWS, *shape, generator=generator) for _ in range(2))
    return mu.to(device), (0.5 * logvar - 0.25).to(device)


@contextmanager
def pinned(device: torch.device | None = None) -> Iterator[None]:
    """Run a block without gradients under one seed of torch's generators, which are put back afterwards."""
    devices = [] if device is None or device.type != "cuda" else [device]
    with torch.random.fork_rng(devices=devices), torch.no_grad():
        torch.manual_seed(SEED)
        yield


@contextmanager
def unchanged(model: Any, *, training: bool) -> Iterator[None]:
    """Run a block with a model in a mode; its mode, its attributes and its buffers are put back afterwards.

    So are those of its parts. A list, a dict or a plain tensor in an attribute that is changed in place is not.
    """
    modules = list(model.modules()) if isinstance(model, nn.Module) else []
    attributes = [(vars(one), dict(vars(one))) for one in modules or [model]]
    buffers = [(module._buffers, dict(module._buffers)) for module in modules]
    values = [(one, one.clone()) for _, named in buffers for one in named.values() if one is not None]
    try:
        for module in modules:
            module.training = training
        yield
    finally:
        for now, before in [*attributes, *buffers]:
            now.clear()
            now.update(before)
        with torch.no_grad():
            for buffer, value in values:
                if buffer.layout != torch.strided or not torch.equal(buffer, value):
                    buffer.copy_(value)


def find_scale(draw: Callable[..., Any], shape: Sequence[int], device: torch.device | None) -> tuple[Scale, bool]:
    """Return which scale `draw(mu, spread)` takes, and whether it returns `(z, eps)`, or raise if it is no draw.

    One seed gives one eps. At sigma = 1 the three scales have the spreads 0, 1 and 1, so eps is read off for each of
    them, must be standard normal, and must explain the draws at other mu and sigma, very small and large ones too.
    """
    mu, logvar = fixed_inputs(shape, device)
    sigma, fits = torch.exp(logvar / 2), []
    for scale, spread in SPREADS.items():
        eps, _ = _code_of(draw, torch.zeros_like(mu), spread(torch.ones_like(mu)), device)
        z, noise = _code_of(draw, mu, spread(sigma), device)
        if _is_standard_normal(eps) and torch.allclose(z, mu + sigma * eps, 1e-4, 1e-4):
            if noise is not None and not (isinstance(noise, Tensor) and torch.allclose(noise, eps, 1e-4, 1e-4)):
                raise ValueError("its second result is not the noise eps of z = mu + sigma eps")
            _require_no_clamp(draw, spread, eps, device)
            fits.append((scale, noise is not None))
    if not fits:
        raise ValueError("its result is not z = mu + sigma eps for a spread that is logvar, sigma or sigma^2")
    return fits[0]


def _require_no_clamp(
    draw: Callable[..., Any], spread: Callable[[Tensor], Tensor], eps: Tensor, device: torch.device | None
) -> None:
    for logvar in WIDE:
        sigma = torch.full_like(eps, math.exp(logvar / 2))
        z, _ = _code_of(draw, torch.zeros_like(eps), spread(sigma), device)
        if not torch.allclose(z / sigma, eps, 1e-3, 1e-3):
            raise ValueError(f"its result is not z = mu + sigma eps where log(sigma^2) = {logvar:g}; it may clamp it")


def _code_of(draw: Callable[..., Any], mu: Tensor, spread: Tensor, device: torch.device | None) -> tuple[Tensor, Any]:
    with pinned(device):
        result = draw(mu, spread)
    z, *others = result if isinstance(result, tuple) else (result,)
    if not isinstance(z, Tensor) or z.shape != mu.shape or len(others) > 1:
        raise ValueError(f"its result is no tensor of the shape {tuple(mu.shape)} of mu, nor (z, eps)")
    return z, others[0] if others else None


def _is_standard_normal(eps: Tensor) -> bool:
    n = eps.numel()
    mean_is_zero = abs(float(eps.mean())) < DEVIATIONS / math.sqrt(n)
    return mean_is_zero and abs(float(eps.square().mean()) - 1) < DEVIATIONS * math.sqrt(2 / n)
