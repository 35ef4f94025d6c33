"""What became of a trial, in words, and how many trials there are of each.

Optuna knows five states. A trial that FAILed is a failure only where its training raised an error: it may also have
lost its worker, or have been interrupted, and is then run again; or it may have drawn a setting that another trial has.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from optuna.trial import FrozenTrial, TrialState

OWNER, RAISED, REASON, REPEATS, BEST_SEED = "owner", "raised", "reason", "repeats", "best_seed"
OF_THE_END = {RAISED, REASON, REPEATS, BEST_SEED}
INTERRUPTED = "interrupted"
DONE = ("finished", "pruned", "failed")  # will not be run again

Word = Literal["waiting", "running", "finished", "pruned", "failed", "lost", "interrupted", "repeated"]

WORDS: dict[TrialState, Word] = {
    TrialState.WAITING: "waiting",
    TrialState.RUNNING: "running",
    TrialState.COMPLETE: "finished",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "lost",
}


def state_of(trial: FrozenTrial) -> Word:
    """Return what became of a trial."""
    known = trial.user_attrs
    if REPEATS in known and trial.state.is_finished():
        return "repeated"
    if trial.state != TrialState.FAIL:
        return WORDS[trial.state]
    return "failed" if RAISED in known else "interrupted" if known.get(REASON) == INTERRUPTED else "lost"


@dataclass(frozen=True)
class Counts:
    """How many trials are in which state."""

    waiting: int = 0
    running: int = 0
    finished: int = 0
    pruned: int = 0
    failed: int = 0
    lost: int = 0
    interrupted: int = 0
    repeated: int = 0

    @classmethod
    def of(cls, trials: Iterable[FrozenTrial], asked: int) -> "Counts":
        """Count trials; of those that wait, only as many as a study of `asked` trials still takes."""
        found: Counter[str] = Counter(map(state_of, trials))
        done = sum(found[state] for state in DONE)
        found["waiting"] = min(found["waiting"], max(0, asked - done - found["running"]))
        return cls(**found)

    @property
    def done(self) -> int:
        """Trials that will not be run again, each of another setting."""
        return self.finished + self.pruned + self.failed

    @property
    def begun(self) -> int:
        """Trials that are done, running or queued."""
        return self.done + self.running + self.waiting
