"""`fit_many(configs, ...) -> list[Result]`: train models of one architecture together, a step for all of them at once.

Small models leave a machine idle between their many small operations. Here each model has its own weights of the
objective, learning rate, weight decay, warm-up, seed, order of the data and noise, and ends as `fit` would have trained
it, to the rounding of sums. A model that ends leaves the stack, and the others continue.
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
from vaebench.vae.ensemble.epoch import RATE, run_epoch, schedule_of, stack_batches
from vaebench.vae.ensemble.stack import Member, Stack
from vaebench.vae.errors import InputError
from vaebench.vae.model import VAE, GenerativeModel
from vaebench.vae.training import distributed
from vaebench.vae.training.epoch import Metrics, take_step
from vaebench.vae.training.fit import Report, Result, finish
from vaebench.vae.training.setup import initial_model, open_folder, own_random_state, pick_device, resolve, start

ReportMany = Callable[[int, int, Metrics], None]


def fit_many(
    configs: Sequence[Run],
    *,
    data: Splits | None = None,
    models: Sequence[GenerativeModel] | None = None,
    report: ReportMany | None = None,
    folders: Sequence[Path] | None = None,
    progress: bool = False,
) -> list[Result]:
    """Train a model for each configuration, all of them together, and return their results in that order.

    Each result is that of `fit` with the same configuration, to the rounding of sums. A `DivergedError` or an exception
    of `report` ends one run early, is stored as its result's `error`, and does not affect the others.

    Args:
        configs: runs that can be trained together: `can_stack(configs)` returns None.
        data: your own splits, see `vae.data.from_tensors`; the `data` section names them otherwise.
        models: one for each run, from `vae.model.build`, if the report looks at them while they train.
        report: called after each epoch of each run with the run's number, from 0, and the arguments of `fit`'s report.
        folders: one for each run, which holds its checkpoints; runs found there resume, here or with `fit`.
        progress: show a bar with the number of models that have ended.

    Example:
        >>> small = Run().replace({"model.hidden": 16, "train.epochs": 1, "train.device": "cpu"})
        >>> results = fit_many([small.replace({"objective.beta": beta}) for beta in (0.5, 1, 2)])
        >>> [len(result.history) for result in results]
        [1, 1, 1]
    """
    reason = can_stack(configs) if distributed.world_size() == 1 else "several processes train one model, with fit."
    if reason is not None:
        raise InputError(f"these runs cannot be trained together: {reason}")
    places = None if folders is None else [open_folder(folder).resolve() for folder in folders]
    for name, given in (("folder", places), ("model", models)):
        if given is not None and not len(given) == len(set(given)) == len(configs):
            raise InputError(f"there must be a {name} of its own for each of {len(configs)} runs, got {len(given)}.")
    ensemble = Ensemble(load_data(configs[0].data, data).to(pick_device(configs[0].train)))
    members = [
        ensemble.admit(
            config,
            model=models[i] if models else None,
            report=partial(report, i) if report else None,
            folder=places[i] if places else None,
        )
        for i, config in enumerate(configs)
    ]
    with tqdm(total=len(members), unit="model", disable=not progress) as bar:
        while ensemble.members:
            ensemble.epoch()
            best = max((member.state.best_elbo for member in ensemble.members), default=-math.inf)
            bar.set_postfix_str(f"{len(ensemble.members)} together, best elbo {best:.2f}", refresh=False)
            bar.update(len(members) - len(ensemble.members) - bar.n)
    return [ensemble.result(member) for member in members]


class Ensemble:
    """Models that train together, an epoch at a time; models can join and leave between epochs.

    Attributes:
        splits: the data of all models.
        members: the models that still train.
    """

    def __init__(self, splits: Splits) -> None:
        self.splits, self.members = splits, list[Member]()
        self._stack: Stack | None = None

    def admit(
        self,
        config: Run,
        *,
        model: GenerativeModel | None = None,
        report: Report | None = None,
        folder: Path | None = None,
    ) -> Member:
        """Let a model join for the next epoch, its first one or the one after its checkpoint."""
        config = resolve(config, self.splits.train.device, None, self.splits.shape)
        reason = can_stack([*(member.config for member in self.members[:1]), config])
        if reason is not None:
            raise InputError(f"this run cannot be trained with the others: {reason}")
        member = _start(config, self.splits, model, report, folder)
        if not member.has_ended:
            self._unstack()
            self.members.append(member)
        return member

    def epoch(self) -> list[Member]:
        """Train all members for one epoch, and return the members that end with it, regularly or by an error."""
        if not self.members:
            return []
        self._stack = self._stack or Stack(self.members, self.splits.train.device, len(self.splits.train))
        run_epoch(self._stack, self.splits)
        for member in self.members:
            _after_epoch(self._stack, member, self.splits)
        ended = [member for member in self.members if member.has_ended]
        if ended:
            self._unstack()
            self.members = [member for member in self.members if not member.has_ended]
        return ended

    def fail(self, error: Exception) -> list[Member]:
        """End all members with an error, and return them."""
        failed, self.members, self._stack = self.members, [], None
        for member in failed:
            member.error = error
        return failed

    def result(self, member: Member) -> Result:
        """Return the result of a member that has ended."""
        return finish(member.state, member.config, self.splits, member.error)

    def _unstack(self) -> None:
        """Copy the moments back to all members, which have had their weights since the last epoch."""
        if self._stack is not None:
            for member in self._stack.members:
                self._stack.write_moments(member)
        self._stack = None


def seconds_per_step(configs: Sequence[Run], splits: Splits, *, steps: int = 3) -> float:
    """Return the seconds of a step of several models together, or of one model as `fit` takes it: the fastest of a few.

    On a CPU this is the process time: if other processes compute too, they interrupt long steps more than short ones.
    The configurations are resolved, see `vae.training.setup.resolve`, and the splits are on the device that they name.
    """
    device, size = splits.train.device, len(splits.train)
    members = [_start(config, splits) for config in configs]
    rows = torch.arange(min(size, configs[0].train.batch_size), device=splits.train.stored.device)
    (x,) = stack_batches(splits.train, [[rows] * len(members)], [member.state.noise for member in members])
    step: Callable[[], object]
    if len(members) == 1:
        members[0].state.model.train()
        step = partial(take_step, members[0].state, configs[0], x, 0.0, size)
    else:
        names = {name for config in configs for name in schedule_of(config, 0.0)} - {RATE}
        ones = torch.ones(len(members), device=device)
        step = partial(Stack(members, device, size).step, x, 1e-3 * ones, dict.fromkeys(names, ones))
    clock, seconds = time.process_time if device.type == "cpu" else time.perf_counter, []
    for _ in range(1 + steps):
        started = clock()
        step()
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(clock() - started)
    return min(seconds[1:])


def _start(
    config: Run,
    splits: Splits,
    model: GenerativeModel | None = None,
    report: Report | None = None,
    folder: Path | None = None,
) -> Member:
    """Return a model before its first step, or as its folder's checkpoint holds it."""
    device = splits.train.device
    with own_random_state(config.train.seed, device):
        required = initial_model(config, splits, device)
        model = required if model is None else model
        alike = str(model) == str(required) and model.settings == required.settings
        if not isinstance(model, VAE) or not alike:
            raise InputError(f"a model of a stack must be what vae.model.build makes of its run, got {model}.")
        state = start(config, splits, model, folder)
        host, layers = torch.get_rng_state(), torch.Generator(device)
        layers.set_state(torch.cuda.get_rng_state() if device.type == "cuda" else host)
    return Member(config, state, model, layers, host, report, folder)


def _after_epoch(stack: Stack, member: Member, splits: Splits) -> None:
    """Save and report an epoch of a member that has not diverged."""
    if member.error is not None:
        return
    if member.folder is not None and member.state.is_checkpoint_due(member.config):
        stack.write_moments(member)
        with own_random_state(member.config.train.seed, splits.train.device):
            member.restore_random_state()
            member.state.save(member.config, splits, member.folder)
    if member.report is not None:
        try:
            member.report(member.state.epoch, dict(member.state.history[-1]))
        except Exception as error:
            member.error = error
