"""Measure the best trials of a study: test metrics, pictures, and a check of the estimator of log p(x)."""

import dataclasses
import json
import multiprocessing
from enum import IntEnum
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path

import torch
from optuna.trial import FrozenTrial
from torchvision.utils import save_image

from vaebench.studies import pictures
from vaebench.studies.engine.processes import background_call
from vaebench.studies.engine.search.states import BEST_SEED, state_of
from vaebench.studies.engine.study import paired
from vaebench.studies.engine.study.plan import Plan
from vaebench.studies.engine.workers.job import STATUS, Job, name_run
from vaebench.studies.engine.workers.trial_log import add_note
from vaebench.studies.pictures import COLUMNS
from vaebench.studies.tracking import local_runs
from vaebench.studies.tracking.figures import add_figures, from_tags
from vaebench.studies.tracking.mlflow_runs import TrackedRun, Tracker
from vaebench.studies.tracking.record import RunRecord, StoreError, milliseconds
from vaebench.vae.config.run import Run
from vaebench.vae.data import Split, Splits, load
from vaebench.vae.estimators.log_likelihood import Policy
from vaebench.vae.evaluation.enclosure import enclose
from vaebench.vae.evaluation.evaluate import estimate_log_px, likelihood_metrics
from vaebench.vae.evaluation.likelihood import annealed_log_likelihood
from vaebench.vae.model import GenerativeModel
from vaebench.vae.training import checkpoint
from vaebench.vae.training.epoch import Metrics
from vaebench.vae.training.state import load_model
from vaebench.vae.training.streams import evaluation_generator

CHECKED = 5
PAGES = 3
MEASURED = "finalist.json"
AIS_EXAMPLES, AIS_TEMPERATURES, AIS_CHAINS = 32, 25, 16
ENCLOSED_EXAMPLES, ENCLOSED_TEMPERATURES = 16, 25


class Check(IntEnum):
    """How the estimator of log p(x) is checked on a trial: not, by annealing, or by an enclosure as well."""

    NONE = 0
    ANNEALED = 1
    ENCLOSED = 2


def measure_all(job: Job, best: list[FrozenTrial]) -> None:
    """Measure the best trials that are not measured yet, in as many processes as the study has workers."""
    checks = [_choose_check(rank) if job.plan.target.uses_nll else Check.NONE for rank in range(len(best))]
    todo = [(trial, check) for trial, check in zip(best, checks, strict=True) if not _is_done(job, trial, check)]
    claimed = multiprocessing.get_context("fork").Value("i", 0)
    workers = min(job.plan.workers, len(todo))
    for call in [background_call.start(_measure_claimed, job, todo, claimed) for _ in range(workers)]:
        call.result()


def _choose_check(rank: int) -> Check:
    return Check.ENCLOSED if rank == 0 else Check.ANNEALED if rank < CHECKED else Check.NONE


def measure(job: Job, trial: FrozenTrial, *, check: Check) -> RunRecord:
    """Measure and draw one finished trial; return the metrics and pictures to add to its run.

    The metrics that the trial logged itself, such as `latent/*`, are means over its seeds, and are not measured again.
    """
    folder = job.trial_folder(trial.number)
    model, config = load_model(folder / checkpoint.CURRENT)
    splits = load(config.data, job.raw)
    metrics = {f"test/{name}": value for name, value in likelihood_metrics(model, splits.test, config).items()}
    if check >= Check.ANNEALED and model.has_codes:
        metrics |= check_estimator(model, splits.valid, config)
    if check == Check.ENCLOSED and model.has_codes:
        metrics |= enclose_simulated(model, config)
    slides, files = draw(model, splits, folder)
    left_out = pictures.reason_not_drawn(model)
    (folder / MEASURED).write_text(json.dumps({"check": int(check), "metrics": metrics, "left_out": left_out}))
    end = int(trial.datetime_complete.timestamp() * 1000) if trial.datetime_complete else milliseconds()
    record = RunRecord(
        trial.number,
        name_run(trial.number, trial.params),
        start=end,
        status=STATUS[state_of(trial)],
        end=end,
        files=[str(path) for path in files],
        slides=slides,
    )
    add_figures(record, metrics)
    return record


def read_runs(plan: Plan, trials: list[FrozenTrial]) -> list[TrackedRun]:
    """Return the runs of a study without a tracker, from the folders of its trials, with what was measured."""
    found = []
    for trial in trials:
        folder = plan.trial_folder(trial.number)
        if (run := local_runs.read(trial.number, folder)) is not None:
            measured = folder / MEASURED
            more = json.loads(measured.read_text()).get("metrics", {}) if measured.exists() else {}
            found.append(dataclasses.replace(run, metrics=run.metrics | more))
    return found


def extend_note(job: Job, tracker: Tracker, record: RunRecord, trial: FrozenTrial) -> None:
    """Replace the note of a trial's run by one with the new figures too."""
    seed = trial.user_attrs.get(BEST_SEED, job.plan.base.train.seed)
    own = next((run.metrics for run in tracker.runs(trial.number)), {})
    new, _ = from_tags(record.tags)
    known = own | {name: value for name, value, _, _ in record.metrics} | new
    add_note(record, known, job.plan.config(trial.params), seed)


