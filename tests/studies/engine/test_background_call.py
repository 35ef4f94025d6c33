"""A call in a process of its own answers, or is known not to have."""

import os
import signal
import time
from types import SimpleNamespace

from vaebench.studies.engine.processes import background_call
from vaebench.studies.engine.report import finish
from vaebench.studies.tracking.record import StoreError


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_call_runs_in_another_process_and_returns_its_result():
    value = background_call.start(lambda x: (x, os.getpid()), "a").result()
    assert value[0] == "a"
    assert value[1] != os.getpid()


def test_a_call_that_was_killed_or_raised_has_no_result(capfd):
    assert background_call.start(die).result() is None
    assert background_call.start(divmod, 1, 0).result() is None
    assert "ZeroDivisionError" in capfd.readouterr().err, "it is not swallowed"


def test_a_call_is_done_when_its_process_has_ended():
    call = background_call.start(time.sleep, 30)
    assert not call.is_done
    call.process.kill()
    assert call.result() is None
    assert call.is_done


def test_ctrl_c_is_the_parents_business():
    call = background_call.start(lambda: os.kill(os.getpid(), signal.SIGINT) or "went on")
    assert call.result() == "went on"


def test_a_model_that_cannot_be_registered_is_a_sentence(tmp_path):
    def fail(run, name):
        raise StoreError("it is gone")

    (tmp_path / "checkpoint.safetensors").touch()
    job = SimpleNamespace(tracker=SimpleNamespace(parent="run", tag_of=fail), trial_folder=lambda number: tmp_path)
    said = finish.register(job, SimpleNamespace(number=3))
    assert said.startswith("the best model is not registered")
    assert "it is gone" in said
    job.tracker = None
    assert finish.register(job, SimpleNamespace(number=3)) == ""
