"""Density ratios by classification: a network that learns to distinguish codes from draws of another distribution.

The best classifier of equally many of each has the logit T(z) = log q(z) - log r(z), so that E_q[T(z)] = KL(q||r): r is
the prior for D(q(z)||p(z)), and the product of q's marginals for the total correlation. The draws of r are called
negatives. A critic is trained beside the model, one step for each batch, and is not part of it.

References: Sugiyama et al., Density Ratio Estimation in Machine Learning, 2012; Mescheder et al., Adversarial
Variational Bayes, 2017; Kim and Mnih, Disentangling by Factorising, 2018.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from vaebench.vae.config.objective import Critic as CriticSettings
from vaebench.vae.model.networks import dense_layers
from vaebench.vae.prob.draws import uniform_like

BETAS = (0.5, 0.9)


class Critic(nn.Module):
    """T(z), `(B, K) -> (B,)`: fully connected layers that see z and z^2, and so any ratio of diagonal Gaussians."""

    def __init__(self, latent: int, hidden: Sequence[int]) -> None:
        super().__init__()
        widths = (2 * latent, *hidden)
        self.layers = nn.Sequential(*dense_layers(widths), nn.Linear(widths[-1], 1))

    def forward(self, z: Tensor) -> Tensor:
        with torch.autocast(z.device.type, enabled=False):
            logits: Tensor = self.layers(torch.cat([z, z.square()], dim=-1))
        return logits.squeeze(-1)


@dataclass(frozen=True)
class Adversary:
    """A critic and its optimiser; called on codes it is T, whose gradient reaches the codes but not the critic.

    Example:
        >>> adversary = Adversary.start(CriticSettings(), latent=2, device=torch.device("cpu"))
        >>> z = torch.zeros(3, 2, requires_grad=True)
        >>> adversary(z).sum().backward()
        >>> z.grad.shape, next(adversary.critic.parameters()).grad
        (torch.Size([3, 2]), None)
    """

    critic: Critic
    optimizer: torch.optim.Optimizer

    @classmethod
    def start(cls, settings: CriticSettings, latent: int, device: torch.device) -> "Adversary":
        """Return a critic of codes of size `latent`, before its first step."""
        critic = Critic(latent, settings.hidden).to(device)
        return cls(critic, torch.optim.Adam(critic.parameters(), lr=settings.learning_rate, betas=BETAS, fused=True))

    def __call__(self, z: Tensor) -> Tensor:
        constants = {name: parameter.detach() for name, parameter in self.critic.named_parameters()}
        values: Tensor = functional_call(self.critic, constants, (z,))
        return values

    def step(self, codes: Tensor, negatives: Tensor) -> Tensor:
        """Take one step down the logistic loss E_q softplus(-T) + E_r softplus(T), and return it: log 4 for T = 0.

        Shapes: codes, negatives `(B, K)`, taken as constants.
        """
        values = self.critic(torch.cat([codes, negatives]).detach())
        T_q, T_r = values.split([len(codes), len(negatives)])
        loss = F.softplus(-T_q).mean() + F.softplus(T_r).mean()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.detach()


def permute_latents(z: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Permute each latent independently over the batch: draws of prod_k q(z_k), up to the finite size of the batch.

    Shapes: `(B, K) -> (B, K)`.
    """
    order = uniform_like(z.float(), generator).argsort(dim=0)
    return z.gather(0, order)
