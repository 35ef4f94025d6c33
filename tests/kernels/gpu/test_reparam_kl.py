"""Values, gradients and layouts of the Triton kernel. tests/gpu_checks.py has the command.

For many more random cases set VAEBENCH_EXAMPLES=2000.
"""

import math
import os

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.gpu_checks import (
    DEVICE,
    DTYPES,
    LAYOUTS,
    REDUCTIONS,
    fused,
    in_layout,
    launch,
    normals,
    randn,
    values_and_gradients,
)
from tests.reparam_kl_oracle import assert_as_accurate_as_eager, exact, long, upstream

EXAMPLES = int(os.environ.get("VAEBENCH_EXAMPLES", "0"))
SHAPES = [(), (1,), (2,), (3,), (5,), (8,), (20,), (24,), (31,), (40,), (130,), (257,), (3, 5), (2, 4, 4), (520,)]
needs_gpu = pytest.mark.skipif(DEVICE.type != "cuda", reason="too large for the interpreter")


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(128, 32), (3, 1037), (9,), (33, 20), (4, 3, 6, 5)])
def test_accuracy(shape, dtype, reduction):
    assert_as_accurate_as_eager(
        "triton", randn(*shape, dtype=dtype, seed=3), randn(*shape, dtype=dtype, seed=4), reduction
    )


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_long_rows_are_cut_into_strips(reduction):
    mu, logvar = randn(2, 12000, seed=3), randn(2, 12000, seed=4)
    assert_as_accurate_as_eager("triton", mu, logvar, reduction)
    forward, _ = launch.plan_forward(mu, logvar, torch.zeros(1).long(), mu, "sample")
    assert math.prod(forward.grid) > 10


@pytest.mark.parametrize("layout", ["contiguous", "halves"])
def test_many_rows_are_walked_for_the_mean_over_the_batch(layout):
    assert_as_accurate_as_eager("triton", *in_layout([randn(1500, 8, seed=3), randn(1500, 8, seed=4)], layout), "dim")


@pytest.mark.parametrize(("scale", "digits"), [(1e-7, 4e-7), (1e-4, 4e-7), (0.2, 4e-7), (0.299, 4e-7), (1.0, 3e-6)])
def test_the_kl_does_not_cancel(scale, digits):
    """Each term to so many digits of itself; of the textbook form in float32 none is right at 1e-4."""
    mu, logvar = randn(16, 16) * 1e-6 * scale, scale * torch.linspace(-1, 1, 256, device=DEVICE).view(16, 16)
    right = exact(mu, logvar, mu, mu, mu, "none")
    _, kl, _, dlogvar = values_and_gradients(mu, logvar, 0 * mu, torch.ones_like(mu), reduction="none")
    assert (np.abs(long(kl) - right[1]) <= digits * right[1]).all()
    slope = np.expm1(long(logvar)) / 2
    assert (np.abs(long(dlogvar) - slope) <= 1e-6 * np.abs(slope)).all()


def test_exponentials_keep_their_digits_where_the_exponent_is_large():
    logvar = torch.linspace(-80, 80, 256, device=DEVICE).view(16, 16)
    eps = normals(logvar.shape)
    z, kl = fused(torch.zeros_like(logvar), logvar, reduction="none")
    assert (np.abs(long(z) / (long(eps) * np.exp(long(logvar) / 2)) - 1) < 4e-7).all()
    torch.testing.assert_close(kl.double(), (logvar.double().expm1() - logvar) / 2, rtol=4e-7, atol=1e-7)


@st.composite
def problems(draw):
    """mu and logvar, each of one magnitude, in some layout, with a reduction and a seed."""
    shape = (draw(st.sampled_from([0, 1, 2, 3, 7, 33, 70])), *draw(st.sampled_from(SHAPES)))
    dtype = draw(st.sampled_from(DTYPES))
    mu_scale, logvar_scale = (
        draw(st.sampled_from([1e-3, 1.0, 1e4])),
        draw(st.sampled_from([1e-3, 0.3, 1.0, 12.0, 80.0])),
    )
    number = draw(st.integers(0, 1000))
    pair = [randn(*shape, seed=number) * mu_scale, randn(*shape, seed=number + 1).clamp(-1, 1) * logvar_scale]
    pair = in_layout([x.to(dtype) for x in pair], draw(st.sampled_from(LAYOUTS)))
    groups = draw(st.sampled_from([g for g in (1, 2, 7) if shape[0] % g == 0]))
    return *pair, draw(st.sampled_from(REDUCTIONS)), torch.arange(groups, device=DEVICE) * 12345 + number


@settings(
    max_examples=EXAMPLES or 120,
    derandomize=EXAMPLES == 0,
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
@given(problems())
def test_any_shape_layout_and_magnitude(problem):
    mu, logvar, reduction, seed = problem
    if mu.numel() > 0:
        assert_as_accurate_as_eager("triton", mu, logvar, reduction, seed)
    else:
        assert_empty(mu.shape, reduction)


def assert_empty(shape, reduction):
    """Sums over nothing are 0 and means over nothing NaN, as in PyTorch; gradients are empty."""
    zeros = torch.zeros(shape, device=DEVICE)
    sums = zeros.flatten(1).sum(1) if zeros.ndim > 1 else zeros
    right = {"none": zeros, "sample": sums, "dim": zeros.mean(0), "batch": sums.mean()}[reduction]
    z, kl, dmu, dlogvar = values_and_gradients(zeros, zeros, zeros, right, reduction=reduction)
    torch.testing.assert_close(kl, right, equal_nan=True)
    assert z.shape == dmu.shape == dlogvar.shape == shape


@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (0,), (3, 0, 2)])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_empty(shape, reduction):
    assert_empty(shape, reduction)


