"""Maximum likelihood of a flow is the bound of a VAE without noise: value and gradient, at one eps, as s -> 0."""

import csv
from itertools import pairwise

import pytest
import torch
from torch.func import jacrev, vmap

from tests.exact_models import generator
from tests.vae.flows.test_transform import build, data
from vaebench.studies.experiments import flow_limit
from vaebench.studies.experiments.output import save
from vaebench.vae.flows import LU

SCALES = (1e-2, 1e-3, 1e-4)
smooth_flows = pytest.mark.parametrize("name", ["autoregressive", "inverse autoregressive", "coupling", "composition"])


def build_case(name):
    transform, (x, _) = build(name, 4), data(4)
    eps = torch.randn(20, 4, generator=generator(5), dtype=torch.float64)
    jacobian = vmap(jacrev(lambda x: transform(x)[0]))(x)
    return transform, x, eps, jacobian


def log_normal(z):
    return torch.distributions.Normal(0.0, 1.0).log_prob(z).sum(-1)


@smooth_flows
def test_the_bound_tends_to_the_log_likelihood_at_every_eps(name):
    transform, x, eps, jacobian = build_case(name)
    truth = log_normal(transform(x)[0]) + torch.linalg.slogdet(jacobian).logabsdet
    errors = [(flow_limit.elbo(transform, x, eps, s, "s^2 J J^T") - truth).abs() for s in SCALES]
    assert errors[0].max() > 1e-3
    assert errors[2].max() < 1e-2
    for coarse, fine in pairwise(errors):
        assert (coarse.norm() / fine.norm()).item() == pytest.approx(10, rel=0.3)


@smooth_flows
def test_the_gradient_of_the_bound_tends_to_that_of_the_log_likelihood(name):
    transform, x, eps, _ = build_case(name)
    truth = flow_limit.gradient(transform, flow_limit.log_likelihood(transform, x))
    bounds = (flow_limit.elbo(transform, x, eps, s, "s^2 J J^T") for s in SCALES)
    errors = [((flow_limit.gradient(transform, bound) - truth).norm() / truth.norm()).item() for bound in bounds]
    assert errors[2] < 1e-2
    for coarse, fine in pairwise(errors):
        assert coarse / fine == pytest.approx(10, rel=0.3)


@smooth_flows
def test_an_isotropic_posterior_has_another_limit(name):
    """log p(f(x)) + (|eps|^2 - |J^-1 eps|^2) / 2, whose mean over eps falls short of the log-likelihood."""
    transform, x, eps, jacobian = build_case(name)
    back = torch.linalg.inv(jacobian)
    limit = log_normal(transform(x)[0]) + 0.5 * (eps.square().sum(-1) - (back @ eps[..., None]).square().sum((-1, -2)))
    found = flow_limit.elbo(transform, x, eps, 1e-6, "s^2 I")
    torch.testing.assert_close(found, limit, rtol=1e-3, atol=1e-3)
    mean_gap = torch.linalg.slogdet(jacobian).logabsdet - 0.5 * (4 - back.square().sum((-1, -2)))
    assert mean_gap.min() > 0
    assert mean_gap.mean() > 0.1
    truth = flow_limit.gradient(transform, flow_limit.log_likelihood(transform, x))
    assert (flow_limit.gradient(transform, found) - truth).norm() > 0.1 * truth.norm()


@pytest.mark.parametrize("s", [1.0, 0.1])
def test_with_a_linear_flow_only_the_prior_of_the_code_differs(s):
    """g(f(x) + s J eps) = x + s eps exactly, so that the bound is off by log p(f(x) + s J eps) - log p(f(x))."""
    weight = 0.5 * torch.randn(3, 3, generator=generator(0), dtype=torch.float64) + torch.eye(3)
    x, eps = (torch.randn(5, 3, generator=generator(seed), dtype=torch.float64) for seed in (1, 2))
    bound = flow_limit.elbo(LU(weight), x, eps, s, "s^2 J J^T")
    expected = log_normal((x + s * eps) @ weight.T) + torch.linalg.slogdet(weight).logabsdet
    torch.testing.assert_close(bound, expected)


def test_the_experiment_trains_and_measures_both_flows(tmp_path):
    x = 2 * torch.rand(40, 2, generator=generator(0), dtype=torch.float64)
    rows = []
    for name, flow in flow_limit.flows().items():
        start = flow_limit.log_likelihood(flow, x).mean()
        flow_limit.fit(flow, x, 20, name)
        assert flow_limit.log_likelihood(flow, x).mean() > start + 0.1
        rows += list(flow_limit.measure(name, flow, x))
    save(rows, flow_limit.plot(rows), tmp_path)
    assert (tmp_path / "picture.png").stat().st_size > 1000
    with (tmp_path / "table.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 2 * 2 * len(flow_limit.SCALES)
    for error in ("rms error, one eps", "relative error, gradient"):
        last = {row["covariance of q"]: row[error] for row in rows if row["s"] == flow_limit.SCALES[-1]}
        assert last["s^2 J J^T"] < 1e-3 < 1e-2 < last["s^2 I"]
