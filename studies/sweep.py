"""Search the settings of a VAE, every trial an MLflow run: `python studies/sweep.py`, then `mlflow ui`.

The same command goes on where it stopped, a larger --trials adds trials, and another shell helps with --join.
"""

import argparse
import contextlib
import dataclasses
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

import optuna
import torch

from vaebench.studies import command_line, machine
from vaebench.studies.command_line import format_command
from vaebench.studies.engine.driver.dry_run import preview
from vaebench.studies.engine.driver.progress import Screen
from vaebench.studies.engine.driver.supervise import drive
from vaebench.studies.engine.driver.tracker_sync import TrackerSync, synchronise
from vaebench.studies.engine.launch.choose import ENGINES, LOCAL, Engine, make_engine, require_shared
from vaebench.studies.engine.processes import lock
from vaebench.studies.engine.report import finish
from vaebench.studies.engine.search import queue
from vaebench.studies.engine.search.pruners import PRUNERS
from vaebench.studies.engine.search.samplers import SAMPLERS
from vaebench.studies.engine.study.plan import JOURNAL, PLAN_FILE, RUNS, TRIAL_DEFAULTS, Plan, digest
from vaebench.studies.engine.study.space import PRESETS, check_space, find_unused, load_space
from vaebench.studies.engine.study.target import TARGETS, check_target
from vaebench.studies.engine.workers.job import Job
from vaebench.studies.tracking import mlflow_runs
from vaebench.studies.tracking.provenance import provenance
from vaebench.studies.tracking.record import StoreError
from vaebench.vae.config.fields import parse_assignments
from vaebench.vae.config.run import Run
from vaebench.vae.data import Splits, download, load
from vaebench.vae.errors import InputError, sentence
from vaebench.vae.training.setup import open_folder

DRIVER_LOCK = "driver.lock"

_log = logging.getLogger(__name__)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    return command_line.run("sweep.py", lambda: run(arguments))


def run(arguments: Sequence[str]) -> None:
    """Do what the command line asks for; an error says how to go on."""
    options = parser().parse_args(arguments)
    logging.basicConfig(format="%(message)s", level=logging.WARNING, force=True)  # MLflow's import sets it to errors
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    torch.set_num_threads(1)  # no pool of threads may exist before workers are forked
    command = format_command("sweep", *arguments)
    try:
        if options.replay:
            replay(options)
            return
        with contextlib.closing(make_engine(options.engine, options.address, options.gpus_per_worker)) as engine:
            plan = load_plan(options, engine) if options.join else make_plan(options, engine)
            if options.dry_run:
                print(preview(plan, load_raw(plan.base)))
            elif options.join:
                help_with(plan, command, engine)
            else:
                lead(plan, command, engine)
    except BrokenPipeError:
        raise
    except queue.STORAGE_ERRORS as error:
        raise InputError(f"had to stop: {sentence(error)}; the same command goes on.") from error
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"Stopped; what was finished is kept. To go on: {command}") from None


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--study", metavar="NAME", help="default: made of data, space, target and a hash of the rest")
    parser.add_argument("--trials", type=int, default=40, help="finished trials to reach in all (40)")
    parser.add_argument("--workers", type=int, help="processes (one a GPU; one a core, up to a fifth of the trials)")
    parser.add_argument("--space", default="full", help=f"{', '.join(PRESETS)}, or a TOML file (full)")
    parser.add_argument("--target", default="nll", choices=TARGETS, help="what is optimised (nll)")
    parser.add_argument("--dataset", metavar="NAME", help="sets data.name (digits)")
    parser.add_argument("--data-dir", metavar="DIR", help="sets data.dir, also of a study to --join (data)")
    parser.add_argument("--download", action="store_true", help="fetch mnist, fashion_mnist or cifar10 into data.dir")
    parser.add_argument("--sampler", default="tpe", choices=SAMPLERS, help="how settings are chosen (tpe)")
    parser.add_argument(
        "--pruner", default="hyperband", choices=PRUNERS, help="how poor trials are stopped (hyperband)"
    )
    parser.add_argument(
        "--seeds",
        type=int,
        default=1,
        help="trainings of each setting, for means with their spread (1)",
    )
    parser.add_argument("--storage", metavar="URL", help="postgresql+psycopg://USER@HOST/DB (a journal in runs/)")
    parser.add_argument("--tracking-uri", metavar="URI", help="http://HOST:PORT, or none (mlflow.db in this folder)")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=X", help="any setting: train.epochs=50")
    parser.add_argument("--engine", default="local", choices=ENGINES, help="what starts the workers (local)")
    parser.add_argument(
        "--address", default="auto", metavar="HOST:PORT", help="of a Ray cluster (auto: this machine's)"
    )
    parser.add_argument("--gpus-per-worker", type=float, metavar="X", help="with ray: 0.25 puts four on one GPU (1)")
    parser.add_argument("--dry-run", action="store_true", help="show space, first settings and time, and stop")
    parser.add_argument("--join", action="store_true", help="work on a study that another process leads")
    parser.add_argument("--replay", action="store_true", help="write to MLflow what waits in runs/*/outbox.jsonl")
    return parser


