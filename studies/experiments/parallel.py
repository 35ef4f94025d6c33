"""Train independent small models side by side, one on each core."""

import argparse
import multiprocessing
import signal
from collections.abc import Callable, Hashable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from itertools import islice
from typing import TypeVar

import torch
from tqdm import tqdm

from vaebench.studies import machine
from vaebench.studies.experiments import parts
from vaebench.vae.data.decoding import count_cores
from vaebench.vae.errors import InputError

Key = TypeVar("Key", bound=Hashable)
Item = TypeVar("Item")
Value = TypeVar("Value")


def map_groups(
    function: Callable[[Item], Value],
    groups: Mapping[Key, Sequence[Item]],
    shape: Sequence[int],
    options: argparse.Namespace,
) -> dict[Key, list[Value]]:
    """Return the function's result for each item of each group, computed in processes with threads for a data shape.

    The function must be defined in a module, so that a new process can import it. A result that is done is kept, see
    `parts.keep`. Processes are started with Ctrl-C blocked: it ends this process, which then ends them.
    """
    items = [item for group in groups.values() for item in group]
    workers = min(count_cores(), len(items))
    spawn, threads = multiprocessing.get_context("spawn"), machine.threads(shape, workers)
    pool = ProcessPoolExecutor(workers, spawn, torch.set_num_threads, (threads,))
    try:
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        found = pool.map(partial(_keep, options, function), items)
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        values = iter(tqdm(found, total=len(items), desc="training", leave=False))
        return {key: list(islice(values, len(group))) for key, group in groups.items()}
    except BrokenProcessPool as error:
        raise InputError(
            "a process died while it trained, perhaps for want of memory; the same command goes on."
        ) from error
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        for process in multiprocessing.active_children():
            process.kill()
        raise
    finally:
        pool.shutdown()


def _keep(options: argparse.Namespace, function: Callable[[Item], Value], item: Item) -> Value:
    return parts.keep(options, repr(item), function, item)
