"""`patch` and `adapt` on the real libraries, each in a process that finds its library beside the environment's PyTorch.

`python -m tests.vae.integrations.real.install FOLDER` installs them, and VAEBENCH_LIBRARIES=FOLDER says where.
"""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests import ROOT
from tests.conftest import REAL_LIBRARY
from tests.vae.integrations.real import install

OPTIONS = ["-q", "-n", "0", "-p", "no:cacheprovider", "-o", "filterwarnings=default", "--disable-warnings", "-rs"]


def place_of(name):
    """Return the folder of a library, None if the environment has it, or skip with the reason."""
    folder = os.environ.get("VAEBENCH_LIBRARIES")
    if folder and install.is_installed(Path(folder), name):
        return Path(folder, name).resolve()
    if importlib.util.find_spec(name):
        return None
    missing = "VAEBENCH_LIBRARIES names no folder that holds it"
    return pytest.skip(f"{name} is not installed: {install.why_not(Path(folder), name) if folder else missing}")


@pytest.mark.parametrize("name", install.NAMES)
def test_patched_models_of_a_library_train_as_unpatched_ones(name, record_property):
    place = place_of(name)
    path = os.pathsep.join(map(str, [ROOT, *([place] if place else [])]))
    env = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    files = [f"tests/vae/integrations/real/check_{name}.py", "tests/vae/adapters/test_adapt.py"]
    command = [sys.executable, "-m", "pytest", *OPTIONS, *(str(ROOT / file) for file in files), "-k", name]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    (count,) = re.findall(r"^\d+ passed.*", done.stdout, re.MULTILINE)
    record_property(REAL_LIBRARY, f"{name}: {count}")


def test_a_library_that_cannot_be_installed_says_why(tmp_path, monkeypatch, capsys):
    (tmp_path / "packages").mkdir()
    (tmp_path / "packages" / "none.txt").write_text(f"none @ file://{tmp_path}/none-1.0-py3-none-any.whl\n")
    monkeypatch.setattr(install, "PACKAGES", tmp_path / "packages")
    monkeypatch.setattr(install, "NAMES", ["none"])
    install.install(tmp_path / "libraries")
    assert capsys.readouterr().out.startswith("none: pip ended with 1: ERROR: Could not install packages")
    monkeypatch.setenv("VAEBENCH_LIBRARIES", str(tmp_path / "libraries"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(pytest.skip.Exception, match="none is not installed: pip ended with 1"):
        place_of("none")


def test_a_package_index_that_does_not_answer_is_given_up(tmp_path, monkeypatch):
    monkeypatch.setattr(install, "SECONDS", 0.5)
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], stderr=subprocess.PIPE, text=True)
    assert install._wait(process) == "pip took more than 0.5 seconds"
    assert process.returncode
