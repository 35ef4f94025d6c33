"""What the tests of the fused kernels share: the process that can run it, fresh memory full of NaN, and two oracles.

Without a GPU they run in Triton's interpreter, in processes that `tests/kernels/test_interpreter.py` starts:

    TRITON_INTERPRET=1 pytest tests/kernels/gpu
"""

import contextlib
import importlib
from unittest import mock

import numpy as np
import pytest
import torch

from vaebench import kernels
from vaebench.kernels import backends

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
if reason := backends.why_not("reparam_kl", "triton", DEVICE):
    pytest.skip(f"{reason}; tests/kernels/test_interpreter.py runs it", allow_module_level=True)

launch = importlib.import_module("vaebench.kernels.gpu.reparam_kl_launch")
REDUCTIONS = ["sample", "none", "dim", "batch"]
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
LAYOUTS = ["contiguous", "halves", "channel halves", "transposed", "every second row", "broadcast rows", "shifted"]


@contextlib.contextmanager
def harsh_environment():
    """Fill fresh tensors with NaN, and let the interpreter round to bfloat16, which it truncates, as every GPU does."""
    interpreter = importlib.import_module("triton.runtime.interpreter")
    language = importlib.import_module("triton.language")
    convert = interpreter._convert_float

    def convert_rounding(array, from_dtype, to_dtype, mode):
        if (from_dtype, to_dtype) != (language.float32, language.bfloat16):
            return convert(array, from_dtype, to_dtype, mode)
        return torch.from_numpy(np.ascontiguousarray(array)).to(torch.bfloat16).view(torch.uint16).numpy()

    torch.use_deterministic_algorithms(True)
    try:
        assert torch.zeros(3, device=DEVICE).new_empty(2).isnan().all()
        with mock.patch.object(interpreter, "_convert_float", convert_rounding), np.errstate(all="ignore"):
            yield
    finally:
        torch.use_deterministic_algorithms(False)


def fused(mu, logvar, **arguments):
    return kernels.reparam_kl(mu, logvar, **{"seed": 7, "backend": "triton", **arguments})


def values_and_gradients(mu, logvar, dz, dkl, **arguments):
    """Return z, kl, and the gradients of dz . z + dkl . kl."""
    mu, logvar = mu.detach().requires_grad_(), logvar.detach().requires_grad_()
    z, kl = fused(mu, logvar, **arguments)
    return z.detach(), kl.detach(), *torch.autograd.grad((z, kl), (mu, logvar), (dz, dkl))


def normals(shape, seed=7):
    """The kernel's own noise, z at mu = 0 and std = 1, which gpu/test_noise.py holds to account."""
    zeros = torch.zeros(shape, device=DEVICE)
    return fused(zeros, zeros, seed=seed)[0]


def randn(*shape, dtype=torch.float32, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE, dtype)


def upstream(mu, reduction):
    """Random gradients of z and of the KL."""
    kl_dtype = torch.float64 if mu.dtype == torch.float64 else torch.float32
    shape = launch.kl_shape(mu.shape, reduction)
    return randn(*mu.shape, dtype=mu.dtype, seed=1), randn(*shape, dtype=kl_dtype, seed=2)


def in_layout(pair, layout):
    """Return copies of mu and logvar with the strides that the layout names, where their shape has room for it."""
    B, *rest = pair[0].shape
    if layout == "halves" and rest:
        return torch.cat(pair, -1).chunk(2, -1)
    if layout == "channel halves" and rest:
        return torch.cat(pair, 1).chunk(2, 1)
    if layout == "transposed":
        return [x.movedim(0, -1).contiguous().movedim(-1, 0) for x in pair]
    if layout == "every second row":
        return [x.repeat_interleave(2, 0)[::2] for x in pair]
    if layout == "broadcast rows" and B:
        return [x[:1].expand(B, *rest) for x in pair]
    if layout == "shifted":
        return [torch.cat([x.new_zeros(1), x.flatten()])[1:].view(x.shape) for x in pair]
    return pair


