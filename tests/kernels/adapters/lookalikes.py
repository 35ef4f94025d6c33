"""Distributions and methods as other projects write them, drawing the kernel's noise from torch's generator."""

import torch

from vaebench import kernels


def noise_like(x):
    """Return the kernel's noise, in place of torch.randn_like: a function of one seed of torch's generator."""
    return kernels.normal_noise(torch.randint(2**63 - 1, (1,)), tuple(x.shape), dtype=x.dtype)


class GaussianOfMoments:
    """The distribution of latent-diffusion autoencoders."""

    def __init__(self, parameters, deterministic=False):
        self.parameters, self.deterministic = parameters, deterministic
        self.mean, logvar = torch.chunk(parameters, 2, dim=1)
        self.logvar = torch.clamp(logvar, -30.0, 20.0)
        self.std, self.var = torch.exp(0.5 * self.logvar), torch.exp(self.logvar)

    def sample(self, generator=None):
        if generator is not None:
            return self.mean + self.std * torch.randn(self.mean.shape, generator=generator)
        return self.mean + self.std * (0 if self.deterministic else noise_like(self.mean))

    def kl(self, other=None):
        if self.deterministic:
            return torch.zeros(1)
        d2, ratio = (self.mean**2, self.var) if other is None else ((self.mean - other.mean) ** 2 / other.var, None)
        if ratio is not None:
            return 0.5 * torch.sum(d2 + ratio - 1.0 - self.logvar, dim=[1, 2, 3])
        return 0.5 * torch.sum(d2 + self.var / other.var - 1.0 - self.logvar + other.logvar, dim=[1, 2, 3])

    def mode(self):
        return self.mean
