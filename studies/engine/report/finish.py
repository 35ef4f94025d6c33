"""The end of a study: finalists, the parent run's page, the registered model, and what is said at the terminal."""

import json
from pathlib import Path

import optuna
import torch

from vaebench.studies.engine.driver.tracker_sync import Clerk, parent_record
from vaebench.studies.engine.processes import background_call
from vaebench.studies.engine.report import best_trials, page, table
from vaebench.studies.engine.report.best_trials import FINALISTS
from vaebench.studies.engine.report.page import Study
from vaebench.studies.engine.search.queue import Search
from vaebench.studies.engine.workers.job import Job
from vaebench.studies.tracking.mlflow_runs import REGISTERED
from vaebench.studies.tracking.record import Record, StoreError, milliseconds
from vaebench.vae.data import load
from vaebench.vae.errors import sentence
from vaebench.vae.model import VAE
from vaebench.vae.training.checkpoint import CURRENT
from vaebench.vae.training.state import load_model

UNREGISTERED = "the best model is not registered in MLflow; the same command tries again"


class Reconstruction(torch.nn.Module):
    """x -> E[x|z] at the code of x: what is registered as a model, since a VAE by itself returns distributions."""

    def __init__(self, model: VAE) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Reconstruct `(B, *shape)`."""
        return self.model.decode(self.model.represent(x)).mean


def finish(job: Job, opened: Search, keeper: Clerk) -> str:
    """Treat the best trials, write report and parent run; return what is said."""
    trials = opened.trials()
    plan = job.plan
    front = opened.study.best_trials if any(trial.state.name == "COMPLETE" for trial in trials) else []
    best = best_trials.ranked(trials, front, maximise=plan.target.directions[0] == "maximize")
    if not best:
        return f"No trial finished: {_why(trials)}"
    best_trials.attend(job, best[:FINALISTS])
    keeper.settle()
    registering = None if keeper.trouble else background_call.send(register, job, best[0].number)
    study = page.gather(plan, trials)
    files = page.write(study)
    said = "" if registering is None else registering.answer()
    failed = UNREGISTERED if said is None else said
    trouble = keeper.trouble or publish(job, study, files)
    notes = best_trials.undrawn(job, best[:FINALISTS])
    if failed and not trouble:
        notes.append(failed)
    return closing(study, trouble, notes)


def register(job: Job, number: int) -> str:
    """Register the best model where its weights are here and it is not registered yet; return what went wrong.

    MLflow exports it, which fails in as many ways as there are models of one's own: no reason to lose the report.
    """
    checkpoint = job.folder(number) / CURRENT
    if job.tracker is None or not checkpoint.exists():
        return ""
    try:
        if job.tracker.tag(REGISTERED) != str(number):
            model, config = load_model(checkpoint)
            example = load(config.data, job.raw).test.batch(torch.arange(2))
            job.tracker.register(Reconstruction(model).eval(), example, number)
    except Exception as error:
        return f"{UNREGISTERED} ({sentence(error)})"
    return ""


def publish(job: Job, study: Study, files: list[Path]) -> str:
    """Write the parent run; return what went wrong, empty if nothing."""
    if job.tracker is None:
        return ""
    parent = parent_page(job, study, files)
    try:
        job.tracker.upsert(parent)
    except StoreError as error:
        job.outbox.put(parent)
        return str(error)
    return ""


def parent_page(job: Job, study: Study, files: list[Path]) -> Record:
    """Return the parent run's record: a note with the table of the best, the figures, the table, space and command."""
    folder = study.plan.folder
    space, command = folder / "space.json", folder / "command.txt"
    space.write_text(json.dumps(study.plan.space.to_json(), indent=2))
    command.write_text(job.tags["command"] + "\n")
    best = table.ranking(study.frame, study.plan)
    now = milliseconds()
    states = study.frame["state"].value_counts()
    figures = {f"study/{state}": float(count) for state, count in states.items()}
    figures |= {f"study/best_{name}": float(best[name].iloc[0]) for name in study.plan.target.metrics}
    record = parent_record(job)
    record.status, record.end = "FINISHED", now
    record.tags |= {"mlflow.note.content": page.markdown(study)}
    record.metrics = [(name, value, now, len(study.frame)) for name, value in figures.items()]
    record.files = [str(path) for path in [*files, space, command]]
    return record


def closing(study: Study, trouble: str, notes: list[str]) -> str:
    """Return the table of ten, what is to be known about it, and what to type next."""
    plan = study.plan
    best = table.ranking(study.frame, plan).head(FINALISTS)
    shown = best[page.columns(study)].rename(columns=_short)
    shown = shown.to_string(index=False, float_format=lambda value: f"{value:.4g}", na_rep="")
    doubts = [*page.doubts(study), *notes]
    lines = [page.summary(study), "", shown, "", *doubts, *([""] if doubts else [])]
    if trouble:
        lines.append(f"{trouble}; when it answers again: python studies/sweep.py --replay")
    elif plan.tracking != "none":
        server = plan.tracking if plan.tracking.startswith("http") else "mlflow ui"
        lines.append(f"compare the runs:  {server}, experiment {plan.name}")
    lines.append(f"one page of it:    {plan.folder / 'report.html'}")
    lines.append(f"the best again:    {best['command'].iloc[0]}")
    return "\n".join(lines)


def _short(name: str) -> str:
    """Return a column's name as a terminal has room for it: `objective.beta` and `latent/mi` without their group."""
    return name.rpartition(".")[2].removeprefix("latent/").removeprefix("test/")


def _why(trials: list[optuna.trial.FrozenTrial]) -> str:
    errors = [trial.user_attrs["raised"] for trial in trials if "raised" in trial.user_attrs]
    return errors[-1] if errors else "all were pruned; more --trials, or --pruner none."
