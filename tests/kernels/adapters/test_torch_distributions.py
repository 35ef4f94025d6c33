"""FusedNormal beside torch's Normal: values in float64, gradients, and every way in which the KL is asked for."""

from unittest import mock

import pytest
import torch
from torch.distributions import Independent, Normal, kl_divergence

from vaebench import kernels
from vaebench.kernels.adapters import FusedNormal, torch_distributions

G = torch.Generator().manual_seed(0)
LOC, SCALE = (
    torch.randn(6, 4, generator=G, dtype=torch.float64),
    torch.rand(6, 4, generator=G, dtype=torch.float64) + 0.1,
)
PRIORS = {
    "standard, scalar": Normal(0.0, 1.0),
    "standard": Normal(torch.zeros_like(LOC), torch.ones_like(LOC)),
    "wide": Normal(torch.zeros_like(LOC), 2 * torch.ones_like(LOC)),
    "shifted": Normal(torch.full_like(LOC, 0.5), torch.ones_like(LOC)),
    "one for all": Normal(torch.ones(4, dtype=torch.float64), torch.ones(4, dtype=torch.float64)),
    "of more": Normal(torch.zeros(3, 6, 4), torch.ones(3, 6, 4)),
}


def leaves():
    return LOC.clone().requires_grad_(), SCALE.clone().requires_grad_()


@pytest.mark.parametrize("drawn", [True, False])
@pytest.mark.parametrize("p", PRIORS.values(), ids=PRIORS)
def test_the_kl_and_its_gradients_are_those_of_normal(p, drawn):
    results = []
    for base in (FusedNormal, Normal):
        loc, scale = leaves()
        q = base(loc, scale)
        if drawn:
            q.rsample()
        kl = kl_divergence(q, p)
        results.append((kl, *torch.autograd.grad((kl * kl).sum(), (loc, scale))))
    torch.testing.assert_close(*results)


def test_a_draw_and_its_kl_are_one_call_of_the_kernel():
    with mock.patch.object(torch_distributions, "reparam_kl", wraps=kernels.reparam_kl) as kernel:
        q = FusedNormal(*leaves())
        z = q.rsample()
        handed_out = q._kl
        assert kl_divergence(q, Normal(0.0, 1.0)) is handed_out
        assert kernel.call_count == 1
    torch.manual_seed(1)
    z = q.rsample()
    torch.manual_seed(1)
    eps = kernels.normal_noise(torch.randint(2**63 - 1, (1,)), (6, 4), dtype=torch.float64)
    torch.testing.assert_close(z, LOC + SCALE * eps)


def test_a_kl_that_was_handed_out_may_be_changed_in_place():
    q, p = FusedNormal(*leaves()), Normal(0.0, 1.0)
    q.rsample()
    kl = kl_divergence(q, p)
    kept = kl.clone()
    kl += 1.0
    torch.testing.assert_close(kl_divergence(q, p), kept)


def test_the_gradient_of_a_prior_that_learns():
    results = []
    for base in (FusedNormal, Normal):
        loc, scale = (one.clone().requires_grad_() for one in (torch.zeros_like(LOC), torch.ones_like(LOC)))
        q = base(LOC, SCALE)
        q.rsample()
        results.append(torch.autograd.grad(kl_divergence(q, Normal(loc, scale)).sum(), (loc, scale)))
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("width", [1.0, 1e-3, 1e3])
def test_near_the_prior_the_kl_keeps_the_digits_that_normal_loses(width):
    scale, p = width * torch.linspace(1 + 5e-7, 1 + 5e-6, 50)[:, None], Normal(0.0, width)
    loc = torch.zeros_like(scale)
    exact = kl_divergence(Normal(loc.double(), scale.double()), Normal(p.loc.double(), p.scale.double()))
    q = FusedNormal(loc, scale)
    q.rsample()
    for _ in range(2):  # of the draw, then without one
        assert float((kl_divergence(q, p) / exact - 1).abs().max()) < 1e-3
    assert float((kl_divergence(Normal(loc, scale), p) / exact - 1).abs().max()) > 0.02


def test_independent_and_expanded_distributions():
    q, p = (Independent(base(LOC, SCALE), 1) for base in (FusedNormal, Normal))
    prior = Independent(Normal(torch.zeros_like(LOC), torch.ones_like(LOC)), 1)
    assert q.rsample().shape == LOC.shape
    torch.testing.assert_close(kl_divergence(q, prior), kl_divergence(p, prior))
    wide = FusedNormal(LOC, SCALE).expand((2, 6, 4))
    assert type(wide) is FusedNormal
    assert wide.rsample().shape == (2, 6, 4)


def test_draws_of_a_sample_shape_and_samples_are_those_of_normal():
    q, p = FusedNormal(LOC, SCALE), Normal(LOC, SCALE)
    for draw in (lambda one: one.rsample((3,)), lambda one: one.sample(), lambda one: one.sample((2,))):
        results = []
        for one in (q, p):
            torch.manual_seed(1)
            results.append(draw(one))
        assert results[0].equal(results[1])
    assert FusedNormal(0.0, 1.0).rsample().shape == ()


def test_without_gradients_first_and_with_them_later():
    loc, scale = leaves()
    q = FusedNormal(loc, scale)
    with torch.no_grad():
        q.rsample()
    (gradient,) = torch.autograd.grad(kl_divergence(q, Normal(0.0, 1.0)).sum(), loc)
    torch.testing.assert_close(gradient, LOC)


def test_under_vmap_and_a_compiler():
    def kl(loc, scale):
        q = FusedNormal(loc, scale)
        return 0 * q.rsample().sum() + kl_divergence(q, Normal(torch.zeros_like(loc), torch.ones_like(loc))).sum()

    expected = kl_divergence(Normal(LOC, SCALE), Normal(0.0, 1.0)).sum()
    each = torch.func.vmap(kl, randomness="different")(LOC[:, None], SCALE[:, None])
    torch.testing.assert_close(each.sum(), expected)
    torch.testing.assert_close(torch.compile(kl, backend="aot_eager", fullgraph=True)(LOC, SCALE), expected)
