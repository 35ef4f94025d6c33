"""Lead a study, help with it, preview it, or write what waits for the tracker: the work of studies/sweep.py."""

import argparse
import contextlib
import dataclasses
import logging
import re
from collections.abc import Iterator
from pathlib import Path

import optuna
import torch

from vaebench.studies import machine
from vaebench.studies.command_line import format_command
from vaebench.studies.engine.driver.dry_run import preview
from vaebench.studies.engine.driver.progress import Screen
from vaebench.studies.engine.driver.supervise import drive
from vaebench.studies.engine.driver.tracker_sync import TrackerSync, synchronise
from vaebench.studies.engine.launch.choose import LOCAL, Engine, make_engine, require_shared
from vaebench.studies.engine.processes import lock
from vaebench.studies.engine.report import finish
from vaebench.studies.engine.search import queue
from vaebench.studies.engine.study.plan import (
    JOURNAL,
    PLAN_FILE,
    RUNS,
    TRIAL_DEFAULTS,
    Plan,
    digest,
    study_folder,
)
from vaebench.studies.engine.study.space import check_space, find_unused, load_space
from vaebench.studies.engine.study.target import TARGETS, check_target
from vaebench.studies.engine.workers.job import OUTBOX, Job
from vaebench.studies.tracking import mlflow_runs, mlflow_store
from vaebench.studies.tracking.outbox import Outbox
from vaebench.studies.tracking.provenance import provenance
from vaebench.studies.tracking.record import StoreError
from vaebench.vae.config.run import Run
from vaebench.vae.data import Splits, download, load
from vaebench.vae.errors import InputError, sentence
from vaebench.vae.model.own import digest_source
from vaebench.vae.training.setup import open_folder

DRIVER_LOCK = "driver.lock"

_log = logging.getLogger(__name__)


def run(options: argparse.Namespace) -> None:
    """Do what the options of a command ask for; an error says how to go on."""
    logging.basicConfig(format="%(message)s", level=logging.WARNING, force=True)  # MLflow's import sets it to errors
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    if options.engine == "local" and (options.gpus_per_worker is not None or options.address != "auto"):
        raise InputError("--address and --gpus-per-worker need --engine ray.")
    torch.set_num_threads(1)  # no pool of threads may exist before workers are forked
    try:
        if options.replay:
            replay(options)
            return
        with contextlib.closing(make_engine(options.engine, options.address, options.gpus_per_worker)) as engine:
            plan = load_plan(options, engine) if options.join else make_plan(options, engine)
            if options.dry_run:
                print(preview(plan, load_raw(plan.base)))
            elif options.join:
                help_with(plan, options.command, engine)
            else:
                lead(plan, options.command, engine)
    except BrokenPipeError:
        raise
    except queue.STORAGE_ERRORS as error:
        raise InputError(f"had to stop: {sentence(error)}; the same command goes on.") from error
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"Stopped; what was finished is kept. To go on: {options.command}") from None


def make_plan(options: argparse.Namespace, engine: Engine = LOCAL) -> Plan:
    """Return the plan of a command line, checked."""
    for name in ("trials", "workers", "seeds"):
        if vars(options)[name] is not None and vars(options)[name] < 1:
            raise InputError(f"--{name} must be at least 1, got {vars(options)[name]}.")
    named = {"data.name": options.dataset, "data.dir": options.data_dir, "model.build": options.model}
    fixed = {name: value for name, value in named.items() if value is not None} | dict(options.set)
    space = load_space(options.space).drop(set(fixed))
    base = Run().replace({**TRIAL_DEFAULTS, **space.constants, **fixed})
    if options.download:
        download(base.data)
    raw = load_raw(base)
    target = TARGETS[options.target]
    check_space(space, base, raw)
    check_target(target, space, base, raw)
    if without_effect := find_unused(space, base):
        space = space.drop(without_effect, "without effect in every run are")
        _log.warning("not varied, since without effect in every run: %s", ", ".join(without_effect))
    draft = Plan(
        name="",
        space=space,
        base=base,
        target=target,
        seeds=options.seeds,
        sampler=options.sampler,
        pruner=options.pruner if target.prunable else "none",
        trials=options.trials,
        workers=1,
        storage="",
        tracking=options.tracking_uri or mlflow_store.default_uri(Path()),
        folder=RUNS,
        data=raw.digest,
    )
    name = default_name(draft) if options.study is None else options.study
    folder = study_folder(name)
    storage = options.storage or str(folder / JOURNAL)
    plan = dataclasses.replace(draft, name=name, folder=folder, storage=storage)
    if plan.sampler == "grid" and not (folder / PLAN_FILE).exists() and space.coarsest > plan.trials:
        raise InputError(
            f"the coarsest grid of space {space.name} has {space.coarsest} points; give --trials {space.coarsest} or "
            "more, or hold settings with --set."
        )
    return set_workers(plan, options, engine)


