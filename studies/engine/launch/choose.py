"""Which engine starts the workers: this machine, or a Ray cluster."""

from typing import Protocol

from vaebench.studies import machine
from vaebench.studies.engine.driver.supervise import Crew
from vaebench.studies.engine.launch.local import Forked
from vaebench.studies.engine.workers.job import Job
from vaebench.vae.errors import InputError

ENGINES = ("local", "ray")
INSTALL_RAY = "pip install ray"


class Engine(Protocol):
    """What can start workers."""

    def default_workers(self, device: str, trials: int) -> int:
        """Return how many workers there is room for."""

    def crew(self, job: Job) -> Crew:
        """Return a crew without members."""

    def close(self) -> None:
        """Let go of what it holds."""


class Local:
    """This machine."""

    def default_workers(self, device: str, trials: int) -> int:
        """Return one worker for each GPU, or core."""
        return machine.default_workers(device, trials)

    def crew(self, job: Job) -> Crew:
        """Return a crew of forked processes."""
        return Forked(job)

    def close(self) -> None:
        """Hold nothing."""


def named(name: str, address: str, gpus: float | None) -> Engine:
    """Return an engine; Ray is only imported where it is asked for."""
    if name == "local":
        return Local()
    if gpus is not None and not (0 <= gpus <= 1 or gpus == int(gpus) > 1):
        raise InputError(f"--gpus-per-worker takes a number from 0 to 1, or a whole one, got {gpus:g}.")
    try:
        from vaebench.studies.engine.launch.ray_cluster import Cluster
    except ImportError as error:
        raise InputError(f"--engine ray needs Ray ({error}); {INSTALL_RAY}.") from error
    return Cluster(address, gpus)


def require_shared(name: str, storage: str, tracking: str) -> None:
    """Refuse a storage or a tracker that the machines of a cluster cannot reach."""
    if name == "local":
        return
    if "://" not in storage:
        raise InputError(
            "--engine ray needs --storage postgresql+psycopg://USER@HOST/DATABASE: machines cannot share a journal."
        )
    if tracking.startswith("sqlite"):
        raise InputError(
            "--engine ray needs --tracking-uri http://HOST:PORT, or none: machines cannot share MLflow's SQLite."
        )
