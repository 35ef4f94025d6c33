"""Every transform keeps the same promises: inverse, volume, total probability, gradients, save and load."""

import math

import pytest
import torch
from torch.autograd import gradcheck
from torch.func import functional_call, jacrev, vmap

from tests.exact_models import generator
from vaebench.vae.flows import (
    LU,
    MAF,
    NSF,
    QR,
    ActivationNorm,
    Autoregressive,
    Compose,
    Coupling,
    FlowDistribution,
    Inverse,
    RationalQuadratic,
    RealNVP,
    alternating_mask,
    channel_mask,
    checkerboard_mask,
)
from vaebench.vae.prob.densities import DiagonalGaussian
from vaebench.vae.training import checkpoint

CONTEXT = 2
SPLINE = RationalQuadratic(bins=4, bound=3.0)
SMALL = {"hidden": (6,)}


def matrix(D, seed=0):
    """An invertible matrix, neither symmetric nor close to the identity, that needs a permutation."""
    return 0.25 * torch.randn(D, D, generator=generator(seed)) + torch.eye(D).roll(1, 0)


def descending(D):
    return torch.arange(D).flip(0)


def stacked(D, seed):
    return Compose(
        ActivationNorm(D),
        LU(matrix(D, seed)),
        Autoregressive(descending(D), element=SPLINE, **SMALL),
        QR(matrix(D, seed + 1)),
        Inverse(Autoregressive(torch.arange(D), **SMALL)),
    )