def load_plan(options: argparse.Namespace, engine: Engine) -> Plan:
    """Return the plan of a study that another process leads."""
    if options.study is None:
        raise InputError("--join needs --study NAME, as the leading process printed it.")
    folder = study_folder(options.study)
    storage = options.storage or str(folder / JOURNAL)
    if "://" not in storage and not Path(storage).exists():
        raise InputError(f"there is no study {options.study!r} with the journal {storage}; give its --storage.")
    values = queue.read_plan(options.study, storage)
    values["tracking"] = options.tracking_uri or values["tracking"]
    values["base"] |= {"data.dir": options.data_dir} if options.data_dir else {}
    plan = Plan.from_json(values, name=options.study, workers=1, storage=storage, folder=folder)
    return set_workers(plan, options, engine)


def set_workers(plan: Plan, options: argparse.Namespace, engine: Engine) -> Plan:
    """Return the plan with the number of workers that was asked for, or that the engine has room for."""
    require_shared(options.engine, plan.storage, plan.tracking)
    workers = options.workers or engine.default_workers(plan.base.train.device, plan.trials)
    return dataclasses.replace(plan, workers=workers)


def default_name(plan: Plan) -> str:
    """Return a name that the same command gives again, and a command for another study does not."""
    space = re.sub(r"[^A-Za-z0-9_.+-]+", "-", plan.space.name)[:50]  # the stem of any file
    return f"{plan.base.data.name}-{space}-{plan.target.name}-{digest(plan.identity())[:6]}"


def lead(plan: Plan, command: str, engine: Engine) -> None:
    """Run a study to its end."""
    job = open_job(plan, command)
    driver = lock.hold(plan.folder / DRIVER_LOCK)
    if driver is None:
        raise InputError(f"study {plan.name} is led by another process; to help it: {join_command(plan)}.")
    with driver:
        search, sync = queue.create_study(plan), TrackerSync(job)
        plan.save()
        sync.flush()
        print(heading(plan, search.counts().done, sync), flush=True)
        with closing_runs(sync):
            drive(engine.make_workers(job), search, sync, Screen(plan, search), leads=True)
        sync.flush()
        print(finish.write_results(job, search, sync), flush=True)


def help_with(plan: Plan, command: str, engine: Engine) -> None:
    """Run workers for a study that another process leads."""
    job, search = open_job(plan, command), queue.join_study(plan)
    sync = TrackerSync(job)
    with closing_runs(sync):
        drive(engine.make_workers(job), search, sync, Screen(plan, search), leads=False)
    if sync.is_behind:
        sync.flush()
    if sync.error:
        print(f"{sync.error}; when it answers again: {join_command(plan)}", flush=True)


@contextlib.contextmanager
def closing_runs(sync: TrackerSync) -> Iterator[None]:
    """At Ctrl-C, write to the tracker what became of the trials that were running."""
    try:
        yield
    except KeyboardInterrupt:
        if sync.is_behind and sync.job.tracker is not None:
            _log.warning("\nclosing the runs of the trials that were stopped; Ctrl-C again leaves them open")
            with contextlib.suppress(InputError):
                sync.flush()
        raise


