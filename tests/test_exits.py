"""A command that leaves at once has done all that it would have done."""

import contextlib
import os
import shutil
import sqlite3
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
BUFFERED = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
PROGRAM = """
import atexit
from vaebench.studies import exits

atexit.register(print, "registered")
print("printed")
exits.leave(3)
raise AssertionError("it stayed")
"""


def run(program, **streams):
    line = [sys.executable, "-c", textwrap.dedent(program)]
    return subprocess.run(line, cwd=ROOT, stderr=subprocess.PIPE, text=True, check=False, **streams)


def test_what_was_printed_and_registered_is_done_and_the_code_is_given():
    done = run(PROGRAM, stdout=subprocess.PIPE)
    assert (done.returncode, done.stdout, done.stderr) == (3, "printed\nregistered\n", "")


def test_a_reader_that_has_gone_is_no_error():
    reads, writes = os.pipe()
    os.close(reads)
    done = run(PROGRAM, stdout=writes, env=BUFFERED)
    os.close(writes)
    assert (done.returncode, done.stderr) == (3, "")


def test_streams_that_were_closed_are_no_error():
    assert subprocess.run(["bash", "-c", f"{sys.executable} -c '{PROGRAM}' >&- 2>&-"], cwd=ROOT).returncode == 3


def test_a_full_disk_is_an_error():
    with Path("/dev/full").open("w") as full:
        done = run(PROGRAM, stdout=full, env=BUFFERED)
    assert done.returncode not in (0, 3)
    assert "No space left" in done.stderr


def test_children_are_ended_as_at_any_other_exit():
    program = """
    import multiprocessing, time
    from vaebench.studies import exits
    child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,), daemon=True)
    child.start()
    print(child.pid, flush=True)
    exits.leave(0)
    """
    done = run(program, stdout=subprocess.PIPE, timeout=30)
    assert done.returncode == 0
    with pytest.raises(ProcessLookupError):
        os.kill(int(done.stdout), 0)


def test_the_database_is_whole_without_its_log(tmp_path):
    program = f"""
    from pathlib import Path
    from vaebench.studies import exits, tracking
    from vaebench.studies.records import Record
    tracker = tracking.Tracker(tracking.default_uri(Path({str(tmp_path)!r})), "kept")
    tracker.add(Record(0, "one", 1, status="FINISHED", end=2))
    exits.leave(0)
    """
    done = run(program, stdout=subprocess.PIPE, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    log = tmp_path / "mlflow.db-wal"
    assert not log.exists() or not log.stat().st_size, "it would be played over a copy that is put back"
    alone = shutil.copy(tmp_path / "mlflow.db", tmp_path / "copied.db")
    with contextlib.closing(sqlite3.connect(alone)) as database:
        assert database.execute("SELECT name, status FROM runs").fetchall() == [("one", "FINISHED")]
