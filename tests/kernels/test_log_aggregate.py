"""log_aggregate: against the reference, by quadrature, and under weights that are given."""

import math
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad
from torch.utils.checkpoint import checkpoint

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


def problem(B, N, K, dtype=torch.float32, seed=1):
    mu, logvar = seeded(N, K, seed=seed, dtype=dtype), seeded(N, K, seed=seed + 1, dtype=dtype, scale=0.7, shift=-1)
    return seeded(B, K, seed=seed + 2, dtype=dtype), mu, logvar


def weights_for(kind, B, N):
    if kind == "uniform":
        return None
    shape = (N,) if kind == "per posterior" else (B, N)
    weights = torch.log_softmax(seeded(*shape, seed=4, dtype=torch.float32), -1)
    if kind == "with gaps":
        weights = weights.clone()
        weights[:, ::3] = -torch.inf
    return weights


def lay_out(x, layout):
    """Return the same numbers with other strides."""
    if layout == "transposed":
        return x.t().contiguous().t()
    return torch.cat([x, x], -1)[..., : x.shape[-1]] if layout == "half of rows" else x


def run(backend, inputs, weights):
    return values_and_gradients(lambda *x: kernels.log_aggregate(*x, log_weights=weights, backend=backend), inputs)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", ["uniform", "per posterior", "per pair", "with gaps"])
def test_error_is_at_most_twice_eagers(kind, dtype):
    for B, N, K in ((1, 2, 1), (13, 29, 5), (40, 70, 16)):
        cases = [(problem(B, N, K, dtype, seed=10 * i), weights_for(kind, B, N)) for i in range(8)]
        assert_no_worse_than_twice_eager(run, cases, dtype, "numba")


@settings(max_examples=300, deadline=None)
@given(
    sizes=st.tuples(st.integers(1, 40), st.integers(1, 600), st.integers(1, 12)),
    dtype=st.sampled_from(DTYPES),
    layouts=st.tuples(*[st.sampled_from(["contiguous", "transposed", "half of rows"])] * 3),
    kind=st.sampled_from(["uniform", "per posterior", "per pair", "with gaps"]),
    weights_dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 1000),
)
def test_any_shape_strides_and_dtypes(sizes, dtype, layouts, kind, weights_dtype, seed):
    inputs = [lay_out(x, layout) for x, layout in zip(problem(*sizes, dtype, seed=seed), layouts, strict=True)]
    weights = weights_for(kind, *sizes[:2])
    weights = None if weights is None else lay_out(weights.to(weights_dtype), layouts[0])
    if kind == "with gaps" and sizes[1] == 1:
        return
    bound = {torch.float64: 1e-11, torch.float32: 2e-5}.get(dtype, 8 * torch.finfo(dtype).eps)
    for found, expected in zip(run("numba", inputs, weights), run("reference", inputs, weights), strict=True):
        assert (found - expected).abs().max() <= bound * (1 + expected.abs().max())


def test_many_columns():
    assert_no_worse_than_twice_eager(run, [(problem(3, 5, 5003), None), (problem(18, 20, 2048), None)], torch.float32)


@pytest.mark.parametrize("kind", ["uniform", "per posterior", "per pair"])
def test_few_codes_and_many_posteriors(kind):
    B, N = 2, 100_003
    assert_no_worse_than_twice_eager(run, [(problem(B, N, 2), weights_for(kind, B, N))], torch.float32)


def test_many_codes_and_few_posteriors():
    assert_no_worse_than_twice_eager(run, [(problem(30_011, 3, 2), None)], torch.float32)


@pytest.fixture
def restore_threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.slow
@pytest.mark.usefixtures("restore_threads")
@pytest.mark.parametrize("sizes", [(3, 5000, 4), (100, 700, 5), (500, 40, 3)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_results_do_not_depend_on_the_number_of_threads(sizes, dtype):
    weights = weights_for("per pair", *sizes[:2])
    results = []
    for threads in (1, 2, 3, 2):
        torch.set_num_threads(threads)
        results.append(run("numba", problem(*sizes, dtype), weights))
    for other in results[1:]:
        assert all(map(torch.equal, results[0], other))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "transposed"])
def test_opcheck(layout, dtype):
    z, mu, logvar = (lay_out(x, layout) for x in problem(3, 4, 2, dtype))
    weights, operators = weights_for("per posterior", 3, 4), torch.ops.vaebench_kernels
    joint, marginals, *logarithms = operators.numba_log_aggregate(z, mu, logvar, weights)
    torch.library.opcheck(operators.numba_log_aggregate.default, (z, mu, logvar, weights))
    for g in ((joint, marginals), (None, marginals), (joint, None)):
        arguments = (*g, *logarithms, z, mu, logvar, weights)
        torch.library.opcheck(operators.numba_log_aggregate_backward.default, arguments)


