"""Operations that every variational autoencoder computes, each with interchangeable backends.

Four functions, free of any model: `reparam_kl` (draw a code and measure its posterior's divergence in one pass), `mmd2`
(maximum mean discrepancy), `log_aggregate` (the aggregated posterior) and `normal_noise` (the counter-based noise
stream that all backends share). `backend="auto"` is a fused kernel on a GPU (`triton`) and on a CPU (`numba`), and
`eager` PyTorch on other devices.

`arguments.py` checks what is passed in; the backends (`reference`, `eager`, `numba`, `triton`) trust it.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from . import arguments, backends
from .shared import noise

__all__ = ["log_aggregate", "mmd2", "normal_noise", "reparam_kl"]

Reduction = Literal["sample", "none", "dim", "batch"]
Kernel = Literal["imq", "rbf"]
Estimator = Literal["u", "v"]
Backend = Literal["auto", "reference", "eager", "numba", "triton"]
Scale = Literal["logvar", "std", "var"]


def reparam_kl(
    mu: Tensor,
    logvar: Tensor,
    *,
    scale: Scale = "logvar",
    prior: tuple[Tensor, Tensor] | None = None,
    seed: int | Tensor | None = None,
    generator: torch.Generator | Sequence[torch.Generator] | None = None,
    reduction: Reduction = "sample",
    backend: Backend = "auto",
) -> tuple[Tensor, Tensor]:
    """Draw z from a diagonal Gaussian and measure how far that Gaussian is from the standard normal, or from a prior.

        z  = mu + exp(logvar / 2) * eps,    eps ~ N(0, I)
        kl = 1/2 * sum_k (mu_k^2 + expm1(logvar_k) - logvar_k)

    and with a prior N(mu_p, diag exp(logvar_p)), x = logvar - logvar_p,

        kl = 1/2 * sum_k ((mu_k - mu_pk)^2 exp(-logvar_pk) + expm1(x_k) - x_k)

    Args:
        mu, logvar: `(B, ...)`, one dtype of float16, bfloat16, float32, float64; any strides.
        scale: what `logvar` holds: log variances, standard deviations (`std`) or variances (`var`).
        prior: mu_p and logvar_p, each of a shape that broadcasts to that of mu.
        seed: an int, or an int64 tensor of one or G values where G divides B; eps is then a pure function of
            (seed, row, column), see `normal_noise`. Value g serves rows `g*B/G ... (g+1)*B/G - 1`, counted from 0.
        generator: where to draw a seed from if there is none; torch's default generator when absent. With one on the
            CPU, a GPU draws the same noise as a CPU. Of G generators, each draws for its share of the rows what it
            would have drawn for them alone.
        reduction: `sample` sums over all but the first axis -> `(B,)`; `none` -> the elementwise terms; `dim` averages
            over the batch -> `(...)`; `batch` averages the sums -> a scalar.
        backend: `auto`, or one of `reference`, `eager`, `numba`, `triton`.

    Returns:
        z in the dtype of mu, and kl in float32 (float64 for float64). `reference` returns float64 for both.

    Differentiable in mu, logvar and the prior, once.

    Reference: Kingma and Welling, Auto-Encoding Variational Bayes, 2014, appendix B.

    Example:
        >>> z, kl = reparam_kl(torch.zeros(3, 2), torch.zeros(3, 2), seed=0)
        >>> z.shape, kl
        (torch.Size([3, 2]), tensor([0., 0., 0.]))
        >>> reparam_kl(torch.ones(3, 2), torch.ones(3, 2), scale="std", prior=(torch.ones(2), torch.zeros(2)))[1]
        tensor([0., 0., 0.])
    """
    arguments.require_alike(mu=mu, logvar=logvar)
    if mu.ndim == 0 or mu.shape != logvar.shape:
        raise ValueError(
            f"mu and logvar must have one shape (B, ...), got {tuple(mu.shape)} and {tuple(logvar.shape)}."
        )
    arguments.require_choice("scale", scale, ("logvar", "std", "var"))
    arguments.require_choice("reduction", reduction, ("sample", "none", "dim", "batch"))
    prior_mu, prior_logvar = (None, None) if prior is None else arguments.as_prior(prior, mu)
    if seed is not None:
        if generator is not None:
            raise ValueError("seed and generator both say where the noise comes from; give one of them.")
        seed = arguments.as_seed(seed, mu.device)
        arguments.require_whole_groups(seed, mu.shape)
    else:
        if generator is not None:
            arguments.require_generators(generator, mu)
        seed = noise.draw_seed(mu.device, generator)
    op = backends.resolve("reparam_kl", backend, mu.device)
    return op(mu, logvar, prior_mu, prior_logvar, seed, scale, reduction)


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
    arguments.require_alike(x=x, y=y)
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1]:
        raise ValueError(f"x and y must be (N, K) and (M, K) with one K, got {tuple(x.shape)} and {tuple(y.shape)}.")
    arguments.require_choice("kernel", kernel, ("imq", "rbf"))
    arguments.require_choice("estimator", estimator, ("u", "v"))
    fewest = 2 if estimator == "u" else 1
    if min(x.shape[0], y.shape[0]) < fewest:
        raise ValueError(
            f"estimator {estimator!r} needs at least {fewest} rows in x and in y, got {x.shape[0]} and {y.shape[0]}."
        )
    bandwidths = arguments.as_bandwidths(2.0 * max(x.shape[1], 1) if bandwidth is None else bandwidth)
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
    arguments.require_alike(z=z, mu=mu, logvar=logvar)
    if z.ndim != 2 or mu.ndim != 2 or mu.shape != logvar.shape or z.shape[1] != mu.shape[1] or mu.shape[0] == 0:
        raise ValueError(
            "z must be (B, K) and mu, logvar (N, K) with N >= 1, "
            f"got {tuple(z.shape)}, {tuple(mu.shape)} and {tuple(logvar.shape)}."
        )
    if log_weights is not None:
        arguments.require_log_weights(log_weights, z, mu)
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
    sizes = arguments.as_sizes(shape)
    if dtype not in arguments.FLOATS:
        raise ValueError(f"dtype must be one of {arguments.names(arguments.FLOATS)}, got {dtype}.")
    where = torch.device(device) if device is not None else torch.get_default_device()
    seed = arguments.as_seed(seed, where)
    arguments.require_whole_groups(seed, sizes)
    return backends.draw_normals(seed, sizes, dtype)
