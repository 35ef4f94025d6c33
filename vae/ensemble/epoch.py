"""What happens in an epoch of a stack: a step for each batch of every model, and what each is told of it.

Axes: S steps, Q quantities that a step leaves, M models, B rows of a model's batch.
"""

import dataclasses
import time
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

from vaebench.vae.config.run import Run
from vaebench.vae.data import Split, Splits
from vaebench.vae.ensemble.stack import STEP, Stack
from vaebench.vae.errors import DivergedError
from vaebench.vae.training.epoch import (
    VALIDATION_ROWS,
    VALIDATION_SEED,
    Metrics,
    autocast,
    batch_indices,
    conclude,
    risen,
    summed_up,
    validated,
)
from vaebench.vae.training.state import learning_rate


def epoch(stack: Stack, splits: Splits) -> None:
    """Train all members for one epoch, validate, and let each remember."""
    for member in stack.members:
        member.state.epoch += 1
    started = time.perf_counter()
    steps_SQM, sizes_S = _train_epoch(stack, splits.train)
    speed = len(splits.train) / (time.perf_counter() - started)
    means_QM = torch.einsum("sqm,s->qm", steps_SQM, sizes_S / sizes_S.sum())
    validations = _validate(stack, splits.valid)
    stack.write_weights()
    for m, (member, validation) in enumerate(zip(stack.members, validations, strict=True)):
        means = dict(zip(STEP, means_QM[:, m].tolist(), strict=True))
        trained = summed_up(means.__getitem__, member.config, member.state.epoch)
        try:
            _refuse_non_finite(steps_SQM[:, :, m], member.state.epoch)
            conclude(member.state, member.config, trained | {"perf/images_per_s": speed}, validation)
        except DivergedError as error:
            member.error = error


def _train_epoch(stack: Stack, split: Split) -> tuple[Tensor, Tensor]:
    """Take one step for each batch of permutations of each member's own.

    Returns what the steps left, by step, quantity and model, and the rows of each step's batches.
    """
    stack.model.train()
    members = stack.members
    orders = [batch_indices(split, stack.train.batch_size, member.state.order) for member in members]
    S = len(orders[0])
    done = [[member.state.epoch - 1 + i / S for member in members] for i in range(S)]
    configs = [member.config for member in members]
    laws_SM = (
        torch.tensor([[law(*pair) for pair in zip(configs, row, strict=True)] for row in done], device=split.device)
        for law in (_warmth, _reach, _rate)
    )
    steps_SQM = torch.empty(S, len(STEP), len(members), device=split.device)
    rows = batches(split, zip(*orders, strict=True), stack.noise)
    for x, left, *at_step in zip(rows, steps_SQM, *laws_SM, strict=True):
        left.copy_(stack.step(x, *at_step))
    return steps_SQM.cpu(), torch.tensor([float(len(index)) for index in orders[0]])


def batches(split: Split, indices: Iterable[Sequence[Tensor]], noise: Sequence[torch.Generator]) -> Iterator[Tensor]:
    """Yield the members' batches of a step one after another, `(M * B, *shape)`, each step's in one index select."""
    for x in dataclasses.replace(split, dynamic=False).batches(torch.cat(list(each)) for each in indices):
        if not split.dynamic:
            yield x
            continue
        parts = zip(x.chunk(len(noise)), noise, strict=True)
        yield torch.cat([torch.bernoulli(part, generator=generator) for part, generator in parts])


@torch.no_grad()
def _validate(stack: Stack, split: Split) -> list[Metrics]:
    """Return what `vae.training.epoch.validate` does for each member, from the noise that it gives to each."""
    stack.model.eval()
    M = len(stack.members)
    sums = torch.zeros(2, M, dtype=torch.float64)
    noise = [torch.Generator(split.device).manual_seed(VALIDATION_SEED) for _ in range(M)]
    rows = torch.arange(len(split), device=split.stored.device).split(VALIDATION_ROWS)
    for x in batches(split, ([index] * M for index in rows), noise):
        with autocast(stack.train, split.device):
            terms = stack.terms(x, noise)
        sums += torch.stack([x.view(M, -1).double().sum(1) for x in (terms.log_px, terms.kl)]).cpu()
    return [validated(log_px, rate) for log_px, rate in (sums / len(split)).T.tolist()]


def _refuse_non_finite(steps: Tensor, epoch: int) -> None:
    """Raise at a model's first step whose objective or gradient norm is not finite, from `(S, 5)`."""
    bad = (~(steps[:, 0] + steps[:, 3]).isfinite()).nonzero()
    if len(bad):
        i = int(bad[0])
        raise DivergedError.at_step(epoch, i + 1, *steps[i, :4].tolist())


def _warmth(config: Run, epochs_done: float) -> float:
    return risen(epochs_done, config.train.warmup_epochs)


def _reach(config: Run, epochs_done: float) -> float:
    return risen(epochs_done, config.objective.capacity_epochs)


def _rate(config: Run, epochs_done: float) -> float:
    return learning_rate(config.train, epochs_done)
