"""What a tracker is told of a trial, and the outbox that keeps it while the tracker cannot be reached."""

import logging
import time
from dataclasses import dataclass, field

PARENT_TRIAL = -1

Point = tuple[str, float, int, int]  # name, value, milliseconds, step

_log = logging.getLogger(__name__)


class StoreError(Exception):
    """The tracker cannot be written to, for now."""


@dataclass
class Record:
    """One run: all that there is to write about it, so that it can be written late, or again.

    Attributes:
        trial: number in the study, which with the study's name identifies the run; -1 is the study's own, the parent.
        status: RUNNING, FINISHED, KILLED (pruned) or FAILED.
        start, end: milliseconds since 1970; end is 0 while it runs.
        metrics: points whose time and step make writing them twice the same as once.
        files: files on this machine to attach.
        slides: pictures of a slider: its name, a file, a step.
    """

    trial: int
    name: str
    start: int
    status: str = "RUNNING"
    end: int = 0
    params: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    metrics: list[Point] = field(default_factory=list)
    files: list[str] = field(default_factory=list)
    slides: list[tuple[str, str, int]] = field(default_factory=list)


def milliseconds() -> int:
    """Return the time since 1970."""
    return time.time_ns() // 1_000_000
