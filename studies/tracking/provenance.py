"""The origin of a run, as tags: code, command, machine, versions."""

import hashlib
import os
import platform
import shlex
import socket
import subprocess
from functools import cache
from importlib import metadata
from pathlib import Path

from vaebench.studies.machine import device_name

ROOT = Path(__file__).resolve().parent.parent.parent
DECIDES_RESULTS = (
    *("vae/**/*.py", "kernels/**/*.py"),
    *(f"studies/engine/{name}.py" for name in ("study/space", "study/target", "workers/trial")),
)
PACKAGES = ("torch", "triton", "numpy", "optuna", "mlflow")


def provenance(command: str) -> dict[str, str]:
    """Return the tags of every run that `command`, such as `python studies/sweep.py ...`, writes."""
    words, commit = shlex.split(command), git_commit()
    return {
        "command": command,
        "code": code_version(),
        "device": device_name(),
        "host": socket.gethostname(),
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in PACKAGES if any(metadata.distributions(name=name))},
        **({"mlflow.source.git.commit": commit} if commit else {}),
        "mlflow.source.name": words[1] if words[0] == "python" else " ".join(words[:2]),
        "mlflow.source.type": "LOCAL",
        "mlflow.user": os.environ.get("USER", "unknown"),
    }


@cache
def code_version() -> str:
    """Return a hash of all source files that a trial's result depends on."""
    digest = hashlib.sha256()
    for pattern in DECIDES_RESULTS:
        for path in sorted(ROOT.glob(pattern)):
            digest.update(path.relative_to(ROOT).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()[:8]


def git_commit() -> str | None:
    """Return the commit that is checked out, with `-dirty` if files differ from it; None outside a repository."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
