"""Workers as actors on a Ray cluster: Ray places, counts and ends them, and knows nothing of trials.

This is the only module that imports Ray. Every machine of the cluster needs the checkout, its Python environment and
the folder of the study under the same path, for example on a shared file system.
"""

import contextlib
import dataclasses
import os
import socket
import time
import uuid
from dataclasses import dataclass, field
from typing import Any

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # Ray reads these when it is imported
os.environ["RAY_DEDUP_LOGS_SKIP_REGEX"] = (
    "."  # silences the logs of a dying machine; the driver says what happened to its trials
)

import ray
from ray.exceptions import RayActorError, RayError, RayTaskError

from vaebench.studies import machine
from vaebench.studies.engine.driver.progress import WORKER_LINES
from vaebench.studies.engine.driver.supervise import DeadWorker
from vaebench.studies.engine.search.queue import STORAGE_ERRORS
from vaebench.studies.engine.workers.job import Job
from vaebench.studies.engine.workers.loop import run_trials
from vaebench.studies.engine.workers.trial_log import Orphaned
from vaebench.studies.tracking.provenance import ROOT, code_version
from vaebench.vae.errors import InputError, sentence

REACH_SECONDS, STOP_SECONDS = 5.0, 2.0
ADDRESSES = "give the head's HOST:PORT, or auto on a machine where `ray start` ran"


class Worker:
    """The worker loop in a process of the cluster; its second thread answers the driver."""

    def __init__(self) -> None:
        self.last: dict[str, Any] = {}
        self.wanted = True

    def run(self, job: Job, owner: str) -> str:
        """Run trials until none is queued; return why the worker ended sooner, empty if it did not."""
        if (code := code_version()) != job.tags["code"]:
            raise InputError(f"{socket.gethostname()} has other code in {ROOT} ({code}) than the driver.")
        here = {"host": socket.gethostname(), "device": machine.device_name()}
        try:
            run_trials(dataclasses.replace(job, tags=job.tags | here), owner, 0, self._note, lambda: self.wanted)
        except STORAGE_ERRORS as error:
            return sentence(error)
        except Orphaned:
            return "a stop by its driver"
        return ""

    def message(self) -> dict[str, Any]:
        """Return the last message."""
        return self.last

    def stop(self) -> None:
        """Claim no other trial, and abandon this one."""
        self.wanted = False

    def _note(self, message: dict[str, Any]) -> None:
        self.last = message


