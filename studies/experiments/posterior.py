"""Ways to a posterior against the exact one, error against time: `python studies/experiments/posterior.py`.

Metropolis-Hastings, Gibbs, Hamiltonian Monte Carlo, mean-field and amortised variational inference on probabilistic PCA
with a correlated posterior. The error of all is KL(N(their mean, their covariance) || p(z|x)), averaged over the data:
samplers go on improving with time, variational inference stops at what its family can say.
"""

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from vaebench.studies.experiments.output import Row, at_least, leave, render
from vaebench.studies.experiments.output import parser as command_line
from vaebench.vae.estimators import mcmc
from vaebench.vae.estimators.elbo_gradients import pathwise
from vaebench.vae.estimators.exact import FullGaussian, ProbabilisticPCA
from vaebench.vae.estimators.posterior_fit import fit_posterior
from vaebench.vae.prob.proposals import GaussianProposal

CHAINS = 8
WARMUP_SHARE = 4
TUNING = 100
WALK_STEP = 0.35
TRAINING_DATA = 2000
BATCH = 100
LEARNING_RATE = 0.02


@dataclass(frozen=True)
class World:
    """A model, data `(B, D)`, and the exact posteriors of these."""

    model: ProbabilisticPCA
    x: Tensor
    posterior: FullGaussian

    def log_joint(self, z: Tensor) -> Tensor:
        """Return log p(x, z), `(..., B, K) -> (..., B)`."""
        return self.model.log_joint(self.x, z)

    def start(self, generator: torch.Generator) -> Tensor:
        """Return starting points of the chains, drawn from the prior, `(C, B, K)`."""
        shape = (CHAINS, *self.posterior.mean.shape)
        return torch.randn(shape, generator=generator, dtype=torch.float64)


Method = Callable[[World, int, torch.Generator], Tensor | FullGaussian]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the study and return its exit code."""
    parser = command_line("posterior", __doc__)
    parser.add_argument("--latent", type=at_least(1), default=8, help="latent size K (default: 8)")
    options = parser.parse_args(arguments)
    rows = list(measure(build(options.latent)))
    print(render(rows))
    leave(rows, draw(rows), options)
    return 0


def build(K: int, data: int = 10) -> World:
    """Return a model whose posterior's correlations cost the diagonal family a few tenths of a nat."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(2 * K, K, generator=generator, dtype=torch.float64) / K**0.5
    model = ProbabilisticPCA(weight, torch.zeros(2 * K, dtype=torch.float64), 0.5)
    x, _ = model.sample(data, generator)
    return World(model, x, model.posterior(x))


def measure(world: World) -> Iterator[Row]:
    """Yield one row for each method and effort: draws of each chain, or steps of the optimiser.

    The first call of a method is not timed: it pays for imports.
    """
    for name, (method, efforts) in METHODS.items():
        method(world, efforts[0], torch.Generator().manual_seed(0))
        for effort in efforts:
            generator = torch.Generator().manual_seed(0)
            started = time.perf_counter()
            found = method(world, effort, generator)
            seconds = time.perf_counter() - started
            gaussian = found if isinstance(found, FullGaussian) else _moments(found)
            yield {
                "method": name,
                "effort": effort,
                "seconds": seconds,
                "kl to the posterior": gaussian.kl(world.posterior).mean().item(),
                "r_hat": mcmc.r_hat(found).max().item() if isinstance(found, Tensor) else float("nan"),
                "ess": mcmc.effective_sample_size(found).min().item() if isinstance(found, Tensor) else float("nan"),
            }


def metropolis_hastings(world: World, draws: int, generator: torch.Generator) -> Tensor:
    """Return draws of a random walk, `(T, C, B, K)`."""
    return mcmc.metropolis_hastings(
        world.log_joint,
        world.start(generator),
        mcmc.random_walk(WALK_STEP),
        samples=draws,
        warmup=draws // WARMUP_SHARE,
        generator=generator,
    ).samples


def gibbs(world: World, draws: int, generator: torch.Generator) -> Tensor:
    """Return sweeps of the exact conditionals, `(T, C, B, K)`."""
    updates = world.model.gibbs_updates(world.x)
    warmup = draws // WARMUP_SHARE
    return torch.stack(mcmc.gibbs(updates, world.start(generator), samples=draws, warmup=warmup, generator=generator))


def hmc(world: World, draws: int, generator: torch.Generator) -> Tensor:
    """Return draws of Hamiltonian Monte Carlo after tuning its step, `(T, C, B, K)`."""
    step, warm = mcmc.tune_step(world.log_joint, world.start(generator), warmup=TUNING, generator=generator)
    return mcmc.hmc(world.log_joint, warm, step, samples=draws, generator=generator).samples


def mean_field(world: World, steps: int, generator: torch.Generator) -> FullGaussian:
    """Return the diagonal Gaussian fitted to each datum by itself."""
    start = GaussianProposal.prior(world.posterior.mean)
    q = fit_posterior(world.log_joint, start, steps=steps, generator=generator)
    return FullGaussian(q.mu, torch.diag_embed(q.logvar.exp()))


def amortised(world: World, steps: int, generator: torch.Generator) -> FullGaussian:
    """Return what a linear encoder, trained on other data of the model, says of these."""
    D, K = world.model.weight.shape
    train, _ = world.model.sample(TRAINING_DATA, generator)
    mu, logvar = nn.Linear(D, K, dtype=torch.float64), nn.Parameter(torch.zeros(K, dtype=torch.float64))
    nn.init.zeros_(mu.weight)
    nn.init.zeros_(mu.bias)
    optimizer = torch.optim.Adam([*mu.parameters(), logvar], lr=LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps)
    for _ in range(steps):
        x = train[torch.randint(TRAINING_DATA, (BATCH,), generator=generator)]
        codes = mu(x), logvar.expand(BATCH, K)
        gradient = pathwise(partial(world.model.log_joint, x), *codes, samples=1, generator=generator)
        optimizer.zero_grad()
        torch.autograd.backward(codes, [-gradient.mu.mean(0) / BATCH, -gradient.logvar.mean(0) / BATCH])
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        return FullGaussian(mu(world.x), torch.diag(logvar.exp()))


METHODS: dict[str, tuple[Method, Sequence[int]]] = {
    "Metropolis-Hastings": (metropolis_hastings, (100, 400, 1600, 6400)),
    "Gibbs": (gibbs, (100, 400, 1600)),
    "HMC": (hmc, (25, 100, 400, 1600)),
    "mean-field VI": (mean_field, (25, 100, 400, 1600)),
    "amortised VI": (amortised, (25, 100, 400, 1600)),
}


def draw(rows: Sequence[Row]) -> Figure:
    """Return error against time, one line for each method."""
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    for name in METHODS:
        line = [row for row in rows if row["method"] == name]
        axes.loglog(
            [row["seconds"] for row in line], [row["kl to the posterior"] for row in line], marker="o", label=name
        )
    axes.set(xlabel="seconds", ylabel="KL to the exact posterior, nats")
    axes.legend()
    return figure


def _moments(samples: Tensor) -> FullGaussian:
    """Return the Gaussians with the mean and covariance of draws `(T, C, B, K)`, for each of B data."""
    flat = samples.flatten(0, 1)
    centred = flat - flat.mean(0)
    return FullGaussian(flat.mean(0), torch.einsum("sbi,sbj->bij", centred, centred) / (len(flat) - 1))


if __name__ == "__main__":
    sys.exit(main())
