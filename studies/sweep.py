"""Search the settings of a VAE, every trial an MLflow run: `python studies/sweep.py`, then `mlflow ui`.

The same command goes on where it stopped; more --trials add to it; another shell helps with --join.
"""

import argparse
import contextlib
import dataclasses
import gc
import json
import logging
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

if __name__ == "__main__":
    gc.disable()  # it would look through torch, MLflow and Optuna again and again while they are imported: a second

import optuna
import torch

from vaebench.studies import machine
from vaebench.studies.engine.driver import dry_run, supervise, tracker_sync
from vaebench.studies.engine.driver.progress import Screen
from vaebench.studies.engine.driver.tracker_sync import Clerk
from vaebench.studies.engine.launch import choose
from vaebench.studies.engine.launch.choose import ENGINES, Engine, Local
from vaebench.studies.engine.processes import lock
from vaebench.studies.engine.report import finish
from vaebench.studies.engine.search import queue
from vaebench.studies.engine.search.pruners import PRUNERS
from vaebench.studies.engine.search.queue import Search
from vaebench.studies.engine.search.samplers import SAMPLERS
from vaebench.studies.engine.study import plan as plans
from vaebench.studies.engine.study import space as spaces
from vaebench.studies.engine.study import target as targets
from vaebench.studies.engine.study.plan import JOURNAL, KEPT_PLAN, RUNS, TRIAL_DEFAULTS, Plan
from vaebench.studies.engine.study.target import TARGETS
from vaebench.studies.engine.workers.job import Job
from vaebench.studies.tracking import mlflow_runs
from vaebench.studies.tracking.provenance import provenance
from vaebench.studies.tracking.record import StoreError
from vaebench.vae.config.fields import parse_assignments
from vaebench.vae.config.run import Run
from vaebench.vae.data import Splits, download, load
from vaebench.vae.errors import InputError, sentence

DRIVER_LOCK = "driver.lock"

