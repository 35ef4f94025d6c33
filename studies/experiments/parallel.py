"""Independent trainings of small models side by side, one on each core."""

import multiprocessing
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import TypeVar

import torch
from tqdm import tqdm

from vaebench.studies import machine

Job = TypeVar("Job")
Outcome = TypeVar("Outcome")


def each(function: Callable[[Job], Outcome], jobs: Sequence[Job], shape: Sequence[int]) -> list[Outcome]:
    """Return what a function of a module gives for each job, on examples of a shape, in processes of their own."""
    workers = min(machine.cores(), len(jobs))
    spawn, threads = multiprocessing.get_context("spawn"), machine.threads(shape, workers)
    with ProcessPoolExecutor(workers, spawn, torch.set_num_threads, (threads,)) as pool:
        return list(tqdm(pool.map(function, jobs), total=len(jobs), desc="training", leave=False))
