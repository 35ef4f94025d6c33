"""Operations that every variational autoencoder computes, each with interchangeable backends.

Four functions, free of any model: `reparam_kl` (draw a code and measure its posterior's divergence in one pass), `mmd2`
(maximum mean discrepancy), `log_aggregate` (the aggregated posterior) and `normal_noise` (the counter-based noise
stream that all backends share). `backend="auto"` is the fused kernel on a GPU and the hand-derived one on a CPU.

Arguments are checked here and nowhere else: the backends (`reference`, `eager`, `analytic`, `triton`) trust them.
"""

from collections.abc import Sequence
from numbers import Real
from typing import Any, Literal, SupportsIndex

import torch
from torch import Tensor

from . import backends
from .shared import noise

__all__ = ["log_aggregate", "mmd2", "normal_noise", "reparam_kl"]

Reduction = Literal["sample", "none", "dim", "batch"]
Kernel = Literal["imq", "rbf"]
Estimator = Literal["u", "v"]
Backend = Literal["auto", "reference", "eager", "analytic", "triton"]

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def reparam_kl(
    mu: Tensor,
    logvar: Tensor,
    *,
    seed: int | Tensor | None = None,
    generator: torch.Generator | Sequence[torch.Generator] | None = None,
    reduction: Reduction = "sample",
    backend: Backend = "auto",
) -> tuple[Tensor, Tensor]:
    """Draw z from a diagonal Gaussian and measure how far that Gaussian is from the standard normal.

        z  = mu + exp(logvar / 2) * eps,    eps ~ N(0, I)
        kl = 1/2 * sum_k (mu_k^2 + expm1(logvar_k) - logvar_k)

    Args:
        mu, logvar: `(B, ...)`, one dtype of float16, bfloat16, float32, float64; any strides.
        seed: an int, or an int64 tensor of one or G values where G divides B; eps is then a pure function of
            (seed, row, column), see `normal_noise`. Value g serves rows `g*B/G ... (g+1)*B/G - 1`, counted from 0.
        generator: where to draw from when there is no seed; torch's default generator when absent. Of G generators,
            each draws for its share of the rows what it would have drawn for them alone.
        reduction: `sample` sums over all but the first axis -> `(B,)`; `none` -> the elementwise terms; `dim` averages
            over the batch -> `(...)`; `batch` averages the sums -> a scalar.
        backend: `auto`, or one of `reference`, `eager`, `analytic`, `triton`.

    Returns:
        z in the dtype of mu, and kl in float32 (float64 for float64). `reference` returns float64 for both.

    Differentiable in mu and logvar, once.

    Reference: Kingma and Welling, Auto-Encoding Variational Bayes, 2014, appendix B.

    Example:
        >>> z, kl = reparam_kl(torch.zeros(3, 2), torch.zeros(3, 2), seed=0)
        >>> z.shape, kl
        (torch.Size([3, 2]), tensor([0., 0., 0.]))
    """
    _require_alike(mu=mu, logvar=logvar)
    if mu.ndim == 0 or mu.shape != logvar.shape:
        raise ValueError(
            f"mu and logvar must have one shape (B, ...), got {tuple(mu.shape)} and {tuple(logvar.shape)}."
        )
    _require_choice("reduction", reduction, ("sample", "none", "dim", "batch"))
    if seed is not None:
        if generator is not None:
            raise ValueError("seed and generator both say where the noise comes from; give one of them.")
        seed = noise.as_seed(seed, mu.device)
        _require_whole_groups(seed, mu.shape)
    elif generator is not None:
        _require_generators(generator, mu)
    op = backends.resolve("reparam_kl", backend, mu.device)
    return op(mu, logvar, seed, generator, reduction)


