"""log_aggregate: against the reference, by quadrature, and under weights that are given."""

import math
from functools import partial

import pytest
import torch
from scipy.integrate import quad

from tests.kernel_checks import (
    DTYPES,
    LargestTensor,
    assert_compiled_transforms_are_right_or_refused,
    assert_no_worse_than_twice_eager,
    assert_second_derivatives_agree,
    assert_second_derivatives_are_refused,
    seeded,
    values_and_gradients,
)
from vaebench import kernels
from vaebench.kernels.analytic import log_aggregate


@pytest.fixture(params=["composed", "tiles", "many tiles"])
def path(request, monkeypatch):
    """Send small inputs through each of the ways that large ones take."""
    if request.param != "composed":
        monkeypatch.setattr(log_aggregate, "_SMALL", -1)
    if request.param == "many tiles":
        for name, value in {"_TILE": 128, "_SHORTEST": 4, "_CODES": 3}.items():
            monkeypatch.setattr(log_aggregate, name, value)
    return request.param


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


def run(backend, inputs, weights):
    return values_and_gradients(lambda *x: kernels.log_aggregate(*x, log_weights=weights, backend=backend), inputs)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", ["uniform", "per posterior", "per pair", "with gaps"])
def test_error_is_at_most_twice_eagers(path, kind, dtype):
    for B, N, K in ((1, 2, 1), (13, 29, 5), (40, 70, 16)):
        cases = [(problem(B, N, K, dtype, seed=10 * i), weights_for(kind, B, N)) for i in range(8)]
        assert_no_worse_than_twice_eager(run, cases, dtype)


def test_more_codes_and_posteriors_than_a_block(monkeypatch):
    monkeypatch.setattr(log_aggregate, "_TILE", 65_536)
    assert_no_worse_than_twice_eager(run, [(problem(700, 900, 3), None)], torch.float32)


def test_narrow_posteriors_far_apart_keep_their_digits(path):
    """B = 64, K = 64, logvar -6: through matrix products this errs by more than a thousandth of a nat."""
    mu, logvar = seeded(64, 64, seed=1, dtype=torch.float32), torch.full((64, 64), -6.0)
    z = mu + torch.exp(logvar / 2) * seeded(64, 64, seed=5, dtype=torch.float32)
    found = kernels.log_aggregate(z, mu, logvar, backend="analytic")[0].double()
    expected = kernels.log_aggregate(z, mu, logvar, backend="reference")[0]
    assert (found - expected).abs().max() < 2e-4


def test_gradcheck(path):
    inputs = tuple(x.requires_grad_() for x in problem(4, 5, 3, torch.float64))
    for weights in (None, weights_for("per posterior", 4, 5).double(), weights_for("per pair", 4, 5).double()):
        assert torch.autograd.gradcheck(
            lambda *x, w=weights: kernels.log_aggregate(*x, log_weights=w, backend="analytic"), inputs
        )


def test_one_output_alone_has_the_gradient_of_that_output(path):
    inputs = tuple(x.requires_grad_() for x in problem(4, 5, 3, torch.float64))
    for pick in (0, 1):
        found, expected = (
            torch.autograd.grad(kernels.log_aggregate(*inputs, backend=backend)[pick].sum(), inputs)
            for backend in ("analytic", "reference")
        )
        assert all(torch.allclose(f, e, atol=1e-12) for f, e in zip(found, expected, strict=True))


def test_compiled_transforms_are_right_or_refused(path):
    function = partial(kernels.log_aggregate, backend="analytic")
    assert_compiled_transforms_are_right_or_refused(function, problem(4, 5, 3, torch.float64))


def test_second_derivatives_are_refused_or_right(path):
    analytic, reference = (partial(kernels.log_aggregate, backend=backend) for backend in ("analytic", "reference"))
    inputs = problem(4, 5, 3, torch.float64)
    if path == "composed":
        assert_second_derivatives_agree(analytic, reference, inputs)
    else:
        assert_second_derivatives_are_refused(analytic, inputs)


