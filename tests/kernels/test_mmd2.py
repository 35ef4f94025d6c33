"""mmd2: against the reference, a closed form, and the invariances of a distance between distributions."""

import itertools
import math
from functools import partial

import hypothesis
import pytest
import torch
from hypothesis import strategies as st
from torch.utils.checkpoint import checkpoint

from tests import stats
from tests.kernel_checks import (
    DTYPES,
    LargestTensor,
    assert_compiled_transforms_are_right_or_refused,
    assert_no_worse_than_twice_eager,
    assert_second_derivatives_are_refused,
    seeded,
    values_and_gradients,
)
from vaebench import kernels

OPTIONS = [
    {"kernel": kernel, "estimator": estimator, "bandwidth": bandwidth}
    for kernel in ("imq", "rbf")
    for estimator in ("u", "v")
    for bandwidth in (None, (0.5, 4.0, 20.0))
]


def pair(N, M, K, dtype=torch.float32, seed=1):
    return seeded(N, K, seed=seed, dtype=dtype), seeded(M, K, seed=seed + 1, dtype=dtype, scale=1.3, shift=0.4)


def run(backend, x, y, options):
    return values_and_gradients(lambda a, b: kernels.mmd2(a, b, backend=backend, **options), (x, y))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: "-".join(map(str, o.values())))
def test_error_is_at_most_twice_eagers(options, dtype):
    for N, M, K in ((2, 3, 1), (37, 53, 5), (130, 64, 16)):
        cases = [(*pair(N, M, K, dtype, seed=10 * i), options) for i in range(8)]
        assert_no_worse_than_twice_eager(run, cases, dtype)


def test_more_rows_than_a_block():
    cases = [(*pair(1500, 1300, 3, seed=10 * i), {}) for i in range(4)]
    assert_no_worse_than_twice_eager(run, cases, torch.float32)


@pytest.mark.slow
@pytest.mark.parametrize("K", [16, 17, 31, 33, 257, 1031, 3000])
@pytest.mark.parametrize("kernel", ["imq", "rbf"])
def test_many_columns(kernel, K):
    """Chunks of columns that are full, begun and more than half full, and several products for the distances."""
    cases = [(*pair(5, 130, K, seed=10 * i), {"kernel": kernel}) for i in range(8)]
    assert_no_worse_than_twice_eager(run, cases, torch.float32)


def in_layout(x, layout):
    """Return the values of x with other strides."""
    if layout == "transposed":
        return x.T.contiguous().T
    if layout == "every second row":
        return x.repeat_interleave(2, 0)[::2]
    if layout == "every second column":
        return x.repeat_interleave(2, 1)[:, ::2]
    if layout == "half of the columns":
        return torch.cat((x, x), 1)[:, : x.shape[1]]
    return x


LAYOUTS = ["contiguous", "transposed", "every second row", "every second column", "half of the columns"]


@hypothesis.settings(max_examples=400, deadline=None)
@hypothesis.given(
    rows=st.tuples(st.integers(2, 300), st.integers(2, 300)),
    K=st.integers(0, 70),
    layouts=st.tuples(st.sampled_from(LAYOUTS), st.sampled_from(LAYOUTS)),
    dtype=st.sampled_from(DTYPES),
    kernel=st.sampled_from(["imq", "rbf"]),
    estimator=st.sampled_from(["u", "v"]),
    bandwidths=st.lists(st.floats(0.1, 1e3), min_size=1, max_size=4),
    scale=st.sampled_from([1e-3, 1.0, 30.0]),
    seed=st.integers(0, 2**20),
)
@hypothesis.example((121, 54), 51, ("contiguous", "contiguous"), torch.float16, "imq", "u", [1.0, 8.0, 8.0], 1e-3, 0)
def test_any_shape_layout_and_dtype(rows, K, layouts, dtype, kernel, estimator, bandwidths, scale, seed):
    x, y = (in_layout(scale * z, layout) for z, layout in zip(pair(*rows, K, dtype, seed=seed), layouts, strict=True))
    options = {"kernel": kernel, "estimator": estimator, "bandwidth": bandwidths}
    found, right = (run(backend, x, y, options) for backend in ("numba", "reference"))
    digits = 1e-12 if dtype == torch.float64 else 1e-5
    # A distance errs by some roundings of the squares of its points, and the kernel by its slope times this.
    squares = max((z.double() - y.double().mean(0)).square().sum(1).max().item() for z in (x, y)) if K else 0
    absolute = digits * (0.2 + squares / min(bandwidths))
    rounding = 2 * torch.finfo(dtype).eps
    assert abs(found[0] - right[0]) <= absolute
    for mine, exact in zip(found[1:], right[1:], strict=True):
        slope = 4 / min(*rows) / min(bandwidths) * (squares**0.5 + 1e-30)
        assert ((mine - exact).abs() <= rounding * exact.abs() + absolute * slope + torch.finfo(dtype).tiny).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kernel", ["imq", "rbf"])
