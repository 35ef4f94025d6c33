"""`sweep.py --stack`: trials that train side by side are the trials that they would be alone, in all that is kept."""

import dataclasses
from collections import Counter
from pathlib import Path

import optuna
import pytest
import torch

from tests import chaos
from tests.elsewhere import elsewhere as elsewhere
from vaebench.studies import sweep as sweep_command
from vaebench.studies.commands import sweep
from vaebench.studies.engine.driver.progress import describe_worker
from vaebench.studies.engine.search import queue
from vaebench.studies.engine.search.queue import RAISED
from vaebench.studies.engine.study.plan import AUTO
from vaebench.studies.engine.workers import loop, stacked_trials
from vaebench.studies.engine.workers.trial import TrainingRequest
from vaebench.vae import data
from vaebench.vae.config.run import Run
from vaebench.vae.ensemble.fit_many import Ensemble
from vaebench.vae.model.build import build
from vaebench.vae.training.fit import fit
from vaebench.vae.training.setup import own_random_state

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
INEXACT = {"weights_sha256", "error"}


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


@pytest.fixture
def largest(monkeypatch):
    """The most models that were in one stack, and how many ever were in any."""
    seen = Counter()
    admit = Ensemble.admit

    def noted(stack, config, **options):
        member = admit(stack, config, **options)
        seen[config.model.network] += 1
        seen["most"] = max(seen["most"], len(stack.members))
        return member

    monkeypatch.setattr(Ensemble, "admit", noted)
    return seen


@pytest.mark.parametrize(
    ("count", "pruned", "options"),
    [
        (12, {1: 2, 4: 3, 6: 1}, ("--set", "train.patience=1", "--set", "eval.seed=1")),
        (6, {1: 1, 4: 1}, ("--seeds", "2")),
    ],
    ids=["pruned by epoch", "two seeds"],
)
def test_a_study_in_stacks_keeps_of_every_trial_what_a_study_without_keeps(
    monkeypatch, largest, count, pruned, options
):
    """Some are pruned, some diverge, convolutions train alone, and who leaves makes room for the next."""
    Path("space.toml").write_text(SPACE)
    monkeypatch.setattr(optuna.Trial, "should_prune", lambda trial: pruned.get(trial.number, 0) == len(reports(trial)))
    found = {}
    for stack in ("1", "4"):
        line = ("--space", "space.toml", "--set", "train.epochs=4", "--trials", str(count), "--stack", stack, *options)
        job, search = open_study(f"by{stack}", *line)
        assert not largest
        run_trials(job)
        found[stack] = (search.trials(), job.tracker.runs, job.plan)
    assert largest["most"] >= 3
    assert largest["conv"] == 0 < min(largest["mlp"], largest["linear"])
    assert len(found["1"][0]) == len(found["4"][0]) == count
    states = Counter(trial.state.name for trial in found["4"][0])
    assert all(states[name] for name in ("COMPLETE", "PRUNED", "FAIL")), states
    for alone, together in zip(found["1"][0], found["4"][0], strict=True):
        assert_same_trial(alone, together)
        assert_same_run(found["1"][1][alone.number], found["4"][1][together.number])
    for trial in found["4"][0]:
        left = sorted(path.name for path in (found["4"][2].folder / "trials" / str(trial.number)).iterdir())
        kept = ["checkpoint.safetensors", "config.toml", "log_px.safetensors"]
        assert left == (["error.txt"] if trial.state.name == "FAIL" else kept)


def reports(trial):
    return trial.storage.get_trial(trial._trial_id).intermediate_values


def assert_same_trial(alone, together):
    assert (alone.state, alone.params) == (together.state, together.params)
    assert alone.values == pytest.approx(together.values, rel=2e-3) if alone.values else together.values is None
    assert list(alone.intermediate_values) == list(together.intermediate_values)
    assert alone.intermediate_values == pytest.approx(together.intermediate_values, rel=2e-3)
    assert alone.user_attrs.keys() == together.user_attrs.keys()
    errors = [trial.user_attrs.get(RAISED, "").split(":")[0] for trial in (alone, together)]
    assert errors[0] == errors[1]


