"""Many machines in one study: what is refused, and forty trials on a Ray cluster that loses a machine."""

import importlib.util
import re
import sys

import pytest

from tests import chaos, cluster, postgres
from vaebench.studies import sweep as sweep_command

STORAGE = "postgresql+psycopg://me:secret@127.0.0.1:1/none"
INSTALL = "Ray is not installed: pip install ray"

has_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason=INSTALL)


def refused(capsys, *arguments):
    """Return the one sentence that a command line is refused with."""
    assert sweep_command.main(["--engine", "ray", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("sweep.py: ")
    assert (captured.err.count("\n"), captured.out) == (1, "")
    return captured.err


def test_without_ray_a_sentence_says_how_to_install_it(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delitem(sys.modules, "vaebench.studies.engine.launch.ray_cluster", raising=False)
    assert "--engine ray needs Ray" in (said := refused(capsys, "--storage", STORAGE))
    assert said.endswith("pip install ray.\n")


@has_ray
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--engine ray needs --storage postgresql+psycopg://USER@HOST/DATABASE"),
        (["--storage", STORAGE], "--engine ray needs --tracking-uri http://HOST:PORT, or none"),
        (["--storage", STORAGE, "--tracking-uri", "none", "--address", "127.0.0.1:1"], "no Ray cluster answers at 127"),
        (["--storage", STORAGE, "--tracking-uri", "none", "--address", "ray://x"], "--address takes auto or HOST:PORT"),
        (["--storage", STORAGE, "--tracking-uri", "none", "--gpus-per-worker", "1.5"], "--gpus-per-worker takes"),
        (["--storage", STORAGE, "--tracking-uri", "none"], "there is no Ray cluster at auto"),
    ],
)
def test_what_a_cluster_cannot_share_or_reach_is_one_sentence(capsys, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert message in (said := refused(capsys, *arguments))
    assert "secret" not in said


@has_ray
@postgres.needed
def test_a_study_outlives_ctrl_c_and_a_machine_of_its_cluster(tmp_path):
    report = cluster.ordeal(tmp_path, trials=40, workers=4, stop_after=3, kill_after=15)
    assert report.codes == [130, 0], report.errors
    assert re.search(
        r"^\nStopped; what was finished is kept\. To go on: python studies/sweep\.py .*--engine ray", report.errors[0]
    )
    assert report.still_there == []
    assert report.errors[1] == ""
    assert cluster.finished(report.trials) == 40
    assert not [trial.number for trial in report.trials if trial.state.name in ("RUNNING", "WAITING")]
    assert chaos.mismatches(report.trials, report.runs) == []
    lost = [trial for trial in report.trials if "its machine" in trial.user_attrs.get("reason", "")]
    assert lost, "the machine died while it worked"