@pytest.mark.parametrize("dtype", DTYPES)
def test_overflow_infinities_and_nan_come_out_where_they_should(dtype):
    """Float32's exp(logvar) overflows at 88.7, in eager too, so nothing is asked just above."""
    values = torch.tensor(
        [0.0, 1.0, -80.0, 85.0, 95.0, 100.0, math.inf, -math.inf, math.nan], device=DEVICE, dtype=dtype
    )
    mu, logvar = (x.flatten().repeat(3, 1) for x in torch.meshgrid(values, values, indexing="ij"))
    dz, dkl = (x.abs() for x in upstream(mu, "none"))
    right = exact(mu, logvar, normals(mu.shape), dz, dkl, "none")
    for mine, definition in zip(values_and_gradients(mu, logvar, dz, dkl, reduction="none"), right, strict=True):
        expected = torch.from_numpy(definition.astype(np.float64)).to(mine.dtype)
        torch.testing.assert_close(mine.cpu(), expected, equal_nan=True, rtol=1e-2, atol=1e-5)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_two_runs_give_the_same_bits(reduction):
    mu, logvar = randn(6, 3000), randn(6, 3000, seed=1)
    (z, kl), (z2, kl2) = (fused(mu, logvar, reduction=reduction) for _ in range(2))
    assert z.equal(z2)
    assert kl.equal(kl2)


@pytest.mark.parametrize("shape", [(16, 24), (4, 4, 8, 8)])
def test_halves_are_read_in_place_and_their_gradients_share_a_buffer(shape):
    mu, logvar = randn(shape[0], 2 * shape[1], *shape[2:]).chunk(2, 1)
    forward, _ = launch.plan_forward(mu, logvar, torch.zeros(1).long(), torch.empty_like(mu), "sample")
    assert forward.arguments["mu_ptr"].data_ptr() == mu.data_ptr()
    assert forward.arguments["logvar_ptr"].data_ptr() == logvar.data_ptr()
    _, _, dmu, dlogvar = values_and_gradients(mu, logvar, *upstream(mu, "sample"))
    assert dmu.stride() == dlogvar.stride() == mu.stride()
    assert dlogvar.data_ptr() - dmu.data_ptr() == logvar.data_ptr() - mu.data_ptr()


def test_outputs_are_contiguous_whatever_the_inputs():
    mu, logvar = (randn(6, 5, 4, seed=i).permute(2, 0, 1) for i in range(2))
    z, _, dmu, dlogvar = values_and_gradients(mu, logvar, *upstream(mu, "sample"))
    assert all(x.is_contiguous() for x in (z, dmu, dlogvar))


@pytest.mark.parametrize("columns", [24, 40, 6, 1])
def test_loads_are_as_wide_as_the_row_pitch_allows(columns):
    """In bfloat16: 8 columns, 16 bytes, if 8 divides K; a contiguous tensor that may be flattened is never narrower."""
    mu, logvar = torch.zeros(8, 2 * columns, dtype=torch.bfloat16, device=DEVICE).chunk(2, 1)
    seed = torch.zeros(1, dtype=torch.int64, device=DEVICE)
    z = torch.empty(8, columns, dtype=torch.bfloat16, device=DEVICE)
    rows, _ = launch.plan_forward(mu, logvar, seed, z, "sample")
    assert rows.constants["VECTOR"] == math.gcd(columns, 8)
    flat, _ = launch.plan_forward(z, z, seed, z, "none")
    assert flat.constants["VECTOR"] == (8 if columns % 4 == 0 else math.gcd(columns, 8))


@needs_gpu
@pytest.mark.parametrize("shape", [(2**22 + 3, 6), (3, 2**23 + 4), (2**21, 1)])
def test_large(shape):
    mu, logvar = randn(*shape, seed=3), randn(*shape, seed=4)
    for reduction in REDUCTIONS:
        assert_as_accurate_as_eager("triton", mu, logvar, reduction)


@needs_gpu
def test_addresses_beyond_32_bits():
    """The last rows of a tensor of more than 2^31 elements are what their definition says."""
    B, K = 2**21 + 5, 1024
    mu, logvar = (torch.zeros(B, K, device=DEVICE, dtype=torch.bfloat16).normal_() for _ in range(2))
    z, kl = (x[-3:].float() for x in fused(mu, logvar))
    mu, logvar, zeros = mu[-3:].float(), logvar[-3:].float(), torch.zeros(B, K, device=DEVICE, dtype=torch.bfloat16)
    eps = fused(zeros, zeros)[0][-3:].float()
    torch.testing.assert_close(z, mu + (logvar / 2).exp() * eps, rtol=1e-2, atol=2e-2)
    torch.testing.assert_close(kl, (mu**2 + logvar.expm1() - logvar).sum(1) / 2)
