"""reparam_kl: analytic and eager against the reference, forward and backward, by every path through the code."""

import copy
from functools import partial

import numpy as np
import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils.checkpoint import checkpoint

from tests.kernel_checks import (
    DTYPES,
    assert_no_worse_than_twice_eager,
    assert_second_derivatives_agree,
    assert_second_derivatives_are_refused,
    seeded,
    values_and_gradients,
)
from tests.reparam_kl_oracle import assert_as_accurate_as_eager, exact_expm1_minus_identity, long, near_and_far
from vaebench import kernels
from vaebench.kernels.analytic import reparam_kl as analytic

SHAPES = [(1,), (5,), (1, 1), (3, 1), (1, 5), (7, 13), (64, 8), (257, 131), (4, 3, 5, 7), (2, 1201), (0, 4), (4, 0)]
REDUCTIONS = ["sample", "none", "dim", "batch"]


@pytest.fixture(params=["composed", "function", "tiles"])
def path(request, monkeypatch):
    """Send small inputs through each of the ways that large ones take."""
    if request.param != "composed":
        monkeypatch.setattr(analytic, "_SMALL", 0)
    if request.param == "tiles":
        monkeypatch.setattr(analytic, "_TILE", 64)
    return request.param


def gaussian(*shape, dtype=torch.float32, seed=1):
    return seeded(*shape, seed=seed, dtype=dtype), seeded(*shape, seed=seed + 1, dtype=dtype, scale=1.5, shift=-1)


