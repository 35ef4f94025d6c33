"""Where a run came from: code, command, machine, versions."""

import hashlib
import importlib.metadata
import os
import platform
import shlex
import socket
import subprocess
from functools import cache
from pathlib import Path

from vaebench.studies.machine import device_name

ROOT = Path(__file__).resolve().parent.parent.parent
DECIDES_RESULTS = (
    *("vae/**/*.py", "kernels/**/*.py"),
    *(f"studies/engine/{name}.py" for name in ("study/space", "study/target", "workers/trial")),
)
PACKAGES = ("torch", "triton", "numpy", "optuna", "mlflow")


def provenance(command: str) -> dict[str, str]:
    """Return tags that hold for every run of a process, which `command` started: `python studies/sweep.py ...`."""
    return {
        "command": command,
        "code": code_version(),
        "device": device_name(),
        "host": socket.gethostname(),
        "python": platform.python_version(),
        **{package: importlib.metadata.version(package) for package in PACKAGES if _installed(package)},
        **({"mlflow.source.git.commit": commit} if (commit := git_commit()) else {}),
        "mlflow.source.name": shlex.split(command)[1],
        "mlflow.source.type": "LOCAL",
        "mlflow.user": os.environ.get("USER", "unknown"),
    }


@cache
def code_version() -> str:
    """Return a hash of all source files that a trial's result depends on."""
    found = hashlib.sha256()
    for pattern in DECIDES_RESULTS:
        for path in sorted(ROOT.glob(pattern)):
            found.update(path.relative_to(ROOT).as_posix().encode() + path.read_bytes())
    return found.hexdigest()[:8]


def git_commit() -> str | None:
    """Return the commit that is checked out, marked where files differ from it, or None outside a repository."""
    commit = _git("rev-parse", "HEAD")
    return commit + "-dirty" if commit and _git("status", "--porcelain", "--untracked-files=no") else commit


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def _installed(package: str) -> bool:
    return any(importlib.metadata.distributions(name=package))