@dataclass
class RayWorkerHandle:
    """An actor as its driver sees it.

    Attributes:
        done: the result of `Worker.run`.
        reply: the result of the last call of `Worker.message`.
    """

    actor: Any
    done: ray.ObjectRef
    reply: ray.ObjectRef
    last: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Cluster:
    """A running Ray cluster, and the share of a GPU that each worker gets.

    Attributes:
        gpus: for each worker; None is a whole one where the cluster has GPUs and the study may use them.
    """

    address: str
    gpus: float | None = None

    def default_workers(self, device: str, trials: int) -> int:
        """Return one worker for each share of a GPU; else one for each core, above two only with five trials each."""
        self.connect()
        gpus = self.gpus_per_worker(device)
        if gpus:
            return max(1, int(ray.cluster_resources().get("GPU", 0) / gpus))
        return min(int(ray.cluster_resources()["CPU"]), max(2, trials // machine.TRIALS_PER_WORKER))

    def gpus_per_worker(self, device: str) -> float:
        """Return the share of a GPU that one worker gets."""
        if self.gpus is not None:
            return self.gpus
        return 1.0 if device != "cpu" and ray.cluster_resources().get("GPU") else 0.0

    def make_workers(self, job: Job) -> "RayWorkers":
        """Return actors that write to the study's folder on any machine, of which none is started yet."""
        self.connect()
        plan = dataclasses.replace(job.plan, folder=job.plan.folder.resolve())
        return RayWorkers(dataclasses.replace(job, plan=plan), self.gpus_per_worker(plan.base.train.device))

    def connect(self) -> None:
        """Connect to the cluster; an error says why it does not answer."""
        if ray.is_initialized():
            return
        self._require_answer()
        try:
            ray.init(self.address, log_to_driver=False, logging_level="CRITICAL", namespace="vaebench")
        except (RayError, ConnectionError, RuntimeError, ValueError) as error:
            cause = " ".join(str(error).split()).rstrip(".") or type(error).__name__
            raise InputError(f"there is no Ray cluster at {self.address} ({cause}); {ADDRESSES}.") from error

    def close(self) -> None:
        """Disconnect from the cluster."""
        ray.shutdown()

    def _require_answer(self) -> None:
        """Refuse an address that does not answer: Ray itself would try for a minute, and then abort the process."""
        host, _, port = self.address.rpartition(":")
        if self.address == "auto":
            return
        if not host or not port.isdigit():
            raise InputError(f"--address takes auto or HOST:PORT of the cluster's head, got {self.address!r}.")
        try:
            socket.create_connection((host, int(port)), REACH_SECONDS).close()
        except OSError as error:
            raise InputError(f"no Ray cluster answers at {self.address} ({error}); {ADDRESSES}.") from error


@dataclass
class RayWorkers:
    """Workers that Ray spreads over the machines of a cluster; workers for which there is no room yet wait."""

    job: Job
    gpus: float
    handles: dict[str, RayWorkerHandle] = field(default_factory=dict)
    shared: Any = None

    def __len__(self) -> int:
        return len(self.handles)

    def fill(self, queued: int) -> None:
        """Start workers for queued trials, up to the number of the plan."""
        for _ in range(min(self.job.plan.workers - len(self.handles), queued)):
            owner = f"ray actor {uuid.uuid4().hex}"  # no host has this name, so only heartbeats prove that it lives
            self.handles[owner] = self._start(owner)

    def wait(self, seconds: float) -> list[DeadWorker]:
        """Wait for a while, or until a worker is gone; return the dead ones."""
        if not self.handles:
            time.sleep(seconds)
            return []
        owners = {handle.done: owner for owner, handle in self.handles.items()}
        ready, _ = ray.wait(list(owners), timeout=seconds)
        self._listen()
        return [dead for done in ready for dead in _reap(owners[done], self.handles.pop(owners[done]))]

    def messages(self) -> list[dict[str, Any]]:
        """Return the last message of each worker, as far as it was asked for."""
        return [handle.last for handle in self.handles.values()]

    def stop(self) -> list[DeadWorker]:
        """Tell all workers to claim nothing more, kill them, and return them when they are dead."""
        handles, self.handles = self.handles, {}
        stopping = [handle.actor.stop.remote() for handle in handles.values()]
        if stopping:
            ray.wait(stopping, num_returns=len(stopping), timeout=STOP_SECONDS)
        for handle in handles.values():
            ray.kill(handle.actor)
        return [dead for owner, handle in handles.items() for dead in _reap(owner, handle)]

    def _start(self, owner: str) -> RayWorkerHandle:
        if self.shared is None:
            self.shared = ray.put(self.job)
        actor = (
            ray.remote(Worker)
            .options(
                num_cpus=self.job.threads,
                num_gpus=self.gpus,
                max_concurrency=2,
                max_restarts=0,  # the driver queues the trial again and starts another worker
                scheduling_strategy="SPREAD",
                runtime_env={"env_vars": {"PYTHONPATH": str(ROOT if (ROOT / "vaebench").is_dir() else ROOT.parent)}},
            )
            .remote()
        )
        return RayWorkerHandle(actor, actor.run.remote(self.shared, owner), actor.message.remote())

    def _listen(self) -> None:
        """Take the replies of workers and ask these again: only as many workers as a terminal has lines for."""
        shown = list(self.handles.values())[:WORKER_LINES]
        ready, _ = ray.wait([handle.reply for handle in shown], num_returns=len(shown), timeout=0)
        for handle in shown:
            if handle.reply in ready:
                with contextlib.suppress(RayError):
                    handle.last = ray.get(handle.reply)
                    handle.reply = handle.actor.message.remote()


def _reap(owner: str, handle: RayWorkerHandle) -> list[DeadWorker]:
    """Wait for the end of an actor, and return it if it did not end by itself."""
    try:
        cause = ray.get(handle.done)
    except RayActorError:
        cause = "its process, or its machine"
    except RayTaskError as error:
        if isinstance(error.cause, InputError):
            raise InputError(str(error.cause)) from error
        cause = sentence(error.cause)
    return [DeadWorker(owner, cause)] if cause else []
