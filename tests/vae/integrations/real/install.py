"""Install each library with what it needs beside the packages of this environment, in a folder of its own.

    python -m tests.vae.integrations.real.install FOLDER

`packages/NAME.txt` lists the packages of a library at fixed versions, PyTorch not among them: it is the environment's.
Libraries are installed side by side in time. One that cannot be installed leaves a file NAME.reason, its tests are
skipped with it, and the exit code is 0 all the same.
"""

import subprocess
import sys
from pathlib import Path

PACKAGES = Path(__file__).parent / "packages"
NAMES = sorted(path.stem for path in PACKAGES.glob("*.txt"))
SECONDS = 150


def install(folder: Path) -> None:
    """Install what is not there yet, and print a line for each library."""
    folder.mkdir(parents=True, exist_ok=True)
    started = {name: _start(folder, name) for name in NAMES if not is_installed(folder, name)}
    for name, process in started.items():
        reason = _wait(process)
        (folder / f"{name}.reason").write_text(reason)
        if not reason:
            (folder / f"{name}.txt").write_text((PACKAGES / f"{name}.txt").read_text())
    for name in NAMES:
        print(f"{name}: {'installed' if is_installed(folder, name) else why_not(folder, name)}")


def is_installed(folder: Path, name: str) -> bool:
    """Return whether a folder holds a library with the packages that are listed today."""
    listed = folder / f"{name}.txt"
    return listed.is_file() and listed.read_text() == (PACKAGES / f"{name}.txt").read_text()


def why_not(folder: Path, name: str) -> str:
    """Return why a library is not in a folder, as a clause."""
    reason = folder / f"{name}.reason"
    return reason.read_text() if reason.is_file() else f"python -m {__package__}.install {folder} was not run"


def _start(folder: Path, name: str) -> subprocess.Popen[str]:
    options = ["--quiet", "--no-input", "--no-deps", "--upgrade", "--timeout", "20", "--retries", "1"]
    command = [sys.executable, "-m", "pip", "install", *options, "--target", str(folder / name)]
    command += ["-r", str(PACKAGES / f"{name}.txt")]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def _wait(process: subprocess.Popen[str]) -> str:
    """Return why an installation failed, or an empty string."""
    try:
        _, errors = process.communicate(timeout=SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return f"pip took more than {SECONDS} seconds"
    if process.returncode == 0:
        return ""
    lines = [line for line in errors.splitlines() if line.startswith("ERROR")] or errors.splitlines() or ["no message"]
    return f"pip ended with {process.returncode}: {lines[-1]}"


if __name__ == "__main__":
    install(Path(sys.argv[1]))
