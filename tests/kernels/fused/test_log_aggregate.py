"""The Triton log_aggregate: values, gradients, autograd, vmap and compile. tests/fused_checks.py has the command."""

import math

import pytest
import torch

from tests.fused_checks import DEVICE, DTYPES, skip_module_without_triton
from tests.kernel_checks import (
    assert_no_worse_than_twice_eager,
    assert_second_derivatives_are_refused,
    seeded,
    values_and_gradients,
)
from vaebench import kernels
from vaebench.kernels.gpu import log_aggregate

skip_module_without_triton()

KINDS = ["uniform", "per posterior", "with gaps"]


def problem(B, N, K, dtype=torch.float32, seed=1):
    mu, logvar = seeded(N, K, seed=seed, dtype=dtype), seeded(N, K, seed=seed + 1, dtype=dtype, scale=0.7, shift=-1)
    return tuple(t.to(DEVICE) for t in (seeded(B, K, seed=seed + 2, dtype=dtype), mu, logvar))


def weights_for(kind, B, N):
    if kind == "uniform":
        return None
    shape = (N,) if kind == "per posterior" else (B, N)
    weights = torch.log_softmax(seeded(*shape, seed=4, dtype=torch.float32), -1)
    if kind == "with gaps":
        weights[:, ::3] = -torch.inf
    return weights.to(DEVICE)


def fused(z, mu, logvar, weights=None):
    return kernels.log_aggregate(z, mu, logvar, log_weights=weights, backend="triton")


def run(backend, inputs, weights):
    return values_and_gradients(lambda *x: kernels.log_aggregate(*x, log_weights=weights, backend=backend), inputs)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_error_is_at_most_twice_eagers(kind, dtype):
    for (B, N, K), seeds in (((1, 2, 1), 8), ((13, 29, 5), 2)):
        cases = [(problem(B, N, K, dtype, seed=10 * i), weights_for(kind, B, N)) for i in range(seeds)]
        assert_no_worse_than_twice_eager(run, cases, dtype, backend="triton")


@pytest.mark.parametrize(("shape", "kind"), [((12, 70, 20), "per pair"), ((70, 12, 3), "uniform")], ids=str)
def test_several_tiles_strips_and_chunks(shape, kind):
    cases = [(problem(*shape), weights_for(kind, *shape[:2]))]
    assert_no_worse_than_twice_eager(run, cases, torch.float32, backend="triton")


@pytest.mark.parametrize("columns", [600, 1024, 1100])
def test_rows_of_one_tile_and_of_several_warps(columns):
    cases = [(problem(2, 3, columns, seed=10 * i), None) for i in range(3)]
    assert_no_worse_than_twice_eager(run, cases, torch.float32, backend="triton")


