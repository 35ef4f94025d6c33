"""Every log-density sums or integrates to 1, and equals an independent formula."""

import itertools
import math

import mpmath
import numpy as np
import pytest
import scipy.stats
import torch
from scipy.integrate import quad

from tests import stats
from vaebench.vae.model.likelihoods import Likelihood
from vaebench.vae.prob.densities import (
    Bernoulli,
    DiagonalGaussian,
    DiscretisedLogistic,
    Gaussian,
    LogisticMixture,
    log_standard_normal,
)


def f64(*values):
    return torch.tensor(values, dtype=torch.float64)


def test_bernoulli_sums_to_one_over_all_images():
    density = Bernoulli(f64(-3.0, 0.2, 40.0))
    images = f64(*itertools.product((0.0, 1.0), repeat=3))
    assert density.log_prob(images).exp().sum().item() == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("levels", [2, 17, 256])
@pytest.mark.parametrize("log_scale", [-7.0, -3.0, 0.0, 2.0])
@pytest.mark.parametrize("mu", [-0.7, 0.0, 0.43, 1.0, 6.0])
def test_discretised_logistic_sums_to_one(levels, log_scale, mu):
    grid = torch.arange(levels, dtype=torch.float64) / (levels - 1)
    density = DiscretisedLogistic(f64(mu).expand(levels), f64(log_scale).expand(levels), levels)
    log_prob = density.log_prob_elementwise(grid)
    assert log_prob.isfinite().all()
    assert log_prob.exp().sum().item() == pytest.approx(1, abs=1e-12)


def test_discretised_logistic_is_a_difference_of_distribution_functions():
    mu, scale, levels = 0.3, 0.2, 17
    density = DiscretisedLogistic(f64(mu), f64(math.log(scale)), levels)
    for level in range(levels):
        upper = 1.0 if level == levels - 1 else scipy.stats.logistic.cdf((level + 0.5) / 16, mu, scale)
        lower = 0.0 if level == 0 else scipy.stats.logistic.cdf((level - 0.5) / 16, mu, scale)
        assert density.log_prob(f64(level / 16)).item() == pytest.approx(math.log(upper - lower), abs=1e-12)


def test_discretised_logistic_keeps_its_digits_and_gradients_far_in_a_tail():
    """At 400 scales from the mean both distribution functions are 1: their difference would be log 0."""
    mu = torch.tensor([1.0], requires_grad=True)
    log_prob = DiscretisedLogistic(mu, torch.tensor([-6.0]), 17).log_prob(torch.tensor([1 / 16]))
    log_prob.sum().backward()
    scale = math.exp(-6.0)
    expected = -(1 - 1.5 / 16) / scale + math.log1p(-math.exp(-1 / 16 / scale))
    assert log_prob.item() == pytest.approx(expected, rel=1e-5)
    assert mu.grad.item() == pytest.approx(-1 / scale, rel=1e-5)


def log_cell(x, mu, log_scale, levels):
    """Return log P(x) of a discretised logistic by its definition, in 400 digits; outer levels take the tails."""
    half = mpmath.mpf(1) / (2 * (levels - 1))
    s = mpmath.exp(log_scale)
    lower, upper = (x - half - mu) / s, (x + half - mu) / s
    F = lambda a: 1 / (1 + mpmath.exp(-a))  # noqa: E731
    if x == 0:
        return -mpmath.log1p(mpmath.exp(-upper))
    if x == 1:
        return -mpmath.log1p(mpmath.exp(lower))
    cell = F(upper) - F(lower) if mu > x else F(-lower) - F(-upper)
    return mpmath.log(cell)


def log_cell_and_gradients(x, mu, log_scale, levels):
    """Return log P(x) with its derivatives in mu and log_scale, by the difference quotient of 400 digits."""
    with mpmath.workdps(400):
        x, mu, log_scale = mpmath.mpf(x), mpmath.mpf(mu), mpmath.mpf(log_scale)
        s, tiny = mpmath.exp(log_scale), mpmath.mpf(10) ** -60
        slope = lambda f, step: (f(step) - f(-step)) / (2 * step)  # noqa: E731
        return (
            log_cell(x, mu, log_scale, levels),
            slope(lambda e: log_cell(x, mu + e, log_scale, levels), tiny * s),
            slope(lambda e: log_cell(x, mu, log_scale + e, levels), tiny * min(1, s)),
        )


