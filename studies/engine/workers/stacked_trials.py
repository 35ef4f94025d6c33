"""The trials that one worker trains side by side, and how many that are."""

import statistics
from dataclasses import dataclass, field

from vaebench.studies.engine.search.samplers import first_points
from vaebench.studies.engine.study.plan import AUTO, Plan
from vaebench.studies.engine.workers.trial import Steps, advance, train
from vaebench.studies.machine import TRIALS_PER_WORKER
from vaebench.vae.config.run import Run
from vaebench.vae.data import Splits, load
from vaebench.vae.ensemble.fit_many import Ensemble, can_stack, seconds_a_step
from vaebench.vae.ensemble.stack import Member
from vaebench.vae.training.setup import pick_device, resolve

LARGEST, SAMPLED = 32, 4
WORTHWHILE = 1.1


@dataclass
class Company:
    """The trials of one worker that are under way.

    Attributes:
        raw: the data as they are before `data.binarise` of a trial.
        room: how many may train side by side.
        stacks: those who train, in one stack where they can be.
        under_way: the trial that each of them belongs to.
    """

    raw: Splits
    room: int
    stacks: list[Ensemble] = field(default_factory=list)
    under_way: dict[Member, Steps[None]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.under_way)

    def take(self, steps: Steps[None]) -> None:
        """Begin a trial; one that cannot be stacked, or has no room for company, is trained to its end here and now."""
        self._go_on(steps, None)

    def epoch(self) -> None:
        """Train all of them for an epoch, and let those whose training ends with it go on."""
        for stack in list(self.stacks):
            try:
                ended = stack.epoch()
            except Exception as error:  # none of them can train on, as where memory is too small for all
                ended = stack.dismiss(error)
            for member in ended:
                stack.result(member)
                self._go_on(self.under_way.pop(member), member.error)
        self.stacks = [stack for stack in self.stacks if stack.members]

    def _go_on(self, steps: Steps[None], error: Exception | None) -> None:
        """Let a trial go on to its next training, if there is one, and find company for that."""
        while (demand := advance(steps, error)) is not None:
            stack = self._stack_for(demand.config)
            if stack is None:
                error = train(demand, self.raw)
                continue
            try:
                member = stack.admit(demand.config, model=demand.model, report=demand.report)
            except Exception as refused:
                error = refused
                continue
            self.under_way[member] = steps
            return

    def _stack_for(self, config: Run) -> Ensemble | None:
        """Return where a run can be trained with others, or None where it is to be trained alone."""
        if self.room == 1 or can_stack([config]) is not None:
            return None
        for stack in self.stacks:
            if stack.members and can_stack([stack.members[0].config, config]) is None:
                return stack
        self.stacks.append(Ensemble(load(config.data, self.raw).to(pick_device(config.train))))
        return self.stacks[-1]


def room(plan: Plan, raw: Splits) -> int:
    """Return how many trials a worker of a study trains side by side."""
    return plan.stack if plan.stack != AUTO else measured(plan, raw)


def measured(plan: Plan, raw: Splits) -> int:
    """Return the number at which first steps say that a study's first settings train fastest, 1 where none pays.

    Trials that train side by side do not learn from each other: there are at most a fifth of all, whoever trains them.
    """
    device = pick_device(plan.base.train)
    configs = [resolve(plan.config(point), device, None, raw.shape) for point in first_points(plan, LARGEST)]
    alike = [config for config in configs if can_stack([configs[0], config]) is None]
    most = min(len(alike), plan.trials // (TRIALS_PER_WORKER * plan.workers))
    if most < 2:
        return 1
    splits = load(configs[0].data, raw).to(device)
    alone = statistics.fmean(seconds_a_step([config], splits) for config in alike[:SAMPLED])
    sizes = sorted({most, *(2**i for i in range(1, most.bit_length()))})
    gains = {size: size * alone / seconds_a_step(alike[:size], splits) for size in sizes}
    best = max(sizes, key=gains.__getitem__)
    return best if gains[best] >= WORTHWHILE else 1
