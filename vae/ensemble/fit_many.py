"""`fit_many(configs, ...) -> list[Result]`: train models of one architecture together, a step for all of them at once.

Small models leave a machine idle between their many small operations. Side by side, each has its own weights of the
objective, rates, decay, warm-up, seed, order of the data and noise, and becomes what `fit` would have made of it, to
the rounding of sums. A model that ends leaves, and the others go on.
"""

import math
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from tqdm import tqdm

from vaebench.vae.config.run import Run
from vaebench.vae.data import Splits
from vaebench.vae.data import load as load_data
from vaebench.vae.ensemble.compatible import can_stack as can_stack
from vaebench.vae.ensemble.epoch import batches, epoch
from vaebench.vae.ensemble.stack import Member, Stack
from vaebench.vae.errors import InputError
from vaebench.vae.model import VAE
from vaebench.vae.model.build import place
from vaebench.vae.training import distributed
from vaebench.vae.training.epoch import SEED_OF_LAYERS, Metrics, take_step
from vaebench.vae.training.fit import Report, Result, finish
from vaebench.vae.training.setup import (
    initial_model,
    open_folder,
    own_random_state,
    pick_device,
    require_match,
    resolve,
)
from vaebench.vae.training.state import State

ReportMany = Callable[[int, int, Metrics], None]


def fit_many(
    configs: Sequence[Run],
    *,
    data: Splits | None = None,
    models: Sequence[VAE] | None = None,
    report: ReportMany | None = None,
    folders: Sequence[Path] | None = None,
    progress: bool = False,
) -> list[Result]:
    """Train a model for each configuration, all of them together, and return their results in that order.

    Each result is that of `fit` with the same configuration, to the rounding of sums. What ends one run before its
    time, a `DivergedError` or what `report` raises, is its result's `error`, and the others do not notice.

    Args:
        configs: runs for which `can_stack` knows no reason against it.
        data: your own splits, see `vae.data.from_tensors`; the `data` section names them otherwise.
        models: one for each run, of `vae.model.build`, where a report is to look at them while they train.
        report: called after each epoch of each run with the run's number, from 0, and what `fit` reports.
        folders: one for each run, which keeps its checkpoints; runs found there go on, here or with `fit`.
        progress: show a bar with the models that have ended.

    Example:
        >>> small = Run().replace({"model.hidden": 16, "train.epochs": 1, "train.device": "cpu"})
        >>> results = fit_many([small.replace({"objective.beta": beta}) for beta in (0.5, 1, 2)])
        >>> [len(result.history) for result in results]
        [1, 1, 1]
    """
    reason = can_stack(configs) if distributed.processes() == 1 else "several processes train one model, with fit."
    if reason is not None:
        raise InputError(f"these runs cannot be trained together: {reason}")
    places = None if folders is None else [open_folder(folder).resolve() for folder in folders]
    _require_one_each("folder", places, len(configs))
    _require_one_each("model", models, len(configs))
    together = Ensemble(load_data(configs[0].data, data).to(pick_device(configs[0].train)))
    members = [
        together.admit(
            config,
            model=models[i] if models else None,
            report=partial(report, i) if report else None,
            folder=places[i] if places else None,
        )
        for i, config in enumerate(configs)
    ]
    with tqdm(total=len(members), unit="model", disable=not progress) as bar:
        while together.members:
            together.epoch()
            bar.set_postfix_str(_postfix(together.members), refresh=False)
            bar.update(len(members) - len(together.members) - bar.n)
    return [together.result(member) for member in members]


