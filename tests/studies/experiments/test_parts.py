"""An experiment that is stopped keeps what it finished, and the same command computes only the rest."""

import argparse
import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from tests import ROOT
from vaebench.studies.experiments import gradient_variance, information_preference, parallel, parts
from vaebench.vae.config.fields import to_plain


@pytest.fixture
def options(tmp_path):
    return argparse.Namespace(name="mine", folder=tmp_path, started=1, tracking_uri=None, seeds=3)


def test_ctrl_c_is_one_sentence_and_the_same_command_computes_the_rest(tmp_path, monkeypatch, capsys):
    measured, stop_at = [], [16]

    def measure(K, repeats):
        if K in stop_at:
            raise KeyboardInterrupt
        measured.append(K)
        return [{"K": K, "estimator": "pathwise", "samples": 1, "variance": 1.0, "distance of the mean": 0.5}]

    monkeypatch.setattr(gradient_variance, "measure", measure)
    monkeypatch.setattr(gradient_variance, "LATENT_SIZES", (8, 16, 32))
    command = ["--folder", str(tmp_path), "--tracking-uri", "none"]
    assert gradient_variance.main(command) == 130
    assert capsys.readouterr().err == "\nStopped; the same command goes on.\n"
    assert measured == [8]
    stop_at.clear()
    assert gradient_variance.main(command) == 0
    assert measured == [8, 16, 32]
    assert len((tmp_path / "table.csv").read_text().splitlines()) == 4
    assert {path.name for path in tmp_path.iterdir()} == {"table.csv", "picture.png"}
    assert gradient_variance.main(command) == 0
    assert measured == [8, 16, 32, 8, 16, 32], "what is written begins anew"


def test_a_part_is_of_its_key_its_options_and_its_code(options, monkeypatch):
    calls = []

    def compute(value: int) -> list[int]:
        calls.append(value)
        return [value]

    assert parts.keep(options, "a", compute, 1) == parts.keep(options, "a", compute, 1) == [1]
    assert calls == [1]
    parts.keep(argparse.Namespace(**vars(options) | {"started": 2}), "a", compute, 1)
    assert calls == [1], "the time of the start changes no result"
    parts.keep(options, "b", compute, 2)
    parts.keep(argparse.Namespace(**vars(options) | {"seeds": 4}), "a", compute, 3)
    monkeypatch.setattr(parts, "code_version", lambda: "another")
    parts.keep(options, "a", compute, 4)
    assert calls == [1, 2, 3, 4]


def test_tensors_and_records_are_kept_as_they_are(options):
    images = torch.rand(2, 3, 8, 8)

    def measure() -> information_preference.Measurement:
        return information_preference.Measurement({"test/nll": 1.5}, images)

    for _ in range(2):
        found = parts.keep(options, "a", measure)
        assert found.metrics == {"test/nll": 1.5}
        assert torch.equal(found.images, images)


def test_groups_are_mapped_in_separate_processes_and_in_order(options):
    groups = {"a": [(1, 2), ()], "b": [3]}
    assert parallel.map_groups(to_plain, groups, (8, 8), options) == {"a": ["1,2", "auto"], "b": [3]}


SCRIPT = """
import argparse, os, time
from pathlib import Path
from vaebench.studies import command_line
from vaebench.studies.experiments import parallel

def work(item: int) -> int:
    with open("seen", "a") as file:
        file.write(f"{item}\\n")
    time.sleep(300 if item == 3 and "SLOW" in os.environ else 0)
    return item * item

def main():
    options = argparse.Namespace(name="mine", folder=Path("."))
    print(parallel.map_groups(work, {"all": [1, 2, 3]}, (8, 8), options))

if __name__ == "__main__":
    raise SystemExit(command_line.run("mine.py", main))
"""


def test_ctrl_c_ends_the_processes_without_a_traceback_and_keeps_what_they_finished(tmp_path):
    (tmp_path / "mine.py").write_text(SCRIPT)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}

    def start(**more):
        return subprocess.Popen(
            [sys.executable, "mine.py"],
            cwd=tmp_path,
            env=environment | more,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a job in the background ignores it
        )

    process, until = start(SLOW="1"), time.monotonic() + 120
    while len(list(tmp_path.glob("parts/*.pt"))) < 2 or "3" not in (tmp_path / "seen").read_text():
        assert time.monotonic() < until
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=300)
    assert (process.returncode, out) == (130, "")
    assert err.endswith("\nStopped; the same command goes on.\n")
    assert "Traceback" not in err
    done = len(list(tmp_path.glob("parts/*.pt")))
    out, err = start().communicate(timeout=120)
    assert out == "{'all': [1, 4, 9]}\n"
    assert len((tmp_path / "seen").read_text().splitlines()) == 3 + 1 + (2 - done)
