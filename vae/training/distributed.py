"""One training on several processes: `torchrun --nproc-per-node 2 studies/train.py ...`.

Every process draws the same batch and the same noise, encodes and decodes its own rows, and gathers mu, logvar and
log p(x|z) of all rows. So all processes compute the same objective of the whole batch, also where it depends on the
batch (MMD, q(z), the total correlation), and all stop, save and diverge at the same step without more communication.
With R processes

    d objective / d theta = sum over r of the part through r's rows = mean over r of R times that part,

and DistributedDataParallel computes this mean while the backward pass still runs. Layers that draw from torch's own
generators, such as dropout, draw other noise than in a single process.
"""

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import Any, TypeVar, final

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from vaebench.vae.errors import InputError
from vaebench.vae.model.generative import GaussianModel, GenerativeModel
from vaebench.vae.prob.densities import Density, DiagonalGaussian

T = TypeVar("T")
Apply = Callable[[Callable[[GenerativeModel], T]], T]


@contextlib.contextmanager
def process_group() -> Iterator[None]:
    """Join the processes that `torchrun` started, if it did: gloo on CPUs, nccl on one GPU each."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        yield
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()


def world_size() -> int:
    """Return how many processes train one model."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main_process() -> bool:
    """Whether this process writes the files and prints; the others only compute."""
    return not dist.is_initialized() or dist.get_rank() == 0


def distribute(model: GenerativeModel, draws: int) -> Apply[Any]:
    """Return a function that applies any function to the model, its rows shared out over all processes.

    The gradients of the result are those of the whole batch.
    """
    if world_size() == 1:
        return lambda function: function(model)
    if not model.has_codes:
        raise InputError("several processes train a VAE; a flow as a model of its own trains on one.")
    if draws > 1:
        raise InputError(f"several processes train objectives of one draw, got {draws}; use one process.")
    module = ApplyModule(model)
    wrapped = DistributedDataParallel(module)
    return lambda function: (wrapped if torch.is_grad_enabled() else module)(function)


class ApplyModule(nn.Module):
    """A module whose forward pass applies any function to the model: DDP reduces only gradients of a forward pass.

    It shows DDP no buffers, so that each process keeps its own, as with `broadcast_buffers=False`. torch 2.13
    deprecates that setting, and its replacement still synchronises buffers at the start.
    """

    def __init__(self, model: GenerativeModel) -> None:
        super().__init__()
        self.model = ShardedModel(model)

    def forward(self, function: Callable[[GenerativeModel], T]) -> T:
        """Return the function of the sharded model."""
        return function(self.model)

    def named_buffers(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, Tensor]]:
        """Return no buffers."""
        return iter(())


@final
class ShardedModel(GaussianModel):
    """A VAE that encodes and decodes this process's rows of a batch, and returns the results of all rows."""

    def __init__(self, model: GenerativeModel) -> None:
        super().__init__()
        self.whole, self.latent, self.likelihood = model, model.latent, model.likelihood
        self.prior_flow, self.posterior_flow = model.prior_flow, model.posterior_flow

    @property
    def settings(self) -> dict[str, object]:
        return self.whole.settings

    def encode_with_context(self, x: Tensor) -> tuple[DiagonalGaussian, Tensor | None]:
        q, context = self.whole.encode_with_context(shard(x))
        gathered = None if context is None else gather(context, len(x))
        return DiagonalGaussian(gather(q.mu, len(x)), gather(q.logvar, len(x))), gathered

    def decode(self, z: Tensor) -> Density:
        rows: Tensor = Shard.apply(z)
        return ShardedDensity(self.whole.decode(rows), len(z))


@final
class ShardedDensity(Density):
    """A density whose parameters are those of this process's rows, of `total` rows on all processes."""

    def __init__(self, density: Density, total: int) -> None:
        self.density, self.total, self.event_ndim = density, total, density.event_ndim

    def log_prob_elementwise(self, x: Tensor) -> Tensor:
        return gather(self.density.log_prob_elementwise(shard(x)), self.total)

    def log_prob(self, x: Tensor) -> Tensor:
        """Return log p of all rows, `(B,)`."""
        return gather(self.density.log_prob(shard(x)), self.total)

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        return gather(self.density.sample(generator), self.total)

    @property
    def mean(self) -> Tensor:
        return gather(self.density.mean, self.total)


class Gather(torch.autograd.Function):
    """All rows, from this process's rows; backward, R times the gradient of this process's rows.

    The transpose of gathering sums the gradients of all processes. All have the same gradient of the same objective, so
    the sum is R times any of them and needs no communication.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, total: int) -> Tensor:
        """Gather the rows."""
        return all_gather(rows, total)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        """Return the gradient of this process's rows."""
        return world_size() * shard(gradient), None


class Shard(torch.autograd.Function):
    """This process's rows, from codes that all processes have; backward, the gradient of all rows, on every process.

    The gradient that arrives is R times that of this process's rows, as `Gather` returned it.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        """Select this process's rows."""
        ctx.total = len(rows)
        return shard(rows).clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        """Gather the gradients of all rows."""
        return all_gather(gradient, ctx.total) / world_size()


def gather(rows: Tensor, total: int) -> Tensor:
    """Return the rows of all processes, differentiable in this process's rows."""
    gathered: Tensor = Gather.apply(rows, total)
    return gathered


def shard(rows: Tensor) -> Tensor:
    """Return this process's rows: the batch is split into as many consecutive parts as there are processes."""
    return rows.tensor_split(world_size())[dist.get_rank()]


def all_gather(rows: Tensor, total: int) -> Tensor:
    """Return the rows of all processes, in the order of the processes, which may have different numbers of rows."""
    found = rows.new_zeros(total, *rows.shape[1:])
    shard(found).copy_(rows)
    dist.all_reduce(found)
    return found
