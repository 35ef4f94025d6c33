"""Choose the engine that starts workers: this machine, or a Ray cluster."""

from typing import Protocol

from vaebench.studies import machine
from vaebench.studies.engine.driver.supervise import Workers
from vaebench.studies.engine.launch.local import ForkedWorkers
from vaebench.studies.engine.workers.job import Job
from vaebench.vae.errors import InputError

ENGINES = ("local", "ray")
INSTALL_RAY = "pip install ray"


class Engine(Protocol):
    """Starts workers."""

    def default_workers(self, device: str, trials: int) -> int:
        """Return how many workers there is room for."""

    def make_workers(self, job: Job) -> Workers:
        """Return the workers of a study, of which none is started yet."""

    def close(self) -> None:
        """Release the engine's connections."""


class Local:
    """This machine."""

    def default_workers(self, device: str, trials: int) -> int:
        """Return one worker for each GPU, or core."""
        return machine.default_workers(device, trials)

    def make_workers(self, job: Job) -> Workers:
        """Return forked processes."""
        return ForkedWorkers(job)

    def close(self) -> None:
        """Do nothing: there is no connection."""


def make_engine(name: str, address: str, gpus: float | None) -> Engine:
    """Return an engine by its name; Ray is imported only where it is asked for."""
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
