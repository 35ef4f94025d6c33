"""Values, gradients and layouts of the fused kernels. tests/fused_checks.py says by which backend.

For many more random cases set VAEBENCH_EXAMPLES=2000.
"""

import math
import os

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fused_checks import (
    BACKEND,
    DEVICE,
    DTYPES,
    LAYOUTS,
    REDUCTIONS,
    SCALES,
    fused,
    in_layout,
    large,
    needs_triton,
    normals,
    plan_forward,
    prior_shapes,
    randn,
    slow_interpreted,
    spread_of,
    values_and_gradients,
)
from tests.reparam_kl_oracle import assert_as_accurate_as_eager, exact, long, upstream

EXAMPLES = int(os.environ.get("VAEBENCH_EXAMPLES", "0"))
SHAPES = [(), (1,), (2,), (3,), (5,), (8,), (20,), (24,), (31,), (40,), (130,), (257,), (3, 5), (2, 4, 4), (520,)]
needs_gpu = pytest.mark.skipif(DEVICE.type != "cuda", reason="too large for the interpreter")


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(9,), (33, 20), *large((128, 32), (3, 1037), (4, 3, 6, 5))])
def test_accuracy(shape, dtype, reduction):
    assert_as_accurate_as_eager(
        BACKEND, randn(*shape, dtype=dtype, seed=3), randn(*shape, dtype=dtype, seed=4), reduction
    )


@pytest.mark.parametrize("shape", [(9,), *large((5, 24), (3, 4, 10))])
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_accuracy_of_scales_with_and_without_priors(dtype, scale, shape):
    mu, spread = randn(*shape, dtype=dtype, seed=3), spread_of(randn(*shape, dtype=dtype, seed=4), scale)
    assert_as_accurate_as_eager(BACKEND, mu, spread, "sample", scale=scale)
    shapes = prior_shapes(shape)
    for reduction, first, second in zip(REDUCTIONS, shapes, shapes[1:] + shapes[:1], strict=True):
        prior = randn(*first, dtype=dtype, seed=5), randn(*second, dtype=dtype, seed=6)
        assert_as_accurate_as_eager(BACKEND, mu, spread, reduction, scale=scale, prior=prior)


@slow_interpreted
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_long_rows_are_cut_into_strips(reduction):
    mu, logvar = randn(2, 12000, seed=3), randn(2, 12000, seed=4)
    assert_as_accurate_as_eager(BACKEND, mu, logvar, reduction)
    assert BACKEND != "triton" or math.prod(plan_forward(mu, logvar, "sample").grid) > 10


@pytest.mark.parametrize("layout", ["contiguous", "halves"])
def test_many_rows_are_walked_for_the_mean_over_the_batch(layout):
    assert_as_accurate_as_eager(BACKEND, *in_layout([randn(1500, 8, seed=3), randn(1500, 8, seed=4)], layout), "dim")


@pytest.mark.parametrize(("scale", "digits"), [(1e-7, 4e-7), (1e-4, 4e-7), (0.2, 4e-7), (0.299, 4e-7), (1.0, 3e-6)])
def test_the_kl_does_not_cancel(scale, digits):
    """Each term to so many digits of itself; of the textbook form in float32 none is right at 1e-4."""
    mu, logvar = randn(16, 16) * 1e-6 * scale, scale * torch.linspace(-1, 1, 256, device=DEVICE).view(16, 16)
    right = exact(mu, logvar, mu, mu, mu, "none")
    _, kl, _, dlogvar = values_and_gradients(mu, logvar, 0 * mu, torch.ones_like(mu), reduction="none")
    assert (np.abs(long(kl) - right[1]) <= digits * right[1]).all()
    slope = np.expm1(long(logvar)) / 2
    assert (np.abs(long(dlogvar) - slope) <= 1e-6 * np.abs(slope)).all()


@pytest.mark.parametrize(("size", "digits"), [(1e-6, 8e-7), (1e-4, 8e-7), (0.2, 8e-7), (0.299, 1e-6), (1.0, 3e-6)])
@pytest.mark.parametrize("scale", ["std", "var"])
def test_the_kl_does_not_cancel_near_a_variance_of_1(scale, size, digits):
    mu, logvar = randn(16, 16) * 1e-6 * size, size * torch.linspace(-1, 1, 256, device=DEVICE).view(16, 16)
    spread = spread_of(logvar, scale)
    right = exact(mu, spread, mu, 0 * mu, torch.ones_like(mu), "none", scale)
    _, kl, _, dspread = values_and_gradients(mu, spread, 0 * mu, torch.ones_like(mu), reduction="none", scale=scale)
    assert (np.abs(long(kl) - right[1]) <= digits * right[1]).all()
    assert (np.abs(long(dspread) - right[3]) <= 1e-6 * np.abs(right[3])).all()