def make_plan(options: argparse.Namespace, engine: Engine = LOCAL) -> Plan:
    """Return the plan of a command line, checked."""
    for name in ("trials", "workers", "seeds"):
        if vars(options)[name] is not None and vars(options)[name] < 1:
            raise InputError(f"--{name} must be at least 1, got {vars(options)[name]}.")
    named = {"data.name": options.dataset, "data.dir": options.data_dir}
    fixed = {name: value for name, value in named.items() if value is not None} | parse_assignments(options.set)
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
        name=options.study or "",
        space=space,
        base=base,
        target=target,
        seeds=options.seeds,
        sampler=options.sampler,
        pruner=options.pruner if target.prunable else "none",
        trials=options.trials,
        workers=1,
        storage="",
        tracking=options.tracking_uri or mlflow_runs.default_uri(Path()),
        folder=RUNS,
        data=raw.digest,
    )
    name = options.study or default_name(draft)
    storage = options.storage or str(RUNS / name / JOURNAL)
    plan = dataclasses.replace(draft, name=name, folder=RUNS / name, storage=storage)
    return set_workers(plan, options, engine)


def load_plan(options: argparse.Namespace, engine: Engine) -> Plan:
    """Return the plan of a study that another process leads."""
    if not options.study:
        raise InputError("--join needs --study NAME, as the leading process printed it.")
    folder = RUNS / options.study
    storage = options.storage or str(folder / JOURNAL)
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
    return f"{plan.base.data.name}-{plan.space.name}-{plan.target.name}-{digest(plan.identity())[:6]}"


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
        drive(engine.make_workers(job), search, sync, Screen(plan, search), leads=True)
        sync.flush()
        print(finish.write_results(job, search, sync), flush=True)


def help_with(plan: Plan, command: str, engine: Engine) -> None:
    """Run workers for a study that another process leads."""
    job, search = open_job(plan, command), queue.join_study(plan)
    drive(engine.make_workers(job), search, TrackerSync(job), Screen(plan, search), leads=False)


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
        mlflow_runs.require_writable(plan.tracking)
        mlflow_runs.preload_store(plan.tracking)
        mlflow_runs.sync_at_checkpoints_only()
        tracker = mlflow_runs.Tracker(plan.tracking, plan.name, mlflow_runs.describe(load(plan.base.data, raw)))
    return Job(plan, raw, tracker, provenance(command), machine.threads(raw.shape, plan.workers))


def load_raw(base: Run) -> Splits:
    """Return the data of a study before binarisation, which each trial does for itself."""
    return load(base.replace({"data.binarise": "none"}).data)


def replay(options: argparse.Namespace) -> None:
    """Write the records in outboxes to the tracker."""
    for path in sorted(RUNS.glob(f"{options.study or '*'}/{PLAN_FILE}")):
        job = open_job(Plan.load(path), format_command("sweep", "--replay"))
        waiting = len(job.outbox)
        try:
            error = synchronise(job) if waiting else ""
        except StoreError as unreachable:
            error = str(unreachable)
        print(f"{job.plan.name}: {error or f'{waiting} runs written'}")


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
    storage = ["--storage", plan.storage] if "://" in plan.storage else []
    return format_command("sweep", "--join", "--study", plan.name, *storage)


if __name__ == "__main__":
    sys.exit(main())