def test_compiled_for_any_size():
    def loss(z, mu, logvar):
        joint, marginals = kernels.log_aggregate(z * 1.5, mu, logvar.sin(), backend="numba")
        return joint.sum() + (marginals**2).sum()

    torch._dynamo.reset()
    compiled = torch.compile(loss, fullgraph=True, dynamic=True, backend="aot_eager")
    for sizes in ((3, 4, 2), (5, 7, 3), (20, 300, 2)):
        inputs = problem(*sizes, torch.float64)
        found, expected = (values_and_gradients(each, inputs) for each in (compiled, loss))
        assert all(map(torch.allclose, found, expected))


def test_checkpoint():
    function = partial(kernels.log_aggregate, backend="numba")
    inputs = problem(6, 9, 3)
    found = values_and_gradients(lambda *x: checkpoint(function, *x, use_reentrant=False), inputs)
    assert all(map(torch.equal, found, values_and_gradients(function, inputs)))


def test_many_tiles_chunks_and_groups():
    assert_no_worse_than_twice_eager(run, [(problem(700, 900, 3), None)], torch.float32, "numba")


def test_narrow_posteriors_far_apart_keep_their_digits():
    """B = 64, K = 64, logvar -6: through matrix products this errs by more than a thousandth of a nat."""
    mu, logvar = seeded(64, 64, seed=1, dtype=torch.float32), torch.full((64, 64), -6.0)
    z = mu + torch.exp(logvar / 2) * seeded(64, 64, seed=5, dtype=torch.float32)
    found = kernels.log_aggregate(z, mu, logvar, backend="numba")[0].double()
    expected = kernels.log_aggregate(z, mu, logvar, backend="reference")[0]
    assert (found - expected).abs().max() < 2e-4


def test_gradcheck():
    inputs = tuple(x.requires_grad_() for x in problem(4, 5, 3, torch.float64))
    for weights in (None, weights_for("per posterior", 4, 5).double(), weights_for("per pair", 4, 5).double()):
        assert torch.autograd.gradcheck(
            lambda *x, w=weights: kernels.log_aggregate(*x, log_weights=w, backend="numba"), inputs
        )


def test_one_output_alone_has_the_gradient_of_that_output():
    inputs = tuple(x.requires_grad_() for x in problem(4, 5, 3, torch.float64))
    for pick in (0, 1):
        found, expected = (
            torch.autograd.grad(kernels.log_aggregate(*inputs, backend=backend)[pick].sum(), inputs)
            for backend in ("numba", "reference")
        )
        assert all(torch.allclose(f, e, atol=1e-12) for f, e in zip(found, expected, strict=True))


def test_compiled_transforms_are_right_or_refused():
    function = partial(kernels.log_aggregate, backend="numba")
    assert_compiled_transforms_are_right_or_refused(function, problem(4, 5, 3, torch.float64))


def test_second_derivatives_are_refused():
    function = partial(kernels.log_aggregate, backend="numba")
    assert_second_derivatives_are_refused(function, problem(4, 5, 3, torch.float64))


@pytest.mark.parametrize("place", range(3))
def test_a_lazy_sign_is_read(place):
    leaves = [x.requires_grad_() for x in problem(5, 4, 3)]
    negated = [*leaves]
    negated[place] = torch.complex(leaves[place], -leaves[place]).conj().imag
    results = []
    for x in (negated, leaves):
        joint, marginals = kernels.log_aggregate(*x, backend="numba")
        results.append((joint, *torch.autograd.grad(joint.sum() + marginals.square().sum(), leaves)))
    torch.testing.assert_close(*results)


def test_gradients_lie_as_their_inputs():
    inputs = [torch.randn(rows, 3, requires_grad=True) for rows in (4, 5, 5)]
    joint, marginals = kernels.log_aggregate(*inputs, backend="numba")
    for gradient in torch.autograd.grad(joint.sum() + marginals.sum(), inputs):
        assert gradient.is_contiguous()


def test_the_mixture_integrates_to_one():
    _, mu, logvar = problem(1, 6, 1, torch.float64)

    def density(z):
        return kernels.log_aggregate(torch.tensor([[z]], dtype=torch.float64), mu, logvar)[0].exp().item()

    assert quad(density, -15, 15, limit=200)[0] == pytest.approx(1, abs=1e-8)


def test_in_one_dimension_the_joint_is_the_marginal():
    joint, marginals = kernels.log_aggregate(*problem(20, 30, 1, torch.float64))
    assert torch.allclose(joint, marginals[:, 0], atol=1e-12)


