"""A trial: its seeds train side by side, and everything that is kept of it is their mean, whichever way they train."""

import dataclasses
import json
import statistics
from collections import Counter
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import optuna
import pytest
import torch
from optuna.trial import TrialState

from tests import chaos
from tests.elsewhere import elsewhere as elsewhere
from vaebench.studies import sweep as sweep_command
from vaebench.studies.commands import sweep
from vaebench.studies.engine.report import table
from vaebench.studies.engine.search import queue
from vaebench.studies.engine.search.states import BEST_SEED, RAISED
from vaebench.studies.engine.study.plan import Plan
from vaebench.studies.engine.study.target import TARGETS
from vaebench.studies.engine.workers import loop, outcome, trial
from vaebench.studies.engine.workers.trial_log import Orphaned
from vaebench.studies.tracking import figures
from vaebench.studies.tracking.figures import from_tags
from vaebench.studies.tracking.record import NOTE
from vaebench.vae.ensemble.fit_many import Ensemble
from vaebench.vae.estimators.evidence import Estimate
from vaebench.vae.evaluation.evaluate import measure
from vaebench.vae.training.fit import fit
from vaebench.vae.training.state import load_model

SPACE = """
[model]
latent = { low = 2, high = 5 }
network = { choices = ["mlp", "linear", "conv"] }
[objective]
alpha = { low = 0.0, high = 0.9 }
lambda = { low = 1.0, high = 30.0, log = true }
[train]
learning_rate = { choices = [0.003, 1e30] }
clip_norm = 1e30
"""
INEXACT = {"weights_sha256", "error", NOTE}
RATE = ["train.learning_rate"]


class Store:
    """What a tracker was told, by trial."""

    def __init__(self):
        self.runs = {}

    def begin(self, record):
        assert record.trial not in self.runs, "a run is begun once"
        self.runs[record.trial] = {
            "status": "RUNNING",
            "params": {},
            "tags": dict(record.tags),
            "points": [],
            "files": [],
        }
        return record.trial

    def extend(self, run, metrics, params, tags):
        self.runs[run]["points"] += [(name, step, value) for name, value, _, step in metrics]
        self.runs[run]["params"] |= params
        self.runs[run]["tags"] |= tags

    def attach(self, run, files):
        self.runs[run]["files"] += [Path(file).name for file in files]

    def close(self, run, status, end):
        self.runs[run]["status"] = status


def open_study(name, *arguments):
    """Return the job of a study with its trials queued, and a store in the place of MLflow."""
    line = [*chaos.SHORT, "--study", name, "--trials", "4", "--workers", "1", "--sampler", "random", *arguments]
    plan = sweep.make_plan(sweep_command.parser().parse_args([*line, "--tracking-uri", "none"]))
    job = dataclasses.replace(sweep.open_job(plan, "python studies/sweep.py"), tracker=Store())
    search = queue.create_study(plan)
    search.top_up()
    return job, search


def run_trials(job, tell=lambda message: None, is_wanted=lambda: True):
    loop.run_trials(job, "me", 0, tell, is_wanted)


def assert_same_trial(one, other):
    assert (one.state, one.params) == (other.state, other.params)
    assert one.values == pytest.approx(other.values, rel=2e-3) if one.values else other.values is None
    assert list(one.intermediate_values) == list(other.intermediate_values)
    assert one.intermediate_values == pytest.approx(other.intermediate_values, rel=2e-3)
    errors = [found.user_attrs.get(RAISED, "").split(":")[0] for found in (one, other)]
    assert errors[0] == errors[1]


def assert_same_run(one, other):
    """Whether an example of the estimate needs more samples can turn on a rounding: its cost agrees to a tenth."""
    for name in ("status", "params", "files"):
        assert one[name] == other[name]
    (values, exact), (others, other_exact) = (figures.from_tags(run["tags"]) for run in (one, other))
    assert {**exact, **dict.fromkeys(INEXACT)} == {**other_exact, **dict.fromkeys(INEXACT)}
    points = [*one["points"], *((name, 0, value) for name, value in values.items())]
    other_points = [*other["points"], *((name, 0, value) for name, value in others.items())]
    assert [point[:2] for point in points] == [point[:2] for point in other_points]
    for (name, _, first), (_, _, second) in zip(points, other_points, strict=True):
        if not name.startswith("perf/") and not name.endswith(outcome.SPREAD):
            rel = 0.1 if name in ("valid/nll_rounds", "valid/nll_evaluations") else 1e-2
            assert first == pytest.approx(second, rel=rel, abs=2e-2), name


