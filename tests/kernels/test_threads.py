"""Threads, forks and the cache of the CPU kernels, each in processes of their own that use a copy of kernels/."""

import shutil
import subprocess
import sys

import pytest

from tests import ROOT

ONCE = "Compiling kernels for this CPU: a few seconds, once."
WITHOUT_CACHE = "Kernels are compiled in each process: set NUMBA_CACHE_DIR to a folder that can be written."

START = """
import logging, os, sys, threading
logging.basicConfig(level=logging.INFO, format="%(message)s")
import torch
logging.getLogger("numba").setLevel(logging.WARNING)
from copied import kernels
torch.set_num_threads(int(os.environ.get("THREADS", 2)))

x, y = (torch.randn(300, 40, generator=torch.Generator().manual_seed(s)) for s in (0, 1))

def step():
    leaves = [t.clone().requires_grad_() for t in (x, y)]
    z, kl = kernels.reparam_kl(*leaves, seed=7, backend="numba")
    joint, marginals = kernels.log_aggregate(z, *leaves, backend="numba")
    total = kl.sum() + joint.sum() + marginals.sum() + kernels.mmd2(z, leaves[1], backend="numba")
    return [z, kl, joint, marginals, *torch.autograd.grad(total, leaves)]

def same(found, expected):
    return all(map(torch.equal, found, expected))
"""

CALL = "kernels.reparam_kl(x, y, seed=7)"

LOOPS = """
import inspect
from copied.kernels.cpu import threads
compile_variant, variants = threads._compile, []

def keep(function, parallel):
    variants.append((function, parallel, compile_variant(function, parallel=parallel)))
    return variants[-1][2]

threads._compile = keep
step()
torch.set_num_threads(1)
step()  # so that four forks do not compile the serial variants at once
for function, parallel, dispatcher in variants:
    if parallel and dispatcher.signatures:
        lines, first = inspect.getsourcelines(function)
        written = {first + n for n, line in enumerate(lines) if " in numba.prange(" in line}
        loops = dispatcher.get_metadata(dispatcher.signatures[0])["parfor_diagnostics"].initial_parfors
        print(function.__name__, len(written), len(written & {loop.loc.line for loop in loops}))
"""

FORKS = """
expected = step()
children = []
for _ in range(4):
    child = os.fork()
    if child == 0:
        torch.set_num_threads(1)
        os._exit(0 if same(step(), expected) else 3)
    children.append(child)
print([os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children])
"""

WITHOUT_A_POOL = """
expected = step()
import time
time.sleep(0.5)  # the thread of a timer, cancelled, may take a moment to end
threads = len(os.listdir("/proc/self/task"))
child = os.fork()
if child == 0:
    torch.set_num_threads(2)
    os._exit(0 if same(step(), expected) else 3)
print(threads, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""

THREADS = """
expected, wrong = step(), []

def repeat():
    for _ in range(20):
        wrong.extend([] if same(step(), expected) else [1])

threads = [threading.Thread(target=repeat) for _ in range(2)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
import numba
print(numba.threading_layer(), len(wrong))
"""

CHANGED = """
import numba
expected, found = step(), []
for threads in (1, 2, 3, 64, 1, 2):
    torch.set_num_threads(threads)
    found.append(same(step(), expected))
print(found, numba.get_num_threads() <= numba.config.NUMBA_NUM_THREADS)
"""


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """A folder with a copy of kernels/, whose kernels are compiled once for all tests of this file, and their loops."""
    folder = tmp_path_factory.mktemp("project")
    copy_kernels(folder)
    return folder, run(LOOPS, folder)[0]


@pytest.fixture
def copy(compiled):
    return compiled[0]


def copy_kernels(folder):
    shutil.copytree(ROOT / "kernels", folder / "copied" / "kernels", ignore=shutil.ignore_patterns("__pycache__"))


def run(program, folder, **variables):
    """Return the lines that a program writes to stdout and to stderr."""
    environment = {"PATH": "", "HOME": str(folder / "home"), "PYTHONWARNINGS": "error"} | variables
    command = [sys.executable, "-c", START + program]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines(), done.stderr.splitlines()


@pytest.mark.slow
def test_each_prange_is_a_parallel_loop(compiled):
    """Numba runs a prange that it cannot analyse as a serial loop, and says nothing."""
    loops = [line.split() for line in compiled[1]]
    assert len(loops) == 5
    assert all(int(written) == int(parallel) > 0 for _, written, parallel in loops)


@pytest.mark.slow
def test_forks_of_a_process_that_has_used_threads_compute_the_same(copy):
    assert run(FORKS, copy)[0] == ["[0, 0, 0, 0]"]


def test_one_thread_starts_no_other_so_that_a_fork_may(copy):
    assert run(WITHOUT_A_POOL, copy, OMP_NUM_THREADS="1", THREADS="1")[0] == ["1 0"]


@pytest.mark.parametrize("layer", ["omp", "workqueue"])
def test_two_threads_of_python_at_once(copy, layer):
    assert run(THREADS, copy, NUMBA_THREADING_LAYER=layer)[0] == [f"{layer} 0"]


def test_the_number_of_threads_may_change_and_changes_no_bit(copy):
    assert run(CHANGED, copy)[0] == ["[True, True, True, True, True, True] True"]


def assert_cached(place, folder):
    """Another process finds the kernels in a place, and writes none of them again."""
    written = {path: path.stat().st_mtime_ns for path in place.rglob("*.nb[ic]")}
    assert written
    run(CALL, folder)
    assert {path: path.stat().st_mtime_ns for path in place.rglob("*.nb[ic]")} == written


def test_compiled_once_and_kept_beside_the_kernels(tmp_path):
    copy_kernels(tmp_path)
    assert run(CALL, tmp_path)[1] == [ONCE]
    assert_cached(tmp_path / "copied" / "kernels" / "cpu" / "__pycache__", tmp_path)


@pytest.mark.slow
def test_a_changed_file_is_noticed_though_the_cache_looks_at_another(tmp_path):
    copy_kernels(tmp_path)
    reparam = "print(kernels.reparam_kl(x, y, seed=7, reduction='batch')[1].item())"
    (before,), _ = run(reparam, tmp_path)
    source = tmp_path / "copied" / "kernels" / "cpu" / "math.py"
    source.write_text(source.read_text().replace("np.float32(LOG2_E)", "np.float32(LOG2_E / 2)"))
    (after,), _ = run(reparam, tmp_path)
    assert before != after


@pytest.mark.slow
def test_an_installation_that_cannot_be_written_keeps_them_in_the_home_folder(tmp_path):
    forbid_cache_beside_kernels(tmp_path)
    assert run(CALL, tmp_path)[1] == [ONCE]
    assert_cached(tmp_path / "home" / ".cache" / "numba", tmp_path)


@pytest.mark.slow
def test_without_any_folder_it_says_so_once_and_compiles(tmp_path):
    forbid_cache_beside_kernels(tmp_path)
    (tmp_path / "home").touch()
    assert sorted(run(CALL, tmp_path)[1]) == [ONCE, WITHOUT_CACHE]


def forbid_cache_beside_kernels(folder):
    copy_kernels(folder)
    (folder / "copied" / "kernels" / "cpu" / "__pycache__").touch()