FAR = [
    (x, mu, log_scale)
    for x, mu in [(0.0, 0.0), (1.0, 1.0), (0.0, 0.7), (1.0, -3.0), (1.0, 0.1), (0.0, 6.0), (1.0, 40.0)]
    for log_scale in (-200.0, -90.0, -88.0, -80.0, -30.0, 0.0, 30.0, 60.0)
]
INNER = [(0.2, mu, log_scale) for mu in (0.2, 0.9, -2.0) for log_scale in (-200.0, -90.0, -88.0, -40.0, 0.0, 60.0)]


@pytest.mark.parametrize(("dtype", "digits"), [(torch.float32, 3e-5), (torch.float64, 1e-10)])
@pytest.mark.parametrize("levels", [2, 16, 256])
@pytest.mark.parametrize("components", [0, 2])
def test_a_logistic_of_any_scale_has_its_value_and_gradients(dtype, digits, levels, components):
    """Against the definition in 400 digits; where |x - mu| / s is no number of the dtype, large and of its sign."""
    points = torch.tensor(FAR + (INNER if levels > 2 else []), dtype=dtype)
    x, *parameters = points.T
    expected = np.array([[float(v) for v in log_cell_and_gradients(*point, levels)] for point in points.tolist()]).T
    if components:
        parameters = [column.expand(components, -1) for column in parameters]
    mu, log_scale = (column.clone().requires_grad_() for column in parameters)
    single = DiscretisedLogistic(mu, log_scale, levels)
    density = LogisticMixture(torch.zeros_like(mu), mu, log_scale, levels) if components else single
    value = density.log_prob_elementwise(x)
    gradients = [g.reshape(-1, len(x)).sum(0) for g in torch.autograd.grad(value.sum(), (mu, log_scale))]
    largest = torch.finfo(dtype).max
    distance = (points[:, 1] - points[:, 0]).abs().double().clamp(min=1)
    within = (distance.log() - points[:, 2].double() < math.log(largest / 4)).numpy()
    for found, right, near_zero in zip(
        (value.detach(), *gradients), expected, (torch.finfo(dtype).eps, 1e-30, 1e-30), strict=True
    ):
        assert found.isfinite().all()
        np.testing.assert_allclose(found[within], right[within], rtol=digits, atol=near_zero)
        beyond = found[~within].double().numpy()
        np.testing.assert_array_equal(np.sign(beyond), np.sign(right[~within]))
        assert (np.abs(beyond[beyond != 0]) > largest / 1e4).all()
    assert density.mean.isfinite().all()
    assert all(g.isfinite().all() for g in torch.autograd.grad(density.mean.sum(), (mu, log_scale)))


def test_the_mean_of_a_logistic_without_width_is_the_nearest_level():
    mu = torch.tensor([0.0, 0.3, 0.5, 1.0, 7.0])
    assert DiscretisedLogistic(mu, torch.full((5,), -200.0), 2).mean.tolist() == [0.0, 0.0, 0.5, 1.0, 1.0]


def test_discretised_logistic_mean_and_samples():
    mu, log_scale = f64(0.2, 0.9), f64(-1.5, -2.0)
    density = DiscretisedLogistic(mu, log_scale, 17)
    grid = torch.arange(17, dtype=torch.float64) / 16
    p = DiscretisedLogistic(mu.expand(17, 2), log_scale.expand(17, 2), 17).log_prob_elementwise(grid[:, None]).exp()
    assert torch.allclose(density.mean, (p * grid[:, None]).sum(0), atol=1e-12)
    many = DiscretisedLogistic(mu.expand(150_000, 2), log_scale.expand(150_000, 2), 17)
    drawn = many.sample(torch.Generator().manual_seed(0))
    one_hot = (drawn[..., None] * 16).round() == torch.arange(17)
    stats.assert_mean_equal(one_hot.double().flatten(1), p.T.flatten(), discrepancy=0.02)


@pytest.mark.parametrize("levels", [2, 17, 256])
@pytest.mark.parametrize("log_scale", [-7.0, -3.0, 2.0])
@pytest.mark.parametrize("mu", [-0.7, 0.43, 6.0])
def test_a_mixture_sums_to_one(levels, log_scale, mu):
    """With components apart and weights from e^-40 up, on the grid and out in the tails."""
    grid = torch.arange(levels, dtype=torch.float64) / (levels - 1)
    logits, mus, scales = (
        values[:, None].expand(3, levels) for values in (f64(0, 2, -40), f64(mu, 1, 9), f64(log_scale, -2, 0))
    )
    log_prob = LogisticMixture(logits, mus, scales, levels).log_prob_elementwise(grid)
    assert log_prob.isfinite().all()
    assert log_prob.exp().sum().item() == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("levels", [17, 256])