@pytest.mark.parametrize("estimator", ["u", "v"])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_not_a_number_and_infinities_come_out_as_from_the_reference(bad, estimator, kernel, dtype):
    """In a row that is among those of the median, or not, in both samples, and in all rows of one."""
    for rows, column in (([3], 2), ([0, 140], 0), (list(range(150)), 1)):
        x, y = pair(150, 140, 4, dtype)
        x[rows, column] = bad
        options = {"kernel": kernel, "estimator": estimator}
        for a, b in ((x, y), (y, x)):
            for found, right in zip(run("numba", a, b, options), run("reference", a, b, options), strict=True):
                assert found.isnan().equal(right.isnan())
                assert torch.allclose(found, right, rtol=2e-2, atol=1e-5, equal_nan=True)


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 5, 3), (4, 1, 2), (5, 4, 0), (127, 129, 31), (128, 256, 32)], ids=str)
def test_one_row_no_columns_and_whole_blocks(shape):
    cases = [(*pair(*shape, seed=10 * i), {"estimator": "v"}) for i in range(8)]
    assert_no_worse_than_twice_eager(run, cases, torch.float32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("kernel", ["imq", "rbf"])
def test_the_number_of_threads_changes_no_bit(kernel, dtype):
    """Some numbers of blocks are odd, and some blocks have few rows."""
    before = torch.get_num_threads()
    try:
        for N, M, K in ((64, 64, 8), (300, 200, 5), (700, 645, 33)):
            results = []
            for threads in (1, 2, 3, 1):
                torch.set_num_threads(threads)
                results.append(run("numba", *pair(N, M, K, dtype), {"kernel": kernel}))
            assert all(a.equal(b) for other in results[1:] for a, b in zip(results[0], other, strict=True))
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("needed", [(True, False), (False, True)], ids=["x", "y"])
def test_one_sample_alone_has_its_gradient(needed):
    samples = pair(600, 700, 3, torch.float64)
    grads = {}
    for backend in ("numba", "reference"):
        x, y = (t.clone().requires_grad_(need) for t, need in zip(samples, needed, strict=True))
        kernels.mmd2(x, y, backend=backend).backward()
        grads[backend] = (x.grad, y.grad)
    for found, expected, need in zip(grads["numba"], grads["reference"], needed, strict=True):
        assert torch.allclose(found, expected, atol=1e-14) if need else found is None


@pytest.mark.parametrize("kernel", ["imq", "rbf"])
@pytest.mark.parametrize("estimator", ["u", "v"])
def test_gradcheck(kernel, estimator):
    x, y = (t.requires_grad_() for t in pair(5, 4, 3, torch.float64))
    assert torch.autograd.gradcheck(
        lambda a, b: kernels.mmd2(a, b, kernel=kernel, estimator=estimator, backend="numba"), (x, y)
    )


def test_second_derivatives_are_refused():
    assert_second_derivatives_are_refused(partial(kernels.mmd2, backend="numba"), pair(5, 4, 3))


def test_compiled_transforms_are_right_or_refused():
    assert_compiled_transforms_are_right_or_refused(partial(kernels.mmd2, backend="numba"), pair(5, 4, 3))


def test_no_grad_is_heard_at_every_level_of_transforms():
    x, y = pair(5, 4, 3, torch.float64)

    def loss(a, backend):
        with torch.no_grad():
            value = kernels.mmd2(a, y, backend=backend)
        return a.square().sum() * value

    found, expected = (
        torch.func.grad(lambda a, backend=backend: torch.func.grad(loss)(a, backend).sum())(x)
        for backend in ("numba", "reference")
    )
    assert torch.allclose(found, expected)


def test_translation_rotation_and_order_change_nothing():
    x, y = pair(40, 30, 4, torch.float64)
    value = kernels.mmd2(x, y, backend="numba")
    rotation = torch.linalg.qr(seeded(4, 4, seed=5)).Q
    order = torch.randperm(40, generator=torch.Generator().manual_seed(0))
    for a, b in ((x + 100, y + 100), (x @ rotation, y @ rotation), (x[order], y.flip(0)), (y, x)):
        assert kernels.mmd2(a, b, backend="numba").item() == pytest.approx(value.item(), abs=1e-10)


@pytest.mark.parametrize("estimator", ["u", "v"])
def test_far_rows_take_no_digits_from_the_others(estimator):
    cases = []
    for x, y in (pair(40, 50, 3, seed=10 * i) for i in range(8)):
        for far in (x * 1e6, torch.cat([x, x[:1] + 1e7])):
            cases += [(a, b, {"estimator": estimator}) for a, b in ((far, y), (y, far))]
    assert_no_worse_than_twice_eager(run, cases, torch.float32)


@pytest.mark.parametrize("period", [2, 16, 32])
def test_far_rows_that_recur_take_no_digits_from_the_others(period):
    """As in a batch that is sorted by class, or put together from several."""
    cases = []
    for x, y in (pair(512, 512, 8, seed=10 * i) for i in range(4)):
        x[1::period] += 1e4
        cases += [(x, y, {}), (y, x, {})]
    assert_no_worse_than_twice_eager(run, cases, torch.float32)


def test_a_far_row_is_at_distance_zero_from_itself():
    x, y = pair(7, 5, 3)
    value = kernels.mmd2(x * 1e10, y, estimator="v", backend="numba").item()
    assert value == pytest.approx(kernels.mmd2(x * 1e10, y, estimator="v", backend="reference").item(), rel=1e-6)


def test_an_offset_of_both_samples_costs_no_digits():
    x, y = (t + 1000 for t in pair(60, 50, 8))
    reference = kernels.mmd2(x, y, backend="reference")
    error = {name: abs(kernels.mmd2(x, y, backend=name) - reference).item() for name in ("numba", "eager")}
    assert error["numba"] < 1e-6
    assert error["eager"] > 1e-4


@pytest.mark.parametrize("backend", ["numba", "reference"])
def test_identical_samples_are_at_distance_zero(backend):
    x, _ = pair(70, 1, 6)
    assert abs(kernels.mmd2(x, x, estimator="v", backend=backend).item()) < 1e-7
    assert kernels.mmd2(x, x, estimator="u", backend=backend).item() < 0


def test_several_bandwidths_are_averaged():
    x, y = pair(20, 25, 3, torch.float64)
    singles = [kernels.mmd2(x, y, bandwidth=c).item() for c in (0.5, 2.0)]
    assert kernels.mmd2(x, y, bandwidth=(0.5, 2.0)).item() == pytest.approx(sum(singles) / 2, abs=1e-14)
    assert kernels.mmd2(x, y).item() == pytest.approx(kernels.mmd2(x, y, bandwidth=6.0).item(), abs=1e-14)


@pytest.mark.parametrize("bandwidth", ["12", ["1", "2"], b"1", [[1.0]], (1.0, None), {}])
def test_a_bandwidth_that_is_no_number_is_refused(bandwidth):
    x, y = pair(4, 5, 2)
    with pytest.raises(
        ValueError, match="bandwidth must be a positive finite number or a non-empty sequence of them, got"
    ):
        kernels.mmd2(x, y, bandwidth=bandwidth)


def expected_rbf(K, c, shift, scale):
    """Return the exact MMD^2 of N(0, I) and N(shift, scale^2 I): E exp(-d^2/c) of a Gaussian difference, thrice."""
    mean = lambda variance, offset: (c / (c + 2 * variance)) ** (K / 2) * math.exp(-offset / (c + 2 * variance))  # noqa: E731
    return mean(2, 0) + mean(2 * scale**2, 0) - 2 * mean(1 + scale**2, K * shift**2)


def test_the_u_statistic_is_unbiased_and_the_v_statistic_is_not():
    K, c, shift, scale = 2, 4.0, 0.5, 1.5
    exact = expected_rbf(K, c, shift, scale)
    x = seeded(6000, 5, K, seed=3)
    y = seeded(6000, 4, K, seed=4, scale=scale, shift=shift)
    estimates = {
        estimator: torch.stack(
            [kernels.mmd2(a, b, kernel="rbf", bandwidth=c, estimator=estimator) for a, b in zip(x, y, strict=True)]
        )
        for estimator in ("u", "v")
    }
    stats.assert_mean_equal(estimates["u"], exact, discrepancy=0.03)
    assert estimates["v"].mean().item() > exact + 0.1


@pytest.mark.parametrize("backward", [False, True])
def test_memory_grows_with_the_points_and_not_with_the_pairs(backward):
    N = 6000
    x, y = (t.requires_grad_(backward) for t in pair(N, N, 4))
    with LargestTensor() as largest:
        value = kernels.mmd2(x, y, backend="numba")
        if backward:
            value.backward()
    assert largest.numel <= N * N / 20


def test_gradients_alone_are_saved():
    """They take the place of the samples, with as many bytes; in half precision they would lose digits and range."""
    x, y = (t.requires_grad_() for t in pair(8, 9, 2))
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        value = kernels.mmd2(x, y, backend="numba")
    assert [t.shape for t in saved] == [x.shape, y.shape]
    assert all(map(torch.equal, saved, torch.autograd.grad(value, (x, y))))


def test_small_gradients_survive_in_half_precision():
    """As with loss scaling: the gradient of the value alone would be zero in float16."""
    x, y = (z.half().requires_grad_() for z in pair(2000, 2000, 2))
    scaled = torch.autograd.grad(2.0**16 * kernels.mmd2(x, y, backend="numba"), x)[0]
    right = torch.autograd.grad(2.0**16 * kernels.mmd2(x.double(), y.double(), backend="numba"), x)[0]
    assert torch.allclose(scaled, right, rtol=2e-3, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "transposed"])
