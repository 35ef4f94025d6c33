"""What this machine offers: how many workers, and how many threads for the arithmetic of each."""

import math
import os
import platform
from collections.abc import Sequence

import torch

TRIALS_PER_WORKER = 5
SMALL_EXAMPLE = 1024


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0))


def threads(shape: Sequence[int], workers: int = 1) -> int:
    """Return the threads of one worker for examples of a shape; small ones get one.

    On 8x8 digits a second thread saves a tenth of the time while nothing else runs, and where something does, threads
    that wait for each other make training up to 25 times slower.
    """
    return 1 if math.prod(shape) < SMALL_EXAMPLE else max(1, cores() // workers)


def default_workers(device: str, trials: int) -> int:
    """Return one worker for each GPU; on CPUs one for each core, but above two only with five trials for each.

    Trials that run side by side do not learn from each other.
    """
    if device != "cpu" and torch.cuda.device_count():
        return torch.cuda.device_count()
    return min(cores(), max(2, trials // TRIALS_PER_WORKER))


def device_name() -> str:
    """Return what arithmetic runs on, without waking a GPU: workers may still have to be forked."""
    count = torch.cuda.device_count()
    return f"{count} GPU" if count else f"CPU, {cores()} cores, {platform.machine()}"