def test_a_walk_of_several_chunks(monkeypatch):
    """One strip of two chunks, in which the largest term comes last, first, and in the middle."""
    monkeypatch.setattr(log_aggregate, "cut", lambda walk, warps, chunk: (-(-walk // chunk) * chunk, 1))
    z, mu, logvar = problem(3, 70, 2)
    z[0], z[1], z[2] = mu[69], mu[0], mu[35]
    assert_no_worse_than_twice_eager(run, [((z, mu, logvar - 4), None)], torch.float32, backend="triton")


def test_long_sums_keep_their_digits(monkeypatch):
    """Five hundred terms, one after the other in float32, would lose 3e-7."""
    monkeypatch.setattr(log_aggregate, "cut", lambda walk, warps, chunk: (-(-walk // chunk) * chunk, 1))
    z, mu, logvar = problem(8, 500, 1)
    found, right = (
        kernels.log_aggregate(z, mu, logvar, backend=backend)[1].double() for backend in ("triton", "reference")
    )
    assert (found - right).square().mean().sqrt() < 1.5e-7


def test_narrow_posteriors_far_apart_keep_their_digits():
    """B = N = 32, K = 64, logvar -6: through matrix products this errs by more than a thousandth of a nat."""
    mu, logvar = seeded(32, 64, seed=1, dtype=torch.float32).to(DEVICE), torch.full((32, 64), -6.0, device=DEVICE)
    z = mu + torch.exp(logvar / 2) * seeded(32, 64, seed=5, dtype=torch.float32).to(DEVICE)
    expected = kernels.log_aggregate(z, mu, logvar, backend="reference")[0]
    assert (fused(z, mu, logvar)[0] - expected).abs().max() < 2e-4


def test_far_codes_divide_their_gradient_evenly_between_equal_posteriors():
    """At log q = -12 000 the three thirds would be right to 7e-4 with the joint in float32."""
    mu, logvar = seeded(1, 64, dtype=torch.float32).repeat(3, 1).to(DEVICE), torch.full((3, 64), -6.0, device=DEVICE)
    z = mu[:1] + 20 * math.exp(-3) * seeded(8, 64, seed=5, dtype=torch.float32).to(DEVICE)
    gradients = {}
    for backend in ("triton", "reference"):
        leaf = z.clone().requires_grad_()
        kernels.log_aggregate(leaf, mu, logvar, backend=backend)[0].sum().backward()
        gradients[backend] = leaf.grad
    torch.testing.assert_close(gradients["triton"], gradients["reference"], rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("logvar", [-86.0, -90.0, -130.0, -180.0, -600.0])
def test_posteriors_too_narrow_for_their_precision_in_float32(logvar):
    """1 / sigma^2 overflows below -88, 1 / sigma below -177; codes on a mean, one sigma from it, and elsewhere."""
    z, mu, logvars = problem(6, 5, 2)
    logvars[:2] = logvar
    z[0] = mu[0]
    mu[1] = 0
    z[1] = math.exp(logvar / 2) if logvar > -138 else 0.0
    inputs = z, mu, logvars
    for found, expected in zip(run("triton", inputs, None), run("reference", inputs, None), strict=True):
        assert torch.allclose(found, expected.float().double(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("which", "value"),
    [(0, math.inf), (0, math.nan), (0, 1e10), (1, -math.inf), (1, math.nan), (2, math.nan), (2, 80.0), (2, -math.inf)],
)
def test_extreme_values_come_out_as_in_the_reference(which, value):
    inputs = problem(6, 5, 2)
    inputs[which][0, 0] = value
    for found, expected in zip(run("triton", inputs, None), run("reference", inputs, None), strict=True):
        assert torch.allclose(found, expected.float().double(), rtol=1e-3, atol=1e-5, equal_nan=True)


@pytest.mark.parametrize("weights", [[-math.inf] * 3, [math.inf, 0, 0], [math.nan, 0, 0], [-math.inf, 0, 0]], ids=str)
def test_weights_that_are_not_finite(weights):
    inputs, weights = problem(4, 3, 2), torch.tensor(weights, device=DEVICE)
    for found, expected in zip(run("triton", inputs, weights), run("reference", inputs, weights), strict=True):
        assert torch.allclose(found, expected, rtol=1e-4, atol=1e-5, equal_nan=True)


@pytest.mark.parametrize("shape", [(0, 4, 3), (3, 4, 0), (0, 1, 0)], ids=str)
@pytest.mark.parametrize("weighted", [False, True])
def test_nothing_to_evaluate(shape, weighted):
    inputs = problem(*shape)
    weights = weights_for("per posterior", *shape[:2]) if weighted else None
    for found, expected in zip(run("triton", inputs, weights), run("reference", inputs, weights), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_any_layout(dtype):
    z, mu, logvar = problem(6, 5, 4, dtype)
    right = run("triton", (z, mu, logvar), None)
    halves = torch.cat([mu, logvar], 1).chunk(2, 1)
    for layout in (
        halves,
        [t.T.contiguous().T for t in (mu, logvar)],
        [t.repeat_interleave(2, 0)[::2] for t in halves],
    ):
        found = run("triton", (z.T.contiguous().T, *layout), None)
        assert all(f.equal(r) for f, r in zip(found, right, strict=True))


def test_weights_for_each_pair_may_be_a_broadcast_row():
    inputs, row = problem(6, 5, 2), weights_for("per posterior", 6, 5)
    for found, expected in zip(run("triton", inputs, row.expand(6, 5)), run("triton", inputs, row), strict=True):
        assert found.equal(expected)


@pytest.mark.parametrize("kind", ["uniform", "per pair"])
def test_gradcheck(kind):
    inputs = tuple(x.requires_grad_() for x in problem(2, 3, 2, torch.float64))
    weights = weights_for(kind, 2, 3)
    assert torch.autograd.gradcheck(lambda *x: fused(*x, weights), inputs)


@pytest.mark.parametrize("used", [0, 1])
def test_one_output_alone_has_the_gradient_of_that_output(used):
    inputs = tuple(x.requires_grad_() for x in problem(4, 5, 3, torch.float64))
    found, expected = (
        torch.autograd.grad(kernels.log_aggregate(*inputs, backend=backend)[used].sum(), inputs)
        for backend in ("triton", "reference")
    )
    assert all(torch.allclose(f, e, atol=1e-12) for f, e in zip(found, expected, strict=True))


def test_second_derivatives_are_refused():
    assert_second_derivatives_are_refused(fused, problem(2, 3, 2))


def test_two_runs_give_the_same_bits():
    inputs = problem(9, 70, 5)
    assert all(a.equal(b) for a, b in zip(run("triton", inputs, None), run("triton", inputs, None), strict=True))


def test_only_the_inputs_and_the_log_sum_exps_are_saved():
    inputs, saved = tuple(x.requires_grad_() for x in problem(6, 8, 3)), []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        kernels.log_aggregate(*inputs, backend="triton")
    own = [t for t in saved if t.data_ptr() not in {x.data_ptr() for x in inputs}]
    assert len(saved) == 5
    assert sorted(t.shape for t in own) == [(6,), (6, 3)]


def test_memory_grows_with_codes_and_posteriors_and_not_with_their_pairs():
    B, N, K = 3000, 4000, 8
    inputs = problem(B, N, K)
    joint, marginals = torch.zeros(B, device=DEVICE).double(), torch.zeros(B, K, device=DEVICE).double()
    launches = log_aggregate.plan_backward(joint, marginals, joint, marginals, *inputs, None)
    for launch in (log_aggregate.plan_forward(*inputs, None), *launches):
        held = [t.numel() for t in launch.arguments.values() if isinstance(t, torch.Tensor)]
        assert max(held) <= B * N * K / 50


def test_too_many_columns_are_refused():
    x = torch.zeros(1, 8193, device=DEVICE)
    with pytest.raises(ValueError, match="takes at most 8192 columns, got 8193: choose 'eager'"):
        fused(x, x, x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "transposed"])
def test_opcheck(layout, dtype):
    z, mu, logvar = (t.T.contiguous().T if layout == "transposed" else t for t in problem(3, 4, 2, dtype))
    weights, operators = weights_for("per posterior", 3, 4), torch.ops.vaebench_kernels
    joint, marginals, *logarithms = operators.log_aggregate(z, mu, logvar, weights)
    torch.library.opcheck(operators.log_aggregate.default, (z, mu, logvar, weights))
    for g in ((joint, marginals), (None, marginals)):
        arguments = (*g, *logarithms, z, mu, logvar, weights)
        torch.library.opcheck(operators.log_aggregate_backward.default, arguments)


def total(*inputs):
    joint, marginals = fused(*inputs)
    return joint.sum() + (marginals**2).sum()


def test_vmap_of_grad_equals_a_loop():
    z, mu, logvar = (torch.stack([x, x.flip(0)]) for x in problem(4, 4, 2, torch.float64))
    gradient = torch.func.grad(total, argnums=(0, 1, 2))
    together = torch.func.vmap(gradient, (0, None, 1))(z, mu[0], logvar.movedim(0, 1))
    alone = [gradient(z[i], mu[0], logvar[i]) for i in range(2)]
    for found, expected in zip(together, zip(*alone, strict=True), strict=True):
        assert torch.allclose(found, torch.stack(expected))


def test_compiled_for_any_size():
    def loss(z, mu, logvar):
        return total(z * 1.5, mu, logvar.sin())

    torch._dynamo.reset()
    compiled = torch.compile(loss, fullgraph=True, dynamic=True, backend="aot_eager")
    for N in (4, 6):
        inputs = tuple(x.requires_grad_() for x in problem(5, N, 3))
        found, right = (torch.autograd.grad(function(*inputs), inputs) for function in (compiled, loss))
        assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-5) for a, b in zip(found, right, strict=True))