_log = logging.getLogger(__name__)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit code."""
    options = parser().parse_args(arguments)
    logging.basicConfig(
        format="%(message)s", level=logging.WARNING, force=True
    )  # MLflow's import asks for errors alone
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    torch.set_num_threads(1)  # no pool of threads may exist before workers are forked
    command = shlex.join(["python", "studies/sweep.py", *(sys.argv[1:] if arguments is None else arguments)])
    try:
        if options.replay:
            return replay(options)
        with contextlib.closing(choose.named(options.engine, options.address, options.gpus_per_worker)) as engine:
            plan = joined(options, engine) if options.join else planned(options, engine)
            if options.dry_run:
                print(dry_run.preview(plan, load_raw(plan.base)))
                return 0
            run(plan, command, engine, leads=not options.join)
    except InputError as error:
        print(f"sweep.py: {error}", file=sys.stderr)
        return 2
    except queue.STORAGE_ERRORS as error:
        print(f"sweep.py: had to stop: {sentence(error)}; the same command goes on.", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"\nStopped; what was finished is kept. To go on: {command}", file=sys.stderr)
        return 130
    return 0


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--study", metavar="NAME", help="default: made of data, space, target and a hash of the rest")
    parser.add_argument("--trials", type=int, default=40, help="finished trials to reach in all (40)")
    parser.add_argument("--workers", type=int, help="processes (one a GPU; one a core, up to a fifth of the trials)")
    parser.add_argument("--stack", metavar="K|auto", help="trials that a worker trains side by side (1)")
    parser.add_argument("--space", default="full", help=f"{', '.join(spaces.PRESETS)}, or a TOML file (full)")
    parser.add_argument("--target", default="nll", choices=TARGETS, help="what is optimised (nll)")
    parser.add_argument("--dataset", metavar="NAME", help="sets data.name (digits)")
    parser.add_argument("--data-dir", metavar="DIR", help="sets data.dir, also of a study to --join (data)")
    parser.add_argument("--download", action="store_true", help="fetch mnist, fashion_mnist or cifar10 into data.dir")
    parser.add_argument("--sampler", default="tpe", choices=SAMPLERS, help="how settings are chosen (tpe)")
    parser.add_argument(
        "--pruner", default="hyperband", choices=PRUNERS, help="how poor trials are stopped (hyperband)"
    )
    parser.add_argument("--seeds", type=int, default=1, help="trainings of each setting, pruned by Wilcoxon's test (1)")
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


def planned(options: argparse.Namespace, engine: Engine | None = None) -> Plan:
    """Return the plan of a command line, checked; without an engine, as it is on this machine."""
    for name in ("trials", "workers", "seeds"):
        if vars(options)[name] is not None and vars(options)[name] < 1:
            raise InputError(f"--{name} must be at least 1, got {vars(options)[name]}.")
    named = {"data.name": options.dataset, "data.dir": options.data_dir}
    fixed = {**{name: value for name, value in named.items() if value is not None}, **parse_assignments(options.set)}
    space = spaces.named(options.space).without(set(fixed))
    base = Run().replace({**TRIAL_DEFAULTS, **space.constants, **fixed})
    if options.download:
        download(base.data)
    raw = load_raw(base)
    target = TARGETS[options.target]
    spaces.check(space, base, raw)
    targets.check(target, space, base, raw)
    if in_vain := spaces.idle(space, base):
        space = space.without(in_vain, "without effect in every run are")
        _log.warning("not varied, since without effect in every run: %s", ", ".join(in_vain))
    draft = Plan(
        name=options.study or "",
        space=space,
        base=base,
        target=target,
        seeds=options.seeds,
        sampler=options.sampler,
        pruner=options.pruner if target.pruned else "none",
        trials=options.trials,
        workers=1,
        storage="",
        tracking=options.tracking_uri or mlflow_runs.default_uri(Path()),
        folder=RUNS,
        data=raw.digest,
        stack=stack_size(options.stack or "1"),
    )
    name = options.study or default_name(draft)
    plan = dataclasses.replace(
        draft, name=name, folder=RUNS / name, storage=options.storage or str(RUNS / name / JOURNAL)
    )
    return staffed(plan, options, engine or Local())


def staffed(plan: Plan, options: argparse.Namespace, engine: Engine) -> Plan:
    """Return a plan with as many workers as were asked for, or as the engine has room for."""
    choose.require_shared(options.engine, plan.storage, plan.tracking)
    workers = options.workers or engine.default_workers(plan.base.train.device, plan.trials)
    return dataclasses.replace(plan, workers=workers)


def stack_size(text: str) -> int:
    """Read `--stack`."""
    if text != "auto" and not (text.isdecimal() and int(text) > 0):
        raise InputError(f"--stack takes auto or a whole number of at least 1, got {text}.")
    return plans.AUTO if text == "auto" else int(text)


def default_name(plan: Plan) -> str:
    """Return a name that the same command finds again, and a command for another study does not."""
    return f"{plan.base.data.name}-{plan.space.name}-{plan.target.name}-{plans.digest(plan.identity())[:6]}"


def joined(options: argparse.Namespace, engine: Engine) -> Plan:
    """Return the plan of a study that is under way."""
    if not options.study:
        raise InputError("--join needs --study NAME, as the leading process printed it.")
    folder = RUNS / options.study
    storage = options.storage or str(folder / JOURNAL)
    values = queue.recall_plan(options.study, storage)
    values["tracking"] = options.tracking_uri or values["tracking"]
    values["base"] |= {"data.dir": options.data_dir} if options.data_dir else {}
    values["stack"] = stack_size(options.stack) if options.stack else values.get("stack", 1)
    plan = plans.from_json(values, name=options.study, workers=1, storage=storage, folder=folder)
    return staffed(plan, options, engine)


def run(plan: Plan, command: str, engine: Engine, *, leads: bool) -> None:
    """Lead a study to its end, or help with it."""
    job = open_job(plan, command)
    if not leads:
        opened = queue.join(plan)
        supervise.drive(engine.crew(job), opened, Clerk(job), Screen(plan, opened), leads=False)
        return
    lead = lock.hold(plan.folder / DRIVER_LOCK)
    if lead is None:
        raise InputError(f"study {plan.name} is led by another process; to help it: {join_command(plan)}.")
    with lead:
        opened = queue.start(plan)
        (plan.folder / KEPT_PLAN).write_text(json.dumps(plan.kept()))
        keeper = Clerk(job)
        keeper.settle()
        print(heading(plan, opened, keeper), flush=True)
        supervise.drive(engine.crew(job), opened, keeper, Screen(plan, opened), leads=True)
        keeper.settle()
        print(finish.finish(job, opened, keeper), flush=True)


def open_job(plan: Plan, command: str) -> Job:
    """Make the folder of a study and load its data."""
    try:
        plan.folder.mkdir(parents=True, exist_ok=True)
        (plan.folder / ".probe").touch()
        (plan.folder / ".probe").unlink()
    except OSError as error:
        raise InputError(f"cannot write to {plan.folder} ({error.strerror}); start in another folder.") from error
    raw = load_raw(plan.base)
    if plan.data not in ("", raw.digest):
        raise InputError(
            f"study {plan.name} is on other data than those in {plan.base.data.dir}; give their folder with --data-dir."
        )
    tracker = None
    if plan.tracking != "none":
        mlflow_runs.require_writable(plan.tracking)
        mlflow_runs.load_store(plan.tracking)
        mlflow_runs.trust_the_log()
        tracker = mlflow_runs.Tracker(plan.tracking, plan.name, mlflow_runs.describe(load(plan.base.data, raw)))
    return Job(plan, raw, tracker, provenance(command), machine.threads(raw.shape, plan.workers))


def load_raw(base: Run) -> Splits:
    """Return the data of a study before binarisation, which each trial does for itself."""
    return load(base.replace({"data.binarise": "none"}).data)


def replay(options: argparse.Namespace) -> int:
    """Write what waits in outboxes to the tracker."""
    for path in sorted(RUNS.glob(f"{options.study or '*'}/{KEPT_PLAN}")):
        plan = plans.from_json(json.loads(path.read_text()), folder=path.parent)
        job = open_job(plan, "python studies/sweep.py --replay")
        waiting = len(job.outbox)
        try:
            trouble = tracker_sync.tend(job) if waiting else ""
        except StoreError as error:
            trouble = str(error)
        print(f"{plan.name}: {trouble or f'{waiting} runs written'}")
    return 0


def heading(plan: Plan, opened: Search, keeper: Clerk) -> str:
    """Return what is said before the first trial."""
    counts = opened.counts()
    lines = [f"study {plan.name}: {counts.done} of {plan.trials} trials done, {plan.workers} workers"]
    lines += [str(plan.space), f"to help from another shell: {join_command(plan)}"]
    if plan.stack != 1:
        count = "as many trials as pays, by its first steps," if plan.stack == plans.AUTO else f"{plan.stack} trials"
        lines.append(f"each worker trains {count} side by side")
    if plan.seeds > 1 and plan.target.pruned:
        lines.append(f"each setting is trained with {plan.seeds} seeds, and pruned by Wilcoxon's test over them")
    if not plan.target.pruned:
        lines.append(f"target {plan.target.name} has no pruner: every trial runs to its end")
    if keeper.trouble:
        lines.append(f"{keeper.trouble}; runs wait in {keeper.job.outbox.path} until it answers")
    return "\n".join(lines) + "\n"


def join_command(plan: Plan) -> str:
    """Return what another shell types to help."""
    storage = ["--storage", plan.storage] if "://" in plan.storage else []
    return shlex.join(["python", "studies/sweep.py", "--join", "--study", plan.name, *storage])


if __name__ == "__main__":
    gc.enable()
    sys.exit(main())
