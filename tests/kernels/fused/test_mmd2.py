"""The Triton mmd2: values, gradients, autograd, vmap and compile. tests/fused_checks.py has the command."""

import math

import pytest
import torch

from tests.fused_checks import DEVICE, DTYPES, large, skip_module_without_triton
from tests.kernel_checks import (
    assert_no_worse_than_twice_eager,
    assert_second_derivatives_are_refused,
    seeded,
    values_and_gradients,
)
from vaebench import kernels
from vaebench.kernels.gpu import mmd2

skip_module_without_triton()

COMBINATIONS = [(kernel, estimator) for kernel in ("imq", "rbf") for estimator in ("u", "v")]


def pair(N, M, K, dtype=torch.float32, seed=1):
    x, y = seeded(N, K, seed=seed, dtype=dtype), seeded(M, K, seed=seed + 1, dtype=dtype, scale=1.3, shift=0.4)
    return x.to(DEVICE), y.to(DEVICE)


def fused(x, y, **options):
    return kernels.mmd2(x, y, backend="triton", **options)


def run(backend, x, y, options):
    return values_and_gradients(lambda a, b: kernels.mmd2(a, b, backend=backend, **options), (x, y))


def cases_of_each_kind(shape, dtype, seeds, bandwidth=None):
    kinds = [{"kernel": kernel, "estimator": estimator, "bandwidth": bandwidth} for kernel, estimator in COMBINATIONS]
    return [(*pair(*shape, dtype, seed=10 * i), kind) for i in range(seeds) for kind in kinds]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("bandwidth", [None, *large((0.5, 4.0, 20.0))], ids=["one scale", "three scales"])
def test_error_is_at_most_twice_eagers(bandwidth, dtype):
    cases = cases_of_each_kind((37, 53, 5), dtype, 3, bandwidth)
    assert_no_worse_than_twice_eager(run, cases, dtype, backend="triton")


@pytest.mark.parametrize("shape", [(130, 60, 3), (64, 128, 20), (3, 2, 70)], ids=str)
def test_several_tiles(shape):
    """Whole and broken blocks, an odd and an even number of them, and columns that need two programs."""
    assert_no_worse_than_twice_eager(run, cases_of_each_kind(shape, torch.float32, 1), torch.float32, backend="triton")


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 5, 3), (4, 1, 2), (2, 3, 1), (5, 4, 0)], ids=str)
def test_one_row_and_no_columns(shape):
    cases = [(*pair(*shape, seed=10 * i), {"estimator": "v"}) for i in range(4)]
    assert_no_worse_than_twice_eager(run, cases, torch.float32, backend="triton")


@pytest.mark.parametrize("estimator", ["u", "v"])
def test_far_rows_take_no_digits_from_the_others(estimator):
    cases = []
    for x, y in (pair(40, 50, 3, seed=10 * i) for i in range(2)):
        for far in (x * 1e6, torch.cat([x, x[:1] + 1e7])):
            cases += [(a, b, {"estimator": estimator}) for a, b in ((far, y), (y, far))]
    assert_no_worse_than_twice_eager(run, cases, torch.float32, backend="triton")


def test_an_offset_of_both_samples_costs_no_digits():
    x, y = (t + 1000 for t in pair(60, 50, 8))
    found, right = (run(backend, x, y, {}) for backend in ("triton", "reference"))
    assert abs(found[0] - right[0]) < 1e-6
    for mine, exact in zip(found[1:], right[1:], strict=True):
        assert (mine - exact).abs().max() < 1e-5 * exact.abs().max()


def test_identical_samples_are_at_distance_zero():
    x, _ = pair(70, 1, 6)
    assert abs(fused(x, x, estimator="v").item()) < 1e-7
    assert fused(x, x, estimator="u").item() < 0


def test_not_a_number_stays_one():
    x, y = pair(70, 10, 3)
    x[66, 1] = math.nan
    assert all(t.isnan().any() for t in run("triton", x, y, {}))


def test_any_layout():
    x, y = pair(9, 7, 6)
    right = run("triton", x, y, {})
    for a in (x.T.contiguous().T, x.repeat_interleave(2, 0)[::2], torch.cat([x, x], 1)[:, :6]):
        assert all(found.equal(expected) for found, expected in zip(run("triton", a, y, {}), right, strict=True))
    spread = run("triton", x[:1].expand(9, 6), y, {})
    assert all(found.equal(e) for found, e in zip(spread, run("triton", x[:1].repeat(9, 1), y, {}), strict=True))