def mmd2(
    x: Tensor,
    y: Tensor,
    *,
    kernel: Kernel = "imq",
    bandwidth: float | Sequence[float] | None = None,
    estimator: Estimator = "u",
    backend: Backend = "auto",
) -> Tensor:
    """Estimate the squared maximum mean discrepancy between the distributions of two samples.

        MMD^2 = E k(x, x') + E k(y, y') - 2 E k(x, y)
        rbf: k = exp(-d^2 / c)        imq: k = c / (c + d^2)        d^2 = sum_k (x_k - y_k)^2

    Args:
        x, y: `(N, K)` and `(M, K)`, one dtype.
        kernel: `rbf` or `imq`.
        bandwidth: c; a sequence averages the kernels of its members, so that k <= 1; `2 * K` when absent.
        estimator: `u` leaves each point's distance to itself out: unbiased, may be negative, needs N, M >= 2.
            `v` keeps it: to rounding never negative and zero for identical samples, but biased by about
            (1/N + 1/M)(1 - E k).

    Returns:
        A scalar in float32 (float64 for float64, and for `reference`), differentiable in x and y, once.

    Reference: Gretton et al., A Kernel Two-Sample Test, 2012.

    Example:
        >>> codes = torch.randn(8, 2, generator=torch.Generator().manual_seed(0))
        >>> mmd2(codes, codes + 1) > mmd2(codes, codes) + 0.1
        tensor(True)
    """
    _require_alike(x=x, y=y)
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1]:
        raise ValueError(f"x and y must be (N, K) and (M, K) with one K, got {tuple(x.shape)} and {tuple(y.shape)}.")
    _require_choice("kernel", kernel, ("imq", "rbf"))
    _require_choice("estimator", estimator, ("u", "v"))
    fewest = 2 if estimator == "u" else 1
    if min(x.shape[0], y.shape[0]) < fewest:
        raise ValueError(
            f"estimator {estimator!r} needs at least {fewest} rows in x and in y, got {x.shape[0]} and {y.shape[0]}."
        )
    bandwidths = _as_bandwidths(2.0 * max(x.shape[1], 1) if bandwidth is None else bandwidth)
    op = backends.resolve("mmd2", backend, x.device)
    return op(x, y, kernel, bandwidths, estimator)


def log_aggregate(
    z: Tensor,
    mu: Tensor,
    logvar: Tensor,
    *,
    log_weights: Tensor | None = None,
    backend: Backend = "auto",
) -> tuple[Tensor, Tensor]:
    """Evaluate the aggregated posterior and each of its marginals at given codes.

        log q(z_b)    = logsumexp_n [ w_bn + sum_k log N(z_bk; mu_nk, exp(logvar_nk)) ]
        log q_k(z_bk) = logsumexp_n [ w_bn +       log N(z_bk; mu_nk, exp(logvar_nk)) ]

    in the direct form ((z - mu) / sigma)^2: the form through matrix products errs by nats.

    Args:
        z: `(B, K)` codes.
        mu, logvar: `(N, K)` posteriors, N >= 1, of the dtype of z.
        log_weights: w, `(N,)` or `(B, N)`, a constant to the gradient; `-log N` when absent.

    Returns:
        `(B,)` and `(B, K)` in float32 (float64 for float64 and `reference`), differentiable in z, mu, logvar, once.

    Example:
        >>> joint, marginals = log_aggregate(torch.zeros(3, 2), torch.zeros(5, 2), torch.zeros(5, 2))
        >>> joint.shape, marginals.shape
        (torch.Size([3]), torch.Size([3, 2]))
    """
    _require_alike(z=z, mu=mu, logvar=logvar)
    if z.ndim != 2 or mu.ndim != 2 or mu.shape != logvar.shape or z.shape[1] != mu.shape[1] or mu.shape[0] == 0:
        raise ValueError(
            "z must be (B, K) and mu, logvar (N, K) with N >= 1, "
            f"got {tuple(z.shape)}, {tuple(mu.shape)} and {tuple(logvar.shape)}."
        )
    if log_weights is not None:
        _require_log_weights(log_weights, z, mu)
    op = backends.resolve("log_aggregate", backend, z.device)
    return op(z, mu, logvar, log_weights)


