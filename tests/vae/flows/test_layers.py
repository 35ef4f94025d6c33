"""Properties of single flow layers, against closed forms."""

import pytest
import torch
from scipy.stats import norm
from torch.distributions import MultivariateNormal

from tests import stats
from tests.exact_models import generator
from tests.vae.flows.test_transform import build, data, matrix, standard
from vaebench.vae.flows import (
    LU,
    ActivationNorm,
    Affine,
    Autoregressive,
    Compose,
    Coupling,
    FlowDistribution,
    Inverse,
    RationalQuadratic,
    Transform,
    alternating_mask,
    channel_mask,
    checkerboard_mask,
)


def test_a_gaussian_autoregressive_flow_of_linear_maps_is_a_full_gaussian():
    """x_i | x_<i ~ N(b_i + sum_j A_ij x_j, s_i^2): precision (I - A)^T diag(1 / s^2) (I - A)."""
    flow = Autoregressive(torch.arange(4), hidden=(), element=Affine(limit=3.0)).double()
    (layer,) = flow.network.layers
    with torch.no_grad():
        layer.weight[0::2] = torch.randn(4, 4, generator=generator(0)).double()
        layer.weight[1::2] = 0
        layer.bias += torch.randn(8, generator=generator(1)).double()
    A, b = layer.weight[0::2].tril(-1), layer.bias[0::2]
    s = torch.exp(3 * torch.tanh(layer.bias[1::2] / 3))
    whitening = (torch.eye(4) - A) / s[:, None]
    mean = torch.linalg.solve(torch.eye(4) - A, b)
    expected = MultivariateNormal(mean, precision_matrix=whitening.T @ whitening)
    x, _ = data(4)
    torch.testing.assert_close(FlowDistribution(flow, standard(4)).log_prob(x), expected.log_prob(x))


@pytest.mark.parametrize("element", [Affine(), RationalQuadratic()], ids=["affine", "spline"])
@pytest.mark.parametrize("kind", ["autoregressive", "coupling"])
def test_networks_in_low_precision_leave_a_density(kind, element):
    """In bfloat16 narrow bins of a spline would have no width; x stays as precise as the density's own arithmetic."""
    if kind == "coupling":
        flow = Coupling(alternating_mask(4), element=element, hidden=(32,))
    else:
        flow = Autoregressive(torch.arange(4), element=element, hidden=(32,))
    with torch.no_grad():
        for i, parameter in enumerate(flow.parameters()):
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator(i))
    x = 3 * torch.randn(2000, 4, generator=generator(9))
    with torch.autocast("cpu", torch.bfloat16):
        z, log_det = flow.forward_and_log_det(x)
        back, log_det_back = flow.inverse_and_log_det(z)
    assert log_det.isfinite().all()
    assert log_det_back.isfinite().all()
    assert z.dtype == log_det.dtype == torch.float32
    if kind == "coupling":  # same parameters both ways; where the slope is small, a rounding of z is large in x
        assert (back - x).abs().quantile(0.95) < 1e-4
        assert (log_det_back + log_det).abs().quantile(0.95) < 1e-3


def test_samples_have_the_distribution_whose_density_is_given():
    """In one dimension f is monotone, so that the distribution function is that of the normal at f(x), or 1 less it."""
    transform = build("composition", 1)
    x = FlowDistribution(transform, standard(20_000, 1)).rsample(generator(0)).detach()
    lowest, highest = transform(x.aminmax().min[None])[0].item(), transform(x.aminmax().max[None])[0].item()

    def cdf(x):
        z = transform(torch.as_tensor(x)[:, None])[0][:, 0].detach()
        return norm.cdf(z) if lowest < highest else norm.sf(z)

    stats.assert_distribution(x[:, 0].numpy(), cdf, discrepancy=0.05)


def test_a_draw_and_its_density_take_one_direction_and_no_way_back(monkeypatch):
    transform = build("composition", 5)
    flow = FlowDistribution(transform, standard(6, 5))
    x, log_p = flow.rsample_and_log_prob(generator(0))
    torch.testing.assert_close(flow.log_prob(x), log_p)
    monkeypatch.setattr(transform, "forward_and_log_det", None)
    assert torch.equal(flow.rsample_and_log_prob(generator(0))[1], log_p)


def test_a_transform_needs_no_more_than_its_forward_direction():
    class Cubic(Transform):
        def forward_and_log_det(self, x, context=None):
            return x + x**3, (1 + 3 * x**2).log().sum(-1)

    x = torch.linspace(-4, 4, 4001, dtype=torch.float64)
    flow = FlowDistribution(Cubic(), standard(1))
    assert torch.trapezoid(flow.log_prob(x[:, None]).exp(), x).item() == pytest.approx(1, abs=1e-6)
    with pytest.raises(NotImplementedError, match="Cubic has no inverse"):
        flow.rsample()


