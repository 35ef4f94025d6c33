"""The critic: its loss, the parameters that its gradients reach, and the divergences of Gaussians that it learns."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torch.distributions import Normal, kl_divergence

from tests.exact_models import generator
from vaebench.vae.config.objective import Critic as CriticSettings
from vaebench.vae.objective.critics import Adversary, Critic, permute_latents

MEAN, SCALE = torch.tensor([1.0, -0.5]), torch.tensor([0.6, 1.3])
ROOT = torch.linalg.cholesky(torch.tensor([[1.0, 0.8], [0.8, 1.0]]))
CASES = {
    "a shifted Gaussian and the prior": (
        lambda e: MEAN + SCALE * e,
        lambda z, g: torch.randn(z.shape, generator=g),
        kl_divergence(Normal(MEAN, SCALE), Normal(0.0, 1.0)).sum().item(),
        0.06,
    ),
    "the prior and itself": (lambda e: e, lambda z, g: torch.randn(z.shape, generator=g), 0.0, 0.003),
    "correlated codes and permuted ones": (lambda e: e @ ROOT.T, permute_latents, -0.5 * math.log(1 - 0.8**2), 0.04),
}


def start(hidden=(64, 64), seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Adversary.start(CriticSettings(hidden), latent=2, device=torch.device("cpu"))


@pytest.mark.parametrize("case", CASES)
def test_a_trained_critic_measures_the_divergence_of_gaussians(case):
    """Tolerances are five standard deviations over eight trainings; the rate falls, so that the last steps agree."""
    codes, draw_negatives, exact, tolerance = CASES[case]
    adversary, g = start(), generator(0)
    for i in range(800):
        adversary.optimizer.param_groups[0]["lr"] = 3e-3 * (1 - i / 800)
        z = codes(torch.randn(512, 2, generator=g))
        adversary.step(z, draw_negatives(z, g))
    found = adversary(codes(torch.randn(50_000, 2, generator=g))).mean().item()
    assert found == pytest.approx(exact, abs=tolerance)


def test_the_loss_is_that_of_logistic_regression():
    adversary = start(hidden=(5,))
    codes, theirs = torch.randn(2, 9, 2, generator=generator(0))
    T = adversary(torch.cat([codes, theirs[:4]]))
    labels = torch.cat([torch.ones(9), torch.zeros(4)])
    each = F.binary_cross_entropy_with_logits(T, labels, reduction="none")
    expected = each[:9].mean() + each[9:].mean()
    assert adversary.step(codes, theirs[:4]).item() == pytest.approx(expected.item(), rel=1e-6)
    assert adversary.step(codes, theirs[:4]).item() < expected.item(), "the step descends"


def test_gradients_reach_codes_or_critic_and_never_both():
    adversary = start()
    codes = torch.randn(6, 2, generator=generator(0)).requires_grad_()
    adversary(codes).mean().backward()
    assert codes.grad.abs().min() > 0
    assert all(parameter.grad is None for parameter in adversary.critic.parameters())
    codes.grad = None
    before = [parameter.detach().clone() for parameter in adversary.critic.parameters()]
    adversary.step(codes, codes.detach() + 1)
    assert codes.grad is None
    assert all(not torch.equal(one, other) for one, other in zip(before, adversary.critic.parameters(), strict=True))


def test_a_critic_without_layers_is_quadratic():
    """T of diagonal Gaussians, log q - log p, is in reach of its weights alone."""
    critic = Critic(2, ())
    with torch.no_grad():
        critic.layers[0].weight.copy_(torch.cat([MEAN / SCALE**2, 0.5 - 0.5 / SCALE**2])[None])
        critic.layers[0].bias.fill_(-(MEAN**2 / SCALE**2 / 2 + SCALE.log()).sum())
    z = torch.randn(20, 2, generator=generator(0))
    exact = (Normal(MEAN, SCALE).log_prob(z) - Normal(0.0, 1.0).log_prob(z)).sum(1)
    torch.testing.assert_close(critic(z), exact)


def test_permuted_codes_keep_every_marginal_and_no_pairing():
    z = torch.arange(300.0).repeat(4, 1).T
    found = permute_latents(z, generator(0))
    assert torch.equal(found.sort(dim=0).values, z)
    for one, other in itertools.combinations(found.T, 2):
        assert (one == other).sum() < 20
    assert not torch.equal(found, permute_latents(z, generator(1)))


def test_half_precision_does_not_reach_the_critic():
    adversary, z = start(), torch.randn(6, 2, generator=generator(0))
    with torch.autocast("cpu", torch.bfloat16):
        inside = adversary(z)
    assert torch.equal(inside, adversary(z))
