"""What posteriors say of every latent, against torch.distributions and draws."""

import torch
from torch.distributions import Normal, kl_divergence

from tests.exact_models import generator
from vaebench.vae.evaluation.codes import describe_latents


def test_latents_are_described_by_rate_activity_and_moments_of_the_aggregate():
    N, K = 500, 3
    mu = torch.randn(N, K, generator=generator(0)) * torch.tensor([2.0, 0.5, 0.01]) + torch.tensor([1.0, 0.0, -3.0])
    logvar = torch.randn(N, K, generator=generator(1)) - 1
    found = describe_latents(mu, logvar)
    q = Normal(mu.double(), (0.5 * logvar.double()).exp())
    torch.testing.assert_close(found.rate, kl_divergence(q, Normal(0.0, 1.0)).mean(0))
    torch.testing.assert_close(found.variance_of_means, mu.double().var(0))
    assert found.active.tolist() == [True, True, False]
    with torch.random.fork_rng():
        torch.manual_seed(2)
        z = q.sample((2000,)).flatten(0, 1)
    torch.testing.assert_close(found.mean, z.mean(0), rtol=0, atol=0.01)
    torch.testing.assert_close(found.std, z.std(0), rtol=0.01, atol=0)