def test_a_mixture_is_the_weighted_mean_of_scipys_cells(levels):
    weights, mus, scales = np.array([0.2, 0.5, 0.3]), np.array([0.1, 0.4, 0.9]), np.array([0.03, 0.2, 0.01])
    column = lambda values: torch.from_numpy(values)[:, None].expand(3, levels)  # noqa: E731
    density = LogisticMixture(column(np.log(weights) + 3), column(mus), column(np.log(scales)), levels)
    edges = np.concatenate([[-np.inf], (np.arange(levels - 1) + 0.5) / (levels - 1), [np.inf]])
    cells = np.diff(scipy.stats.logistic.cdf(edges, mus[:, None], scales[:, None]), axis=1)
    grid = torch.arange(levels, dtype=torch.float64) / (levels - 1)
    np.testing.assert_allclose(density.log_prob_elementwise(grid).exp(), weights @ cells, rtol=0, atol=1e-12)
    means = weights @ cells @ np.arange(levels) / (levels - 1)
    np.testing.assert_allclose(density.mean, np.full(levels, means), rtol=0, atol=1e-12)


def test_a_mixture_samples_its_levels():
    weights, mus, log_scales = f64(0.1, 0.6, 0.3), f64(0.1, 0.5, 0.95), f64(-4, -2.5, -3)
    many = LogisticMixture(*(v[:, None].expand(150_000, 3, 1) for v in (weights.log(), mus, log_scales)), 17)
    drawn = many.sample(torch.Generator().manual_seed(0))
    grid = torch.arange(17, dtype=torch.float64) / 16
    each = LogisticMixture(*(v[:, None].expand(3, 17) for v in (weights.log(), mus, log_scales)), 17)
    one_hot = (drawn * 16).round() == torch.arange(17)
    stats.assert_mean_equal(one_hot.double(), each.log_prob_elementwise(grid).exp(), discrepancy=0.02)


@pytest.mark.parametrize("shape", [(5,), (3, 4, 4)])
def test_a_mixture_of_one_is_the_discretised_logistic_bit_for_bit(shape):
    g = torch.Generator().manual_seed(0)
    raw = torch.randn(2, 3 * shape[0], *shape[1:], generator=g).requires_grad_()
    x = torch.randint(0, 256, (2, *shape), generator=g) / 255
    mixture = Likelihood("logistic_mixture", shape, levels=256)(raw)
    single = Likelihood("discretised_logistic", shape, levels=256)(raw[:, : 2 * shape[0]])
    assert torch.equal(mixture.log_prob(x), single.log_prob(x))
    assert torch.equal(mixture.mean, single.mean)
    gradients = [torch.autograd.grad(density.log_prob(x).sum(), raw)[0] for density in (mixture, single)]
    assert torch.equal(*gradients)


def test_a_likelihood_gives_each_element_its_own_components():
    """Raw outputs are mu, log_scale and logit in turn, each for every component, each for every channel."""
    M, shape = 4, (3, 2, 2)
    likelihood = Likelihood("logistic_mixture", shape, levels=17, components=M)
    assert likelihood.parameters_per_element == 12
    assert likelihood.discrete
    raw = torch.randn(5, 12 * 3, 2, 2, generator=torch.Generator().manual_seed(0))
    density = likelihood(raw)
    for m, c in itertools.product(range(M), range(3)):
        torch.testing.assert_close(density.mu[:, m, c], raw[:, 3 * m + c])
        torch.testing.assert_close(density.log_scale[:, m, c], 7 * torch.tanh((raw[:, 3 * (M + m) + c] - 2) / 7))
        torch.testing.assert_close(density.logits[:, m, c], raw[:, 3 * (2 * M + m) + c])


def test_the_scale_of_a_logistic_starts_at_a_seventh_of_the_range_and_stays_within_e_to_7():
    raw = torch.tensor([0.0, 2.0, -1e30, 1e30], dtype=torch.float64)
    log_scale = Likelihood("discretised_logistic", (1,), levels=17)(torch.stack([raw, raw], 1)).log_scale[:, 0]
    assert log_scale.tolist() == pytest.approx([7 * math.tanh(-2 / 7), 0, -7, 7], abs=1e-12)
    assert log_scale[0].exp().item() == pytest.approx(1 / 7, rel=2e-3)