def test_one_posterior_factorises():
    joint, marginals = kernels.log_aggregate(*problem(20, 1, 4, torch.float64))
    assert torch.allclose(joint, marginals.sum(1), atol=1e-12)


def test_uniform_weights_are_the_default_and_order_does_not_matter():
    z, mu, logvar = problem(8, 12, 3, torch.float64)
    uniform = torch.full((12,), -math.log(12), dtype=torch.float64)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    default = kernels.log_aggregate(z, mu, logvar)
    for other in (
        kernels.log_aggregate(z, mu, logvar, log_weights=uniform),
        kernels.log_aggregate(z, mu[order], logvar[order]),
        kernels.log_aggregate(z + 7, mu + 7, logvar),
    ):
        assert all(torch.allclose(one, two, atol=1e-12) for one, two in zip(default, other, strict=True))


@pytest.mark.parametrize("backward", [False, True])
def test_memory_grows_with_codes_and_posteriors_and_not_with_their_pairs(backward):
    B, N, K = 2000, 3000, 8
    inputs = tuple(x.requires_grad_(backward) for x in problem(B, N, K))
    with LargestTensor() as largest:
        joint, marginals = kernels.log_aggregate(*inputs, backend="numba")
        if backward:
            (joint.sum() + marginals.sum()).backward()
    assert largest.numel <= B * N * K / 50


@pytest.mark.parametrize(
    ("which", "value"),
    [(0, math.inf), (0, math.nan), (0, 1e10), (1, -math.inf), (1, math.nan), (2, math.nan), (2, 80.0), (2, -math.inf)],
)
def test_extreme_values_come_out_as_in_the_reference(which, value):
    inputs = problem(6, 5, 2)
    inputs[which][0, 0] = value
    for found, expected in zip(run("numba", inputs, None), run("reference", inputs, None), strict=True):
        assert torch.allclose(found, expected.float().double(), rtol=1e-3, atol=1e-5, equal_nan=True)


@pytest.mark.parametrize("logvar", [-86.0, -90.0, -110.0, -130.0, -180.0, -600.0])
def test_posteriors_too_narrow_for_their_precision_in_float32(logvar):
    """1 / sigma^2 overflows below -88, 1 / sigma below -177; codes on a mean, one sigma from it, and elsewhere."""
    z, mu, logvars = problem(6, 5, 2)
    logvars[:2] = logvar
    z[0] = mu[0]
    mu[1] = 0
    z[1] = math.exp(logvar / 2) if logvar > -138 else 0.0
    inputs = z, mu, logvars
    for found, expected in zip(run("numba", inputs, None), run("reference", inputs, None), strict=True):
        assert torch.allclose(found, expected.float().double(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("weights", [[-math.inf] * 3, [math.inf, 0, 0], [math.nan, 0, 0], [-math.inf, 0, 0]], ids=str)
def test_weights_that_are_not_finite(weights):
    inputs = problem(4, 3, 2)
    weights = torch.tensor(weights)
    for found, expected in zip(run("numba", inputs, weights), run("reference", inputs, weights), strict=True):
        assert torch.allclose(found, expected, rtol=1e-4, atol=1e-5, equal_nan=True)


def test_no_codes():
    joint, marginals = kernels.log_aggregate(torch.zeros(0, 3), torch.zeros(4, 3), torch.zeros(4, 3))
    assert (joint.shape, marginals.shape) == ((0,), (0, 3))


def test_no_columns():
    inputs = [torch.zeros(rows, 0, requires_grad=True) for rows in (3, 4, 4)]
    joint, marginals = kernels.log_aggregate(*inputs, log_weights=torch.zeros(4), backend="numba")
    assert torch.allclose(joint, torch.full((3,), math.log(4)))
    assert marginals.shape == (3, 0)
    assert torch.autograd.grad(joint.sum(), inputs)[1].shape == (4, 0)


def test_vmap_and_compile():
    inputs = [torch.stack([x, x.flip(0)]) for x in problem(6, 6, 2, torch.float64)]

    def function(*x):
        joint, marginals = kernels.log_aggregate(*x, backend="numba")
        return joint.sum() + marginals.sum()

    gradient = torch.func.grad(function, argnums=(0, 1, 2))
    z, mu, logvar = inputs
    together = torch.func.vmap(gradient, (0, None, 1))(z, mu[0], logvar.movedim(0, 1))
    for i in range(2):
        alone = gradient(z[i], mu[0], logvar[i])
        assert all(torch.allclose(t[i], a) for t, a in zip(together, alone, strict=True))
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    one = [x[0] for x in inputs]
    found, expected = (values_and_gradients(each, one) for each in (compiled, function))
    assert all(map(torch.allclose, found, expected))