def open_job(plan: Plan, command: str) -> Job:
    """Create the folder of a study, load its data, and connect to its tracker."""
    open_folder(plan.folder, advice="start in another folder")
    raw = load_raw(plan.base)
    if plan.data not in ("", raw.digest):
        raise InputError(
            f"study {plan.name} is on other data than those in {plan.base.data.dir}; give their folder with --data-dir."
        )
    tracker = None
    if plan.tracking != "none":
        mlflow_store.require_writable(plan.tracking)
        mlflow_store.preload_store(plan.tracking)
        mlflow_store.sync_at_checkpoints_only()
        tracker = mlflow_runs.Tracker(plan.tracking, plan.name, mlflow_runs.describe(load(plan.base.data, raw)))
    source = digest_source(plan.base.model.build)
    tags = provenance(command) | ({"model.source_sha256": source} if source else {})
    return Job(plan, raw, tracker, tags, machine.threads(raw.shape, plan.workers))


def load_raw(base: Run) -> Splits:
    """Return the data of a study before binarisation, which each trial does for itself."""
    return load(base.replace({"data.binarise": "none"}).data)


def replay(options: argparse.Namespace) -> None:
    """Write the records in the outboxes of all studies, or of one, to their trackers; raise if some are left."""
    folder = "*" if options.study is None else study_folder(options.study).name
    found, left = sorted(RUNS.glob(f"{folder}/{PLAN_FILE}")), {}
    if options.study and not found:
        raise InputError(f"there is no study {options.study!r} in {RUNS}.")
    for path in found:
        try:
            written = replay_study(path, options)
        except (StoreError, InputError) as error:
            left[path.parent.name] = str(error)
        except queue.STORAGE_ERRORS as error:
            left[path.parent.name] = sentence(error)
        else:
            print(f"{path.parent.name}: {written} runs written", flush=True)
    if left:
        raise StoreError("; ".join(f"{name}: {error.rstrip('.')}" for name, error in left.items()) + ".")


def replay_study(path: Path, options: argparse.Namespace) -> int:
    """Write the outbox of the study that a plan's file is of; return the number of records, raise if some are left."""
    waiting = len(Outbox(path.parent / OUTBOX))
    if not waiting:
        return 0
    plan = Plan.load(path)
    moved = {"data.dir": options.data_dir} if options.data_dir else {}
    plan = dataclasses.replace(plan, base=plan.base.replace(moved), tracking=options.tracking_uri or plan.tracking)
    if plan.tracking == "none":
        raise InputError(f"{waiting} runs wait, and the study has no tracker; give --tracking-uri.")
    queue.reopen(plan)
    if error := synchronise(open_job(plan, options.command)):
        raise StoreError(error)
    return waiting


def heading(plan: Plan, done: int, sync: TrackerSync) -> str:
    """Return the text that a study begins with."""
    lines = [f"study {plan.name}: {done} of {plan.trials} trials done, {plan.workers} workers"]
    if done > plan.trials:
        lines = [f"study {plan.name}: {done} trials are done, more than the {plan.trials} of --trials; none is added"]
    lines += [str(plan.space), f"to help from another shell: {join_command(plan)}"]
    if plan.seeds > 1:
        lines.append(f"each setting is trained with {plan.seeds} seeds; figures are means over them, with their spread")
    if not plan.target.prunable:
        lines.append(f"target {plan.target.name} has no pruner: every trial runs to its end")
    if sync.error:
        lines.append(f"{sync.error}; runs wait in {sync.job.outbox.path} until it answers")
    return "\n".join(lines) + "\n"


def join_command(plan: Plan) -> str:
    """Return the command with which another shell helps."""
    storage = ["--storage", plan.storage] if plan.storage != str(plan.folder / JOURNAL) else []
    return format_command("sweep", "--join", "--study", plan.name, *storage)
