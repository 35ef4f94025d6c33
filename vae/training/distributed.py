"""One training on several processes: `torchrun --nproc-per-node 2 studies/train.py ...`.

Every process draws the same batch and the same noise, encodes and decodes its own rows of it, and is given everybody's
mu, logvar and log p(x|z). So all compute one objective, that of the whole batch, whatever it takes over the batch (MMD,
q(z), the total correlation), and stop, save and diverge at the same step without another word. With R processes

    d objective / d theta = sum over r of the part through r's rows = mean over r of R times that part,

and the mean is what DistributedDataParallel takes: its overlap of communication with the backward pass is kept. Layers
that draw from torch's own generators, such as dropout, draw other noise than a single process would.
"""

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from vaebench.vae.errors import InputError
from vaebench.vae.model import VAE
from vaebench.vae.model.flow import FlowModel
from vaebench.vae.prob.densities import Density, DiagonalGaussian

T = TypeVar("T")
Through = Callable[[Callable[[VAE], T]], T]


@contextlib.contextmanager
def joined() -> Iterator[None]:
    """Join the processes that `torchrun` started, where it did; gloo on CPUs, nccl on one GPU each."""
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


def processes() -> int:
    """Return how many processes train one model."""
    return dist.get_world_size() if dist.is_initialized() else 1


def leads() -> bool:
    """Whether this process is the one that writes files and speaks."""
    return not dist.is_initialized() or dist.get_rank() == 0


def through(model: VAE) -> Through[Any]:
    """Return what runs a function of a model on all processes, so that the gradients of its result are the batch's."""
    if processes() == 1:
        return lambda function: function(model)
    if isinstance(model, FlowModel):
        raise InputError("several processes train a VAE; a flow as a model of its own trains on one.")
    wrapped = DistributedDataParallel(Call(model), broadcast_buffers=False)
    return lambda function: wrapped(function) if torch.is_grad_enabled() else function(cast(VAE, Shared(model)))


class Call(nn.Module):
    """A model as a module whose forward pass is any function of it."""

    def __init__(self, model: VAE) -> None:
        super().__init__()
        self.model = model

    def forward(self, function: Callable[[VAE], T]) -> T:
        """Return what the function makes of the model."""
        return function(cast(VAE, Shared(self.model)))


class Shared:
    """A VAE that works on this process's rows of a batch and returns what all processes found for theirs."""

    def __init__(self, model: VAE) -> None:
        self.model = model

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def encode_with_context(self, x: Tensor) -> tuple[DiagonalGaussian, Tensor | None]:
        """Return q(z|x) of all rows, and what the posterior's flow sees of them."""
        q, context = self.model.encode_with_context(own(x))
        gathered = None if context is None else gather(context, len(x))
        return DiagonalGaussian(gather(q.mu, len(x)), gather(q.logvar, len(x))), gathered

    def decode(self, z: Tensor) -> "SharedDensity":
        """Return p(x|z), which knows this process's rows."""
        return SharedDensity(self.model.decode(cast(Tensor, Own.apply(z))))


class SharedDensity:
    """A density of this process's rows."""

    def __init__(self, density: Density) -> None:
        self.density = density

    def log_prob(self, x: Tensor) -> Tensor:
        """Return log p of all rows, `(B,)`."""
        return gather(self.density.log_prob(own(x)), len(x))


def own(rows: Tensor) -> Tensor:
    """Return this process's rows: the batch in as many consecutive parts as there are processes."""
    return rows.tensor_split(processes())[dist.get_rank()]


def gather(rows: Tensor, total: int) -> Tensor:
    """Return the rows of all processes, differentiable in one's own."""
    return cast(Tensor, Gather.apply(rows, total))


class Gather(torch.autograd.Function):
    """All rows from one's own; backward, R times the gradient of one's own rows.

    Every process has the same gradient of the same objective, so that their sum, which the transpose of gathering
    asks for, is R times any of them, and needs no word between them.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, total: int) -> Tensor:
        """Gather the rows."""
        return whole(rows, total)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        """Return the gradient of one's own rows."""
        return processes() * own(gradient), None


class Own(torch.autograd.Function):
    """One's own rows of codes that all processes have; backward, the gradient of all rows, everywhere.

    What comes back is R times the gradient of one's own rows, as `Gather` made it.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        """Take one's own rows."""
        ctx.total = len(rows)
        return own(rows).clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        """Gather the gradients of all rows."""
        return whole(gradient, ctx.total) / processes()


def whole(rows: Tensor, total: int) -> Tensor:
    """Return the rows of all processes, in the order of the processes, however many each has."""
    found = rows.new_zeros(total, *rows.shape[1:])
    own(found).copy_(rows)
    dist.all_reduce(found)
    return found
