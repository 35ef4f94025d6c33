"""What is only done for the best trials of a study: test metrics, pictures, and a second opinion on log p(x)."""

import dataclasses
import json
import multiprocessing
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path

import torch
from optuna.trial import FrozenTrial, TrialState
from torchvision.utils import save_image

from vaebench.studies import pictures
from vaebench.studies.engine.processes import background_call
from vaebench.studies.engine.workers.job import STATUS, Job
from vaebench.studies.pictures import COLUMNS
from vaebench.studies.tracking.record import Record, StoreError, milliseconds
from vaebench.vae.config.run import Run
from vaebench.vae.data import Split, Splits, load
from vaebench.vae.estimators import ais
from vaebench.vae.evaluation.evaluate import bounds, importance_nll
from vaebench.vae.model import VAE
from vaebench.vae.model.flow import FlowModel
from vaebench.vae.prob.proposals import GaussianProposal
from vaebench.vae.training import checkpoint
from vaebench.vae.training.epoch import Metrics
from vaebench.vae.training.state import load_model

FINALISTS, CHECKED = 10, 5
PAGES = 3
MARK = "finalist.json"
AIS_EXAMPLES, AIS_TEMPERATURES, AIS_CHAINS, AIS_LEAPFROG_STEPS, AIS_WIDTH = 32, 100, 4, 4, 1.5


def attend(job: Job, best: list[FrozenTrial]) -> None:
    """Treat the best trials, in as many processes as the study has workers; those treated before stay as they are."""
    todo = [(rank, trial) for rank, trial in enumerate(best) if not _is_done(job, rank, trial)]
    taken = multiprocessing.get_context("fork").Value("i", 0)
    sent = [background_call.send(_work, job, todo, taken) for _ in range(min(job.plan.workers, len(todo)))]
    for errand in sent:
        errand.answer()


def treat(job: Job, trial: FrozenTrial, *, check: bool) -> Record:
    """Measure and draw one finished trial; return what is to be added to its run.

    What the trial itself has logged, such as `latent/*`, is a mean over its seeds, and stays.
    """
    folder = job.folder(trial.number)
    model, config = load_model(folder / checkpoint.CURRENT)
    splits = load(config.data, job.raw)
    metrics = {f"test/{name}": value for name, value in bounds(model, splits.test, config).items()}
    if check and not isinstance(model, FlowModel):
        metrics |= annealed_nll(model, splits.valid, config)
    slides, files = draw(model, splits, folder)
    now = milliseconds()
    points = [(name, value, now, config.train.epochs) for name, value in metrics.items()]
    end = int(trial.datetime_complete.timestamp() * 1000) if trial.datetime_complete else now
    added = Record(trial.number, f"{job.plan.name} {trial.number}", end, STATUS[trial.state], end)
    (folder / MARK).write_text(json.dumps({"checked": check, "metrics": metrics, "left_out": pictures.left_out(model)}))
    return dataclasses.replace(added, metrics=points, files=[str(path) for path in files], slides=slides)


def annealed_nll(model: VAE, split: Split, config: Run) -> Metrics:
    """Estimate -log p(x) by annealed importance sampling, and by importance sampling on the same examples.

    HMC finds what a q(z|x) that is too narrow never proposes: where the two differ by more than their errors, the
    target has misjudged the trial.
    """
    generator = torch.Generator().manual_seed(config.eval.seed)
    x = split.spread(AIS_EXAMPLES).batch(generator=generator)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    log_joint, q = model.base_joint(x)
    path = ais.Path(
        log_joint,
        GaussianProposal(q.mu, q.logvar).widened(AIS_WIDTH),
        ais.sigmoid_schedule(AIS_TEMPERATURES),
        AIS_LEAPFROG_STEPS,
    )
    steps = ais.tune_steps(path, generator=generator)
    value, stderr = ais.anneal(path, steps, chains=AIS_CHAINS, generator=generator).mean()
    other = importance_nll(model, split, config.replace({"eval.examples": len(x)}))
    return {"ais/nll": -value, "ais/nll_stderr": stderr, "ais/gap": other["nll"] + value}


