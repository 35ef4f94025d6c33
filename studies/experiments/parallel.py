"""Train independent small models side by side, one on each core."""

import multiprocessing
from collections.abc import Callable, Hashable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import islice
from typing import TypeVar

import torch
from tqdm import tqdm

from vaebench.studies import machine

Key = TypeVar("Key", bound=Hashable)
Item = TypeVar("Item")
Value = TypeVar("Value")


def map_groups(
    function: Callable[[Item], Value], groups: Mapping[Key, Sequence[Item]], shape: Sequence[int]
) -> dict[Key, list[Value]]:
    """Return the function's result for each item of each group, computed in processes with threads for a data shape.

    The function must be defined in a module, so that a new process can import it.
    """
    items = [item for group in groups.values() for item in group]
    workers = min(machine.cores(), len(items))
    spawn, threads = multiprocessing.get_context("spawn"), machine.threads(shape, workers)
    with ProcessPoolExecutor(workers, spawn, torch.set_num_threads, (threads,)) as pool:
        values = iter(tqdm(pool.map(function, items), total=len(items), desc="training", leave=False))
        return {key: list(islice(values, len(group))) for key, group in groups.items()}