def test_opcheck(layout, dtype):
    x, y = pair(6, 5, 3, dtype)
    kernels.mmd2(x, y, backend="numba")
    for needed in ((True, True), (False, True), (False, False)):
        arguments = in_layout(x, layout), y, "rbf", [1.0, 2.0], "u", *needed
        torch.library.opcheck(torch.ops.vaebench_kernels.numba_mmd2.default, arguments)


def test_compiled_for_any_size():
    def loss(x, y):
        return kernels.mmd2(x * 1.5, y, backend="numba").exp() + y.sum()

    torch._dynamo.reset()
    compiled = torch.compile(loss, fullgraph=True, dynamic=True, backend="aot_eager")
    for N in (6, 9):
        x, y = (t.requires_grad_() for t in pair(N, 7, 3))
        found, right = (torch.autograd.grad(function(x, y), (x, y)) for function in (compiled, loss))
        assert all(torch.allclose(a, b, rtol=1e-5, atol=1e-6) for a, b in zip(found, right, strict=True))


def test_a_checkpoint_changes_nothing():
    x, y = (t.requires_grad_() for t in pair(30, 40, 3))
    function = partial(kernels.mmd2, backend="numba")
    again = checkpoint(function, x, y, use_reentrant=False)
    for found, right in zip(
        torch.autograd.grad(again, (x, y)), torch.autograd.grad(function(x, y), (x, y)), strict=True
    ):
        assert found.equal(right)