def run(backend, mu, logvar, reduction="sample"):
    return values_and_gradients(
        lambda m, v: kernels.reparam_kl(m, v, seed=11, reduction=reduction, backend=backend), (mu, logvar)
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_error_is_at_most_twice_eagers(path, shape, dtype):
    if shape[0] == 0:
        z, kl = kernels.reparam_kl(*gaussian(*shape, dtype=dtype), seed=1)
        assert (z.shape, kl.shape) == (shape, (0,))
        return
    cases = [gaussian(*shape, dtype=dtype, seed=10 * i) for i in range(5)]
    assert_no_worse_than_twice_eager(run, cases, dtype)
    for case in cases:
        assert_as_accurate_as_eager("analytic", *case, "sample")


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("shape", [(9,), (12, 7), (6, 2, 3, 5)], ids=str)
def test_every_reduction(path, shape, reduction):
    cases = [gaussian(*shape, seed=10 * i) for i in range(5)]
    assert_no_worse_than_twice_eager(run, [(*case, reduction) for case in cases], torch.float32)
    for case in cases:
        assert_as_accurate_as_eager("analytic", *case, reduction)


def test_reductions_are_sums_and_means_of_the_terms(path):
    mu, logvar = gaussian(6, 3, 4, dtype=torch.float64)
    terms = 0.5 * (mu**2 + logvar.exp() - 1 - logvar)
    found = {r: kernels.reparam_kl(mu, logvar, seed=1, reduction=r, backend="analytic")[1] for r in REDUCTIONS}
    assert torch.allclose(found["none"], terms)
    assert torch.allclose(found["sample"], terms.sum((1, 2)))
    assert torch.allclose(found["dim"], terms.mean(0))
    assert torch.allclose(found["batch"], terms.sum((1, 2)).mean())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_dtypes_of_the_results(path, dtype):
    z, kl = kernels.reparam_kl(*gaussian(4, 3, dtype=dtype), seed=0)
    assert z.dtype == dtype
    assert kl.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


LAYOUTS = {
    "chunked": lambda h: h.chunk(2, -1),
    "transposed": lambda h: tuple(part.T for part in h.T.contiguous().chunk(2, 0)),
    "every other": lambda h: (h[::2, ::2], h[1::2, 1::2]),
    "expanded": lambda h: (h[:1, :5].expand(12, 5), h[:1, 5:].expand(12, 5)),
    "flipped": lambda h: tuple(part.flip(0) for part in h.chunk(2, -1)),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layout_does_not_matter(path, layout):
    mu, logvar = LAYOUTS[layout](seeded(12, 10, dtype=torch.float32))
    assert_no_worse_than_twice_eager(run, [(mu, logvar)], torch.float32)
    assert_as_accurate_as_eager("analytic", mu, logvar, "sample")
    plain = run("analytic", mu.contiguous(), logvar.contiguous())
    for one, other in zip(run("analytic", mu, logvar), plain, strict=True):
        assert torch.allclose(one, other, rtol=1e-6, atol=1e-6)


def test_gradcheck(path):
    mu, logvar = (x.requires_grad_() for x in gaussian(3, 4, dtype=torch.float64))
    for reduction in REDUCTIONS:
        assert torch.autograd.gradcheck(
            lambda m, v, r=reduction: kernels.reparam_kl(m, v, seed=4, reduction=r, backend="analytic"), (mu, logvar)
        )


def test_one_output_alone_has_the_gradient_of_that_output(path):
    mu, logvar = (x.requires_grad_() for x in gaussian(6, 5, dtype=torch.float64))
    for pick in (0, 1):
        grads = {
            backend: torch.autograd.grad(
                kernels.reparam_kl(mu, logvar, seed=4, backend=backend)[pick].sum(), (mu, logvar), allow_unused=True
            )
            for backend in ("analytic", "reference")
        }
        for found, expected in zip(grads["analytic"], grads["reference"], strict=True):
            assert torch.allclose(found, expected, atol=1e-12)


def test_z_alone_has_a_finite_gradient_where_the_kl_has_none(path):
    logvar = torch.full((2, 3), 100.0, requires_grad=True)
    z, kl = kernels.reparam_kl(torch.zeros(2, 3), logvar, seed=4, backend="analytic")
    assert kl.isinf().all()
    assert torch.autograd.grad(z.sum(), logvar)[0].isfinite().all()


def test_the_kl_keeps_its_digits_near_the_prior(path):
    """At KL of 1e-6 the textbook's form is off by percents."""
    logvar = torch.full((1, 1), 1.4e-3)
    mu = torch.full((1, 1), 1e-3)
    truth = 0.5 * (1e-3**2 + torch.expm1(logvar.double()) - logvar.double()).item()
    error = {
        backend: abs(kernels.reparam_kl(mu, logvar, seed=0, backend=backend)[1].item() / truth - 1)
        for backend in ("analytic", "eager")
    }
    assert error["analytic"] < 2e-4
    assert error["eager"] > 0.01


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("backend", ["analytic", "reference"])
def test_every_term_of_the_kl_is_right_to_3e_6_of_itself(path, backend, dtype):
    logvar = near_and_far(dtype)
    _, kl = kernels.reparam_kl(0 * logvar, logvar, seed=0, reduction="none", backend=backend)
    right = exact_expm1_minus_identity(logvar) / 2
    assert (np.abs(long(kl) - right) <= 3e-6 * right).all()


@pytest.mark.parametrize(
    ("mu", "logvar"), [(1e4, -80.0), (0.0, 80.0), (float("inf"), 0.0), (float("nan"), 0.0), (0.0, float("nan"))]
)
def test_extreme_values_come_out_as_in_the_reference(path, mu, logvar):
    inputs = (torch.full((2, 3), mu), torch.full((2, 3), logvar))
    for found, expected in zip(run("analytic", *inputs), run("reference", *inputs), strict=True):
        assert torch.equal(found.isnan(), expected.isnan())
        assert torch.allclose(found, expected.float().double(), rtol=1e-4, equal_nan=True)


def test_generators_rule_and_are_used_like_eagers(path):
    mu, logvar = gaussian(50, 33)
    drawn, states = {}, {}
    for backend in ("analytic", "eager"):
        generator = torch.Generator().manual_seed(3)
        drawn[backend] = kernels.reparam_kl(mu, logvar, generator=generator, backend=backend)[0]
        states[backend] = generator.get_state()
    assert torch.allclose(drawn["analytic"], drawn["eager"], atol=1e-5)
    assert torch.equal(states["analytic"], states["eager"])
    with torch.random.fork_rng():
        torch.manual_seed(1)
        first = kernels.reparam_kl(mu, logvar)[0]
        second = kernels.reparam_kl(mu, logvar)[0]
        torch.manual_seed(1)
        assert torch.equal(kernels.reparam_kl(mu, logvar)[0], first)
    assert not torch.equal(first, second)


@pytest.mark.parametrize("backend", ["reference", "eager", "analytic"])
def test_each_generator_draws_for_its_rows_what_it_would_alone(backend):
    mu, logvar = gaussian(12, 5)
    generators, alone = ([torch.Generator().manual_seed(seed) for seed in (3, 9, 4)] for _ in range(2))
    z, kl = kernels.reparam_kl(mu, logvar, generator=generators, backend=backend)
    for g, generator in enumerate(alone):
        rows = slice(4 * g, 4 * g + 4)
        own_z, own_kl = kernels.reparam_kl(mu[rows], logvar[rows], generator=generator, backend=backend)
        assert torch.equal(z[rows], own_z)
        assert torch.equal(kl[rows], own_kl)
        assert torch.equal(generators[g].get_state(), generator.get_state())


def test_vmap_of_grad(path):
    mu, logvar = gaussian(3, 6, 5, dtype=torch.float64)

    def loss(m, v):
        z, kl = kernels.reparam_kl(m, v, seed=2, backend="analytic")
        return (z**3).sum() + kl.sum()

    gradient = torch.func.grad(loss, argnums=(0, 1))
    for in_dims, of_mu, of_logvar in (
        ((0, 0), mu, logvar),
        ((2, None), mu.movedim(0, 2), logvar[0]),
        ((None, 1), mu[0], logvar.movedim(0, 1)),
    ):
        together = torch.func.vmap(gradient, in_dims)(of_mu, of_logvar)
        for i in range(3):
            alone = gradient(mu[0 if in_dims[0] is None else i], logvar[0 if in_dims[1] is None else i])
            assert torch.allclose(together[0][i], alone[0])
            assert torch.allclose(together[1][i], alone[1])


def test_compiled_whole(path):
    def step(m, v):
        z, kl = kernels.reparam_kl(m, v, seed=2, backend="analytic")
        return z.square().sum() + kl.sum()

    mu, logvar = (x.requires_grad_() for x in gaussian(6, 5))
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    expected = torch.autograd.grad(step(mu, logvar), (mu, logvar))
    for found, wanted in zip(torch.autograd.grad(compiled(mu, logvar), (mu, logvar)), expected, strict=True):
        assert torch.allclose(found, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("backend", ["eager", "analytic"])
def test_compiled_twice_at_most_for_batches_of_every_size(backend):
    """Without a seed too: a training loop ends in a smaller batch, and evaluation has its own."""
    compiler = CompileCounterWithBackend("aot_eager")

    def step(m, v):
        return kernels.reparam_kl(m, v, backend=backend)[0]

    compiled = torch.compile(step, fullgraph=True, backend=compiler)
    for rows in (6, 9, 13, 14):
        mu, logvar = (x.requires_grad_() for x in gaussian(rows, 5))
        z = compiled(mu, logvar)
        (gradient,) = torch.autograd.grad(z.sum(), logvar)
        assert torch.allclose(2 * gradient, z - mu, atol=1e-6)
    assert 1 <= compiler.frame_count <= 2


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_is_computed_in_float32_and_rounded_once(path, dtype):
    """Noise included, so that a seed gives the same z wherever that is done."""
    mu, logvar = gaussian(70, 13, dtype=dtype)
    z, kl = kernels.reparam_kl(mu, logvar, seed=5, backend="analytic")
    wide_z, wide_kl = kernels.reparam_kl(mu.float(), logvar.float(), seed=5, backend="analytic")
    assert z.equal(wide_z.to(dtype))
    assert kl.equal(wide_kl)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("used", [slice(1), slice(1, 2), slice(2)], ids=["z", "kl", "both"])
def test_gradients_of_half_precision_are_rounded_once(path, used, dtype):
    mu, logvar = gaussian(70, 13, dtype=dtype)
    logvar[::2] += 13  # expm1(logvar) / 2 overflows in float16, but not its product with a small gradient
    upstream = (seeded(70, 13, seed=3, dtype=dtype), 1e-5 * seeded(70, seed=4, dtype=torch.float32))
    gradients = []
    for wide in (torch.float32, dtype):
        leaves = [x.to(wide).requires_grad_() for x in (mu, logvar)]
        outputs = kernels.reparam_kl(*leaves, seed=5, backend="analytic")
        weights = [weight.to(out.dtype) for weight, out in zip(upstream, outputs, strict=True)]
        gradients.append(torch.autograd.grad(outputs[used], leaves, weights[used]))
    for right, found in zip(*gradients, strict=True):
        assert found.dtype == dtype
        assert found.isfinite().all()
        assert found.equal(right.to(dtype))


@pytest.mark.parametrize("used", [slice(1), slice(1, 2), slice(2)], ids=["z", "kl", "both"])
def test_second_derivatives_are_refused_or_right(path, used):
    def function(backend, *inputs):
        return kernels.reparam_kl(*inputs, seed=3, backend=backend)[used]

    analytic, reference = (partial(function, backend) for backend in ("analytic", "reference"))
    inputs = gaussian(3, 4, dtype=torch.float64)
    if path == "composed":
        assert_second_derivatives_agree(analytic, reference, inputs)
    else:
        assert_second_derivatives_are_refused(analytic, inputs)


def test_checkpointing_and_autocast(path):
    mu, logvar = (x.requires_grad_() for x in gaussian(6, 5))

    def step(m, v):
        z, kl = kernels.reparam_kl(m * 2, v, seed=2, backend="analytic")
        return z.square().sum() + kl.sum()

    plain = torch.autograd.grad(step(mu, logvar), (mu, logvar))
    kept = torch.autograd.grad(checkpoint(step, mu, logvar, use_reentrant=False), (mu, logvar))
    for one, other in zip(plain, kept, strict=True):
        assert torch.equal(one, other)
    with torch.autocast("cpu", torch.bfloat16):
        z, kl = kernels.reparam_kl(mu @ torch.eye(5), logvar @ torch.eye(5), seed=2)
    assert (z.dtype, kl.dtype) == (torch.bfloat16, torch.float32)


def test_inputs_are_left_alone(path):
    mu, logvar = gaussian(20, 6)
    before = copy.deepcopy((mu, logvar))
    kernels.reparam_kl(mu, logvar, seed=1, backend="analytic")
    assert torch.equal(mu, before[0])
    assert torch.equal(logvar, before[1])


def test_two_runs_give_the_same_bits():
    mu, logvar = gaussian(700, 513)
    first, second = (run("analytic", mu, logvar) for _ in range(2))
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))
