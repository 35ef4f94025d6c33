"""Shared by the tests of the fused kernels: the backend, an environment in which errors show, tensors and layouts.

The backend is triton on a GPU and numba on a CPU. Triton's kernels also run on a CPU, in its interpreter, in processes
that `tests/kernels/test_interpreter.py` starts:

    TRITON_INTERPRET=1 pytest tests/kernels/fused
"""

import contextlib
import importlib
from functools import partial
from unittest import mock

import numpy as np
import pytest
import torch

from tests import reparam_kl_oracle
from vaebench import kernels
from vaebench.kernels import backends

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
WHY_NOT_TRITON = backends.why_not("reparam_kl", "triton", DEVICE)
BACKEND = "numba" if WHY_NOT_TRITON else "triton"
needs_triton = pytest.mark.skipif(
    WHY_NOT_TRITON is not None, reason=f"{WHY_NOT_TRITON}; tests/kernels/test_interpreter.py runs it"
)
IN_INTERPRETER = BACKEND == "triton" and DEVICE.type == "cpu"
REDUCTIONS = ["sample", "none", "dim", "batch"]
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
values_and_gradients = partial(reparam_kl_oracle.values_and_gradients, BACKEND)
SCALES = ["logvar", "std", "var"]
LAYOUTS = ["contiguous", "halves", "channel halves", "transposed", "every second row", "broadcast rows", "shifted"]


def slow_interpreted(test):
    """Mark a test as slow where it runs in the interpreter."""
    return pytest.mark.slow(test) if IN_INTERPRETER else test


def large(*values):
    """Return parameters of a test that make it slow in the interpreter."""
    return [pytest.param(value, marks=[pytest.mark.slow] if IN_INTERPRETER else []) for value in values]


def skip_module_without_triton():
    """Skip the module that calls this where Triton's kernels cannot run."""
    if WHY_NOT_TRITON:
        pytest.skip(f"{WHY_NOT_TRITON}; tests/kernels/test_interpreter.py runs it", allow_module_level=True)


@contextlib.contextmanager
def harsh_environment():
    """Fill fresh tensors with NaN, and make the interpreter round to bfloat16 and add up as a GPU does."""
    torch.use_deterministic_algorithms(True)
    try:
        assert torch.zeros(3, device=DEVICE).new_empty(2).isnan().all()
        with contextlib.ExitStack() as stack:
            stack.enter_context(np.errstate(all="ignore"))
            if BACKEND == "triton":
                interpreter = importlib.import_module("triton.runtime.interpreter")
                stack.enter_context(rounding(interpreter))
                stack.enter_context(mock.patch.object(interpreter.ReduceOps, "sum", sum_in_pairs))
            yield
    finally:
        torch.use_deterministic_algorithms(False)


def sum_in_pairs(reduction, tensor):
    """Add halves of the axis, where the interpreter adds one by one: errors grow with the logarithm of its length."""
    assert not reduction.keep_dims
    data = tensor.handle.data
    values = data.ravel() if reduction.axis is None else np.moveaxis(data, reduction.axis, 0)
    while len(values) > 1:
        values = values[: len(values) // 2] + values[len(values) // 2 :]
    return reduction.to_tensor(values[0], tensor.dtype)


def rounding(interpreter):
    """Return a patch of the interpreter that rounds to bfloat16, where it truncates."""
    language = importlib.import_module("triton.language")
    convert = interpreter._convert_float

    def convert_rounding(array, from_dtype, to_dtype, mode):
        if (from_dtype, to_dtype) != (language.float32, language.bfloat16):
            return convert(array, from_dtype, to_dtype, mode)
        return torch.from_numpy(np.ascontiguousarray(array)).to(torch.bfloat16).view(torch.uint16).numpy()

    return mock.patch.object(interpreter, "_convert_float", convert_rounding)


def fused(mu, logvar, **arguments):
    return kernels.reparam_kl(mu, logvar, **{"seed": 7, "backend": BACKEND, **arguments})


def normals(shape, seed=7):
    return reparam_kl_oracle.normals(BACKEND, shape, DEVICE, seed)


def randn(*shape, dtype=torch.float32, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE, dtype)


def spread_of(logvar, scale):
    """Return what stands for logvar on a scale: finite and above 0."""
    exponent = {"logvar": None, "std": logvar.double() / 2, "var": logvar.double()}[scale]
    info = torch.finfo(logvar.dtype)
    return logvar if exponent is None else exponent.exp().clamp(info.tiny, info.max).to(logvar.dtype)


def prior_shapes(shape):
    """Return the shapes of a prior: one number, one for each column, one for each row, and one for each element."""
    return [(), tuple(shape[1:]), (shape[0], *[1] * len(shape[1:])), tuple(shape)]


def plan_forward(mu, spread, reduction, prior=()):
    seed = torch.zeros(1, dtype=torch.int64, device=DEVICE)
    launch = importlib.import_module("vaebench.kernels.gpu.reparam_kl_launch")
    return launch.plan_forward(mu, spread, list(prior), seed, mu.new_empty(mu.shape), "logvar", reduction)[0]


def in_layout(pair, layout):
    """Return copies of mu and logvar with the strides that the layout names, if their shape allows it."""
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
