"""The end of a study: best trials, report, parent run, registered model, and the text on the terminal."""

from pathlib import Path

import torch
from optuna.trial import FrozenTrial

from vaebench.studies.command_line import format_command
from vaebench.studies.engine.driver.tracker_sync import TrackerSync, parent_record
from vaebench.studies.engine.processes import background_call
from vaebench.studies.engine.report import best_trials, comparison, files, page, table
from vaebench.studies.engine.report.page import Study
from vaebench.studies.engine.report.table import BEST
from vaebench.studies.engine.search.queue import Search
from vaebench.studies.engine.search.states import DONE, RAISED, state_of
from vaebench.studies.engine.study.plan import Plan
from vaebench.studies.engine.workers.job import Job
from vaebench.studies.tracking import mlflow_models
from vaebench.studies.tracking.figures import SORTABLE
from vaebench.studies.tracking.record import NOTE, MetricValue, RunRecord, StoreError, milliseconds
from vaebench.studies.tracking.views import LEADERBOARD
from vaebench.vae.data import load
from vaebench.vae.errors import sentence
from vaebench.vae.model import GenerativeModel
from vaebench.vae.training.checkpoint import CURRENT
from vaebench.vae.training.state import load_model

REGISTERED = "registered_trial"  # the tag of the parent run that names the trial whose model is registered
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
    best = [trials[number] for number in table.rank(table.build(plan, trials, []), plan)["trial"].head(BEST)]
    if not best:
        return f"No trial finished: {_explain_no_result(trials)}"
    best_trials.measure_all(job, best)
    sync.flush()
    registration = None if sync.error else background_call.start(register, job, best[0])
    study = Study.read(plan, trials)
    written = files.write(study)
    reason = "" if registration is None else registration.result()
    error = write_parent_run(job, study, trials, written) or sync.error
    notes = best_trials.explain_missing_pictures(job, best)
    notes += [shortfall] if (shortfall := search.explain_shortfall()) else []
    if reason != "" and not error:
        notes.append(reason or UNREGISTERED)
    return summarise(study, error, notes)


def register(job: Job, trial: FrozenTrial) -> str:
    """Register the best model if its weights are here and it is not registered yet; return the reason if that fails.

    MLflow exports the model, which may raise anything for a user's own model. The report is written nevertheless.
    """
    checkpoint, tracker = job.trial_folder(trial.number) / CURRENT, job.tracker
    if tracker is None or not checkpoint.exists():
        return ""
    try:
        if tracker.tag_of(tracker.parent, REGISTERED) != str(trial.number):
            model, config = load_model(checkpoint)
            example = load(config.data, job.raw).test.batch(torch.arange(2))
            run = tracker.runs(trial.number)[0].id
            mlflow_models.register(tracker, run, Reconstruction(model).eval(), example, describe_model(job.plan, trial))
            tracker.extend(tracker.parent, [], {}, {REGISTERED: str(trial.number)})
    except Exception as error:
        return f"{UNREGISTERED} ({sentence(error)})"
    return ""


def describe_model(plan: Plan, trial: FrozenTrial) -> str:
    """Return the description of the registered model."""
    values = ", ".join(f"{name} {value:.4g}" for name, value in zip(plan.target.metrics, trial.values, strict=True))
    return (
        f"The best model of study {plan.name}: trial {trial.number} of {plan.trials}, {values} on the validation split "
        f"of {plan.base.data.name}. It takes data of a batch and returns their reconstructions E[x|z]."
    )


def write_parent_run(job: Job, study: Study, trials: list[FrozenTrial], files: list[Path]) -> str:
    """Write the parent run; return the reason if that fails, else an empty string."""
    if job.tracker is None:
        return ""
    parent = final_parent_record(job, study, trials, files)
    try:
        job.tracker.upsert(parent)
    except StoreError as error:
        job.outbox.put(parent)
        return str(error)
    return ""


def final_parent_record(job: Job, study: Study, trials: list[FrozenTrial], files: list[Path]) -> RunRecord:
    """Return the parent run's record: a note with the table of the best, its figures, and the files of the report."""
    now = milliseconds()
    best = study.best.iloc[0].dropna()
    metrics = {name: float(best[name]) for name in best.index if name in {*SORTABLE, *study.plan.target.metrics}}
    ranked = table.quick_rank_correlation(study.frame, study.plan)
    metrics |= {} if ranked is None else {"study/quick_rank_correlation": ranked[0]}
    record = parent_record(job)
    record.status, record.end = "FINISHED", now
    record.tags |= {NOTE: page.render_markdown(study), "best_trial": str(best["trial"])}
    record.metrics = [*((name, value, now, 0) for name, value in metrics.items()), *trace_study(study.plan, trials)]
    record.files = [str(path) for path in files]
    return record


def trace_study(plan: Plan, trials: list[FrozenTrial]) -> list[MetricValue]:
    """Return the course of a study: after each trial that ended, the numbers of trials and the best values so far."""
    ended = [(trial.datetime_complete, trial) for trial in trials if trial.datetime_complete is not None]
    sign = 1 if plan.target.directions[0] == "minimize" else -1
    counts, best, points = dict.fromkeys(DONE, 0), None, []
    for step, (time, trial) in enumerate(sorted(ended, key=lambda one: one[0]), start=1):
        state, when = state_of(trial), int(time.timestamp() * 1000)
        counts[state] = counts.get(state, 0) + 1
        if state == "finished" and (best is None or sign * trial.values[0] < sign * best[0]):
            best = trial.values
        points += [(f"study/{name}", float(count), when, step) for name, count in counts.items()]
        if best is not None:
            named = zip(plan.target.metrics, best, strict=True)
            points += [(f"study/best_{name}", value, when, step) for name, value in named]
    return points


def summarise(study: Study, error: str, notes: list[str]) -> str:
    """Return the table of the ten best, what is known of its figures, and the commands to type next."""
    plan, best = study.plan, study.best
    shown = comparison.format_columns(best, page.list_columns(study)).rename(columns=page.shorten)
    shown = shown.to_string(index=False, float_format=lambda value: f"{value:.4g}", na_rep="")
    warnings = study.warnings
    remarks = [*page.describe_estimates(study), *notes, *warnings.footnotes]
    told = [*(f"warning: {line}" for line in warnings.lines), *remarks]
    lines = [page.summarise(study), "", shown, "", *told, *([""] if told else [])]
    if error:
        lines.append(f"{error}; when it answers again: {format_command('sweep', '--replay')}")
    elif plan.tracking != "none":
        lines += describe_leaderboard(study)
    lines.append(f"one page of it:    {plan.folder / 'report.html'}")
    lines.append(f"the best again:    {best['command'].iloc[0]}")
    return "\n".join(lines)


def describe_leaderboard(study: Study) -> list[str]:
    """Return the line that leads to the leaderboard in MLflow; none where the tracker does not answer."""
    address = study.addresses.get(LEADERBOARD)
    start = "" if study.plan.tracking.startswith("http") else "mlflow ui, then "
    return [f"the leaderboard:   {start}{address}"] if address else []


def _explain_no_result(trials: list[FrozenTrial]) -> str:
    errors = [trial.user_attrs[RAISED] for trial in trials if RAISED in trial.user_attrs]
    return errors[-1] if errors else "all were pruned; more --trials, or --pruner none."
