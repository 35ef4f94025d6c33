"""Where a run came from: code, command, machine, versions."""

import importlib.metadata
import os
import platform
import socket
import subprocess

from studies.machine import device_name
from studies.plans import ROOT, code_version

PACKAGES = ("torch", "triton", "numpy", "optuna", "mlflow")


def provenance(command: str) -> dict[str, str]:
    """Return tags that hold for every run of a process."""
    return {
        "command": command,
        "code": code_version(),
        "device": device_name(),
        "host": socket.gethostname(),
        "python": platform.python_version(),
        **{package: importlib.metadata.version(package) for package in PACKAGES if _installed(package)},
        **({"mlflow.source.git.commit": commit} if (commit := git_commit()) else {}),
        "mlflow.source.name": "studies/sweep.py",
        "mlflow.source.type": "LOCAL",
        "mlflow.user": os.environ.get("USER", "unknown"),
    }


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