@pytest.mark.parametrize("sigma", [0.05, 1.0])
def test_gaussian_integrates_to_one(sigma):
    density = Gaussian(f64(0.3), f64(sigma))
    total, _ = quad(lambda x: density.log_prob(f64(x)).exp().item(), 0.3 - 12 * sigma, 0.3 + 12 * sigma)
    assert total == pytest.approx(1, abs=1e-10)


def test_gaussians_equal_scipy():
    x, mu, logvar = f64(0.1, -2.0, 4.0), f64(0.0, 0.5, 1.0), f64(-3.0, 0.0, 2.0)
    expected = scipy.stats.norm.logpdf(x.numpy(), mu.numpy(), np.exp(logvar.numpy() / 2)).sum()
    assert DiagonalGaussian(mu, logvar).log_prob(x).item() == pytest.approx(expected, abs=1e-12)
    expected = scipy.stats.norm.logpdf(x.numpy(), mu.numpy(), 0.7).sum()
    assert Gaussian(mu, f64(0.7)).log_prob(x).item() == pytest.approx(expected, abs=1e-12)


def test_a_gaussian_so_narrow_that_its_precision_is_no_number_has_a_density():
    """exp(100) is infinite in single precision, and infinity times the zero at the mean no number."""
    x = torch.tensor([0.0, 1e-22, 1.5], requires_grad=True)
    mu, logvar = torch.tensor([0.0, 0.0, 1.5]), torch.full((3,), -100.0, requires_grad=True)
    found = DiagonalGaussian(mu, logvar).log_prob_elementwise(x)
    expected = scipy.stats.norm.logpdf([0.0, 1e-22, 0.0], 0, math.exp(-50))
    np.testing.assert_allclose(found.detach(), expected, rtol=1e-5)
    by_x, by_logvar = torch.autograd.grad(found.sum(), (x, logvar))
    white_square = (1e-22 * math.exp(50)) ** 2
    assert by_x.tolist() == pytest.approx([0, -1e-22 * math.exp(100), 0], rel=1e-5)
    assert by_logvar.tolist() == pytest.approx([-0.5, 0.5 * (white_square - 1), -0.5], rel=1e-5)


def test_the_standard_normal_is_that_of_scipy_and_of_a_gaussian_bit_for_bit():
    z = torch.linspace(-40, 40, 999, dtype=torch.float64)
    np.testing.assert_allclose(log_standard_normal(z), scipy.stats.norm.logpdf(z), rtol=1e-14)
    single = z.float().requires_grad_()
    zeros = torch.zeros_like(single)
    for density in (log_standard_normal, DiagonalGaussian(zeros, zeros).log_prob_elementwise):
        (gradient,) = torch.autograd.grad(density(single).sum(), single)
        assert torch.equal(gradient, -single.detach())
    assert torch.equal(log_standard_normal(single), DiagonalGaussian(zeros, zeros).log_prob_elementwise(single))


def test_bits_are_drawn_by_the_generator_that_is_given():
    even = Bernoulli(torch.zeros(64, 1))
    drawn = [even.sample(torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)]
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


def test_samples_have_the_moments_of_the_density():
    generator = torch.Generator().manual_seed(0)
    wide = torch.ones(150_000, 1, dtype=torch.float64)
    drawn = {
        "bernoulli": Bernoulli(0.4 * wide).sample(generator)[:, 0],
        "gaussian": Gaussian(2 * wide, f64(0.5)).sample(generator)[:, 0],
        "diagonal": DiagonalGaussian(-1 * wide, math.log(4) * wide).sample(generator)[:, 0],
    }
    stats.assert_mean_equal(drawn["bernoulli"], 1 / (1 + math.exp(-0.4)), discrepancy=0.02)
    stats.assert_distribution(drawn["gaussian"], scipy.stats.norm(2, 0.5).cdf, discrepancy=0.02)
    stats.assert_distribution(drawn["diagonal"], scipy.stats.norm(-1, 2).cdf, discrepancy=0.02)


