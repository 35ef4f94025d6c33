"""The end of a study: best trials, report, parent run, registered model, and the text on the terminal."""

import json
from pathlib import Path

import optuna
import torch

from vaebench.studies.command_line import format_command
from vaebench.studies.engine.driver.tracker_sync import TrackerSync, parent_record
from vaebench.studies.engine.processes import background_call
from vaebench.studies.engine.report import best_trials, comparison, files, page, table
from vaebench.studies.engine.report.page import Study
from vaebench.studies.engine.report.table import BEST
from vaebench.studies.engine.search.queue import Search
from vaebench.studies.engine.search.states import RAISED
from vaebench.studies.engine.workers.job import Job
from vaebench.studies.tracking.mlflow_runs import REGISTERED
from vaebench.studies.tracking.record import RunRecord, StoreError, milliseconds
from vaebench.vae.data import load
from vaebench.vae.errors import sentence
from vaebench.vae.model import GenerativeModel
from vaebench.vae.training.checkpoint import CURRENT
from vaebench.vae.training.state import load_model

UNREGISTERED = "the best model is not registered in MLflow; the same command tries again"


class Reconstruction(torch.nn.Module):
    """x -> E[x|z] at the code of x. This is registered as the model, since a VAE itself returns distributions."""

    def __init__(self, model: GenerativeModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Reconstruct `(B, *shape)`."""
        return self.model.decode(self.model.represent(x)).mean


def write_results(job: Job, search: Search, sync: TrackerSync) -> str:
    """Measure the best trials, write report and parent run; return the text that the study ends with."""
    trials = search.trials()
    plan = job.plan
    front = search.study.best_trials if any(trial.state.name == "COMPLETE" for trial in trials) else []
    best = best_trials.rank(trials, front, maximise=plan.target.directions[0] == "maximize")[:BEST]
    if not best:
        return f"No trial finished: {_explain_no_result(trials)}"
    best_trials.measure_all(job, best)
    sync.flush()
    registration = None if sync.error else background_call.start(register, job, best[0].number)
    study = Study.read(plan, trials)
    written = files.write(study)
    reason = "" if registration is None else registration.result()
    error = sync.error or write_parent_run(job, study, written)
    notes = best_trials.explain_missing_pictures(job, best)
    notes += [shortfall] if (shortfall := search.explain_shortfall()) else []
    if reason != "" and not error:
        notes.append(reason or UNREGISTERED)
    return summarise(study, error, notes)


def register(job: Job, number: int) -> str:
    """Register the best model if its weights are here and it is not registered yet; return the reason if that fails.

    MLflow exports the model, which may raise anything for a user's own model. The report is written nevertheless.
    """
    checkpoint = job.trial_folder(number) / CURRENT
    if job.tracker is None or not checkpoint.exists():
        return ""
    try:
        if job.tracker.tag_of(job.tracker.parent, REGISTERED) != str(number):
            model, config = load_model(checkpoint)
            example = load(config.data, job.raw).test.batch(torch.arange(2))
            job.tracker.register(Reconstruction(model).eval(), example, number)
    except Exception as error:
        return f"{UNREGISTERED} ({sentence(error)})"
    return ""


def write_parent_run(job: Job, study: Study, files: list[Path]) -> str:
    """Write the parent run; return the reason if that fails, else an empty string."""
    if job.tracker is None:
        return ""
    parent = final_parent_record(job, study, files)
    try:
        job.tracker.upsert(parent)
    except StoreError as error:
        job.outbox.put(parent)
        return str(error)
    return ""


def final_parent_record(job: Job, study: Study, files: list[Path]) -> RunRecord:
    """Return the parent run's record: a note with the table of the best, and figures, table, space and command."""
    folder = study.plan.folder
    space, command = folder / "space.json", folder / "command.txt"
    space.write_text(json.dumps(study.plan.space.to_json(), indent=2))
    command.write_text(job.tags["command"] + "\n")
    now = milliseconds()
    states = study.frame["state"].value_counts()
    metrics = {f"study/{state}": float(count) for state, count in states.items()}
    metrics |= {f"study/best_{name}": float(study.best[name].iloc[0]) for name in study.plan.target.metrics}
    ranked = table.quick_rank_correlation(study.frame, study.plan)
    metrics |= {} if ranked is None else {"study/quick_rank_correlation": ranked[0]}
    record = parent_record(job)
    record.status, record.end = "FINISHED", now
    record.tags |= {"mlflow.note.content": page.render_markdown(study)}
    record.metrics = [(name, value, now, len(study.frame)) for name, value in metrics.items()]
    record.files = [str(path) for path in [*files, space, command]]
    return record


def summarise(study: Study, error: str, notes: list[str]) -> str:
    """Return the table of the ten best, what is known of its figures, and the commands to type next."""
    plan, best = study.plan, study.best
    shown = comparison.format_columns(best, page.list_columns(study)).rename(columns=_shorten)
    shown = shown.to_string(index=False, float_format=lambda value: f"{value:.4g}", na_rep="")
    warnings = study.warnings
    remarks = [*page.describe_estimates(study), *notes, *warnings.footnotes]
    told = [*(f"warning: {line}" for line in warnings.lines), *remarks]
    lines = [page.summarise(study), "", shown, "", *told, *([""] if told else [])]
    if error:
        lines.append(f"{error}; when it answers again: {format_command('sweep', '--replay')}")
    elif plan.tracking != "none":
        server = plan.tracking if plan.tracking.startswith("http") else "mlflow ui"
        lines.append(f"compare the runs:  {server}, experiment {plan.name}")
    lines.append(f"one page of it:    {plan.folder / 'report.html'}")
    lines.append(f"the best again:    {best['command'].iloc[0]}")
    return "\n".join(lines)


def _shorten(name: str) -> str:
    """Return a column's name for a narrow terminal: `beta` for `objective.beta`, `mi` for `latent/mi`."""
    return name.rpartition(".")[2].removeprefix("latent/").removeprefix("test/")


def _explain_no_result(trials: list[optuna.trial.FrozenTrial]) -> str:
    errors = [trial.user_attrs[RAISED] for trial in trials if RAISED in trial.user_attrs]
    return errors[-1] if errors else "all were pruned; more --trials, or --pruner none."
