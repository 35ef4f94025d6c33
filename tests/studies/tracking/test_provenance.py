"""The origin of a run: its command, its commit, and a hash of the code that decides results."""

import hashlib
import subprocess

import pytest

from vaebench.studies.tracking import provenance
from vaebench.studies.tracking.provenance import code_version, git_commit

DECIDING = ("vae/model/a.py", "kernels/b.py", "studies/engine/study/space.py", "studies/engine/workers/trial.py")


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """A source tree in the place of this one."""
    for name in (*DECIDING, "studies/engine/report/page.py", "vae/notes.md"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"# {name}")
    monkeypatch.setattr(provenance, "ROOT", tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    monkeypatch.setattr(provenance, "code_version", code_version.__wrapped__)
    return tmp_path


def test_the_version_of_the_code_is_a_hash_of_the_files_that_decide_results(tree):
    digest = hashlib.sha256()
    for name in DECIDING:
        digest.update(name.encode() + (tree / name).read_bytes())
    before = provenance.code_version()
    assert before == digest.hexdigest()[:8]
    for name in ("studies/engine/report/page.py", "vae/notes.md"):
        (tree / name).write_text("changed")
    assert provenance.code_version() == before
    seen = {before}
    for name in DECIDING:
        (tree / name).write_text("changed")
        seen.add(provenance.code_version())
    (tree / DECIDING[0]).rename(tree / "vae/model/renamed.py")
    seen.add(provenance.code_version())
    assert len(seen) == 2 + len(DECIDING)


def test_the_commit_is_the_one_that_is_checked_out_and_says_whether_files_differ(tree):
    def git(*words):
        own = ["-c", "user.name=n", "-c", "user.email=e", "-c", "commit.gpgsign=false"]
        done = subprocess.run(["git", "-C", tree, *own, *words], capture_output=True, text=True, check=True)
        return done.stdout.strip()

    assert git_commit() is None
    git("init", "-q")
    git("add", ".")
    git("commit", "-qm", "first")
    head = git("rev-parse", "HEAD")
    assert git_commit() == head
    (tree / DECIDING[0]).write_text("changed")
    assert git_commit() == f"{head}-dirty"


@pytest.mark.parametrize(
    ("command", "source"),
    [
        ("python studies/sweep.py --trials 4", "studies/sweep.py"),
        ("vaebench sweep --trials 4", "vaebench sweep"),
    ],
)
def test_a_run_tells_its_command_and_the_commit_if_there_is_one(monkeypatch, command, source):
    monkeypatch.setattr(provenance, "git_commit", lambda: "abc-dirty")
    tags = provenance.provenance(command)
    assert (tags["command"], tags["mlflow.source.name"]) == (command, source)
    assert tags["mlflow.source.git.commit"] == "abc-dirty"
    assert tags["torch"]
    monkeypatch.setattr(provenance, "git_commit", lambda: None)
    assert "mlflow.source.git.commit" not in provenance.provenance(command)
