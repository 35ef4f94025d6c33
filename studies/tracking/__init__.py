"""Runs in MLflow: what is recorded, what waits in the outbox, where it came from."""

import os

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # MLflow reads it when it is imported
