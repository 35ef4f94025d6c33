"""The gap of the ELBO, and the width and place of q, against the closed forms of linear Gaussian models."""

import math

import pytest
import torch
from torch.distributions import Poisson

from tests import linear_vae
from tests.exact_models import generator
from vaebench.vae.evaluation.codes import describe_latents
from vaebench.vae.evaluation.inference import Inference, measure_inference
from vaebench.vae.evaluation.likelihood import model_log_likelihood
from vaebench.vae.model.adapted import AdaptedModel


def inspect(model, count=24):
    x, _ = model.ppca.sample(count, generator(0))
    wrapped = AdaptedModel(model.eval(), x.float())
    log_px = model_log_likelihood(wrapped, x.float(), generator=generator(1))
    return measure_inference(wrapped, x.float(), log_px, generator=generator(2))


@pytest.mark.parametrize("name", ["exact", "narrow", "correlated"])
def test_the_gap_and_its_parts_are_those_of_the_closed_form(name):
    model = getattr(linear_vae, name)()
    found = inspect(model).metrics(torch.ones(3, dtype=torch.bool))
    assert found["gap/amortisation"] == pytest.approx(model.amortisation_gap(), abs=0.03)
    assert found["gap/family"] == pytest.approx(model.ppca.family_gap().item(), abs=0.03)
    assert (found["gap/examples"], found["gap/unresolved"]) == (24, 0)
    assert found["q/offset"] < 0.15  # 400 weighted draws place the posterior's mean to 0.06


@pytest.mark.parametrize("factor", [0.01, 100.0])
def test_the_best_gaussian_is_found_however_wrong_the_width_of_q_is(factor):
    model = linear_vae.exact()
    encode = model.encode
    model.encode = lambda x: (encode(x)[0], encode(x)[1] + 2 * math.log(factor))
    found = inspect(model).metrics(torch.ones(3, dtype=torch.bool))
    kl = 3 * (0.5 * (factor**2 - 1) - math.log(factor))
    assert found["gap/family"] == pytest.approx(0, abs=0.03)
    assert found["gap/amortisation"] == pytest.approx(kl, rel=0.05)
    assert found["q/narrowness_of_best"] == pytest.approx(1, rel=0.05)


def test_width_is_the_ratio_of_standard_deviations():
    found = inspect(linear_vae.narrow()).metrics(torch.ones(3, dtype=torch.bool))
    assert found["q/narrowness"] == pytest.approx(1.9, rel=0.03)
    assert found["q/narrowness_of_best"] == pytest.approx(1, rel=0.05)
    model = linear_vae.correlated()
    precision = model.ppca.precision()
    known = (torch.linalg.inv(precision).diagonal() * precision.diagonal()).sqrt().log().mean().exp().item()
    found = inspect(model).metrics(torch.ones(3, dtype=torch.bool))
    assert known > 1.1
    assert found["q/narrowness"] == pytest.approx(known, rel=0.03)
    assert found["q/narrowness_of_best"] == pytest.approx(known, rel=0.05)


def test_a_misplaced_q_is_told_in_standard_deviations_of_the_posterior():
    model = linear_vae.exact()
    encode, std = model.encode, model.log_std.exp().detach()
    model.encode = lambda x: (encode(x)[0] + 2 * std, encode(x)[1])
    assert inspect(model).metrics(torch.ones(3, dtype=torch.bool))["q/offset"] == pytest.approx(2, abs=0.1)


def test_means_are_over_active_latents_and_all_if_none_is():
    narrowness = torch.tensor([[1.0, 9.0], [3.0, 9.0]])
    part = Inference(*torch.zeros(2, 2), narrowness, narrowness / 2, narrowness * 0, torch.tensor([True, False]))
    found = Inference.join([part, part]).metrics(torch.tensor([True, False]))
    assert found["q/narrowness"] == pytest.approx(math.exp(2))
    assert found["gap/unresolved"] == 2
    assert part.metrics(torch.tensor([False, False]))["q/narrowness"] == pytest.approx(math.exp(5.5), rel=1e-4)


def test_latents_are_described_by_the_moments_of_their_posteriors():
    mu = torch.tensor([[1.0, 0.0], [3.0, 0.0]])
    found = describe_latents(mu, torch.zeros(2, 2))
    assert found.rate.tolist() == [2.5, 0.0]
    assert found.active.tolist() == [True, False]
    assert found.mean.tolist() == [2.0, 0.0]
    assert found.std.tolist() == pytest.approx([math.sqrt(3), 1.0])


class Skewed:
    """x has one element, and p(x, z) is that of a Poisson count with rate exp(4 z): the posterior of z is skewed."""

    def encode(self, x):
        return torch.zeros(len(x), 1), torch.zeros(len(x), 1)

    def decode(self, z):
        return Poisson((4 * z).exp())


def test_the_moments_of_a_skewed_posterior_are_its_own_and_not_those_of_its_mode():
    x = torch.zeros(400, 1)
    model = AdaptedModel(Skewed(), x[:4])
    log_px = model_log_likelihood(model, x, generator=generator(0))
    found = measure_inference(model, x, log_px, steps=1, generator=generator(1))
    z = torch.linspace(-8, 8, 20_001, dtype=torch.float64)
    p = torch.softmax(-0.5 * z.square() - (4 * z).exp(), 0)
    mean = (p * z).sum()
    std = (p * (z - mean).square()).sum().sqrt()
    mode = z[p.argmax()]
    curvature = (1 + 16 * (4 * mode).exp()).rsqrt()
    assert abs(std.log() - curvature.log()) > 0.05
    assert found.narrowness.mean().item() == pytest.approx(std.log().item(), abs=0.02)
    assert found.offset.mean().item() == pytest.approx((mean.abs() / std).item(), abs=0.03)
