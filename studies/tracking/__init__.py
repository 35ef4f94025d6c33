"""Runs in MLflow: what is recorded, what waits in the outbox, where it came from."""