@pytest.mark.parametrize("name", ["bernoulli", "gaussian", "discretised_logistic", "logistic_mixture"])
def test_many_samples_of_parameters_meet_one_batch_of_data(name):
    """Parameters (S, B, *event) and data (B, *event) give (S, B), each the log-density of its own pair."""
    S, B, event = 3, 2, (1, 4, 4)
    raw = torch.randn(S, B, *event, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x = torch.randint(0, 2, (B, *event), generator=torch.Generator().manual_seed(1)).double()
    density = {
        "bernoulli": lambda mu: Bernoulli(mu, len(event)),
        "gaussian": lambda mu: Gaussian(mu, f64(0.5)[0], len(event)),
        "discretised_logistic": lambda mu: DiscretisedLogistic(mu, mu - 2, 2, len(event)),
        "logistic_mixture": lambda mu: LogisticMixture(
            *(torch.stack([mu + a, b - mu], -4) for a, b in ((0, 1), (2, 0), (-2, -1))), 2, len(event)
        ),
    }[name]
    together = density(raw).log_prob(x)
    assert together.shape == (S, B)
    for s, b in itertools.product(range(S), range(B)):
        assert together[s, b].item() == pytest.approx(density(raw[s, b]).log_prob(x[b]).item(), abs=1e-12)


def narrow_logistic(mu, other):
    """A density whose draws from mu and other in [0, 1] are neither clipped nor, but by chance, of one level."""
    return DiscretisedLogistic(0.3 + 0.4 * mu, other - 6, 65_536)


@pytest.mark.parametrize(
    "make",
    [
        lambda mu, other: DiagonalGaussian(mu, other),
        lambda mu, other: Gaussian(mu, other.exp()),
        lambda mu, other: narrow_logistic(mu, other),
        lambda mu, other: LogisticMixture(*(part[..., None, :] for part in (other, 0.3 + 0.4 * mu, other - 6)), 65_536),
    ],
    ids=["diagonal", "gaussian", "discretised_logistic", "logistic_mixture"],
)
@pytest.mark.parametrize(("shape", "other"), [((2,), (3, 2)), ((3, 2), (1,)), ((3, 1), (2,))])
def test_parameters_that_broadcast_draw_each_element_for_itself(make, shape, other):
    """The same bits as parameters of the whole shape, so that no row shares its noise with another."""
    g = torch.Generator().manual_seed(0)
    mu, other = (torch.rand(size, generator=g, dtype=torch.float64) for size in (shape, other))
    together, apart = make(mu, other), make(*(part.expand(3, 2).clone() for part in (mu, other)))
    drawn = together.sample(torch.Generator().manual_seed(1))
    assert drawn.unique().numel() == 6
    assert torch.equal(drawn, apart.sample(torch.Generator().manual_seed(1)))
    assert together.mean.shape == (3, 2)


def test_weights_that_all_components_share_are_those_of_each():
    """One logit for all M of them weighs each by 1 / M, in probabilities, mean and draws alike."""
    mu, log_scale = f64(0.0, 1.0)[:, None], f64(-2.0, -2.0)[:, None]
    shared, each = (LogisticMixture(torch.zeros(M, 1).double(), mu, log_scale, 4) for M in (1, 2))
    levels = torch.arange(4).double()[:, None] / 3
    assert shared.log_prob(levels).exp().sum().item() == pytest.approx(1, abs=1e-12)
    torch.testing.assert_close(shared.log_prob(levels), each.log_prob(levels))
    torch.testing.assert_close(shared.mean, each.mean)


def test_the_mean_of_broadcast_logistics_is_the_sum_over_their_levels():
    mu, log_scale = f64(0.2, 0.9), f64(-1.5, -2.0, 0.0)[:, None]
    grid = torch.arange(17, dtype=torch.float64)[:, None, None] / 16
    p = DiscretisedLogistic(mu, log_scale, 17).log_prob_elementwise(grid).exp()
    torch.testing.assert_close(DiscretisedLogistic(mu, log_scale, 17).mean, (p * grid).sum(0), rtol=0, atol=1e-12)


@pytest.mark.parametrize("density", [DiagonalGaussian, Gaussian, narrow_logistic])
def test_broadcast_parameters_draw_under_vmap_and_in_one_graph(density):
    """Where rows differ in nothing but their noise."""
    mu, other = torch.zeros(4, 2), torch.ones(4, 3, 1)

    def drawn(mu, other):
        return density(mu, other).sample()

    with torch.random.fork_rng():
        torch.manual_seed(0)
        each = torch.func.vmap(drawn, randomness="different")(mu, other)
        compiled = torch.compile(drawn, fullgraph=True, backend="aot_eager")(mu[0], other[0])
    assert each.shape == (4, 3, 2)
    assert each.unique().numel() == 24
    assert compiled.unique().numel() == 6
