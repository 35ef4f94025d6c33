"""A Ray cluster of two machines on this one, each in a network namespace of its own, with what a sweep needs there.

`python -m tests.cluster` runs forty trials on it while a machine dies, and the same trials on the local engine.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from optuna.trial import TrialState

from tests import chaos, postgres

NETWORK = "10.213.57"
QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    "OMP_NUM_THREADS": "1",
}


@dataclass
class Machine:
    """A machine of the test: what a command is prefixed with to run on it, its address, its processes."""

    address: str
    inside: tuple[str, ...] = ()
    processes: list[subprocess.Popen] = field(default_factory=list)

    def start(self, *command, log, **settings):
        """Start a process on this machine, in a session of its own."""
        with log.open("a") as file:
            process = subprocess.Popen(
                [*self.inside, *map(str, command)],
                **{"stdout": file, "stderr": file, "start_new_session": True, "env": os.environ | QUIET, **settings},
            )
        self.processes.append(process)
        return process

    def end(self):
        """End everything that was started here, and what it started, by its id."""
        for process in reversed(self.processes):
            for pid in [*descendants(process.pid), process.pid]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            process.wait()


def descendants(pid):
    """Return the ids of all processes below one."""
    parents = {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parents[int(status.parent.name)] = int(status.read_text().rpartition(")")[2].split()[1])
    found, last = [], [pid]
    while last := [child for child, parent in parents.items() if parent in last]:
        found += last
    return found


def name_of(pid):
    """Return the name of a process, empty where it is gone."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_text().strip()
    return ""


def can_have_namespaces():
    """Whether this user may make network namespaces."""
    if os.geteuid() != 0 or not shutil.which("ip"):
        return False
    name = f"probe{os.getpid()}"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True).returncode == 0
    if made:
        subprocess.run(["ip", "netns", "del", name], capture_output=True)
    return made


@contextlib.contextmanager
def machines():
    """Yield two machines that reach each other and nothing else; on the loopback interface where that is not allowed."""
    if not can_have_namespaces():
        pair = [Machine("127.0.0.1"), Machine("127.0.0.1")]
        try:
            yield pair
        finally:
            for machine in pair:
                machine.end()
        return
    names = [f"vae{os.getpid()}{side}" for side in "ab"]
    for name in names:
        ip("netns", "add", name)
    pair = [
        Machine(f"{NETWORK}.{i + 1}", ("ip", "netns", "exec", name))
        for i, name in enumerate(names)
    ]
    try:
        ip("-n", names[0], "link", "add", "cable", "type", "veth", "peer", "name", "cable", "netns", names[1])
        for name, machine in zip(names, pair, strict=True):
            ip("-n", name, "address", "add", f"{machine.address}/24", "dev", "cable")
            ip("-n", name, "link", "set", "lo", "up")
            ip("-n", name, "link", "set", "cable", "up")
        yield pair
    finally:
        for machine in pair:
            machine.end()
        for name in names:
            ip("netns", "del", name)


def ip(*arguments):
    """Run `ip`."""
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


def start_ray(pair, folder, cpus=2):
    """Start the head on the first machine and a node on the second; return the head's address and the node's raylet."""
    head, node = pair
    port = chaos.free_port()
    ray = [Path(sys.executable).parent / "ray", "start", "--block", "--num-cpus", cpus, "--num-gpus", 0]
    ray += ["--object-store-memory", 100_000_000, "--disable-usage-stats"]
    place = ["--temp-dir", folder / "ray", "--include-dashboard=false"]
    head.start(*ray, "--head", "--node-ip-address", head.address, "--port", port, *place, log=folder / "head.log")
    address = f"{head.address}:{port}"
    wait_for_nodes(head, address, 1, folder)
    started = node.start(*ray, "--address", address, "--node-ip-address", node.address, log=folder / "node.log")
    wait_for_nodes(head, address, 2, folder)
    return address, started


def wait_for_nodes(machine, address, count, folder):
    """Wait until that many machines of a cluster are alive."""
    script = (
        f"import ray; ray.init({address!r}, log_to_driver=False, logging_level='CRITICAL'); "
        f"raise SystemExit(sum(node['Alive'] for node in ray.nodes()) != {count})"
    )

    def there():
        asked = [*machine.inside, sys.executable, "-c", script]
        return subprocess.run(asked, env=os.environ | QUIET, capture_output=True).returncode == 0

    chaos.wait_until(there, None)


def kill_raylet(node):
    """Kill what makes a process tree of Ray a node of its cluster."""
    (raylet,) = [pid for pid in descendants(node.pid) if name_of(pid) == "raylet"]
    os.kill(raylet, signal.SIGKILL)


def start_mlflow(machine, database, folder):
    """Start a tracking server on a machine and return its address."""
    port = chaos.free_port()
    process = machine.start(
        *(sys.executable, "-m", "mlflow", "server", "--host", machine.address, "--port", port, "--workers", 1),
        *("--backend-store-uri", database, "--artifacts-destination", folder / "artifacts"),
        log=folder / "mlflow.log",
    )
    asked = [*machine.inside, sys.executable, "-c", f"import socket; socket.create_connection(({machine.address!r}, {port}))"]
    chaos.wait_until(lambda: subprocess.run(asked, capture_output=True).returncode == 0, process)
    return f"http://{machine.address}:{port}"


@dataclass(frozen=True)
class Report:
    """What a study on the cluster left behind."""

    code: int
    out: str
    errors: str
    seconds: float
    trials: list
    runs: list


def sweep_on_cluster(folder, *, trials, workers, kill_after, arguments=()):
    """Run a study on two machines of which the second dies once some trials are finished, and gather what is left."""
    with machines() as pair, postgres.serve(pair[0].address, pair[0].inside) as server:
        address, node = start_ray(pair, folder)
        storage, store = server.create("optuna"), server.create("mlflow")
        uri = start_mlflow(pair[0], store, folder)
        began = time.monotonic()
        driver = pair[0].start(
            *(sys.executable, chaos.ROOT / "studies" / "sweep.py", *chaos.SHORT, "--study", "ray"),
            *("--engine", "ray", "--address", address, "--storage", storage, "--tracking-uri", uri),
            *("--trials", trials, "--workers", workers, *arguments),
            log=folder / "sweep.log",
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=folder,
        )
        near = server.near(storage)
        if kill_after is not None:
            chaos.wait_until(lambda: finished(chaos.trials_of("ray", near)) >= kill_after, driver)
            kill_raylet(node)
        out, errors = driver.communicate(timeout=900)
        left = chaos.aftermath("ray", near, server.near(store))
        return Report(driver.returncode, out, errors, time.monotonic() - began, *left)


def finished(trials):
    """Count the trials that will not be run again."""
    return sum(trial.state in (TrialState.COMPLETE, TrialState.PRUNED) for trial in trials)


def main():
    """Run the same trials on the cluster, a machine of which dies, and on the local engine."""
    with tempfile.TemporaryDirectory() as folder:
        report = sweep_on_cluster(Path(folder), trials=40, workers=4, kill_after=15)
    print(f"exit code {report.code} after {report.seconds:.0f} s, on stderr: {report.errors or 'nothing'}")
    print("trials:", dict(Counter(trial.state.name for trial in report.trials)))
    print("runs:  ", dict(Counter(run.status for run in report.runs)))
    print("trials without exactly one run of their state:", chaos.mismatches(report.trials, report.runs) or "none")
    print(report.out)


if __name__ == "__main__":
    main()