def test_gradients_lie_as_their_inputs(path):
    inputs = [torch.randn(rows, 3, requires_grad=True) for rows in (4, 5, 5)]
    joint, marginals = kernels.log_aggregate(*inputs, backend="analytic")
    for gradient in torch.autograd.grad(joint.sum() + marginals.sum(), inputs):
        assert gradient.is_contiguous()


def test_the_mixture_integrates_to_one(path):
    _, mu, logvar = problem(1, 6, 1, torch.float64)

    def density(z):
        return kernels.log_aggregate(torch.tensor([[z]], dtype=torch.float64), mu, logvar)[0].exp().item()

    assert quad(density, -15, 15, limit=200)[0] == pytest.approx(1, abs=1e-8)


def test_in_one_dimension_the_joint_is_the_marginal(path):
    joint, marginals = kernels.log_aggregate(*problem(20, 30, 1, torch.float64))
    assert torch.allclose(joint, marginals[:, 0], atol=1e-12)


def test_one_posterior_factorises(path):
    joint, marginals = kernels.log_aggregate(*problem(20, 1, 4, torch.float64))
    assert torch.allclose(joint, marginals.sum(1), atol=1e-12)


def test_uniform_weights_are_the_default_and_order_does_not_matter(path):
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
        joint, marginals = kernels.log_aggregate(*inputs, backend="analytic")
        if backward:
            (joint.sum() + marginals.sum()).backward()
    assert largest.numel <= B * N * K / 50


@pytest.mark.parametrize(
    ("which", "value"),
    [(0, math.inf), (0, math.nan), (0, 1e10), (1, -math.inf), (1, math.nan), (2, math.nan), (2, 80.0), (2, -math.inf)],
)
def test_extreme_values_come_out_as_in_the_reference(path, which, value):
    inputs = problem(6, 5, 2)
    inputs[which][0, 0] = value
    for found, expected in zip(run("analytic", inputs, None), run("reference", inputs, None), strict=True):
        assert torch.allclose(found, expected.float().double(), rtol=1e-3, atol=1e-5, equal_nan=True)


@pytest.mark.parametrize("logvar", [-86.0, -90.0, -110.0, -130.0, -180.0, -600.0])
def test_posteriors_too_narrow_for_their_precision_in_float32(path, logvar):
    """1 / sigma^2 overflows below -88, 1 / sigma below -177; codes on a mean, one sigma from it, and elsewhere."""
    z, mu, logvars = problem(6, 5, 2)
    logvars[:2] = logvar
    z[0] = mu[0]
    mu[1] = 0
    z[1] = math.exp(logvar / 2) if logvar > -138 else 0.0
    inputs = z, mu, logvars
    for found, expected in zip(run("analytic", inputs, None), run("reference", inputs, None), strict=True):
        assert torch.allclose(found, expected.float().double(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("weights", [[-math.inf] * 3, [math.inf, 0, 0], [math.nan, 0, 0], [-math.inf, 0, 0]], ids=str)
def test_weights_that_are_not_finite(path, weights):
    inputs = problem(4, 3, 2)
    weights = torch.tensor(weights)
    for found, expected in zip(run("analytic", inputs, weights), run("reference", inputs, weights), strict=True):
        assert torch.allclose(found, expected, rtol=1e-4, atol=1e-5, equal_nan=True)


def test_no_codes(path):
    joint, marginals = kernels.log_aggregate(torch.zeros(0, 3), torch.zeros(4, 3), torch.zeros(4, 3))
    assert (joint.shape, marginals.shape) == ((0,), (0, 3))


def test_vmap_and_compile(path):
    inputs = [torch.stack([x, x.flip(0)]) for x in problem(6, 6, 2, torch.float64)]

    def function(*x):
        joint, marginals = kernels.log_aggregate(*x, backend="analytic")
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
