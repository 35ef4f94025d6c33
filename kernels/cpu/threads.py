"""Compile kernels with numba, keep the machine code in a cache, and choose the threads that run it.

Each kernel is compiled on its first call, in two variants. The parallel variant follows `torch.get_num_threads()`. The
serial variant runs with one thread and starts no other, so that a process with one thread can be forked at any time.
"""

import hashlib
import logging
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FunctionType
from typing import Any

import numba
import torch

from .math import JIT

PATIENCE_SECONDS = 1.0  # before a first call says that it compiles; to load from the cache takes less

WITHOUT_CACHE = "Kernels are compiled in each process: set NUMBA_CACHE_DIR to a folder that can be written."

Kernel = Callable[..., None]

_logger = logging.getLogger(__name__)
_one_at_a_time = threading.Lock()
_logged: set[str] = set()
_local = threading.local()
_pool_takes_turns = False
_pool_lost = False  # in a fork of a process with a pool: its threads do not exist here


def _hash_sources() -> str:
    """Return a hash of what kernels are made of: numba's cache only looks at the file of a kernel, not at imports."""
    here = Path(__file__).parent
    files = [*sorted(here.glob("*.py")), here.parent / "shared" / "noise.py"]
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()[:12]


_SOURCES = _hash_sources()


def compile_kernel(function: Kernel) -> Kernel:
    """Return a function that runs a kernel on torch's number of threads.

    A kernel is written with `numba.prange`. It takes numbers and tuples of numbers: addresses, strides, sizes, and last
    a zero of the type of its sums. Its results must not depend on the number of threads: each step of a `prange` has
    outputs of its own, and the order of every sum is fixed.
    """
    serial, parallel = _compile(function, parallel=False), _compile(function, parallel=True)
    ready = set()

    def run(*arguments: Any, most_threads: int = 2**31) -> None:
        threads = count_threads()
        variant = serial if threads == 1 else parallel
        if threads > 1:
            _set_threads(min(threads, most_threads))
        key = variant, type(arguments[-1])
        if key in ready:
            _call(variant, arguments)
        else:
            with _report_compilation():
                _call_first(variant, arguments)
            ready.add(key)

    return run


def count_threads() -> int:
    """Return the number of threads for a kernel: one in a fork of a process whose pool does not exist here."""
    return 1 if _pool_lost else min(torch.get_num_threads(), numba.config.NUMBA_NUM_THREADS)


def _call(variant: Kernel, arguments: tuple[Any, ...]) -> None:
    if _pool_takes_turns:
        with _one_at_a_time:
            variant(*arguments)
    else:
        variant(*arguments)


def _call_first(variant: Kernel, arguments: tuple[Any, ...]) -> None:
    """Call a variant that may have to be compiled, also where its machine code cannot be written to the cache."""
    try:
        _call(variant, arguments)
    except OSError:  # raised after the compilation and before the call
        _log_once(WITHOUT_CACHE)
        _call(variant, arguments)


def _set_threads(threads: int) -> None:
    """Start the pool if need be, and tell numba how many of its threads serve kernels that this thread starts."""
    global _pool_takes_turns
    if getattr(_local, "threads", None) == threads:
        return
    numba.set_num_threads(threads)
    _local.threads = threads
    _pool_takes_turns = numba.threading_layer() == "workqueue"  # it ends a process if two threads enter it


def _compile(function: Kernel, parallel: bool) -> Any:
    """Return a numba dispatcher with a cache, or without one where no folder for it can be written."""
    name = f"{function.__qualname__}_{'parallel' if parallel else 'serial'}_{_SOURCES}"
    copy = FunctionType(function.__code__, function.__globals__, function.__name__)
    copy.__qualname__, copy.__module__ = name, function.__module__  # numba names the file in the cache after them
    dispatcher = numba.njit(copy, parallel=parallel, nogil=True, **JIT)
    try:
        dispatcher.enable_caching()
    except RuntimeError:
        _log_once(WITHOUT_CACHE)
    return dispatcher


@contextmanager
def _report_compilation() -> Iterator[None]:
    """Log a line where a first call takes long."""
    timer = threading.Timer(PATIENCE_SECONDS, _log_once, ("Compiling kernels for this CPU: a few seconds, once.",))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()  # so that the serial variant leaves no thread


def _log_once(message: str) -> None:
    """Log a message where a person looks, and otherwise at a level that is off by default."""
    if message not in _logged:
        _logged.add(message)
        _logger.log(logging.WARNING if sys.stderr.isatty() else logging.INFO, message)


def _note_fork() -> None:
    """Note that the threads of a pool, which other code may have started, do not exist in this process."""
    global _pool_lost, _pool_takes_turns
    try:
        numba.threading_layer()
        _pool_lost = True
    except ValueError:  # no pool has been started
        _pool_lost = False
    _pool_takes_turns = False


os.register_at_fork(after_in_child=_note_fork)
