"""A bare `pytest` uses every core and leaves out slow tests, which `pytest --slow` runs too.

It says at the end what tests in processes of their own counted.
"""

import os
from collections import Counter

import pytest

# Properties of tests whose work is done in a process of its own, which counted what these names say.
INTERPRETED = "in Triton's interpreter"
REAL_LIBRARY = "on the real library"
LONGEST, NOT_SLOW = "test_interpreter.py", "not slow"


def pytest_addoption(parser):
    """Add `--slow`."""
    parser.addoption("--slow", action="store_true", help="all tests, also those that are marked slow")


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config):
    """Spread a run of all tests over the cores, a file to a process, and leave out slow ones without `--slow`.

    Tests that the command line names, by a path, `-k` or `--lf`, are run, slow or not.
    """
    options = config.option
    all_tests = config.args_source == pytest.Config.ArgsSource.TESTPATHS
    plain = getattr(options, "numprocesses", 0) is None and not options.usepdb and not hasattr(config, "workerinput")
    if all_tests and not (options.slow or options.keyword or getattr(options, "lf", False)):
        options.markexpr = options.markexpr or NOT_SLOW
    if all_tests and plain and not options.collectonly and not getattr(options, "benchmark_only", False):
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        options.numprocesses, options.dist, options.benchmark_disable = "auto", "loadfile", True
        options.loadscopereorder = False  # files begin in the order of the items


def pytest_collection_modifyitems(items):
    """Begin with the files that take longest, so that no process is left with one at the end.

    These are the interpreter's, then those with the most tests that are marked slow.
    """
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: (item.path.name != LONGEST, -slow[item.path]))


def pytest_terminal_summary(terminalreporter):
    """Show the counts of tests that ran in a process of their own."""
    for report in terminalreporter.getreports("passed") + terminalreporter.getreports("failed"):
        for name, value in report.user_properties:
            if name in (INTERPRETED, REAL_LIBRARY):
                terminalreporter.write_line(f"{name}: {value}")
