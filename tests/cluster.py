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
    """Yield two machines that reach each other and nothing else; both on the loopback interface if forbidden."""
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
    pair = [Machine(f"{NETWORK}.{i + 1}", ("ip", "netns", "exec", name)) for i, name in enumerate(names)]
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


@contextlib.contextmanager
def ray_on(pair, folder, cpus=2):
    """Start Ray's head on the first machine and a node on the second; yield its address and the node's process."""
    head, node = pair
    with tempfile.TemporaryDirectory() as short:  # the path of a socket has at most 107 characters
        address = f"{head.address}:{chaos.free_port()}"
        ray = [Path(sys.executable).parent / "ray", "start", "--block", "--num-cpus", cpus, "--num-gpus", 0]
        ray += ["--object-store-memory", 100_000_000, "--disable-usage-stats"]
        alone = ["--head", "--port", address.rpartition(":")[2], "--temp-dir", short, "--include-dashboard=false"]
        processes = []
        for machine, how in ((head, alone), (node, ["--address", address])):
            log = folder / f"ray{len(processes)}.log"
            processes.append(machine.start(*ray, *how, "--node-ip-address", machine.address, log=log))
            chaos.wait_until(lambda log=log: "Ray runtime started" in log.read_text(), processes[-1])
        try:
            yield address, processes[1]
        finally:
            for machine in pair:
                machine.end()


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
    log = folder / "mlflow.log"
    chaos.wait_until(lambda: "startup complete" in log.read_text(), process)
    return f"http://{machine.address}:{port}"


@dataclass(frozen=True)
class Report:
    """What a study on the cluster left behind: what its two drivers said, trials, runs, the seconds of the second."""

    codes: list
    out: list
    errors: list
    trials: list
    runs: list
    seconds: float
    still_there: list


def ordeal(folder, *, trials, workers, stop_after, kill_after, arguments=()):
    """Run a study on two machines: Ctrl-C after some trials, go on, kill one machine after some more."""
    with (
        machines() as pair,
        postgres.serve(pair[0].address, pair[0].inside) as server,
        ray_on(pair, folder) as (address, node),
    ):
        storage, store = server.create("optuna"), server.create("mlflow")
        uri = start_mlflow(pair[0], store, folder)
        asked = ["--study", "ray", "--engine", "ray", "--address", address, "--storage", storage]
        asked += ["--tracking-uri", uri, "--trials", str(trials), "--workers", str(workers), *arguments]

        def until(count):
            driver = drive(pair[0], folder, asked)
            chaos.wait_until(lambda: finished(chaos.trials_of("ray", server.near(storage))) >= count, driver)
            return driver

        first = until(stop_after)
        first.send_signal(signal.SIGINT)
        said = [first.communicate(timeout=300)]
        still_there = [name for name in working(pair) if not goes_away(name)]
        began = time.monotonic()
        second = until(kill_after)
        kill_raylet(node)
        said.append(second.communicate(timeout=900))
        seconds = time.monotonic() - began
        left = chaos.aftermath("ray", server.near(storage), server.near(store))
        out, errors = zip(*said, strict=True)
        return Report([first.returncode, second.returncode], out, errors, *left, seconds, still_there)


def drive(machine, folder, asked):
    """Start a sweep of short trials on a machine."""
    command = [sys.executable, chaos.ROOT / "studies" / "sweep.py", *chaos.SHORT, *asked]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return machine.start(*command, log=folder / "sweep.log", cwd=folder, **pipes)


def working(pair):
    """Return the ids of the processes that are workers."""
    below = [pid for machine in pair for process in machine.processes for pid in descendants(process.pid)]
    return [pid for pid in below if name_of(pid).startswith("ray::Worker")]


def goes_away(pid, seconds=10):
    """Whether a process ends within some seconds."""
    until = time.monotonic() + seconds
    while name_of(pid).startswith("ray::Worker") and time.monotonic() < until:
        time.sleep(0.1)
    return not name_of(pid).startswith("ray::Worker")


def finished(trials):
    """Count the trials that will not be run again."""
    return sum(trial.state in (TrialState.COMPLETE, TrialState.PRUNED) for trial in trials)


def main():
    """Run forty trials on the cluster, a machine of which dies, and as many on the local engine with PostgreSQL."""
    with tempfile.TemporaryDirectory() as folder:
        report = ordeal(Path(folder), trials=40, workers=2, stop_after=1, kill_after=15)
    with tempfile.TemporaryDirectory() as folder, postgres.serve() as server:
        began = time.monotonic()
        there = Machine("127.0.0.1")
        asked = ["--study", "here", "--trials", "40", "--workers", "2", "--storage", server.create("optuna")]
        here = drive(there, Path(folder), [*asked, "--tracking-uri", server.create("mlflow")])
        here.communicate(timeout=900)
        local = time.monotonic() - began
    print(f"exit codes {report.codes}, on stderr: {report.errors}")
    print(f"the second driver on the cluster {report.seconds:.0f} s, the same trials on the local engine {local:.0f} s")
    print("trials:", dict(Counter(trial.state.name for trial in report.trials)))
    print("runs:  ", dict(Counter(run.status for run in report.runs)))
    print("trials without exactly one run of their state:", chaos.mismatches(report.trials, report.runs) or "none")


if __name__ == "__main__":
    main()