def long(x):
    """The same in float64, which holds nine digits more than float32 and takes a tenth of the time of longer floats."""
    return x.detach().double().cpu().numpy().astype(np.longdouble if x.dtype == torch.float64 else np.float64)


def exact(mu, logvar, eps, dz, dkl, reduction):
    """z, kl, dmu and dlogvar from their definitions, in float64 or, of float64, in NumPy's longest floats."""
    mu, logvar, eps, dz, dkl = map(long, (mu, logvar, eps, dz, dkl))
    std, weight = np.exp(logvar / 2), weights(mu, dkl, reduction)
    kl = reduced((mu**2 + np.expm1(logvar) - logvar) / 2, reduction)
    return mu + std * eps, kl, dz + weight * mu, (dz * std * eps + weight * np.expm1(logvar)) / 2


def magnitudes(mu, logvar, eps, dz, dkl, reduction):
    """The same four with every term made positive: rounding errors are of the size of these, however much cancels."""
    mu, logvar, eps, dz, dkl = (np.abs(long(x)) if x is not logvar else long(x) for x in (mu, logvar, eps, dz, dkl))
    std, weight = np.exp(logvar / 2), weights(mu, dkl, reduction)
    kl = reduced((mu**2 + std**2 + 1 + np.abs(logvar)) / 2, reduction)
    return mu + std * eps, kl, dz + weight * mu, (dz * std * eps + weight * (std**2 + 1)) / 2


def reduced(terms, reduction):
    sums = terms.sum(tuple(range(1, terms.ndim)))
    return {"none": terms, "sample": sums, "dim": terms.mean(0), "batch": sums.mean()}[reduction]


def weights(mu, dkl, reduction):
    """The gradient of each term of the KL."""
    if reduction == "sample":
        return dkl.reshape(-1, *[1] * (mu.ndim - 1))
    return dkl if reduction == "none" else dkl / mu.shape[0]


def eager(mu, logvar, eps, dz, dkl, reduction):
    """The same four from PyTorch as people write it, in the dtype of mu."""
    mu, logvar = mu.detach().requires_grad_(), logvar.detach().requires_grad_()
    z = mu + eps.to(mu.dtype) * torch.exp(0.5 * logvar)
    terms = (-0.5 * (1 + logvar - mu.pow(2) - logvar.exp())).to(dkl.dtype)
    sums = terms.flatten(1).sum(1) if mu.ndim > 1 else terms
    kl = {"none": terms, "sample": sums, "dim": terms.mean(0), "batch": sums.mean()}[reduction]
    return z.detach(), kl.detach(), *torch.autograd.grad((z, kl), (mu, logvar), (dz, dkl))


def assert_as_accurate_as_eager(mu, logvar, reduction, seed=7):
    """The error may be twice eager's, at its largest and as a root mean square.

    Eager is counted as erring by at least one unit in the last place of what it adds up, since on a few numbers it may
    be exactly right; where it overflows, as in float16 it does, the unit is that of float16.
    """
    dz, dkl = upstream(mu, reduction)
    arguments = mu, logvar, normals(mu.shape, seed), dz, dkl, reduction
    ours = values_and_gradients(mu, logvar, dz, dkl, reduction=reduction, seed=seed)
    results = zip(ours, eager(*arguments), exact(*arguments), magnitudes(*arguments), strict=True)
    for name, (mine, his, right, size) in zip(("z", "kl", "dmu", "dlogvar"), results, strict=True):
        assert (mine.shape, mine.dtype) == (his.shape, his.dtype)
        info = torch.finfo(mine.dtype)
        assert np.isinf(long(mine)[np.abs(right) > 1.01 * info.max]).all(), f"{name} does not overflow where it should"
        inside = np.abs(right) < 0.99 * info.max
        for norm in (np.max, lambda e: np.sqrt(np.mean(e**2))) if inside.any() else ():
            error, his_error = (norm(np.abs(long(x) - right)[inside]) for x in (mine, his))
            overflows = not np.isfinite(his_error)
            least = norm(size[inside]) * (torch.finfo(mu.dtype).eps if overflows else info.eps)
            assert error <= 2 * (least if overflows else max(his_error, least)), name