@pytest.mark.slow
def test_seeds_in_one_step_and_one_after_another_are_the_same_trials(monkeypatch):
    """Some are pruned, some diverge, convolutions are never stacked."""
    Path("space.toml").write_text(SPACE)
    pruned = {1: 2, 4: 3, 6: 1}
    monkeypatch.setattr(optuna.Trial, "should_prune", lambda one: pruned.get(one.number, 0) == len(reports(one)))
    found = {}
    for stacking in ("never", "auto"):
        monkeypatch.setattr(trial, "Ensemble", partial(Ensemble, stacking=stacking))
        line = ("--space", "space.toml", "--set", "train.epochs=5", "--set", "train.patience=2", "--seeds", "2")
        job, search = open_study(f"by-{stacking}", *line, "--trials", "10", "--set", "eval.seed=1")
        run_trials(job)
        found[stacking] = (search.trials(), job.tracker.runs)
    states = Counter(one.state.name for one in found["auto"][0])
    assert all(states[name] for name in ("COMPLETE", "PRUNED", "FAIL")), states
    for alone, together in zip(found["never"][0], found["auto"][0], strict=True):
        assert_same_trial(alone, together)
        assert_same_run(found["never"][1][alone.number], found["auto"][1][together.number])


def reports(one):
    return one.storage.get_trial(one._trial_id).intermediate_values


def test_figures_of_a_trial_are_those_of_its_seeds_trained_by_fit():
    job, search = open_study("means", "--seeds", "3", "--trials", "1", "--set", "train.patience=1")
    run_trials(job)
    (done,) = search.trials()
    results = [fit(config, data=job.raw) for config in job.plan.seeded(job.plan.config(done.params))]
    measured = [measure(one.model, one.splits, one.config, split="valid") for one in results]
    nll = [metrics["valid/nll"] for metrics in measured]
    logged = {name: value for name, _, value in job.tracker.runs[0]["points"]}
    logged |= from_tags(job.tracker.runs[0]["tags"])[0]
    assert done.value == logged["valid/nll"] == pytest.approx(statistics.fmean(nll), rel=1e-4)
    assert logged["valid/nll_seed_sd"] == pytest.approx(statistics.stdev(nll), rel=1e-2)
    assert logged["latent/mi"] == pytest.approx(statistics.fmean(one["latent/mi"] for one in measured), rel=1e-3)
    first = [one.history[0]["valid/elbo"] for one in results]
    curve = [value for name, step, value in job.tracker.runs[0]["points"] if (name, step) == ("valid/elbo", 1)]
    assert curve == pytest.approx([statistics.fmean(first)], rel=1e-5)
    assert job.tracker.runs[0]["status"] == "FINISHED"
    hashes = {outcome.hash_weights(one.model) for one in results}
    assert len(hashes) == 3
    assert outcome.hash_weights(results[0].model) in hashes
    curves = {name for name, step, _ in job.tracker.runs[0]["points"] if step == job.plan.base.train.epochs}
    assert {"valid/elbo", "valid/rate", "valid/distortion", "latent/active_units"} <= curves
    best = min(range(3), key=nll.__getitem__)
    model, config = load_model(job.trial_folder(0) / "checkpoint.safetensors")
    assert config.train.seed == done.user_attrs[BEST_SEED] == best
    for own, other in zip(model.parameters(), results[best].model.parameters(), strict=True):
        torch.testing.assert_close(own, other, rtol=3e-4, atol=3e-4)
    command = table.build(job.plan, [done], [])["command"].iloc[0]
    assert ("train.seed=" in command) == (best > 0)
    note = job.tracker.runs[0]["tags"][NOTE]
    assert f"| valid/nll | {done.value:.3f}" in note
    assert ("train.seed=" in note) == (best > 0)
    assert f"train.seed={best}" in command or best == 0


def test_the_error_of_a_mean_over_seeds_is_of_the_sampling_alone():
    """Errors of 3 and 4 from independent noise make 5 / 2; an error over the same examples is not divided."""
    seeds = [
        {"valid/nll": 1.0, "valid/nll_stderr": 3.0, "latent/mi": 2.0, "latent/mi_stderr": 0.5},
        {"valid/nll": 4.0, "valid/nll_stderr": 4.0, "latent/mi": 2.0, "latent/mi_stderr": 0.5, "test/alone": 1.0},
    ]
    found = outcome.average_seeds(seeds)
    assert (found["valid/nll"], found["valid/nll_stderr"], found["latent/mi_stderr"]) == (2.5, 2.5, 0.5)
    assert found["valid/nll_seed_sd"] == pytest.approx(statistics.stdev([1, 4]))
    assert "test/alone" not in found
    assert outcome.average_seeds(seeds[:1]) == seeds[0]


@pytest.mark.parametrize(
    ("state", "repeats", "word"),
    [
        (TrialState.COMPLETE, None, "finished"),
        (TrialState.PRUNED, None, "pruned"),
        (TrialState.FAIL, None, "failed"),
        (TrialState.COMPLETE, 0, "repeated"),
        (TrialState.FAIL, 3, "repeated"),
    ],
)
def test_what_became_of_a_trial_in_words(state, repeats, word):
    assert outcome.Outcome(state, repeats=repeats).word == word


def test_the_traceback_of_a_trial_that_fails_again_replaces_the_first(tmp_path):
    for error in (ValueError("first"), ValueError("second")):
        (written,) = outcome.Outcome(TrialState.FAIL, error=error).save(tmp_path / "trial")
    assert written.read_text() == "ValueError: second\n"


