"""Workers as actors on a Ray cluster: Ray places, counts and ends them, and knows nothing of trials.

The only module that imports Ray. Every machine of the cluster needs the checkout, its Python environment and the folder
of the study under the same path, as a shared file system gives them.
"""

import contextlib
import dataclasses
import os
import socket
import time
import uuid
from dataclasses import dataclass, field
from typing import Any

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # Ray looks at these when it is imported
os.environ["RAY_DEDUP_LOGS_SKIP_REGEX"] = "."  # what a dying machine logs; the driver says what became of its trials

import ray
from ray.exceptions import RayActorError, RayError, RayTaskError

from vaebench.studies import machine
from vaebench.studies.engine.driver.supervise import Death
from vaebench.studies.engine.search.queue import STORAGE_ERRORS
from vaebench.studies.engine.workers import loop
from vaebench.studies.engine.workers.job import Job
from vaebench.studies.tracking.provenance import ROOT, code_version
from vaebench.vae.errors import InputError, sentence

REACH_SECONDS, STOP_SECONDS = 5.0, 2.0
HEARD = 32
ADDRESSES = "give the head's HOST:PORT, or auto on a machine where `ray start` ran"


class Worker:
    """The worker loop in a process of the cluster; its second thread answers the driver."""

    def __init__(self) -> None:
        self.last: dict[str, Any] = {}
        self.wanted = True

    def serve(self, job: Job, owner: str) -> str:
        """Work until no trial is queued; return why it had to end sooner, empty if it had not."""
        if (code := code_version()) != job.tags["code"]:
            raise InputError(f"{socket.gethostname()} has other code in {ROOT} ({code}) than the driver.")
        here = {"host": socket.gethostname(), "device": machine.device_name()}
        try:
            loop.serve(dataclasses.replace(job, tags=job.tags | here), owner, 0, self._note, lambda: self.wanted)
        except STORAGE_ERRORS as error:
            return sentence(error)
        except loop.Orphaned:
            return "a word of its driver"
        return ""

    def news(self) -> dict[str, Any]:
        """Return what it last had to say."""
        return self.last

    def stop(self) -> None:
        """Claim no other trial, and leave this one."""
        self.wanted = False

    def _note(self, message: dict[str, Any]) -> None:
        self.last = message


@dataclass
class Hand:
    """An actor as its driver sees it."""

    actor: Any
    done: ray.ObjectRef
    asked: ray.ObjectRef
    last: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Cluster:
    """A running Ray cluster, and the share of a GPU that each worker gets.

    Attributes:
        gpus: per worker; None is a whole one where the cluster has GPUs and the study may use them.
    """

    address: str
    gpus: float | None = None

    def default_workers(self, device: str, trials: int) -> int:
        """Return one worker for each share of a GPU, or each core, but above two only with five trials for each."""
        self.connect()
        gpus = self.share(device)
        if gpus:
            return max(1, int(ray.cluster_resources().get("GPU", 0) / gpus))
        return min(int(ray.cluster_resources()["CPU"]), max(2, trials // machine.TRIALS_PER_WORKER))

    def share(self, device: str) -> float:
        """Return the GPUs of one worker."""
        if self.gpus is not None:
            return self.gpus
        return 1.0 if device != "cpu" and ray.cluster_resources().get("GPU") else 0.0

    def crew(self, job: Job) -> "Actors":
        """Return a crew without members; a worker writes to the study's folder whatever machine it runs on."""
        self.connect()
        return Actors(job.under(job.plan.folder.resolve()), self.share(job.plan.base.train.device))

    def connect(self) -> None:
        """Connect to the cluster, or say that it does not answer."""
        if ray.is_initialized():
            return
        self._require_answer()
        try:
            ray.init(self.address, log_to_driver=False, logging_level="CRITICAL", namespace="vaebench")
        except (RayError, ConnectionError, RuntimeError, ValueError) as error:
            cause = " ".join(str(error).split()).rstrip(".") or type(error).__name__
            raise InputError(f"there is no Ray cluster at {self.address} ({cause}); {ADDRESSES}.") from error

    def close(self) -> None:
        """Leave the cluster."""
        ray.shutdown()

    def _require_answer(self) -> None:
        """Refuse an address where nobody listens: Ray itself would try for a minute, and then abort the process."""
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
class Actors:
    """A crew whose members Ray places, spread over the machines of a cluster; those it has no room for yet wait."""

    job: Job
    gpus: float
    hands: dict[str, Hand] = field(default_factory=dict)
    shared: Any = None

    def __len__(self) -> int:
        return len(self.hands)

    def fill(self, queued: int) -> None:
        """Start workers for queued trials, as far as there are free places."""
        for _ in range(min(self.job.plan.workers - len(self.hands), queued)):
            owner = f"ray actor {uuid.uuid4().hex}"  # no host has such a name: only its heartbeat proves that it lives
            self.hands[owner] = self._start(owner)

    def attend(self, seconds: float) -> list[Death]:
        """Wait for a while, or until one is gone; return the dead."""
        if not self.hands:
            time.sleep(seconds)
            return []
        done = {hand.done: owner for owner, hand in self.hands.items()}
        ready, _ = ray.wait(list(done), timeout=seconds)
        self._listen()
        return [death for ref in ready for death in _leave(done[ref], self.hands.pop(done[ref]))]

    def news(self) -> list[dict[str, Any]]:
        """Return the last that was heard of the first workers."""
        return [hand.last for hand in self.hands.values()]

    def dismiss(self) -> list[Death]:
        """Tell all workers to claim nothing more, and kill them."""
        hands, self.hands = self.hands, {}
        told = [hand.actor.stop.remote() for hand in hands.values()]
        ray.wait(told, num_returns=len(told), timeout=STOP_SECONDS) if told else None
        for hand in hands.values():
            ray.kill(hand.actor)
        return [death for owner, hand in hands.items() for death in _leave(owner, hand)]

    def _start(self, owner: str) -> Hand:
        if self.shared is None:
            self.shared = ray.put(self.job)
        actor = (
            ray.remote(Worker)
            .options(
                num_cpus=self.job.threads,
                num_gpus=self.gpus,
                max_concurrency=2,
                max_restarts=0,  # the driver starts another one, after it has queued the trial again
                scheduling_strategy="SPREAD",
                runtime_env={"env_vars": {"PYTHONPATH": str(ROOT)}},
            )
            .remote()
        )
        return Hand(actor, actor.serve.remote(self.shared, owner), actor.news.remote())

    def _listen(self) -> None:
        """Take what workers answered, and ask those again: as many as a terminal has lines for."""
        heard = list(self.hands.values())[:HEARD]
        ready, _ = ray.wait([hand.asked for hand in heard], num_returns=len(heard), timeout=0)
        for hand in heard:
            if hand.asked in ready:
                with contextlib.suppress(RayError):
                    hand.last = ray.get(hand.asked)
                    hand.asked = hand.actor.news.remote()


def _leave(owner: str, hand: Hand) -> list[Death]:
    """See an actor out, and return its death if it did not end by itself."""
    try:
        cause = ray.get(hand.done)
    except RayActorError:
        cause = "its process, or its machine"
    except RayTaskError as error:
        if isinstance(error.cause, InputError):
            raise InputError(str(error.cause)) from error
        cause = sentence(error.cause)
    return [Death(owner, cause)] if cause else []