def assert_same_run(alone, together):
    assert alone.keys() == together.keys()
    for name in ("status", "params", "files"):
        assert alone[name] == together[name]
    assert alone["tags"].keys() == together["tags"].keys()
    assert {n: v for n, v in alone["tags"].items() if n not in INEXACT} == {
        n: v for n, v in together["tags"].items() if n not in INEXACT
    }
    assert [point[:2] for point in alone["points"]] == [point[:2] for point in together["points"]]
    for (name, _, one), (_, _, other) in zip(alone["points"], together["points"], strict=True):
        if not name.startswith("perf/"):
            assert one == pytest.approx(other, rel=1e-2, abs=2e-2), name


def test_a_trial_that_the_driver_took_for_dead_leaves_and_is_trained_again(largest):
    job, search = open_study("lost", "--stack", "4", "--pruner", "none")

    def lose(message):
        if (message["trial"], message["epoch"]) == (1, 2):
            trial = search.trials()[1]
            assert search._requeue(trial, "somebody pulled the plug")

    run_trials(job, tell=lose)
    states = {trial.number: trial.state.name for trial in search.trials()}
    assert states == {0: "COMPLETE", 1: "FAIL", 2: "COMPLETE", 3: "COMPLETE", 4: "COMPLETE"}
    assert search.trials()[4].params == search.trials()[1].params
    assert largest["most"] == 4
    assert job.tracker.runs[1]["status"] == "RUNNING", "the driver closes it"


def test_a_storage_that_fails_stops_the_worker_and_counts_as_no_result(monkeypatch):
    job, search = open_study("full", "--stack", "3")
    report = optuna.Trial.report

    def fail(trial, value, step):
        if trial.number == 1:
            raise OSError(28, "No space left on device")
        report(trial, value, step)

    monkeypatch.setattr(optuna.Trial, "report", fail)
    with pytest.raises(OSError, match="No space left"):
        run_trials(job)
    assert [trial.state.name for trial in search.trials()] == ["RUNNING"] * 3 + ["WAITING"]
    assert search.requeue("me", "killed") == [0, 1, 2]
    monkeypatch.setattr(optuna.Trial, "report", report)
    run_trials(dataclasses.replace(job, tracker=None))
    assert search.counts().complete + search.counts().pruned == 4


def test_a_worker_that_is_not_wanted_any_more_leaves_all_its_trials():
    job, search = open_study("orphaned", "--stack", "3")
    heard = []
    with pytest.raises(loop.Orphaned):
        run_trials(job, tell=heard.append, is_wanted=lambda: len(heard) < 5)
    assert search.counts().running == 3
    assert {message["trial"] for message in heard} == {0, 1, 2}
    assert heard[-1]["together"] == 3
    assert "trial 2 of 3 together: epoch" in describe_worker(job.plan, {**heard[-1], "trial": 2})


def test_a_stack_that_fails_as_a_whole_fails_its_trials(monkeypatch):
    job, search = open_study("memory", "--stack", "2")

    def too_small(*arguments):
        raise torch.OutOfMemoryError("GPU memory is too small")

    monkeypatch.setattr("vaebench.vae.ensemble.fit_many.run_epoch", too_small)
    run_trials(job)
    assert [trial.user_attrs[RAISED] for trial in search.trials()] == ["GPU memory is too small"] * 4


