"""Every check of an argument, each with one sentence on what was required and what arrived."""

import operator
from collections.abc import Sequence
from numbers import Real
from typing import Any, SupportsIndex

import torch
from torch import Tensor

from .shared import noise

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def require_alike(**tensors: Tensor) -> None:
    """Raise unless all are tensors of one supported dtype on one device."""
    (first_name, first), *rest = tensors.items()
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name} must be a tensor, got {type(tensor).__name__}.")
    if first.dtype not in FLOATS:
        raise ValueError(f"{first_name} must have a dtype of {names(FLOATS)}, got {first.dtype}.")
    for name, tensor in rest:
        if tensor.dtype != first.dtype or tensor.device != first.device:
            raise ValueError(
                f"{name} must be {first.dtype} on {first.device} like {first_name}, "
                f"got {tensor.dtype} on {tensor.device}."
            )


def require_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}.")


def as_prior(prior: tuple[Tensor, Tensor], mu: Tensor) -> tuple[Tensor, Tensor]:
    """Return the means and the log variances of a prior, expanded to the shape of mu."""
    if not isinstance(prior, tuple | list) or len(prior) != 2:
        raise TypeError(f"prior must be a pair (mu, logvar) of tensors, got {type(prior).__name__}.")
    prior_mu, prior_logvar = prior
    require_alike(mu=mu, prior_mu=prior_mu, prior_logvar=prior_logvar)
    for name, tensor in (("prior_mu", prior_mu), ("prior_logvar", prior_logvar)):
        sizes = zip(reversed(tensor.shape), reversed(mu.shape), strict=False)
        if tensor.ndim > mu.ndim or not all(size in (1, whole) for size, whole in sizes):
            raise ValueError(f"{name} must broadcast to the shape {tuple(mu.shape)} of mu, got {tuple(tensor.shape)}.")
    return prior_mu.expand(mu.shape), prior_logvar.expand(mu.shape)


def as_sizes(shape: Sequence[int]) -> tuple[int, ...]:
    several = isinstance(shape, Sequence) and not isinstance(shape, str | bytes)
    sizes = [n for n in shape if isinstance(n, SupportsIndex) and not isinstance(n, bool | Tensor)] if several else []
    if not sizes or len(sizes) < len(shape) or any(n < 0 for n in sizes):
        raise ValueError(f"shape must be (B, ...), whole numbers and none negative, got {shape!r}.")
    return tuple(sizes)


def as_bandwidths(bandwidth: float | Sequence[float]) -> tuple[float, ...]:
    several = isinstance(bandwidth, Sequence) and not isinstance(bandwidth, str | bytes)
    members: Any = bandwidth if several else [bandwidth]
    if len(members) == 0 or not all(is_positive(c) for c in members):
        raise ValueError(
            f"bandwidth must be a positive finite number or a non-empty sequence of them, got {bandwidth!r}."
        )
    return tuple(float(c) for c in members)


def is_positive(c: object) -> bool:
    if isinstance(c, bool) or not isinstance(c, Real):
        return False
    try:
        return 0 < float(c) < float("inf")
    except OverflowError:
        return False


def as_seed(seed: int | Tensor, device: torch.device) -> Tensor:
    """Return the seed as a one-dimensional int64 tensor on the device."""
    if isinstance(seed, Tensor):
        if seed.dtype != torch.int64 or seed.ndim > 1 or seed.numel() == 0:
            raise ValueError(
                f"seed must be int64 with one value or (G,) values, got {seed.dtype} of shape {tuple(seed.shape)}."
            )
        if seed.device.type != device.type:
            raise ValueError(f"seed must live on {device.type}, where the data is, got one on {seed.device.type}.")
        return seed.reshape(-1)
    if isinstance(seed, bool) or not isinstance(seed, SupportsIndex):
        raise TypeError(f"seed must be an int or an int64 tensor, got {type(seed).__name__}.")
    seed = operator.index(seed)
    if not -(2**63) <= seed < 2**63:
        raise ValueError(f"seed must fit in 64 bits, from -2**63 to 2**63 - 1, got {seed}.")
    return torch.full((1,), seed, dtype=torch.int64, device=device)  # unlike a copy, a fill does not wait for the GPU


def require_whole_groups(seed: Tensor, shape: Sequence[int]) -> None:
    if shape[0] % seed.numel():
        raise ValueError(
            f"seed must hold one value or a number of values that divides the {shape[0]} rows, got {seed.numel()}."
        )


def require_generators(generator: torch.Generator | Sequence[torch.Generator], mu: Tensor) -> None:
    if not isinstance(generator, torch.Generator | Sequence):
        raise TypeError(f"generator must be a torch.Generator or several of them, got {type(generator).__name__}.")
    several = noise.as_generators(generator)
    if not several or mu.shape[0] % len(several):
        raise ValueError(
            f"generator must be one or a number of them that divides the {mu.shape[0]} rows, got {len(several)}."
        )
    for one in several:
        if not isinstance(one, torch.Generator):
            raise TypeError(f"generator must be a torch.Generator or several of them, got one {type(one).__name__}.")
        if one.device.type not in ("cpu", mu.device.type):
            raise ValueError(
                f"generator must live on {mu.device.type}, where mu is, or on the CPU, got one on {one.device.type}."
            )


def require_log_weights(log_weights: Tensor, z: Tensor, mu: Tensor) -> None:
    if not isinstance(log_weights, Tensor):
        raise TypeError(f"log_weights must be a tensor, got {type(log_weights).__name__}.")
    B, N = z.shape[0], mu.shape[0]
    if tuple(log_weights.shape) not in {(N,), (B, N)}:
        raise ValueError(f"log_weights must be ({N},) or ({B}, {N}), got {tuple(log_weights.shape)}.")
    if log_weights.device != z.device or not log_weights.is_floating_point():
        raise ValueError(
            f"log_weights must be floating point on {z.device}, got {log_weights.dtype} on {log_weights.device}."
        )
    if log_weights.requires_grad:
        raise ValueError("log_weights is a constant: no gradient flows to it, so pass log_weights.detach().")


def names(dtypes: tuple[torch.dtype, ...]) -> str:
    return ", ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
