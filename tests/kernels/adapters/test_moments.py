"""Distributions of packed moments: under one seed, the numbers and gradients of the class that is replaced."""

from unittest import mock

import pytest
import torch

from tests.kernels.adapters.lookalikes import GaussianOfMoments
from vaebench import kernels
from vaebench.kernels.adapters import fuse_moments, moments


def fused(*args, **options):
    return fuse_moments(GaussianOfMoments(*args, **options))


def test_all_but_the_draw_is_the_class_s_own():
    parameters = 40 * torch.randn(2, 8, 3, 3)
    own, posterior = GaussianOfMoments(parameters), fused(parameters)
    assert isinstance(posterior, GaussianOfMoments)
    for name in ("mean", "logvar", "std", "var", "parameters"):
        assert getattr(posterior, name).equal(getattr(own, name))
    assert posterior.mode().equal(own.mode())
    other = GaussianOfMoments(torch.randn(2, 8, 3, 3))
    assert posterior.kl(other).equal(own.kl(other))
    samples = [one.sample(generator=torch.Generator().manual_seed(1)) for one in (own, posterior)]
    assert samples[0].equal(samples[1])


def test_a_sample_and_the_kl_are_those_of_the_class():
    parameters = torch.randn(2, 8, 3, 3, dtype=torch.float64, requires_grad=True)
    results = []
    for posterior in (fused(parameters), GaussianOfMoments(parameters)):
        torch.manual_seed(2)
        first, second, kl = posterior.sample(), posterior.sample(), posterior.kl()
        loss = first.square().sum() + second.pow(3).sum() + kl.sum()
        results.append((first, second, kl, *torch.autograd.grad(loss, parameters)))
        assert not first.equal(second)
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_kl_before_a_sample_draws_nothing(dtype):
    parameters = torch.randn(2, 8, 3, 3).to(dtype).requires_grad_()
    posterior = fused(parameters)
    before = torch.get_rng_state()
    kl = posterior.kl()
    assert torch.get_rng_state().equal(before)
    _, expected = kernels.reparam_kl(*parameters.chunk(2, 1))
    torch.testing.assert_close(kl, expected)
    torch.testing.assert_close(
        torch.autograd.grad(kl.sum(), parameters), torch.autograd.grad(expected.sum(), parameters)
    )


def test_a_sample_and_its_kl_are_one_call_of_the_kernel():
    posterior = fused(torch.randn(2, 8, 3, 3))
    with mock.patch.object(moments, "reparam_kl", wraps=kernels.reparam_kl) as kernel:
        posterior.sample()
        first = posterior.kl()
        assert kernel.call_count == 1
    kept = first.clone()
    first += 1.0
    torch.testing.assert_close(posterior.kl(), kept, msg="the caller's change reached a later result")


@pytest.mark.parametrize("without_gradients", [torch.no_grad, torch.inference_mode])
def test_the_kl_has_gradients_after_a_sample_without_them(without_gradients):
    parameters = torch.randn(2, 8, 3, 3, requires_grad=True)
    posterior = fused(parameters)
    with without_gradients():
        posterior.sample()
    (gradient,) = torch.autograd.grad(posterior.kl().sum(), parameters)
    torch.testing.assert_close(gradient, torch.cat([posterior.mean, posterior.logvar.expm1() / 2], 1))


def test_moments_of_videos_keep_the_last_axis():
    parameters = torch.randn(2, 8, 3, 4, 5)
    posterior = fused(parameters)
    for _ in range(2):
        torch.testing.assert_close(posterior.kl(), GaussianOfMoments(parameters).kl())
        posterior.sample()
    assert posterior.kl().shape == (2, 5)


def test_a_deterministic_posterior_draws_nothing():
    posterior = fused(torch.randn(2, 8, 3, 3), deterministic=True)
    assert posterior.sample().equal(posterior.mean)
    assert posterior.kl().equal(torch.zeros(1))


class OfScale(GaussianOfMoments):
    def __init__(self, parameters):
        super().__init__(parameters)
        self.logvar = 2 * torch.nn.functional.softplus(self.logvar).log()


class OfTwiceTheKL(GaussianOfMoments):
    def kl(self, other=None):
        return 2 * super().kl(other)


class OfVariances(GaussianOfMoments):
    def sample(self):
        return self.mean + self.var * torch.randn_like(self.mean)


class OfClampedScale(GaussianOfMoments):
    def __init__(self, parameters):
        super().__init__(parameters)
        self.std = self.std.clamp(0.01, 100.0)


class WithoutKL(GaussianOfMoments):
    kl = None


@pytest.mark.parametrize(
    ("base", "reason"),
    [
        (OfScale, "its mean and logvar are not the two halves of the moments"),
        (OfTwiceTheKL, "its kl.. is not the KL from N.0, I., .* it is 2 times this"),
        (OfVariances, r"its sample.. is not mean \+ exp.logvar / 2. eps"),
        (OfClampedScale, r"its sample.. is not mean \+ exp.logvar / 2. eps where logvar is one of .-30"),
        (WithoutKL, "it raised TypeError"),
    ],
)
def test_a_class_that_does_something_else_is_refused(base, reason):
    with pytest.raises(ValueError, match=f"{base.__name__} cannot be drawn from by the kernel: .*{reason}"):
        fuse_moments(base(torch.randn(2, 8, 3, 3)))