@pytest.mark.parametrize("needed", [(True, False), (False, True)], ids=["x", "y"])
def test_one_sample_alone_has_its_gradient(needed):
    samples = pair(70, 80, 3, torch.float64)
    gradients = {}
    for backend in ("triton", "reference"):
        x, y = (t.clone().requires_grad_(need) for t, need in zip(samples, needed, strict=True))
        kernels.mmd2(x, y, backend=backend).backward()
        gradients[backend] = (x.grad, y.grad)
    for found, expected, need in zip(gradients["triton"], gradients["reference"], needed, strict=True):
        assert torch.allclose(found, expected, atol=1e-14) if need else found is None


@pytest.mark.parametrize(("kernel", "estimator"), COMBINATIONS)
def test_gradcheck(kernel, estimator):
    x, y = (t.requires_grad_() for t in pair(3, 4, 2, torch.float64))
    assert torch.autograd.gradcheck(lambda a, b: fused(a, b, kernel=kernel, estimator=estimator), (x, y))


def test_second_derivatives_are_refused():
    assert_second_derivatives_are_refused(fused, pair(4, 5, 2))


def test_strips_add_up(monkeypatch):
    x, y = pair(80, 100, 3, torch.float64)
    launch = mmd2.plan_gradient(x, y, "imq", [6.0], "u", True, True)
    assert launch.grid == (4, 1, 4)
    cut_up = run("triton", x, y, {})
    monkeypatch.setattr(mmd2, "cut", lambda walk, warps, chunk: (2 * chunk, -(-walk // (2 * chunk))))
    for found, expected in zip(run("triton", x, y, {}), cut_up, strict=True):
        assert torch.allclose(found, expected, atol=1e-15)


def test_two_runs_give_the_same_bits():
    x, y = pair(80, 70, 5)
    assert all(a.equal(b) for a, b in zip(run("triton", x, y, {}), run("triton", x, y, {}), strict=True))


def test_only_the_samples_are_saved():
    x, y = (t.requires_grad_() for t in pair(8, 9, 2))
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.data_ptr()) or t, lambda t: t):
        fused(x, y)
    assert sorted(saved) == sorted(t.data_ptr() for t in (x, y))


def test_memory_grows_with_the_points_and_not_with_the_pairs():
    x, y = pair(4000, 4000, 2)
    options = "imq", [4.0], "u"
    for launch in (mmd2.plan_value(x, y, *options), mmd2.plan_gradient(x, y, *options, True, True)):
        assert all(t.numel() <= 4000**2 / 20 for t in launch.arguments.values() if isinstance(t, torch.Tensor))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "transposed"])
def test_opcheck(layout, dtype):
    x, y = pair(6, 5, 3, dtype)
    x = x.T.contiguous().T if layout == "transposed" else x
    options, g = ("rbf", [1.0, 2.0], "u"), torch.ones((), device=DEVICE)
    torch.library.opcheck(torch.ops.vaebench_kernels.mmd2.default, (x, y, *options))
    for needed in ((True, True), (False, True)):
        torch.library.opcheck(torch.ops.vaebench_kernels.mmd2_backward.default, (g, x, y, *options, *needed))


def test_vmap_of_grad_equals_a_loop():
    x, y = seeded(3, 6, 2, seed=1).to(DEVICE), seeded(5, 2, seed=2).to(DEVICE)
    gradient = torch.func.grad(fused, argnums=(0, 1))
    together = torch.func.vmap(gradient, (0, None))(x, y)
    alone = [gradient(one, y) for one in x]
    for found, expected in zip(together, zip(*alone, strict=True), strict=True):
        assert torch.allclose(found, torch.stack(expected))


def test_compiled_for_any_size():
    def loss(x, y):
        return fused(x * 1.5, y).exp() + y.sum()

    torch._dynamo.reset()
    compiled = torch.compile(loss, fullgraph=True, dynamic=True, backend="aot_eager")
    for N in (6, 9):
        x, y = (t.requires_grad_() for t in pair(N, 7, 3))
        found, right = (torch.autograd.grad(function(x, y), (x, y)) for function in (compiled, loss))
        assert all(torch.allclose(a, b, rtol=1e-5, atol=1e-6) for a, b in zip(found, right, strict=True))