ANY_SIZE = {
    "LU": lambda D, seed: LU(matrix(D, seed)),
    "QR": lambda D, seed: QR(matrix(D, seed)),
    "normalisation": lambda D, seed: ActivationNorm(D),
    "autoregressive": lambda D, seed: Autoregressive(descending(D), **SMALL),
    "autoregressive spline": lambda D, seed: Autoregressive(descending(D), element=SPLINE, **SMALL),
    "autoregressive, context": lambda D, seed: Autoregressive(descending(D), context=CONTEXT, **SMALL),
    "inverse autoregressive": lambda D, seed: Inverse(Autoregressive(descending(D), **SMALL)),
    "composition": stacked,
}
TWO_OR_MORE = ANY_SIZE | {
    "coupling": lambda D, seed: Coupling(alternating_mask(D), **SMALL),
    "coupling spline": lambda D, seed: Coupling(~alternating_mask(D), element=SPLINE, **SMALL),
    "coupling, context": lambda D, seed: Coupling(alternating_mask(D), context=CONTEXT, **SMALL),
    "coupling and back": lambda D, seed: Compose(
        Coupling(alternating_mask(D), **SMALL), Inverse(Coupling(~alternating_mask(D), element=SPLINE, **SMALL))
    ),
}
IMAGES = {
    "checkerboard coupling": lambda D, seed: Coupling(checkerboard_mask((2, 2, 2)), **SMALL),
    "channel coupling": lambda D, seed: Coupling(channel_mask((2, 2, 2)), element=SPLINE, **SMALL),
    "autoregressive, ties": lambda D, seed: Autoregressive(torch.arange(8) // 2, **SMALL),
    "MAF": lambda D, seed: MAF(8, layers=3, context=CONTEXT, **SMALL),
    "RealNVP": lambda D, seed: RealNVP((2, 2, 2), layers=3, **SMALL),
    "NSF": lambda D, seed: NSF((8,), layers=3, bins=4, **SMALL),
}
CASES = [*((name, 5) for name in TWO_OR_MORE), *((name, 8) for name in IMAGES)]
every_transform = pytest.mark.parametrize(("name", "D"), CASES)


def build(name, D, *, seed=0, dtype=torch.float64):
    """Return the transform with every parameter moved away from its start."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        transform = (TWO_OR_MORE | IMAGES)[name](D, seed).to(dtype)
        with torch.no_grad():
            for parameter in transform.parameters():
                parameter += 0.3 * torch.randn_like(parameter)
    return transform


def data(D, *, B=20, seed=3, dtype=torch.float64):
    """Return points, some of them in the tails of a spline, and contexts."""
    g = generator(seed)
    return (1.5 * torch.randn(B, D, generator=g)).to(dtype), torch.randn(B, CONTEXT, generator=g).to(dtype)


def standard(*shape):
    zeros = torch.zeros(shape, dtype=torch.float64)
    return DiagonalGaussian(zeros, zeros)


def jacobian(direction, x, context):
    return vmap(jacrev(lambda x, context: direction(x, context)[0]))(x, context)


@every_transform
def test_inverse_takes_back_value_and_volume(name, D):
    transform, (x, context) = build(name, D), data(D)
    for there, back in (
        (transform.forward_and_log_det, transform.inverse_and_log_det),
        (transform.inverse_and_log_det, transform.forward_and_log_det),
    ):
        z, log_det = there(x, context)
        assert (z - x).abs().max() > 0.05
        returned, log_det_back = back(z, context)
        torch.testing.assert_close(returned, x, rtol=0, atol=1e-10)
        torch.testing.assert_close(log_det_back, -log_det, rtol=0, atol=1e-10)


@every_transform
def test_inverse_in_single_precision_errs_no_more_than_the_condition_of_the_map_allows(name, D):
    transform, (x, context) = build(name, D), data(D)
    condition = torch.linalg.cond(jacobian(transform, x, context))
    x, context = x.float(), context.float()
    transform = transform.float()
    returned, _ = transform.inverse_and_log_det(transform(x, context)[0], context)
    error = (returned - x).norm(dim=-1) / x.norm(dim=-1)
    assert (error / condition).max() < 1e-5


@every_transform
def test_log_det_is_that_of_the_jacobian(name, D):
    transform, (x, context) = build(name, D), data(D)
    for direction in (transform.forward_and_log_det, transform.inverse_and_log_det):
        expected = torch.linalg.slogdet(jacobian(direction, x, context)).logabsdet
        assert expected.abs().min() > 1e-3
        torch.testing.assert_close(direction(x, context)[1], expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", ANY_SIZE)
@torch.no_grad()
def test_density_of_one_dimension_integrates_to_one(name):
    transform, (_, context) = build(name, 1), data(1, B=1)
    ends, _ = transform.inverse_and_log_det(torch.tensor([[-9.0], [9.0]], dtype=torch.float64), context)
    x = torch.linspace(ends.min(), ends.max(), 20_001, dtype=torch.float64)
    density = FlowDistribution(transform, standard(1), context).log_prob(x[:, None]).exp()
    assert torch.trapezoid(density, x).item() == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("name", TWO_OR_MORE)
@torch.no_grad()
def test_density_of_two_dimensions_integrates_to_one(name):
    """On a grid x = sinh(t), fine in the middle and wide in the tails, that reaches to where |f(x)| is 5.5."""
    transform, (_, context) = build(name, 2), data(2, B=1)
    angle = torch.linspace(0, 2 * math.pi, 2000, dtype=torch.float64)
    rim, _ = transform.inverse_and_log_det(5.5 * torch.stack([angle.cos(), angle.sin()], 1), context)
    ends = rim.asinh().aminmax(dim=0)
    grids = [torch.linspace(a, b, 700, dtype=torch.float64) for a, b in zip(*ends, strict=True)]
    t = torch.cartesian_prod(*grids)
    log_p = FlowDistribution(transform, standard(2), context).log_prob(t.sinh())
    cells = (log_p + t.cosh().log().sum(-1)).exp().reshape(700, 700)
    total = torch.trapezoid(torch.trapezoid(cells, grids[1]), grids[0])
    assert total.item() == pytest.approx(1, abs=1e-4)


@every_transform
def test_every_parameter_receives_a_gradient_from_densities_and_from_draws(name, D):
    transform, (x, context) = build(name, D), data(D)
    flow = FlowDistribution(transform, standard(*x.shape), context)
    drawn, log_p = flow.rsample_and_log_prob(generator(0))
    for loss in (flow.log_prob(x).mean(), drawn.square().mean() + log_p.mean()):
        parameters = dict(transform.named_parameters())
        for key, gradient in zip(parameters, torch.autograd.grad(loss, parameters.values()), strict=True):
            assert gradient.isfinite().all(), key
            assert gradient.any(), key


@every_transform
def test_gradients_are_those_of_finite_differences(name, D):
    x, context = data(D, B=2)
    for transform in (build(name, D), Inverse(build(name, D))):
        names, values = zip(*transform.named_parameters(), strict=True)

        def call(x, context, *values, transform=transform, names=names):
            return functional_call(transform, dict(zip(names, values, strict=True)), (x, context))

        leaves = [leaf.detach().requires_grad_() for leaf in (x, context, *values)]
        assert gradcheck(call, leaves, fast_mode=True)


@every_transform
def test_a_saved_transform_loads_into_a_fresh_one(name, D, tmp_path):
    transform, (x, context) = build(name, D), data(D)
    fresh = build(name, D, seed=7)
    assert not torch.equal(fresh(x, context)[0], transform(x, context)[0])
    tensors, _ = checkpoint.read(checkpoint.write(tmp_path, transform.state_dict(), {}))
    fresh.load_state_dict(tensors)
    for direction, loaded in (
        (transform.forward_and_log_det, fresh.forward_and_log_det),
        (transform.inverse_and_log_det, fresh.inverse_and_log_det),
    ):
        for expected, found in zip(direction(x, context), loaded(x, context), strict=True):
            assert torch.equal(found, expected)


@every_transform
def test_any_batch_axes_will_do(name, D):
    transform, (x, context) = build(name, D), data(D)
    for direction in (transform.forward_and_log_det, transform.inverse_and_log_det):
        z, log_det = direction(x, context)
        z_SB, log_det_SB = direction(x.reshape(4, 5, D), context.reshape(4, 5, CONTEXT))
        torch.testing.assert_close(z_SB, z.reshape(4, 5, D))
        torch.testing.assert_close(log_det_SB, log_det.reshape(4, 5))
        z_one, log_det_one = direction(x[0], context[0])
        torch.testing.assert_close(z_one, z[0])
        torch.testing.assert_close(log_det_one, log_det[0])


@pytest.mark.parametrize("name", TWO_OR_MORE)
def test_layers_without_a_context_ignore_one_and_the_others_heed_it(name):
    transform, (x, context) = build(name, 5), data(5)
    heeds = "context" in name
    assert torch.equal(transform(x, context)[0], transform(x, context + 1)[0]) is not heeds
