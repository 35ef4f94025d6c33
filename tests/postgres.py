"""A PostgreSQL server of a test's own, on an address that only the test can reach."""

import contextlib
import os
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests import chaos

BINARIES = sorted(Path("/usr/lib/postgresql").glob("*/bin"))

needed = pytest.mark.skipif(
    not (BINARIES or shutil.which("initdb")), reason="PostgreSQL is not installed: apt-get install postgresql"
)


def tool(name):
    """Return the command of a server binary; PostgreSQL refuses to run as root, so there it runs as its own user."""
    found = shutil.which(name) or str(BINARIES[-1] / name)
    return [
        *(["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"] if os.geteuid() == 0 else []),
        found,
    ]


@dataclass(frozen=True)
class Server:
    """A running server: its address in its network, and the folder of a socket that any namespace reaches."""

    host: str
    port: int
    folder: Path

    def create(self, database):
        """Make a database and return its URL."""
        subprocess.run([*tool("createdb"), *self.local_address, database], check=True, capture_output=True)
        return f"postgresql+psycopg://vae@{self.host}:{self.port}/{database}"

    def near(self, url):
        """Return the URL of the same database by way of the socket."""
        return f"postgresql+psycopg://vae@/{url.rpartition('/')[2]}?host={self.folder}&port={self.port}"

    def dump(self, database):
        """Return everything that a database holds, as text."""
        return subprocess.run([*tool("pg_dump"), *self.local_address, database], check=True, capture_output=True).stdout

    def answers(self):
        """Whether it takes connections."""
        asked = subprocess.run([*tool("pg_isready"), "-q", *self.local_address], capture_output=True)
        return asked.returncode == 0

    @property
    def local_address(self):
        """Return the options of a client."""
        return ["-h", str(self.folder), "-p", str(self.port), "-U", "vae"]


@contextlib.contextmanager
def serve(host="127.0.0.1", inside=()):
    """Start a server, in another network namespace where commands are prefixed for that, and yield it."""
    pytest.importorskip("psycopg", reason="the driver is not installed: pip install 'psycopg[binary]'")
    with tempfile.TemporaryDirectory() as made:  # pytest's own folders are closed to the server's user
        if os.geteuid() == 0:
            shutil.chown(made, "postgres", "postgres")
        server = Server(host, chaos.free_port(), Path(made))
        data = server.folder / "data"
        subprocess.run(
            [*tool("initdb"), "-D", data, "-A", "trust", "-U", "vae", "--no-sync"], check=True, capture_output=True
        )
        with (data / "pg_hba.conf").open("a") as rules:
            rules.write(f"host all vae {host}/24 trust\n")
        with (server.folder / "log").open("w") as log:
            options = ["-D", data, "-p", str(server.port), "-h", host, "-k", str(server.folder), "-c", "fsync=off"]
            process = subprocess.Popen(
                [*inside, *tool("postgres"), *options], stdout=log, stderr=log, start_new_session=True
            )
        try:
            chaos.wait_until(server.answers, process)
            yield server
        finally:
            chaos.end_group(process)
