"""Train independent small models side by side, one on each core."""

import multiprocessing
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import TypeVar

import torch
from tqdm import tqdm

from vaebench.studies import machine

Item = TypeVar("Item")
Value = TypeVar("Value")


def map_processes(function: Callable[[Item], Value], items: Sequence[Item], shape: Sequence[int]) -> list[Value]:
    """Return the function's result for each item, in order, computed in processes with threads for examples of a shape.

    The function must be defined in a module, so that a new process can import it.
    """
    workers = min(machine.cores(), len(items))
    spawn, threads = multiprocessing.get_context("spawn"), machine.threads(shape, workers)
    with ProcessPoolExecutor(workers, spawn, torch.set_num_threads, (threads,)) as pool:
        return list(tqdm(pool.map(function, items), total=len(items), desc="training", leave=False))
