"""The machine's resources: how many workers, and how many threads for each."""

import math
import platform
from collections.abc import Sequence

import torch

from vaebench.vae.data.decoding import count_cores

TRIALS_PER_WORKER = 5
SMALL_EXAMPLE = 1024


def threads(shape: Sequence[int], workers: int = 1) -> int:
    """Return how many threads one worker uses for examples of a shape: one if the examples are small.

    On 8x8 digits a second thread saves a tenth of the time on an idle machine. On a busy one, threads that wait for
    each other make training up to 25 times slower.
    """
    return 1 if math.prod(shape) < SMALL_EXAMPLE else max(1, count_cores() // workers)


def default_workers(device: str, trials: int) -> int:
    """Return one worker for each GPU; on CPUs one for each core, but more than two only if each gets five trials.

    Trials that run at the same time do not learn from each other.
    """
    gpus = torch.cuda.device_count() if device != "cpu" else 0
    return gpus or min(count_cores(), max(2, trials // TRIALS_PER_WORKER))


def device_name() -> str:
    """Return the device in words; no CUDA context is created, since workers may still have to be forked."""
    count = torch.cuda.device_count()
    return f"{count} GPU" if count else f"CPU, {count_cores()} cores, {platform.machine()}"
