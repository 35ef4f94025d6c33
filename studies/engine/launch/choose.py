"""Choose the engine that starts workers: this machine, or a Ray cluster."""

from collections.abc import Callable
from dataclasses import dataclass

from vaebench.studies import machine
from vaebench.studies.engine.driver.supervise import Workers
from vaebench.studies.engine.launch.local import ForkedWorkers
from vaebench.studies.engine.workers.job import Job
from vaebench.vae.errors import InputError

INSTALL_RAY = "pip install ray"


@dataclass(frozen=True)
class Engine:
    """The functions of an engine.

    Attributes:
        default_workers: returns how many workers there is room for, given `train.device` and the number of trials.
        make_workers: returns the workers of a study, of which none is started yet.
        close: releases the engine's connections.
    """

    default_workers: Callable[[str, int], int]
    make_workers: Callable[[Job], Workers]
    close: Callable[[], None] = lambda: None


LOCAL = Engine(machine.default_workers, ForkedWorkers)


def make_engine(name: str, address: str, gpus: float | None) -> Engine:
    """Return an engine by its name; Ray is imported only where it is asked for."""
    if name == "local":
        return LOCAL
    if gpus is not None and not (0 <= gpus <= 1 or gpus == int(gpus) > 1):
        raise InputError(f"--gpus-per-worker takes a number from 0 to 1, or a whole one, got {gpus:g}.")
    try:
        from vaebench.studies.engine.launch.ray_cluster import Cluster
    except ImportError as error:
        raise InputError(f"--engine ray needs Ray ({error}); {INSTALL_RAY}.") from error
    cluster = Cluster(address, gpus)
    return Engine(cluster.default_workers, cluster.make_workers, cluster.close)


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
