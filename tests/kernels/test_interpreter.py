"""The tests of fused/ in Triton's interpreter, in a process that chooses it before a kernel is defined."""

import os
import subprocess
import sys

import pytest
import torch

from tests import ROOT
from tests.conftest import INTERPRETED, NOT_SLOW

FILES = sorted((ROOT / "tests" / "kernels" / "fused").glob("test_*.py"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="on a GPU these tests run as they are")
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem.removeprefix("test_"))
def test_in_the_interpreter(path, record_property, pytestconfig):
    pytest.importorskip("triton")
    chosen = ["-m", NOT_SLOW] if pytestconfig.option.markexpr == NOT_SLOW else []
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *chosen, str(path)],
        cwd=ROOT,
        env=env | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    counts = done.stdout.rstrip().rpartition("\n")[2]
    record_property(INTERPRETED, f"{path.name}: {counts}")
    assert done.returncode == 0, done.stdout[-20_000:] + done.stderr[-5_000:]
    assert "passed" in counts