def test_a_trial_goes_on_with_the_weights_of_its_best_epoch():
    """This one is restless, and runs out of patience."""
    config = Run().replace({"model.latent": 2, "model.hidden": 12, "train.batch_size": 128, "train.device": "cpu"})
    config = config.replace({"train.learning_rate": 0.05, "train.schedule": "constant", "train.patience": 1})
    config = config.replace({"train.epochs": 9, "train.seed": 5})
    with own_random_state(5, torch.device("cpu")):
        model = build(config.model, (1, 8, 8), 17)
    epochs = []

    def request_trainings():
        yield TrainingRequest(config, model, lambda epoch, metrics: epochs.append(epoch))

    stacked = stacked_trials.StackedTrials(data.load(config.data), size=2)
    stacked.add(request_trainings())
    while stacked:
        stacked.train_epoch()
    expected = fit(config)
    assert len(epochs) == expected.best_epoch + 1 < 9
    for own, other in zip(model.parameters(), expected.model.parameters(), strict=True):
        torch.testing.assert_close(own, other, rtol=3e-4, atol=3e-4)


def test_several_workers_share_what_is_left():
    job, search = open_study("shared", "--stack", "4", "--workers", "2")
    heard = []
    with pytest.raises(loop.Orphaned):
        run_trials(job, tell=heard.append, is_wanted=lambda: len(heard) < 2)
    assert search.counts().running == 2


def plan_of(*arguments):
    return sweep.make_plan(sweep_command.parser().parse_args([*chaos.SHORT, *arguments]))


@pytest.mark.parametrize(
    ("speedups", "arguments", "expected"),
    [
        ({2: 0.9, 4: 1.5, 8: 2.5}, ("--trials", "80"), 8),
        ({2: 1.3, 4: 1.2, 8: 1.0}, ("--trials", "80"), 2),
        ({2: 0.9, 4: 1.0, 8: 1.05}, ("--trials", "80"), 1),
        ({2: 1.2, 3: 1.4}, ("--trials", "30"), 3),
        ({}, ("--trials", "19"), 1),
        ({}, ("--trials", "80", "--set", "model.network=conv"), 1),
        ({}, ("--trials", "80", "--set", "train.ema=0.9"), 1),
    ],
)
def test_auto_is_where_steps_say_that_it_pays_and_at_most_a_fifth_of_the_trials(
    monkeypatch, speedups, arguments, expected
):
    plan = plan_of("--stack", "auto", "--workers", "2", *arguments)
    assert plan.stack == AUTO
    seen = set()

    def seconds(configs, splits):
        seen.add(len(configs))
        return 0.01 * len(configs) / {1: 1.0, **speedups}[len(configs)]

    monkeypatch.setattr(stacked_trials, "seconds_per_step", seconds)
    assert stacked_trials.stack_size(plan, sweep.load_raw(plan.base)) == expected
    assert seen == ({1, *speedups} if speedups else set())


def test_auto_measures_real_steps():
    plan = plan_of("--stack", "auto", "--workers", "1", "--trials", "20")
    assert 1 <= stacked_trials.stack_size(plan, sweep.load_raw(plan.base)) <= 4


def test_how_many_train_together_is_no_part_of_what_a_study_is():
    alone, together, auto = (plan_of("--stack", stack) for stack in ("1", "7", "auto"))
    assert alone.name == together.name == auto.name
    assert alone.identity() == together.identity() == auto.identity()
    queue.create_study(together)
    helper = sweep.load_plan(sweep_command.parser().parse_args(["--join", "--study", together.name]), sweep.LOCAL)
    assert helper.stack == 7
    other = sweep.load_plan(
        sweep_command.parser().parse_args(["--join", "--study", together.name, "--stack", "2"]), sweep.LOCAL
    )
    assert other.stack == 2


def test_trials_side_by_side_keep_away_from_each_other():
    """With the liar, those under way count as poor ones; without, ten would be drawn from one and the same density."""

    def spread(stack):
        job, search = open_study(
            f"liar{stack}", "--stack", stack, "--sampler", "tpe", "--trials", "40", "--space", "latent"
        )
        for _ in range(20):
            trial = search.claim("me")
            point = job.plan.space.suggest(trial)
            trial.study.tell(trial, abs(point["model.latent"] - 9))
        return [job.plan.space.suggest(search.claim("me"))["model.latent"] for _ in range(10)]

    assert len(set(spread("10"))) > len(set(spread("1")))
