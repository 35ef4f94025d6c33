"""The registered model: what it is registered with, and what its file can do to those who load it."""

import contextlib
import zipfile
from pathlib import Path

import mlflow
import pytest
import torch
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from packaging.version import Version

from tests import chaos
from vaebench.studies.tracking import mlflow_models
from vaebench.studies.tracking.mlflow_runs import Tracker
from vaebench.studies.tracking.record import RunRecord, milliseconds

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:torch"),
]
X = torch.linspace(-1, 1, 12).reshape(4, 3)


class Planted:
    """A pickle that writes a file where it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


@pytest.fixture(scope="module")
def registered(tmp_path_factory):
    """Yield the tracker, a trial's run, and the model that was registered from it."""
    folder = tmp_path_factory.mktemp("registered")
    (folder / "mlflow.db").write_bytes(chaos.empty_database())
    tracker, now = Tracker(f"sqlite:///{folder}/mlflow.db", "mine"), milliseconds()
    run = tracker.add(
        RunRecord(3, "3", now, "FINISHED", now, metrics=[("valid/nll", 2.0, now, 1), ("valid/nll", 1.5, now, 2)])
    )
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.Tanh()).eval()
    mlflow_models.register(tracker, run, model, X, "of trial 3")
    yield tracker, run, model
    mlflow.set_tracking_uri(None)  # and the variable that processes started later would read


def test_the_champion_comes_from_the_trials_run_with_its_last_metrics(registered):
    tracker, run, _ = registered
    client = MlflowClient(tracker.uri)
    version = client.get_model_version_by_alias("mine", "champion")
    assert (version.run_id, version.description) == (run, "of trial 3")
    logged = client.get_logged_model(version.source.rpartition("/")[2])
    assert [(one.key, one.value, one.step) for one in logged.metrics] == [("valid/nll", 1.5, 2)]
    assert client.get_run(run).info.status == "FINISHED"


def test_it_loads_where_pickles_are_forbidden(registered, monkeypatch):
    tracker, _, model = registered
    monkeypatch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
    mlflow.set_tracking_uri(tracker.uri)
    loaded = mlflow.pytorch.load_model("models:/mine@champion")
    assert torch.equal(loaded(X), model(X))


@pytest.mark.skipif(Version(mlflow.__version__) < Version("3.17"), reason="earlier versions of MLflow do not look")
def test_a_pickle_planted_in_its_sample_inputs_is_refused_where_pickles_are_forbidden(
    registered, tmp_path, monkeypatch
):
    tracker, _, _ = registered
    mlflow.set_tracking_uri(tracker.uri)
    folder, touched = (
        Path(mlflow.artifacts.download_artifacts("models:/mine@champion", dst_path=tmp_path)),
        tmp_path / "x",
    )
    plant(folder / "data" / "model.pt2", Planted(touched))
    monkeypatch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
    with pytest.raises(MlflowException, match="not a pickle-free payload"):
        mlflow.pytorch.load_model(str(folder))
    assert not touched.exists()
    monkeypatch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "true")
    with contextlib.suppress(Exception):
        mlflow.pytorch.load_model(str(folder))
    assert touched.exists(), "where they are allowed, it runs"


def plant(archive, payload):
    """Write a pickle in place of an archive's sample inputs."""
    with zipfile.ZipFile(archive) as old:
        records = {info.filename: old.read(info) for info in old.infolist()}
    torch.save(payload, archive.with_name("payload"))
    (name,) = (name for name in records if "sample_inputs" in name)
    with zipfile.ZipFile(archive, "w") as new:
        for record, content in (records | {name: archive.with_name("payload").read_bytes()}).items():
            new.writestr(record, content)