@pytest.mark.parametrize(("size", "digits"), [(1e-6, 8e-7), (1e-4, 8e-7), (0.2, 8e-7), (0.299, 8e-7), (1.0, 1e-5)])
@pytest.mark.parametrize("scale", SCALES)
def test_the_kl_does_not_cancel_near_a_prior(scale, size, digits):
    """Of a prior with any variance, if logvar is given; otherwise near 1, beside which v has its own rounding error."""
    center = torch.linspace(-6, 6, 256, device=DEVICE)[torch.arange(256) * 101 % 256].view(16, 16)
    center = center if scale == "logvar" else torch.zeros_like(center)
    spread = spread_of(center + size * torch.linspace(-1, 1, 256, device=DEVICE).view(16, 16), scale)
    prior = torch.ones_like(center), center
    mu, dz, dkl = torch.ones_like(spread), torch.zeros_like(spread), torch.ones_like(spread)
    right = exact(mu, spread, mu, dz, dkl, "none", scale, prior)
    _, kl, _, dspread, _, dprior = values_and_gradients(mu, spread, dz, dkl, reduction="none", scale=scale, prior=prior)
    assert (np.abs(long(kl) - right[1]) <= digits * right[1]).all()
    assert (np.abs(long(dspread) - right[3]) <= 2e-6 * np.abs(right[3])).all()
    assert (np.abs(long(dprior) - right[5]) <= 2e-6 * np.abs(right[5])).all()


def test_exponentials_keep_their_digits_where_the_exponent_is_large():
    logvar = torch.linspace(-80, 80, 256, device=DEVICE).view(16, 16)
    eps = normals(logvar.shape)
    z, kl = fused(torch.zeros_like(logvar), logvar, reduction="none")
    assert (np.abs(long(z) / (long(eps) * np.exp(long(logvar) / 2)) - 1) < 4e-7).all()
    torch.testing.assert_close(kl.double(), (logvar.double().expm1() - logvar) / 2, rtol=4e-7, atol=1e-7)


@st.composite
def problems(draw):
    """mu and a spread, each of one magnitude, in some layout, with a prior or without, a reduction and a seed."""
    shape = (draw(st.sampled_from([0, 1, 2, 3, 7, 33, 70])), *draw(st.sampled_from(SHAPES)))
    dtype, scale = draw(st.sampled_from(DTYPES)), draw(st.sampled_from(SCALES))
    with_prior, number = draw(st.booleans()), draw(st.integers(0, 1000))
    # Gradients of a float16 prior overflow one by one before they are summed, in eager too.
    narrow = with_prior and dtype == torch.float16
    of_mu = draw(st.sampled_from([1e-3, 1.0] if narrow else [1e-3, 1.0, 1e4]))
    of_logvar = draw(st.sampled_from([1e-3, 0.3, 1.0] if narrow else [1e-3, 0.3, 1.0, 12.0, 80.0]))
    logvar = (randn(*shape, seed=number + 1).clamp(-1, 1) * of_logvar).to(dtype)
    pair = [(randn(*shape, seed=number) * of_mu).to(dtype), spread_of(logvar, scale)]
    pair = in_layout(pair, draw(st.sampled_from(LAYOUTS)))
    groups = draw(st.sampled_from([g for g in (1, 2, 7) if shape[0] % g == 0]))
    return *pair, {
        "reduction": draw(st.sampled_from(REDUCTIONS)),
        "seed": torch.arange(groups, device=DEVICE) * 12345 + number,
        "scale": scale,
        "prior": draw(priors(shape, dtype)) if with_prior else None,
    }


@st.composite
def priors(draw, shape, dtype):
    """The mean and the logvar of a prior, each of one magnitude and one of the shapes that broadcast to `shape`."""
    shapes = [draw(st.sampled_from(prior_shapes(shape))) for _ in range(2)]
    scales, number = [draw(st.sampled_from([1e-3, 1.0, 6.0])) for _ in range(2)], draw(st.integers(0, 1000))
    pair = [(randn(*s, seed=number + i).clamp(-1, 1) * scales[i]).to(dtype) for i, s in enumerate(shapes)]
    same = len(shapes[0]) == len(shapes[1]) == len(shape) > 0 and shapes[0] == shapes[1] == shape
    return in_layout(pair, draw(st.sampled_from(LAYOUTS))) if same else pair