def test_a_composition_applies_the_first_one_first():
    double, shift = LU(torch.tensor([[2.0]])), ActivationNorm(1)
    with torch.no_grad():
        shift.mu.fill_(1.0)
    assert Compose(double, shift)(torch.tensor([3.0]))[0].item() == pytest.approx(5)
    assert Compose(shift, double)(torch.tensor([3.0]))[0].item() == pytest.approx(4)


ORDERS = {"ascending": [0, 1, 2, 3], "mixed": [2, 0, 3, 1], "ties": [0, 1, 1, 0], "one level": [0, 0, 0, 0]}


@pytest.mark.parametrize("context", [0, 2])
@pytest.mark.parametrize("order", ORDERS.values(), ids=ORDERS)
def test_an_element_depends_on_all_elements_of_lower_levels_and_no_other(order, context):
    order = torch.tensor(order)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = Autoregressive(order, hidden=(12, 12), context=context).network.double()
        for parameter in network.parameters():
            torch.nn.init.normal_(parameter)
    given = torch.zeros(2, dtype=torch.float64) if context else None
    x = torch.randn(4, dtype=torch.float64, generator=generator(0))
    seen = torch.func.jacrev(lambda x: network(x, given))(x)
    assert torch.equal((seen != 0).all(1), order[:, None] > order)
    if context:
        assert torch.func.jacrev(lambda c: network(x, c))(given).ne(0).all()


