"""reparam_kl on a CPU: where the noise comes from, rounding in half precision, and digits near the prior.

tests/kernels/fused has the tests of values, gradients, shapes and transforms.
"""

import copy

import numpy as np
import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from tests.kernel_checks import DTYPES, seeded
from tests.reparam_kl_oracle import exact_expm1_minus_identity, long, near_and_far
from vaebench import kernels

BACKENDS = ["reference", "eager", "numba"]
HALF = [torch.float16, torch.bfloat16]


def gaussian(*shape, dtype=torch.float32, seed=1):
    return seeded(*shape, seed=seed, dtype=dtype), seeded(*shape, seed=seed + 1, dtype=dtype, scale=1.5, shift=-1)


def test_every_backend_draws_one_seed_from_the_generator():
    mu, logvar = gaussian(50, 33)
    drawn, states = [], []
    for backend in BACKENDS:
        generator = torch.Generator().manual_seed(3)
        drawn.append(kernels.reparam_kl(mu, logvar, generator=generator, backend=backend)[0])
        states.append(generator.get_state())
    seed = torch.randint(2**63 - 1, (1,), generator=torch.Generator().manual_seed(3))
    drawn.append(kernels.reparam_kl(mu, logvar, seed=seed, backend="numba")[0])
    assert all(torch.allclose(z.float(), drawn[-1], atol=1e-5) for z in drawn)
    assert all(map(torch.equal, states, states[1:]))


def test_without_a_generator_torchs_own_rules():
    mu, logvar = gaussian(5, 3)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        first, second = (kernels.reparam_kl(mu, logvar)[0] for _ in range(2))
        torch.manual_seed(1)
        assert torch.equal(kernels.reparam_kl(mu, logvar)[0], first)
    assert not torch.equal(first, second)


@pytest.mark.parametrize("backend", BACKENDS)
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


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("backend", ["numba", "reference"])
def test_every_term_of_the_kl_is_right_to_3e_6_of_itself(backend, dtype):
    logvar = near_and_far(dtype)
    _, kl = kernels.reparam_kl(0 * logvar, logvar, seed=0, reduction="none", backend=backend)
    right = exact_expm1_minus_identity(logvar) / 2
    assert (np.abs(long(kl) - right) <= 3e-6 * right).all()


@pytest.mark.parametrize("scale", ["logvar", "std", "var"])
def test_a_prior_that_is_the_posterior_has_no_divergence(scale):
    mu, logvar = gaussian(6, 5, dtype=torch.float64)
    spread = {"logvar": logvar, "std": torch.exp(logvar / 2), "var": logvar.exp()}[scale]
    for backend in BACKENDS:
        _, kl = kernels.reparam_kl(mu, spread, scale=scale, prior=(mu, logvar), backend=backend)
        assert kl.abs().max() < 1e-14


def test_a_prior_that_does_not_fit_is_refused():
    mu, logvar = gaussian(6, 5)
    for prior, sentence in (
        ((mu, logvar[:, :2]), r"prior_logvar must broadcast to the shape \(6, 5\) of mu, got \(6, 2\)"),
        ((mu[None], logvar), r"prior_mu must broadcast to the shape \(6, 5\) of mu, got \(1, 6, 5\)"),
        ((mu, logvar.double()), "prior_logvar must be torch.float32 on cpu like mu, got torch.float64"),
    ):
        with pytest.raises(ValueError, match=sentence):
            kernels.reparam_kl(mu, logvar, prior=prior)
    with pytest.raises(TypeError, match=r"prior must be a pair \(mu, logvar\) of tensors, got Tensor"):
        kernels.reparam_kl(mu, logvar, prior=mu)


def test_z_alone_has_a_finite_gradient_where_the_kl_has_none():
    logvar = torch.full((2, 3), 100.0, requires_grad=True)
    z, kl = kernels.reparam_kl(torch.zeros(2, 3), logvar, seed=4, backend="numba")
    assert kl.isinf().all()
    assert torch.autograd.grad(z.sum(), logvar)[0].isfinite().all()


@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_half_precision_is_computed_in_float32_and_rounded_once(dtype):
    """Noise included, so that a seed gives the same z wherever that is done."""
    mu, logvar = gaussian(70, 13, dtype=dtype)
    z, kl = kernels.reparam_kl(mu, logvar, seed=5, backend="numba")
    wide_z, wide_kl = kernels.reparam_kl(mu.float(), logvar.float(), seed=5, backend="numba")
    assert z.equal(wide_z.to(dtype))
    assert kl.equal(wide_kl)


@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("used", [slice(1), slice(1, 2), slice(2)], ids=["z", "kl", "both"])
def test_gradients_of_half_precision_are_rounded_once(used, dtype):
    mu, logvar = gaussian(70, 13, dtype=dtype)
    logvar[::2] += 13  # expm1(logvar) / 2 overflows in float16, but not its product with a small gradient
    upstream = (seeded(70, 13, seed=3, dtype=dtype), 1e-5 * seeded(70, seed=4, dtype=torch.float32))
    gradients = []
    for wide in (torch.float32, dtype):
        leaves = [x.to(wide).requires_grad_() for x in (mu, logvar)]
        outputs = kernels.reparam_kl(*leaves, seed=5, backend="numba")
        weights = [weight.to(out.dtype) for weight, out in zip(upstream, outputs, strict=True)]
        gradients.append(torch.autograd.grad(outputs[used], leaves, weights[used]))
    for right, found in zip(*gradients, strict=True):
        assert found.dtype == dtype
        assert found.isfinite().all()
        assert found.equal(right.to(dtype))


@pytest.mark.parametrize("backend", ["eager", "numba"])
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


def test_inputs_are_left_alone():
    mu, logvar = gaussian(20, 6)
    before = copy.deepcopy((mu, logvar))
    kernels.reparam_kl(mu, logvar, seed=1, backend="numba")
    assert torch.equal(mu, before[0])
    assert torch.equal(logvar, before[1])
