"""What the tests of an engine share."""

import pytest

from vaebench.studies import sweep as sweep_command
from vaebench.studies.commands import sweep


@pytest.fixture
def plan(tmp_path, monkeypatch):
    """The plan of a study in an empty folder, where the test is run."""
    monkeypatch.chdir(tmp_path)
    return sweep.make_plan(sweep_command.parser().parse_args(["--study", "mine"]))
