"""The trials that one worker trains side by side, and how many that should be."""

import statistics
from dataclasses import dataclass, field

from vaebench.studies.engine.search.samplers import draw_first_points
from vaebench.studies.engine.study.plan import AUTO, Plan
from vaebench.studies.engine.workers.trial import TrainingRequests, advance, train
from vaebench.studies.machine import TRIALS_PER_WORKER
from vaebench.vae.config.run import Run
from vaebench.vae.data import Splits, load
from vaebench.vae.ensemble.fit_many import Ensemble, can_stack, seconds_per_step
from vaebench.vae.ensemble.stack import Member
from vaebench.vae.training.setup import pick_device, resolve

LARGEST, SAMPLED = 32, 4
WORTHWHILE = 1.1


@dataclass
class StackedTrials:
    """The trials that one worker is training.

    Attributes:
        raw: the data before `data.binarise`, which each trial applies.
        size: how many may train side by side.
        stacks: the models in training, in one stack where they fit together.
        trials: the trial of each model.
    """

    raw: Splits
    size: int
    stacks: list[Ensemble] = field(default_factory=list)
    trials: dict[Member, TrainingRequests[None]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.trials)

    def add(self, trial: TrainingRequests[None]) -> None:
        """Begin a trial; where it cannot be stacked, train it to its end before returning."""
        self._advance(trial, None)

    def train_epoch(self) -> None:
        """Train all models for an epoch, and continue the trials whose training ends with it."""
        for stack in list(self.stacks):
            try:
                ended = stack.epoch()
            except Exception as error:  # no model can train on, for example for want of memory
                ended = stack.fail(error)
            for member in ended:
                stack.result(member)
                self._advance(self.trials.pop(member), member.error)
        self.stacks = [stack for stack in self.stacks if stack.members]

    def _advance(self, trial: TrainingRequests[None], error: Exception | None) -> None:
        """Continue a trial with its next training, if there is one, and find a stack for it."""
        while (request := advance(trial, error)) is not None:
            stack = self._stack_for(request.config)
            if stack is None:
                error = train(request, self.raw)
                continue
            try:
                member = stack.admit(request.config, model=request.model, report=request.report)
            except Exception as refused:
                error = refused
                continue
            self.trials[member] = trial
            return

    def _stack_for(self, config: Run) -> Ensemble | None:
        """Return the stack for a run, or None where it must train alone."""
        if self.size == 1 or can_stack([config]) is not None:
            return None
        for stack in self.stacks:
            if stack.members and can_stack([stack.members[0].config, config]) is None:
                return stack
        self.stacks.append(Ensemble(load(config.data, self.raw).to(pick_device(config.train))))
        return self.stacks[-1]


def stack_size(plan: Plan, raw: Splits) -> int:
    """Return how many trials a worker of a study trains side by side."""
    return plan.stack if plan.stack != AUTO else measure_stack_size(plan, raw)


def measure_stack_size(plan: Plan, raw: Splits) -> int:
    """Return the number of trials whose first steps are fastest side by side, 1 where stacking does not pay.

    Trials that train side by side do not learn from each other: at most a fifth of all trials do so, over all workers.
    """
    device = pick_device(plan.base.train)
    configs = [resolve(plan.config(point), device, None, raw.shape) for point in draw_first_points(plan, LARGEST)]
    alike = [config for config in configs if can_stack([configs[0], config]) is None]
    most = min(len(alike), plan.trials // (TRIALS_PER_WORKER * plan.workers))
    if most < 2:
        return 1
    splits = load(configs[0].data, raw).to(device)
    alone = statistics.fmean(seconds_per_step([config], splits) for config in alike[:SAMPLED])
    sizes = sorted({most, *(2**i for i in range(1, most.bit_length()))})
    gains = {size: size * alone / seconds_per_step(alike[:size], splits) for size in sizes}
    best = max(sizes, key=gains.__getitem__)
    return best if gains[best] >= WORTHWHILE else 1