@slow_interpreted
@settings(
    max_examples=EXAMPLES or (60 if BACKEND == "triton" else 200),  # the interpreter is slow
    derandomize=EXAMPLES == 0,
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
@given(problems())
def test_any_shape_layout_and_magnitude(problem):
    mu, spread, options = problem
    if mu.numel() > 0:
        assert_as_accurate_as_eager(BACKEND, mu, spread, **options)
    else:
        assert_empty(mu.shape, options["reduction"], options["prior"])


def assert_empty(shape, reduction, prior=None):
    """Sums over nothing are 0 and means over nothing NaN, as in PyTorch; gradients are empty, and of a prior 0."""
    zeros = torch.zeros(shape, device=DEVICE)
    prior = None if prior is None else [x.float() for x in prior]
    sums = zeros.flatten(1).sum(1) if zeros.ndim > 1 else zeros
    right = {"none": zeros, "sample": sums, "dim": zeros.mean(0), "batch": sums.mean()}[reduction]
    z, kl, *gradients = values_and_gradients(zeros, zeros, zeros, right, reduction=reduction, prior=prior)
    torch.testing.assert_close(kl, right, equal_nan=True)
    assert z.shape == gradients[0].shape == gradients[1].shape == shape
    for gradient, tensor in zip(gradients[2:], prior or (), strict=True):
        torch.testing.assert_close(gradient, torch.zeros_like(tensor))


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
    assert_equal_to_the_definition(mu, logvar)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", ["std", "var"])
def test_spreads_of_0_and_beyond_come_out_as_they_should(scale, dtype):
    spread = torch.tensor([[0.0, 1.0, 1e-4, 1e4, math.nan]], device=DEVICE, dtype=dtype)
    assert_equal_to_the_definition(torch.ones_like(spread), spread, scale=scale)
    _, kl = fused(spread[:, 1:2], spread[:, 1:2] * math.inf, scale=scale)
    assert not kl.isfinite().any()
    assert fused(spread[:, 1:4], -spread[:, 1:4], scale=scale, reduction="none")[1].isnan().all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_infinities_and_nan_of_a_prior_come_out_where_they_should(dtype):
    endless = [math.inf, -math.inf, math.nan]
    values, of_prior = [0.0, 1.0, -80.0, 85.0, *endless], [0.0, -70.0, 80.0, *endless]
    axes = [torch.tensor(x, device=DEVICE, dtype=dtype) for x in (values, values, of_prior)]
    mu, logvar, prior_logvar = (x.flatten()[None] for x in torch.meshgrid(*axes, indexing="ij"))
    assert_equal_to_the_definition(mu, logvar, prior=(torch.ones_like(mu), prior_logvar))


def assert_equal_to_the_definition(mu, spread, **options):
    dz, dkl = (x.abs() for x in upstream(mu, "none"))
    right = exact(mu, spread, normals(mu.shape), dz, dkl, "none", **options)
    ours = values_and_gradients(mu, spread, dz, dkl, reduction="none", **options)
    for mine, definition in zip(ours, right, strict=True):
        expected = torch.from_numpy(definition.astype(np.float64)).to(mine.dtype)
        torch.testing.assert_close(mine.cpu(), expected, equal_nan=True, rtol=1e-2, atol=1e-5)


@slow_interpreted
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_two_runs_give_the_same_bits(reduction):
    mu, logvar = randn(6, 3000), randn(6, 3000, seed=1)
    (z, kl), (z2, kl2) = (fused(mu, logvar, reduction=reduction) for _ in range(2))
    assert z.equal(z2)
    assert kl.equal(kl2)


@pytest.mark.parametrize("shape", [(16, 24), (4, 4, 8, 8)])
def test_halves_are_read_in_place_and_their_gradients_share_a_buffer(shape):
    mu, logvar = randn(shape[0], 2 * shape[1], *shape[2:]).chunk(2, 1)
    if BACKEND == "triton":
        arguments = plan_forward(mu, logvar, "sample").arguments
        assert arguments["mu_ptr"].data_ptr() == mu.data_ptr()
        assert arguments["spread_ptr"].data_ptr() == logvar.data_ptr()
    _, _, dmu, dlogvar = values_and_gradients(mu, logvar, *upstream(mu, "sample"))
    assert dmu.stride() == dlogvar.stride() == mu.stride()
    assert dlogvar.data_ptr() - dmu.data_ptr() == logvar.data_ptr() - mu.data_ptr()


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_gradients_of_the_results_may_have_any_strides(reduction):
    mu, logvar = (randn(5, 3, 4, seed=i) for i in range(2))
    given = upstream(mu, reduction)
    turned = [x.movedim(0, -1).contiguous().movedim(-1, 0) if x.ndim else x for x in given]
    results = [values_and_gradients(mu, logvar, *pair, reduction=reduction) for pair in (turned, given)]
    torch.testing.assert_close(*results)


@pytest.mark.skipif(BACKEND == "triton", reason="NaN on a GPU, where it would cost, see docs/kernels.md")
@pytest.mark.parametrize("with_prior", [False, True])
@pytest.mark.parametrize(
    ("scale", "spread"), [("logvar", [100.0, -200.0, 0.5]), ("std", [0.0, 1e30, 0.5]), ("var", [1e-30, 1e38, 0.5])]
)
def test_a_kl_that_no_loss_reads_has_no_gradient_also_where_it_would_be_infinite(scale, spread, with_prior):
    given = [torch.ones(1, 3), torch.tensor([spread])] + [torch.zeros(1, 3), torch.full((1, 3), -100.0)] * with_prior
    leaves = [x.to(DEVICE).requires_grad_() for x in given]
    z, _ = fused(*leaves[:2], scale=scale, **({"prior": tuple(leaves[2:])} if with_prior else {}))
    gradients = torch.autograd.grad(z.sum(), leaves)
    std = {"logvar": lambda s: torch.exp(s / 2), "std": lambda s: s, "var": torch.sqrt}[scale]
    expected = torch.autograd.grad((std(leaves[1]) * normals((1, 3))).sum(), leaves[1])[0]
    torch.testing.assert_close(gradients[0], torch.ones_like(z))
    torch.testing.assert_close(gradients[1], expected)
    assert all(not gradient.any() for gradient in gradients[2:])


def test_outputs_are_contiguous_whatever_the_inputs():
    mu, logvar = (randn(6, 5, 4, seed=i).permute(2, 0, 1) for i in range(2))
    z, _, dmu, dlogvar = values_and_gradients(mu, logvar, *upstream(mu, "sample"))
    assert all(x.is_contiguous() for x in (z, dmu, dlogvar))


@needs_triton
@pytest.mark.parametrize("columns", [24, 40, 6, 1])
def test_loads_are_as_wide_as_the_row_pitch_allows(columns):
    """In bfloat16: 8 columns, 16 bytes, if 8 divides K; a contiguous tensor that may be flattened is never narrower."""
    mu, logvar = torch.zeros(8, 2 * columns, dtype=torch.bfloat16, device=DEVICE).chunk(2, 1)
    assert plan_forward(mu, logvar, "sample").constants["VECTOR"] == math.gcd(columns, 8)
    flat = plan_forward(mu.contiguous(), mu.contiguous(), "none")
    assert flat.constants["VECTOR"] == (8 if columns % 4 == 0 else math.gcd(columns, 8))


@needs_triton
@pytest.mark.parametrize("shape", [(7, 24), (5, 4, 6), (4, 8)])
def test_one_prior_for_all_rows_is_not_repeated(shape):
    mu, prior = randn(*shape), randn(*shape[1:])
    arguments = plan_forward(mu, mu, "sample", [prior.expand(shape), prior[..., :1].expand(shape)]).arguments
    assert arguments["prior_mu_ptr"].data_ptr() == prior.data_ptr()
    assert arguments["prior_mu_stride"] == arguments["prior_logvar_stride"] == 0
    assert arguments["prior_logvar_ptr"].untyped_storage().nbytes() == prior.untyped_storage().nbytes()


@needs_gpu
@pytest.mark.parametrize("shape", [(2**22 + 3, 6), (3, 2**23 + 4), (2**21, 1)])
def test_large(shape):
    mu, logvar = randn(*shape, seed=3), randn(*shape, seed=4)
    for reduction in REDUCTIONS:
        assert_as_accurate_as_eager(BACKEND, mu, logvar, reduction)


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