def test_costs_in_passes_are_those_stated():
    passes = []
    x, _ = data(6)
    for layer, expected in (
        (Autoregressive(torch.arange(6)), (1, 6)),
        (Autoregressive(torch.arange(6) // 2), (1, 3)),
        (Inverse(Autoregressive(torch.arange(6))), (6, 1)),
        (Coupling(alternating_mask(6)), (1, 1)),
    ):
        network = next(module.network for module in layer.modules() if hasattr(module, "network"))
        network.register_forward_hook(lambda *_: passes.append(1))
        for direction, count in zip((layer.forward_and_log_det, layer.inverse_and_log_det), expected, strict=True):
            passes.clear()
            direction(x.float())
            assert len(passes) == count


@pytest.mark.parametrize("element", [Affine(), RationalQuadratic()], ids=["affine", "spline"])
def test_a_coupling_is_the_autoregressive_flow_of_two_levels(element):
    """With the coupling's network copied into the masked one, and a zero for the elements that stay."""
    mask = torch.tensor([True, False, False, True, False])
    coupling = Coupling(mask, element=element, hidden=(7, 6))
    flow = Autoregressive((~mask).long(), element=element, hidden=(7, 6))
    P = element.parameters
    with torch.no_grad():
        for parameter in coupling.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator(0))
        (first, second, last), masked = coupling.network[::2], flow.network.layers
        masked[0].weight[:, mask], masked[0].bias[:] = first.weight, first.bias
        masked[1].load_state_dict(second.state_dict() | {"mask": masked[1].mask})
        moved = (~mask).repeat_interleave(P)
        masked[2].weight[moved], masked[2].bias[moved] = last.weight, last.bias
    x = 2 * torch.randn(9, 5, generator=generator(1))
    for name in ("forward_and_log_det", "inverse_and_log_det"):
        torch.testing.assert_close(getattr(flow, name)(x), getattr(coupling, name)(x))
    assert (coupling(x)[0][:, ~mask] - x[:, ~mask]).abs().max() > 0.05


@pytest.mark.parametrize("element", [Affine(), RationalQuadratic()], ids=["affine", "spline"])
@pytest.mark.parametrize(
    "layer", [lambda e: Coupling(alternating_mask(4), element=e), lambda e: Autoregressive(torch.arange(4), element=e)]
)
def test_layers_with_a_network_start_at_the_identity(layer, element):
    x = 3 * torch.randn(8, 4, generator=generator(0))
    z, log_det = layer(element)(x)
    torch.testing.assert_close(z, x)
    torch.testing.assert_close(log_det, torch.zeros(8), atol=1e-5, rtol=0)


def test_the_scale_of_the_affine_map_is_bounded_smoothly():
    raw = torch.tensor([[0.5, r] for r in (-1e4, -3.0, 0.0, 3.0, 1e4)], dtype=torch.float64, requires_grad=True)
    _, log_slope = Affine(limit=2.0).forward(torch.ones(5, dtype=torch.float64), raw)
    assert (log_slope.diff() < 0).all()
    assert log_slope[[0, 4]].tolist() == pytest.approx([2, -2])
    (gradient,) = torch.autograd.grad(log_slope.sum(), raw)
    assert gradient[2, 1].item() == pytest.approx(-1)
    assert (gradient[1:4, 1] < 0).all()


def test_masks():
    assert alternating_mask(5).tolist() == [True, False, True, False, True]
    assert checkerboard_mask((2, 2, 3)).reshape(2, 2, 3).tolist() == 2 * [[[True, False, True], [False, True, False]]]
    assert channel_mask((3, 1, 2)).tolist() == [True, True, False, False, False, False]


def test_activation_normalisation_starts_from_the_batch_wherever_it_stands():
    x = 5 + 3 * torch.randn(200, 4, generator=generator(0), dtype=torch.float64) @ matrix(4).double()
    first, last = ActivationNorm(4).double(), ActivationNorm(4).double()
    flow = Compose(first, build("coupling spline", 4), LU(matrix(4)).double(), last)
    z = flow.initialise(x)
    torch.testing.assert_close(z, flow(x)[0])
    for out in (z, first(x)[0]):
        torch.testing.assert_close(out.mean(0), torch.zeros(4, dtype=torch.float64))
        torch.testing.assert_close(out.var(0, correction=0), torch.ones(4, dtype=torch.float64))
    torch.testing.assert_close(flow(x[:3])[0], z[:3])
    constant = ActivationNorm(1)
    assert constant.initialise(torch.ones(5, 1)).isfinite().all()


def test_a_spline_through_knots_of_a_moebius_function_is_that_function():
    """f(x) = (x + c B) / (1 + c x / B) maps [-B, B] to itself; rational quadratics reproduce it between inner knots."""
    B, c = 4.0, 0.6
    widths = torch.tensor([0.1, 0.3, 0.15, 0.25, 0.2], dtype=torch.float64)

    def f(x):
        return B * (x / B + c) / (1 + c * x / B)

    knots = 2 * B * torch.cat([torch.zeros(1), widths.cumsum(0)]) - B
    heights = f(knots).diff() / (2 * B)
    slopes = (1 - c**2) / (1 + c * knots[1:-1] / B) ** 2
    least = 1e-3
    raw_shares = [((share - least) / (1 - 5 * least)).log() for share in (widths, heights)]
    raw_slopes = torch.log(torch.expm1(slopes - least)) - torch.log(torch.expm1(torch.tensor(1 - least).double()))
    x = torch.linspace(knots[1].item(), knots[-2].item(), 301, dtype=torch.float64)
    raw = torch.cat([*raw_shares, raw_slopes]).expand(301, -1)
    spline = RationalQuadratic(bins=5, bound=B)
    z, log_slope = spline.forward(x, raw)
    torch.testing.assert_close(z, f(x))
    torch.testing.assert_close(log_slope, torch.log((1 - c**2) / (1 + c * x / B) ** 2))
    torch.testing.assert_close(spline.inverse(f(x), raw)[0], x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_spline_with_extreme_parameters_is_increasing_finite_and_joins_its_tails(dtype):
    spline = RationalQuadratic(bins=6, bound=2.0)
    raw = 60 * torch.randn(40, 1, spline.parameters, generator=generator(0)).to(dtype)
    raw = raw.expand(-1, 401, -1).clone().requires_grad_()
    x = torch.linspace(-3, 3, 401, dtype=dtype).expand(40, -1)
    for direction in (spline.forward, spline.inverse):
        z, log_slope = direction(x, raw)
        assert (z.diff(dim=1) >= 0).all()
        outside = x.abs() > 2
        assert torch.equal(z[outside], x[outside])
        assert (log_slope[outside] == 0).all()
        assert log_slope.isfinite().all()
        assert torch.autograd.grad(z.sum() + log_slope.sum(), raw)[0].isfinite().all()
        edge, _ = direction(torch.tensor([[-2.0, 2.0]], dtype=dtype).expand(40, -1), raw[:, :2])
        torch.testing.assert_close(edge, torch.tensor([[-2.0, 2.0]], dtype=dtype).expand(40, -1))


REFUSED = {
    "gap": (lambda: Autoregressive(torch.tensor([0, 2])), r"without a gap, got \[0, 2\]"),
    "all stay": (lambda: Coupling(torch.ones(3, dtype=torch.bool)), "some True and some False"),
    "one bin": (lambda: RationalQuadratic(bins=1), "2 to 999 bins"),
    "other size": (lambda: ActivationNorm(3)(torch.ones(2, 1)), r"of 3 elements, got \(2, 1\)"),
    "other size of a coupling": (
        lambda: Coupling(alternating_mask(3))(torch.ones(2, 4)),
        r"of 3 elements, got \(2, 4\)",
    ),
}


@pytest.mark.parametrize(("call", "message"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