def draw(model: VAE, splits: Splits, folder: Path) -> tuple[list[tuple[str, str, int]], list[Path]]:
    """Save pages of reconstructions and samples for a slider, a traversal and a scatter of codes as files."""
    if not pictures.are_images(splits) or pictures.left_out(model):
        return [], []
    slides: list[tuple[str, str, int]] = []
    for page in range(PAGES):
        generator = torch.Generator().manual_seed(page)
        shown = {
            "reconstructions": pictures.reconstructions(model, _turned(splits, page), generator),
            "samples": pictures.prior_samples(model, generator, splits.test.device),
        }
        for name, picture in shown.items():
            path = folder / f"{name}_{page}.png"
            save_image(picture, path)
            slides.append((name, str(path), page))
    if isinstance(model, FlowModel):
        return slides, []
    traversal, scatter = folder / "traversal.png", folder / "latent.png"
    save_image(pictures.traversal(model, splits, torch.Generator().manual_seed(0)), traversal)
    pictures.latent_scatter(model, splits, torch.Generator(splits.train.device).manual_seed(0)).savefig(scatter)
    return slides, [traversal, scatter]


def ranked(trials: list[FrozenTrial], best: list[FrozenTrial], *, maximise: bool) -> list[FrozenTrial]:
    """Return completed trials, the Pareto front first, then by the first target."""
    front = {trial.number for trial in best}
    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    sign = -1 if maximise else 1
    several = bool(complete) and len(complete[0].values) > 1
    return sorted(complete, key=lambda trial: (several and trial.number not in front, sign * trial.values[0]))


def undrawn(job: Job, best: list[FrozenTrial]) -> list[str]:
    """Return a sentence for each reason why some of the best trials have no pictures."""
    reasons: dict[str, list[int]] = {}
    for trial in best:
        mark = job.folder(trial.number) / MARK
        reason = json.loads(mark.read_text()).get("left_out") if mark.exists() else ""
        if reason:
            reasons.setdefault(reason, []).append(trial.number)
    return [f"trials {', '.join(map(str, trials))}: {reason}" for reason, trials in reasons.items()]


def _work(job: Job, todo: list[tuple[int, FrozenTrial]], taken: "Synchronized[int]") -> None:
    """Treat trials, each time the next that no other process has taken."""
    torch.set_num_threads(job.threads)
    while (mine := _next(taken)) < len(todo):
        rank, trial = todo[mine]
        if not _has_weights(job, trial):
            continue
        added = treat(job, trial, check=_is_checked(job, rank))
        if job.tracker is not None:
            try:
                job.tracker.upsert(added)
            except StoreError:
                job.outbox.put(added)


def _next(taken: "Synchronized[int]") -> int:
    with taken.get_lock():
        taken.value += 1
        return taken.value - 1


def _is_done(job: Job, rank: int, trial: FrozenTrial) -> bool:
    mark = job.folder(trial.number) / MARK
    return mark.exists() and (not _is_checked(job, rank) or json.loads(mark.read_text())["checked"])


def _is_checked(job: Job, rank: int) -> bool:
    return job.plan.target.checked and rank < CHECKED


def _has_weights(job: Job, trial: FrozenTrial) -> bool:
    """Whether a trial's weights are here, or can be had from the tracker: another machine may have trained it."""
    if (job.folder(trial.number) / checkpoint.CURRENT).exists():
        return True
    try:
        return job.tracker is not None and job.tracker.fetch(trial.number, checkpoint.CURRENT, job.folder(trial.number))
    except StoreError:
        return False


def _turned(splits: Splits, page: int) -> Splits:
    """Return the splits with the test examples of a page in front."""
    shift, test = -page * 3 * COLUMNS, splits.test
    labels = None if test.labels is None else test.labels.roll(shift, 0)
    return dataclasses.replace(splits, test=dataclasses.replace(test, stored=test.stored.roll(shift, 0), labels=labels))
