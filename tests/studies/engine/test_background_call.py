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


def test_an_errand_brings_back_what_the_call_returned_in_another_process():
    answer = background_call.send(lambda x: (x, os.getpid()), "a").answer()
    assert answer[0] == "a"
    assert answer[1] != os.getpid()


def test_an_errand_that_was_killed_or_raised_has_no_answer(capfd):
    assert background_call.send(die).answer() is None
    assert background_call.send(divmod, 1, 0).answer() is None
    assert "ZeroDivisionError" in capfd.readouterr().err, "it is not swallowed"


def test_an_errand_is_done_when_its_process_has_ended():
    errand = background_call.send(time.sleep, 30)
    assert not errand.is_done
    errand.process.kill()
    assert errand.answer() is None
    assert errand.is_done


def test_ctrl_c_is_the_parents_business():
    errand = background_call.send(lambda: os.kill(os.getpid(), signal.SIGINT) or "went on")
    assert errand.answer() == "went on"


def test_a_model_that_cannot_be_registered_is_a_sentence(tmp_path):
    def fail(name):
        raise StoreError("it is gone")

    (tmp_path / "checkpoint.safetensors").touch()
    job = SimpleNamespace(tracker=SimpleNamespace(tag=fail), folder=lambda number: tmp_path)
    said = finish.register(job, 3)
    assert said.startswith("the best model is not registered")
    assert "it is gone" in said
    job.tracker = None
    assert finish.register(job, 3) == ""
