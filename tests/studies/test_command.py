"""`vaebench COMMAND ...`, and the exit codes that all command lines share."""

import importlib.metadata
import os
import subprocess
import sys

import pytest
import torch

import vaebench.__main__ as console
from tests import ROOT
from vaebench.bench import profile_step
from vaebench.bench.cases.training_step import CONFIGS
from vaebench.studies import command_line
from vaebench.studies.engine.study import choices
from vaebench.studies.engine.study.space import PRESETS
from vaebench.studies.engine.study.target import TARGETS
from vaebench.studies.tracking.record import StoreError
from vaebench.vae.errors import DivergedError, InputError


def call(monkeypatch, *arguments):
    """Run the console command in this process; return its exit code."""
    monkeypatch.setattr(sys, "argv", ["/usr/bin/vaebench", *arguments])
    return console.main()


@pytest.mark.parametrize("name", console.COMMANDS)
def test_help_is_that_of_the_command_under_its_name(name, monkeypatch, capsys):
    with pytest.raises(SystemExit) as end:
        call(monkeypatch, name, "--help")
    assert end.value.code == 0
    out, err = capsys.readouterr()
    assert out.startswith(f"usage: vaebench {name} [-h]")
    assert err == ""


def test_the_version_is_told(monkeypatch, capsys):
    assert call(monkeypatch, "--version") == 0
    assert capsys.readouterr().out == f"vaebench {importlib.metadata.version('vaebench')}\n"


HEAVY = {"torch", "mlflow", "optuna", "numpy", "pandas", "matplotlib", "sqlalchemy"}
SCRIPTS = (
    "studies/train",
    "studies/sweep",
    "studies/report",
    "studies/audit",
    "studies/reproduce",
    "studies/track_bench",
    "bench/profile_step",
    "bench/report",
)


@pytest.mark.parametrize(
    "command",
    [["-m", "vaebench"], *(["-m", "vaebench", name] for name in console.COMMANDS), *([f"{s}.py"] for s in SCRIPTS)],
)
@pytest.mark.parametrize(("option", "code"), [("--help", 0), ("--no-such-option", 2)])
def test_options_are_answered_without_an_import_that_takes_seconds(command, option, code):
    shown = [sys.executable, "-X", "importtime", *command, option]
    done = subprocess.run(shown, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
    assert done.returncode == code
    assert "importlib" in imported
    assert not imported & HEAVY


def test_the_names_that_options_choose_from_are_those_that_there_are():
    assert tuple(TARGETS) == choices.TARGETS
    assert tuple(PRESETS) == choices.SPACES
    assert tuple(CONFIGS) == profile_step.MODELS


@pytest.mark.parametrize("name", ["train", "sweep"])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--set", "model.latent", "4"],
            "argument --set: must be NAME=VALUE, as in train.epochs=50, got 'model.latent'",
        ),
        (["--set", "=4"], "argument --set: must be NAME=VALUE, as in train.epochs=50, got '=4'"),
        (["--unknown", "3"], "unrecognized arguments: --unknown 3"),
        (["--da", "mnist"], "unrecognized arguments: --da mnist"),
    ],
)
def test_a_wrong_option_is_one_sentence_without_the_page_of_usage(name, arguments, message, monkeypatch, capsys):
    with pytest.raises(SystemExit) as end:
        call(monkeypatch, name, *arguments)
    assert end.value.code == 2
    out, err = capsys.readouterr()
    assert (out, err) == ("", f"vaebench {name}: {message}; see --help.\n")


@pytest.mark.parametrize(
    ("error", "size"),
    [
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 204800000000 bytes."),
            "205 GB",
        ),
        (MemoryError("Unable to allocate 3.64 TiB for an array with shape (1000000, 500000)"), "3.64 TiB"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has ..."), "20.00 GiB"),
    ],
)
def test_an_allocation_that_fails_is_one_sentence(error, size, capsys):
    def fail():
        raise error

    assert command_line.run("x.py", fail) == 2
    assert capsys.readouterr().err.startswith(f"x.py: there is not enough memory: {size} were needed at once; ")


def test_arguments_go_to_the_command(monkeypatch, capsys):
    assert call(monkeypatch, "train", "--settings") == 0
    assert "objective.lambda" in capsys.readouterr().out


def test_an_unknown_command_is_one_sentence(monkeypatch, capsys):
    assert call(monkeypatch, "trian") == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err == f"vaebench: there is no command 'trian'; choose from {', '.join(console.COMMANDS)}.\n"


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
def test_without_a_command_all_are_listed(arguments, monkeypatch, capsys):
    assert call(monkeypatch, *arguments) == 0
    out = capsys.readouterr().out
    assert all(f"\n  {name} " in out for name in console.COMMANDS)


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (InputError("a must be b."), 2, "x.py: a must be b.\n"),
        (DivergedError("training diverged."), 2, "x.py: training diverged.\n"),
        (StoreError("it is gone"), 2, "x.py: it is gone\n"),
        (KeyboardInterrupt("Stopped here."), 130, "\nStopped here.\n"),
        (KeyboardInterrupt(), 130, "\nStopped; the same command goes on.\n"),
    ],
)
def test_an_error_is_one_sentence_and_an_exit_code(error, code, message, capsys):
    def fail():
        raise error

    assert command_line.run("x.py", fail) == code
    assert capsys.readouterr().err == message


def test_an_error_of_the_program_itself_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError):
        command_line.run("x.py", lambda: print(1 / 0))


@pytest.mark.parametrize("arguments", [["--settings"], ["--help"]])
def test_a_reader_that_closes_the_pipe_is_no_error(arguments):
    """As `| head -1` does: the pipe has no reader any more when the text is written."""
    with subprocess.Popen(
        [sys.executable, "studies/train.py", *arguments],
        cwd=ROOT,
        env={name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait() == 141