def test_vmap_and_compile():
    x, y = seeded(3, 6, 2, seed=1), seeded(3, 5, 2, seed=2)
    function = lambda a, b: kernels.mmd2(a, b, backend="numba")  # noqa: E731
    gradient = torch.func.grad(function)
    together = torch.func.vmap(gradient)(x, y)
    for i in range(3):
        assert torch.allclose(together[i], gradient(x[i], y[i]))
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    found, expected = (values_and_gradients(each, (x[0], y[0])) for each in (compiled, function))
    assert all(map(torch.allclose, found, expected))


@pytest.mark.parametrize("kernel", ["imq", "rbf"])
def test_gradients_through_vmap_are_those_of_a_loop(kernel):
    """The gradient is taken outside, so that inside no tensor says that it wants one; y has none, and one x is bad."""
    x, y = seeded(4, 7, 3, seed=1).double().requires_grad_(), seeded(4, 5, 3, seed=2).double()
    with torch.no_grad():
        x[2, 0, 0] = float("nan")

    def function(a, b, backend):
        return kernels.mmd2(a, b, kernel=kernel, estimator="v", backend=backend)

    values = torch.func.vmap(lambda a, b: function(a, b, "numba"))(x, y)
    (gradient,) = torch.autograd.grad(values @ torch.arange(1.0, 5, dtype=torch.float64), x)
    for i in (0, 1, 3):
        alone = x[i].detach().requires_grad_()
        expected = function(alone, y[i], "reference")
        assert torch.allclose(values[i], expected)
        assert torch.allclose(gradient[i], torch.autograd.grad(expected * (i + 1), alone)[0])
    assert values[2].isnan()


@pytest.mark.parametrize("backend", ["numba", "eager"])
def test_vmap_within_vmap(backend):
    """Models of an ensemble, each with many samples; one sample of y serves all of a model's."""
    x, y = seeded(3, 2, 7, 3, seed=1).double(), seeded(3, 5, 3, seed=2).double()
    function = lambda a, b: kernels.mmd2(a, b, backend=backend)  # noqa: E731
    for each in (function, torch.func.grad(function), torch.func.grad(function, argnums=1)):
        together = torch.func.vmap(torch.func.vmap(each, in_dims=(0, None)))(x, y)
        for i, j in itertools.product(range(3), range(2)):
            assert torch.allclose(together[i, j], each(x[i, j], y[i]))