@pytest.mark.parametrize(("target", "expected"), [("nll", 2), ("mig", 1)])
def test_the_model_that_is_kept_is_that_of_the_seed_that_is_best_by_the_target(monkeypatch, target, expected):
    figures_of = iter([{"valid/nll": nll, "latent/mig": nll} for nll in (5.0, 9.0, 2.0)])
    estimate = Estimate(torch.zeros(3), torch.zeros(3), "unbiased", 1)
    monkeypatch.setattr(outcome, "measure", lambda *arguments, **options: next(figures_of))
    monkeypatch.setattr(outcome, "estimate_log_px", lambda *arguments: estimate)
    results = [SimpleNamespace(model=None, splits=SimpleNamespace(valid=None), config=None) for _ in range(3)]
    plan = SimpleNamespace(target=TARGETS[target])
    found = outcome.measure_seeds(results, SimpleNamespace(digest="d"), plan, pruned=False)
    assert found.best is results[expected]
    assert found.values == [pytest.approx(16 / 3)]


def test_the_pruner_is_told_the_mean_over_the_seeds_of_the_validation_split(monkeypatch):
    values, splits = iter([1.0, 2.0, 6.0] * 9), []
    monkeypatch.setattr(trial, "quick_nll", lambda model, split, config: splits.append(split) or next(values))
    job, search = open_study("told", "--seeds", "3", "--trials", "1", "--pruner", "none")
    run_trials(job)
    assert search.trials()[0].intermediate_values == dict.fromkeys(range(1, 7), 3.0)
    assert all(torch.equal(split.stored, job.raw.valid.stored) for split in splits)


def test_a_seed_that_diverges_fails_its_trial():
    job, search = open_study("diverged", "--seeds", "2", "--trials", "1", "--set", "train.clip_norm=1e30")
    config = job.plan.base.replace({"train.learning_rate": 1e30})
    job = dataclasses.replace(job, plan=dataclasses.replace(job.plan, base=config, space=job.plan.space.drop(RATE)))
    run_trials(job)
    (failed,) = search.trials()
    assert failed.state == TrialState.FAIL
    assert "training diverged in epoch 1" in failed.user_attrs[RAISED]
    assert job.tracker.runs[0]["files"] == ["error.txt"]
    assert "DivergedError" in (job.trial_folder(0) / "error.txt").read_text()


def test_a_trial_that_the_driver_took_for_dead_is_left_and_trained_again():
    job, search = open_study("lost", "--pruner", "none")

    def lose(message):
        if (message["trial"], message["epoch"]) == (1, 2):
            assert search._requeue(search.trials()[1], "somebody pulled the plug")

    run_trials(job, tell=lose)
    states = {one.number: one.state.name for one in search.trials()}
    assert states == {0: "COMPLETE", 1: "FAIL", 2: "COMPLETE", 3: "COMPLETE", 4: "COMPLETE"}
    assert search.trials()[4].params == search.trials()[1].params
    assert job.tracker.runs[1]["status"] == "RUNNING", "the driver closes it"


def test_a_storage_that_fails_stops_the_worker_and_counts_as_no_result(monkeypatch):
    job, search = open_study("full")
    report = optuna.Trial.report

    def fail(one, value, step):
        if one.number == 1:
            raise OSError(28, "No space left on device")
        report(one, value, step)

    monkeypatch.setattr(optuna.Trial, "report", fail)
    with pytest.raises(OSError, match="No space left"):
        run_trials(job)
    assert [one.state.name for one in search.trials()][1:] == ["RUNNING", "WAITING", "WAITING"]
    assert search.requeue("me", "killed") == [1]
    monkeypatch.setattr(optuna.Trial, "report", report)
    run_trials(dataclasses.replace(job, tracker=None))
    assert search.counts().finished + search.counts().pruned == 4


def test_a_worker_that_is_not_wanted_any_more_leaves_its_trial():
    job, search = open_study("orphaned")
    heard = []
    with pytest.raises(Orphaned):
        run_trials(job, tell=heard.append, is_wanted=lambda: len(heard) < 3)
    assert search.counts().running == 1
    assert {message["trial"] for message in heard} == {0}


def test_a_training_for_which_memory_is_too_small_fails_its_trial_alone(monkeypatch):
    job, search = open_study("memory")
    train_epoch = Ensemble.train_epoch

    def too_small(seeds):
        if seeds.members[0].config.model.latent == job.plan.config(search.trials()[0].params).model.latent:
            raise torch.OutOfMemoryError("GPU memory is too small")
        train_epoch(seeds)

    monkeypatch.setattr(Ensemble, "train_epoch", too_small)
    run_trials(job)
    assert search.trials()[0].user_attrs[RAISED] == "GPU memory is too small"
    assert search.counts().finished + search.counts().pruned >= 1


def test_a_plan_of_an_earlier_version_is_read(tmp_path):
    job, _ = open_study("old")
    job.plan.save()
    values = json.loads((job.plan.folder / "plan.json").read_text())
    (job.plan.folder / "plan.json").write_text(json.dumps({**values, "stack": 4}))
    assert dataclasses.replace(Plan.load(job.plan.folder / "plan.json"), base=job.plan.base) == job.plan