class Ensemble:
    """Models that train together, an epoch at a time, and may come and go in between.

    Attributes:
        splits: what all of them train on.
        members: those that still train.
    """

    def __init__(self, splits: Splits) -> None:
        self.splits, self.members = splits, list[Member]()
        self._stack: Stack | None = None

    def admit(
        self,
        config: Run,
        *,
        model: VAE | None = None,
        report: Report | None = None,
        folder: Path | None = None,
    ) -> Member:
        """Let a model train with the others from the next epoch on, its first one or where its checkpoint left it."""
        config = resolve(config, self.splits.train.device, None, self.splits.shape)
        reason = can_stack([*(member.config for member in self.members[:1]), config])
        if reason is not None:
            raise InputError(f"this run cannot be trained with the others: {reason}")
        member = _start(config, self.splits, model, folder)
        member.report = report
        if not member.ended:
            self._dissolve()
            self.members.append(member)
        return member

    def epoch(self) -> list[Member]:
        """Train all members for one epoch, and return those that end with it, by themselves or by an error."""
        if not self.members:
            return []
        self._stack = self._stack or Stack(self.members, self.splits.train.device, len(self.splits.train))
        epoch(self._stack, self.splits)
        for member in self.members:
            _after_epoch(self._stack, member, self.splits)
        ended = [member for member in self.members if member.ended]
        if ended:
            self._dissolve()
            self.members = [member for member in self.members if not member.ended]
        return ended

    def dismiss(self, error: Exception) -> list[Member]:
        """Let an error end all members, and return them."""
        dismissed, self.members, self._stack = self.members, [], None
        for member in dismissed:
            member.error = error
        return dismissed

    def result(self, member: Member) -> Result:
        """Return what has become of a member that has ended."""
        return finish(member.state, member.config, self.splits, member.error)

    def _dissolve(self) -> None:
        """Give each member its own moments back; its weights it has since the last epoch."""
        if self._stack is not None:
            for member in self._stack.members:
                self._stack.write_moments(member)
        self._stack = None


def seconds_a_step(configs: Sequence[Run], splits: Splits, *, steps: int = 3) -> float:
    """Return the seconds of a step of models together, or of a single one as `fit` takes it, the fastest of a few.

    On a CPU they are the process's own: where others compute too, a long step is interrupted and a short one is not.
    The configurations are settled, see `vae.training.fit.resolve`, and the splits on the device that they name.
    """
    device, size = splits.train.device, len(splits.train)
    members = [_start(config, splits, None, None) for config in configs]
    rows = torch.arange(min(size, configs[0].train.batch_size), device=splits.train.stored.device)
    (x,) = batches(splits.train, [[rows] * len(members)], [member.state.noise for member in members])
    work: Callable[[], object]
    if len(members) == 1:
        members[0].state.model.train()
        work = partial(take_step, members[0].state, configs[0], x, 0.0, size)
    else:
        ones = torch.ones(len(members), device=device)
        work = partial(Stack(members, device, size).step, x, ones, ones, 1e-3 * ones)
    clock, seconds = time.process_time if device.type == "cpu" else time.perf_counter, []
    for _ in range(1 + steps):
        started = clock()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(clock() - started)
    return min(seconds[1:])


def _require_one_each(name: str, things: Sequence[object] | None, count: int) -> None:
    """Raise unless there are none at all, or as many different ones as runs."""
    if things is not None and not len(things) == len(set(things)) == count:
        raise InputError(f"there must be a {name} of its own for each of {count} runs, got {len(things)}.")


def _start(config: Run, splits: Splits, model: VAE | None, folder: Path | None) -> Member:
    """Return a model as it is before its first step alone, or where its folder's checkpoint left it."""
    device = splits.train.device
    with own_random_state(config.train.seed, device):
        built = initial_model(config, splits, device)
        require_match(built, splits)
        if model is not None:
            if str(model) != str(built) or model.facts != built.facts:
                raise InputError(
                    f"a model of a stack must be what vae.model.build makes of its run, got {model}."
                )
            built = place(model, device)
        torch.manual_seed(config.train.seed + SEED_OF_LAYERS)
        state = State.start(built, config, device)
        if folder is not None:
            state.resume(config, splits, folder)
        host, layers = torch.get_rng_state(), torch.Generator(device)
        layers.set_state(torch.cuda.get_rng_state() if device.type == "cuda" else host)
    return Member(config, state, layers, host, folder=folder)


def _after_epoch(stack: Stack, member: Member, splits: Splits) -> None:
    """Save and report an epoch of a member that has not diverged."""
    if member.error is not None:
        return
    if member.folder is not None and member.state.due(member.config):
        stack.write_moments(member)
        with own_random_state(member.config.train.seed, splits.train.device):
            member.restore_random_state()
            member.state.save(member.config, splits, member.folder)
    if member.report is not None:
        try:
            member.report(member.state.epoch, dict(member.state.history[-1]))
        except Exception as error:
            member.error = error


def _postfix(training: Sequence[Member]) -> str:
    best = max((member.state.best_elbo for member in training), default=-math.inf)
    return f"{len(training)} together, best elbo {best:.2f}"