def normal_noise(
    seed: int | Tensor,
    shape: Sequence[int],
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Return standard normals that depend on (seed, row, column) alone, on every device and backend.

    Row is the index on the first axis, column the index in the flattened rest, K the size of that rest. Philox4x32-10
    with the seed as its key turns the counter `row * ceil(K / 4) + column // 4` into four words a, b, c, d, and these,
    read as uniforms, into the four normals of columns `4j ... 4j + 3` by Box and Muller:

        r(a) cos 2 pi b,  r(a) sin 2 pi b,  r(c) cos 2 pi d,  r(c) sin 2 pi d,      r(u) = sqrt(-2 log max(u, 1e-7))

    Uniforms and normals are computed in float32 and then cast.

    Args:
        seed: an int, or an int64 tensor of one or G values, each for an equal share of the rows, counted from 0 in it.
        shape: `(B, ...)`.

    Reference: Salmon et al., Parallel Random Numbers: As Easy as 1, 2, 3, 2011.

    Example:
        >>> normal_noise(7, (2, 3)).equal(normal_noise(7, (5, 3))[:2])
        True
    """
    sizes = _as_sizes(shape)
    if dtype not in _FLOATS:
        raise ValueError(f"dtype must be one of {_names(_FLOATS)}, got {dtype}.")
    where = torch.device(device) if device is not None else torch.get_default_device()
    seed = noise.as_seed(seed, where)
    _require_whole_groups(seed, sizes)
    return noise.normal(seed, sizes, dtype)


def _require_alike(**tensors: Tensor) -> None:
    """Raise unless all are tensors of one supported dtype on one device."""
    (first_name, first), *rest = tensors.items()
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name} must be a tensor, got {type(tensor).__name__}.")
    if first.dtype not in _FLOATS:
        raise ValueError(f"{first_name} must have a dtype of {_names(_FLOATS)}, got {first.dtype}.")
    for name, tensor in rest:
        if tensor.dtype != first.dtype or tensor.device != first.device:
            raise ValueError(
                f"{name} must be {first.dtype} on {first.device} like {first_name}, "
                f"got {tensor.dtype} on {tensor.device}."
            )


def _require_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}.")


def _as_sizes(shape: Sequence[int]) -> tuple[int, ...]:
    several = isinstance(shape, Sequence) and not isinstance(shape, str | bytes)
    sizes = [n for n in shape if isinstance(n, SupportsIndex) and not isinstance(n, bool | Tensor)] if several else []
    if not sizes or len(sizes) < len(shape) or any(n < 0 for n in sizes):
        raise ValueError(f"shape must be (B, ...), whole numbers and none negative, got {shape!r}.")
    return tuple(sizes)


def _as_bandwidths(bandwidth: float | Sequence[float]) -> tuple[float, ...]:
    several = isinstance(bandwidth, Sequence) and not isinstance(bandwidth, str | bytes)
    members: Any = bandwidth if several else [bandwidth]
    if len(members) == 0 or not all(_is_positive(c) for c in members):
        raise ValueError(
            f"bandwidth must be a positive finite number or a non-empty sequence of them, got {bandwidth!r}."
        )
    return tuple(float(c) for c in members)


def _is_positive(c: object) -> bool:
    if isinstance(c, bool) or not isinstance(c, Real):
        return False
    try:
        return 0 < float(c) < float("inf")
    except OverflowError:
        return False


def _require_whole_groups(seed: Tensor, shape: Sequence[int]) -> None:
    if shape[0] % seed.numel():
        raise ValueError(
            f"seed must hold one value or a number of values that divides the {shape[0]} rows, got {seed.numel()}."
        )


def _require_generators(generator: torch.Generator | Sequence[torch.Generator], mu: Tensor) -> None:
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
        if one.device.type != mu.device.type:
            raise ValueError(f"generator must live on {mu.device.type}, where mu is, got one on {one.device.type}.")


def _require_log_weights(log_weights: Tensor, z: Tensor, mu: Tensor) -> None:
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


def _names(dtypes: tuple[torch.dtype, ...]) -> str:
    return ", ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
