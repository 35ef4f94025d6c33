"""The record of a run: everything that a tracker stores about it."""

import time
from dataclasses import dataclass, field

PARENT_TRIAL = -1
NOTE = "mlflow.note.content"  # the text that MLflow shows on a run's page

MetricValue = tuple[str, float, int, int]  # name, value, milliseconds, step


class StoreError(Exception):
    """The tracker cannot be reached at the moment."""


@dataclass
class RunRecord:
    """Everything to write about one run, so that it can be written late, or again.

    Attributes:
        trial: number in the study, which with the study's name identifies the run; -1 is the parent run of the study,
            None a run that belongs to no study.
        status: RUNNING, FINISHED, KILLED or FAILED.
        start, end: milliseconds since 1970; end is 0 while the run goes on.
        metrics: with time and step, so that writing a value twice is the same as writing it once.
        files: files on this machine to attach.
        slides: pictures of a slider: its name, a file, a step.
        key: the tag whose value identifies a run that belongs to no study.
    """

    trial: int | None
    name: str
    start: int
    status: str = "RUNNING"
    end: int = 0
    params: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    metrics: list[MetricValue] = field(default_factory=list)
    files: list[str] = field(default_factory=list)
    slides: list[tuple[str, str, int]] = field(default_factory=list)
    key: str = ""


def milliseconds() -> int:
    """Return the time now, in milliseconds since 1970."""
    return time.time_ns() // 1_000_000
