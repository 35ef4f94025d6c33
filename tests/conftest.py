"""A bare `pytest` uses every core, and says at the end what tests in processes of their own counted."""

import os

import pytest

# Properties of tests whose work is done in a process of its own, which counted what these names say.
INTERPRETED = "in Triton's interpreter"
REAL_LIBRARY = "on the real library"


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config):
    """Spread a run of all tests over the cores, a file to a process, as `-n auto --dist loadfile` does."""
    options = config.option
    all_tests = config.args_source == pytest.Config.ArgsSource.TESTPATHS and not options.collectonly
    plain = getattr(options, "numprocesses", 0) is None and not options.usepdb and not hasattr(config, "workerinput")
    if all_tests and plain and not getattr(options, "benchmark_only", False):
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        options.numprocesses, options.dist, options.benchmark_disable = "auto", "loadfile", True


def pytest_terminal_summary(terminalreporter):
    """Show the counts of tests that ran in a process of their own."""
    for report in terminalreporter.getreports("passed") + terminalreporter.getreports("failed"):
        for name, value in report.user_properties:
            if name in (INTERPRETED, REAL_LIBRARY):
                terminalreporter.write_line(f"{name}: {value}")
