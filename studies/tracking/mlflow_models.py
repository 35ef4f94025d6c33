"""Register the best model of a study in MLflow, with its description, its metrics and the alias `champion`."""

import contextlib
import io
import warnings
from collections.abc import Iterable, Iterator
from typing import Any

import mlflow
import mlflow.pytorch
import torch
from mlflow import MlflowClient
from mlflow.entities import Metric
from mlflow.models import infer_signature

from vaebench.studies.tracking.mlflow_runs import Tracker
from vaebench.studies.tracking.mlflow_store import store_errors

CHAMPION = "champion"
NO_STEP = -1  # MLflow copies the metrics of the model's step, without their data set


def register(tracker: Tracker, run: str, model: torch.nn.Module, example: torch.Tensor, description: str) -> None:
    """Register a trial's model under the study's name, exported as a graph (pt2).

    All that PyTorch unpickles of the archive are tensors and containers of tensors, so that it also loads where MLflow
    forbids other pickles. The trial's run is the source of the model, its metrics become metrics of the model on the
    study's data, and the alias `champion` moves to it.
    """
    client = MlflowClient(tracker.uri)
    with store_errors(), torch.no_grad(), _silence():
        mlflow.set_tracking_uri(tracker.uri)
        before = client.get_run(run)
        signature = infer_signature(example.numpy(), model(example).numpy())
        with mlflow.start_run(run_id=run):
            logged = mlflow.pytorch.log_model(
                model,
                name="model",
                signature=signature,
                input_example=example.numpy(),
                registered_model_name=tracker.study,
                step=NO_STEP,
                pip_requirements=[f"torch=={torch.__version__.partition('+')[0]}"],
            )
        client.set_terminated(run, before.info.status, before.info.end_time)
        client.log_batch(run, list(_model_metrics(client, run, before.data.metrics, logged.model_id, tracker)))
        client.update_registered_model(tracker.study, description)
        client.update_model_version(tracker.study, logged.registered_model_version, description)
        client.set_registered_model_alias(tracker.study, CHAMPION, logged.registered_model_version)


def _model_metrics(
    client: MlflowClient, run: str, names: Iterable[str], model_id: str, tracker: Tracker
) -> Iterator[Metric]:
    """Yield the run's last metrics as metrics of the model; their time and step stay, so that none is added twice."""
    dataset = tracker.data.dataset if tracker.data is not None else None
    for name in names:
        last = max(client.get_metric_history(run, name), key=lambda point: (point.step, point.timestamp))
        yield Metric(
            last.key,
            last.value,
            last.timestamp,
            last.step,
            model_id=model_id,
            dataset_name=dataset.name if dataset else None,
            dataset_digest=dataset.digest if dataset else None,
        )


@contextlib.contextmanager
def _silence() -> Iterator[Any]:
    """Hide deprecations inside MLflow and SQLAlchemy, and what MLflow prints."""
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        yield