def check_estimator(model: GenerativeModel, split: Split, config: Run) -> Metrics:
    """Compare the study's estimate of log p(x) of some examples with annealed importance sampling.

    Both estimates lie below log p(x) in expectation. So only a positive gap tells against the estimator: annealing has
    found codes that it missed. A negative gap says that the annealing was too short. Examples that the estimator itself
    reports as unresolved are left out of the gap.
    """
    config = config.replace({"eval.examples": AIS_EXAMPLES})
    estimate = estimate_log_px(model, split, config)
    generator = evaluation_generator(config.eval.seed, split.device)
    x = split.subsample(AIS_EXAMPLES).batch(generator=generator)
    annealed = annealed_log_likelihood(model, x, temperatures=AIS_TEMPERATURES, chains=AIS_CHAINS, generator=generator)
    nll, stderr = annealed.mean()
    found = {"ais/nll": -nll, "ais/nll_stderr": stderr}
    resolved = estimate.resolved
    if not resolved.any():
        return found
    gap = (annealed.value - estimate.value)[resolved].mean().item()
    joint = (annealed.stderr.square() + estimate.stderr.square())[resolved].sum().sqrt().item() / int(resolved.sum())
    return found | {"ais/gap": gap, "ais/gap_stderr": joint}


def enclose_simulated(model: GenerativeModel, config: Run) -> Metrics:
    """Enclose log p(x) of data simulated by the model, and estimate it with as many samples as the study does."""
    return enclose(
        model,
        ENCLOSED_EXAMPLES,
        seed=config.eval.seed,
        temperatures=ENCLOSED_TEMPERATURES,
        policy=Policy(samples=config.eval.samples),
    ).metrics()


def draw(model: GenerativeModel, splits: Splits, folder: Path) -> tuple[list[tuple[str, str, int]], list[Path]]:
    """Save pages of reconstructions and samples, and a traversal and a scatter of codes; return slides and files."""
    if not pictures.are_images(splits) or pictures.reason_not_drawn(model):
        return [], []
    slides: list[tuple[str, str, int]] = []
    for page in range(PAGES):
        generator = torch.Generator().manual_seed(page)
        shown = {
            "reconstructions": pictures.reconstructions(model, _turn_to_page(splits, page), generator),
            "samples": pictures.prior_samples(model, generator),
        }
        for name, picture in shown.items():
            path = folder / f"{name}_{page}.png"
            save_image(picture, path)
            slides.append((name, str(path), page))
    if not model.has_codes:
        return slides, []
    traversal, scatter = folder / "traversal.png", folder / "latent.png"
    save_image(pictures.traversal(model, splits, torch.Generator().manual_seed(0)), traversal)
    pictures.latent_scatter(model, splits, torch.Generator(splits.train.device).manual_seed(0)).savefig(scatter)
    return slides, [traversal, scatter]


def explain_missing_pictures(job: Job, best: list[FrozenTrial]) -> list[str]:
    """Return a sentence for each reason why some of the best trials have no pictures."""
    reasons: dict[str, list[int]] = {}
    for trial in best:
        path = job.trial_folder(trial.number) / MEASURED
        reason = json.loads(path.read_text()).get("left_out") if path.exists() else ""
        if reason:
            reasons.setdefault(reason, []).append(trial.number)
    return [f"trials {', '.join(map(str, trials))}: {reason}" for reason, trials in reasons.items()]


def _measure_claimed(job: Job, todo: list[tuple[FrozenTrial, Check]], claimed: "Synchronized[int]") -> None:
    """Measure trials, each time the next one that no other process has claimed."""
    torch.set_num_threads(job.threads)
    while (index := _claim_next(claimed)) < len(todo):
        trial, check = todo[index]
        _fetch(job, trial, paired.FILE)
        if not _fetch(job, trial, checkpoint.CURRENT):
            continue
        record = measure(job, trial, check=check)
        if job.tracker is not None:
            try:
                extend_note(job, job.tracker, record, trial)
                job.tracker.upsert(record)
            except StoreError:
                job.outbox.put(record)


def _claim_next(claimed: "Synchronized[int]") -> int:
    with claimed.get_lock():
        claimed.value += 1
        return claimed.value - 1


def _is_done(job: Job, trial: FrozenTrial, check: Check) -> bool:
    """Whether the trial has been checked as asked, or more; a file without this level is of an older version."""
    path = job.trial_folder(trial.number) / MEASURED
    return path.exists() and json.loads(path.read_text()).get("check", -1) >= check


def _fetch(job: Job, trial: FrozenTrial, file: str) -> bool:
    """Copy a trial's file from the tracker if another machine trained it; return whether the file is here."""
    folder = job.trial_folder(trial.number)
    if (folder / file).exists():
        return True
    try:
        return job.tracker is not None and job.tracker.fetch(trial.number, file, folder)
    except StoreError:
        return False


def _turn_to_page(splits: Splits, page: int) -> Splits:
    """Return the splits with the test examples of a page in front."""
    shift, test = -page * 3 * COLUMNS, splits.test
    labels = None if test.labels is None else test.labels.roll(shift, 0)
    return dataclasses.replace(splits, test=dataclasses.replace(test, stored=test.stored.roll(shift, 0), labels=labels))
