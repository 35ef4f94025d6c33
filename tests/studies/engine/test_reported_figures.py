"""The figures that a study reports at its end, held to closed forms, quadrature, loops and Optuna's own best trial."""

import dataclasses
import json
import math
import pickle
import shlex
import shutil
from types import SimpleNamespace

import numpy as np
import optuna
import pytest
import torch
from optuna.trial import TrialState
from scipy import stats as distributions

from tests.exact_models import generator
from vaebench.studies import sweep as sweep_command
from vaebench.studies.commands import sweep
from vaebench.studies.engine.report import best_trials, finish, page
from vaebench.studies.engine.report.best_trials import Check
from vaebench.studies.engine.report.page import Study
from vaebench.studies.engine.search import queue
from vaebench.studies.engine.search.states import BEST_SEED, RAISED
from vaebench.studies.engine.study.paired import ExampleLikelihoods
from vaebench.studies.engine.workers.job import Job
from vaebench.studies.engine.workers.outcome import Outcome, average_seeds
from vaebench.studies.tracking import figures
from vaebench.studies.tracking.record import NOTE, PARENT_TRIAL, RunRecord, StoreError
from vaebench.vae.config.run import Run
from vaebench.vae.data import from_tensors
from vaebench.vae.estimators.log_likelihood import CheckedEstimate
from vaebench.vae.evaluation.evaluate import estimate_log_px
from vaebench.vae.model.build import build
from vaebench.vae.training.checkpoint import CURRENT
from vaebench.vae.training.fit import Result

SAMPLES = 400
D, K = 5, 2
LINEAR = Run().replace(
    {
        "model.network": "linear",
        "model.likelihood": "gaussian",
        "model.latent": K,
        "model.sigma": 0.5,
        "eval.samples": SAMPLES,
        "train.device": "cpu",
    }
)
BITS = LINEAR.replace({"model.likelihood": "bernoulli", "model.latent": 1})


@pytest.fixture(autouse=True)
def in_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def make_plan(*arguments):
    return sweep.make_plan(sweep_command.parser().parse_args(["--study", "mine", "--tracking-uri", "none", *arguments]))


def finished_trial(value=1.0, number=3):
    trial = optuna.trial.create_trial(value=value)
    trial.number = number
    return trial


def keep(config, model, splits, folder, log_px=None):
    """Leave the files of a trial."""
    best = Result(config, model, splits, [], 0)
    Outcome(TrialState.COMPLETE, best=best, log_px=log_px, data=splits).save(folder)


def measure(config, model, splits, *, check):
    """Save a model as a trial leaves it, measure it as one of the best, and return the metrics of its record."""
    job = Job(make_plan(), splits, None, {}, 1)
    folder = job.trial_folder(3)
    keep(config, model, splits, folder)
    record = best_trials.measure(job, finished_trial(), check=check)
    found = {name: value for name, value, _, _ in record.metrics} | figures.from_tags(record.tags)[0]
    assert json.loads((folder / best_trials.MEASURED).read_text())["metrics"] == found
    return found


class LinearGaussian:
    """A linear VAE in float64: p(x|z) = N(W z + b, sigma^2 I) and q(z|x) = N(mu, diag(v)), in NumPy."""

    def __init__(self, model, x):
        state = {name: tensor.double().numpy() for name, tensor in model.state_dict().items()}
        self.W, self.b = state["decoder.0.weight"], state["decoder.0.bias"]
        with torch.no_grad():
            q = model.encode(x)
        self.x, self.mu, self.v = (t.double().numpy() for t in (x, q.mu, q.logvar.exp()))
        self.sigma = 0.5

    def log_px(self):
        """log N(x; b, W W^T + sigma^2 I)."""
        return distributions.multivariate_normal(self.b, self.W @ self.W.T + self.sigma**2 * np.eye(D)).logpdf(self.x)

    def log_px_given(self, z):
        return distributions.norm(z @ self.W.T + self.b, self.sigma).logpdf(self.x).sum(-1)


def build_linear(factor):
    """Return a linear VAE and its data; q(z|x) is too narrow, and its mean is off by a factor."""
    draws = generator(0)
    W, b, z, noise = (torch.randn(shape, generator=draws) for shape in ((D, K), (D,), (150, K), (150, D)))
    x = z @ W.T + b + 0.5 * noise
    splits = from_tensors(x[:70], x[70:102], x[102:])
    model = build(LINEAR.model, splits.shape, splits.levels).eval()
    precision = torch.eye(K) + W.T @ W / 0.25
    matrix = torch.linalg.solve(precision, W.T) / 0.25
    with torch.no_grad():
        model.decoder[0].weight.copy_(W)
        model.decoder[0].bias.copy_(b)
        model.encoder.mu.weight.copy_(factor * matrix)
        model.encoder.mu.bias.copy_(-matrix @ b)
        logvar = (0.4 / precision.diagonal()).log()
        model.encoder.logvar.copy_(15 * torch.atanh(logvar / 15))
    return model, splits


def test_test_figures_of_a_best_trial_are_those_of_a_model_with_known_evidence():
    model, splits = build_linear(1.3)
    found = measure(LINEAR, model, splits, check=Check.NONE)
    oracle = LinearGaussian(model, splits.test.batch())
    B = len(splits.test)
    assert found["test/nll"] == pytest.approx(-oracle.log_px().mean(), abs=1e-4)
    assert found["test/nll_stderr"] < 1e-4
    assert found["test/nll_ess"] == pytest.approx(SAMPLES, rel=1e-3)
    assert found["test/nll_samples"] == SAMPLES
    assert (found["test/nll_unresolved"], found["test/nll_examples"]) == (0, B)
    rate = 0.5 * (oracle.mu**2 + oracle.v - 1 - np.log(oracle.v)).sum(-1).mean()
    assert found["test/rate"] == pytest.approx(rate, rel=1e-5)
    z = oracle.mu + np.sqrt(oracle.v) * np.random.default_rng(1).standard_normal((2000, B, K))
    distortion = -oracle.log_px_given(z)
    assert abs(found["test/distortion"] - distortion.mean()) < 5 * math.sqrt(distortion.var(0).sum()) / B < 2
    assert found["test/elbo"] == pytest.approx(-found["test/distortion"] - found["test/rate"], rel=1e-6)
    assert "test/bits_per_dim" not in found
    assert not any(name.startswith("ais/") for name in found)


def test_annealing_of_a_best_trial_meets_the_known_evidence():
    """The study's estimator is exact here, so that the gap is the error of annealing."""
    model, splits = build_linear(1.1)
    assert len(splits.valid) == best_trials.AIS_EXAMPLES
    oracle = LinearGaussian(model, splits.valid.batch())
    truth = -oracle.log_px().mean()
    found = [measure(LINEAR.replace({"eval.seed": seed}), model, splits, check=Check.ANNEALED) for seed in range(6)]
    names = ("nll", "nll_stderr", "gap", "gap_stderr")
    nll, stderr, gap, gap_stderr = (np.array([one[f"ais/{name}"] for one in found]) for name in names)
    assert (abs(nll - truth) < 5 * stderr).all()
    assert stderr.max() < 0.1
    assert 0.4 < nll.std(ddof=1) / stderr.mean() < 2.2, "the errors are as large as it says"
    assert (abs(gap + nll - truth) < 1e-4).all()
    assert gap_stderr == pytest.approx(stderr, rel=0.01)


def test_the_best_trial_is_enclosed_on_its_own_data():
    """The study's estimator is exact here, so that both bounds must hold it."""
    model, splits = build_linear(1.1)
    found = measure(LINEAR, model, splits, check=Check.ENCLOSED)
    margin = 4 * found["enclosure/width_stderr"]
    assert found["enclosure/excess"] > -4 * found["enclosure/excess_stderr"]
    assert found["enclosure/lower"] - margin < found["enclosure/log_px"] < found["enclosure/upper"] + margin
    assert 0 < margin < 0.5
    assert found["enclosure/examples"] == best_trials.ENCLOSED_EXAMPLES
    assert found.keys() >= {"ais/gap"}
    assert not any(name.startswith("enclosure/") for name in measure(LINEAR, model, splits, check=Check.ANNEALED))


def test_a_trial_that_becomes_the_best_is_measured_again():
    model, splits = build_linear(1.1)
    measure(LINEAR, model, splits, check=Check.ANNEALED)
    job = Job(make_plan(), splits, None, {}, 1)
    again = [best_trials._is_done(job, finished_trial(), check) for check in Check]
    assert again == [True, True, False]


def test_a_trial_that_an_older_version_has_measured_is_measured_again():
    """Its file says `checked` and no level, and its metrics are fewer."""
    job = Job(make_plan(), None, None, {}, 1)
    folder = job.trial_folder(3)
    folder.mkdir(parents=True)
    (folder / best_trials.MEASURED).write_text('{"checked": true, "metrics": {}, "left_out": ""}')
    assert not any(best_trials._is_done(job, finished_trial(), check) for check in Check)


def test_a_gap_leaves_out_the_examples_that_the_estimator_calls_unresolved(monkeypatch):
    """Half a nat is missed in eight examples, and seven and a half in the others, which did not pass."""
    model, splits = build_linear(1.1)
    truth = torch.from_numpy(LinearGaussian(model, splits.valid.batch()).log_px()).float()
    passed, stderr = torch.arange(len(truth)) < 8, torch.full((len(truth),), 0.3)
    wrong = truth - 0.5 - 7.0 * ~passed
    estimate = CheckedEstimate(wrong, stderr, "lower", 1, passed=passed, rounds=stderr, evaluations=stderr)
    monkeypatch.setattr(best_trials, "estimate_log_px", lambda *_: estimate)
    found = best_trials.check_estimator(model, splits.valid, LINEAR)
    annealed = found["ais/nll_stderr"] * math.sqrt(len(truth))
    assert found["ais/gap_stderr"] == pytest.approx(math.hypot(0.3, annealed) / math.sqrt(8), rel=0.3)
    assert abs(found["ais/gap"] - 0.5) < 4 * found["ais/gap_stderr"] < 1
    estimate = dataclasses.replace(estimate, passed=torch.zeros_like(passed))
    assert list(best_trials.check_estimator(model, splits.valid, LINEAR)) == ["ais/nll", "ais/nll_stderr"]


class OtherMachine:
    """A tracker that has the files of another machine's trial; a record that it is given becomes a file too."""

    def __init__(self, folder):
        self.folder = folder

    def fetch(self, trial, file, folder):
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(self.folder / file, folder)
        return True

    def runs(self, number):
        return []

    def upsert(self, record):
        (self.folder / "record").write_bytes(pickle.dumps(record))


def test_a_best_trial_of_another_machine_is_measured_and_compared_here(tmp_path, monkeypatch):
    monkeypatch.setattr(best_trials, "extend_note", lambda job, tracker, record, trial: record.tags.update(note="new"))
    model, splits = build_linear(1.1)
    log_px = estimate_log_px(model, splits.valid, LINEAR)
    kept = ExampleLikelihoods.from_estimate(log_px, splits.digest)
    keep(LINEAR, model, splits, tmp_path / "elsewhere", kept)
    job = Job(make_plan("--workers", "1"), splits, OtherMachine(tmp_path / "elsewhere"), {}, 1)
    trial = finished_trial()
    best_trials.measure_all(job, [trial])
    assert (job.trial_folder(3) / best_trials.MEASURED).exists()
    here = ExampleLikelihoods.read(job.trial_folder(3))
    assert here.is_comparable(kept)
    assert torch.equal(here.value, kept.value)
    record = pickle.loads((tmp_path / "elsewhere/record").read_bytes())
    assert (record.trial, record.status, record.tags["note"]) == (3, "FINISHED", "new")
    assert abs(record.end / 1000 - trial.datetime_complete.timestamp()) < 0.002


def test_a_best_trial_whose_files_cannot_be_fetched_is_left_out(tmp_path):
    def fail(*_):
        raise StoreError("it is gone")

    for tracker in (None, SimpleNamespace(fetch=fail), SimpleNamespace(fetch=lambda *_: False)):
        job = Job(make_plan("--workers", "1"), None, tracker, {}, 1)
        assert not best_trials._fetch(job, finished_trial(), CURRENT)
    (folder := job.trial_folder(3)).mkdir(parents=True)
    (folder / CURRENT).touch()
    assert best_trials._fetch(job, finished_trial(), CURRENT)


@pytest.mark.parametrize(("target", "expected"), [("nll", [2, 1, 1, 1, 1, 0, 0]), ("mig", [0] * 7)])
def test_each_of_the_best_is_measured_once_and_checked_by_its_rank(tmp_path, monkeypatch, capfd, target, expected):
    """Of the first the files are elsewhere, and there is no tracker."""
    sprites = ("--dataset", "sprites", "--set", "data.size=50", "--set", "model.likelihood=bernoulli")
    job = Job(make_plan("--workers", "2", "--target", target, *(sprites if target == "mig" else ())), None, None, {}, 1)
    best = [finished_trial(number=number) for number in (9, 4, 7, 1, 8, 2, 6)]
    for trial in best[1:]:
        job.trial_folder(trial.number).mkdir(parents=True)
        (job.trial_folder(trial.number) / CURRENT).touch()

    def measure(job, trial, *, check):
        with (tmp_path / "measured").open("a") as file:
            file.write(f"{trial.number} {int(check)}\n")

    monkeypatch.setattr(best_trials, "measure", measure)
    best_trials.measure_all(job, best)
    measured = (tmp_path / "measured").read_text().splitlines()
    assert sorted(measured) == sorted(
        f"{trial.number} {check}" for trial, check in list(zip(best, expected, strict=True))[1:]
    )
    assert capfd.readouterr().err == ""


def test_trials_without_pictures_are_named_with_the_reason():
    job = Job(make_plan(), None, None, {}, 1)
    best = [finished_trial(number=number) for number in (5, 2, 8, 1)]
    for trial, why in zip(best, ("too slow", "", "too slow"), strict=False):
        job.trial_folder(trial.number).mkdir(parents=True)
        (job.trial_folder(trial.number) / best_trials.MEASURED).write_text(json.dumps({"left_out": why}))
    assert best_trials.explain_missing_pictures(job, best) == ["trials 5, 8: too slow"]


def test_bits_per_dimension_of_a_best_trial_are_those_of_quadrature():
    """Five bits and one latent: p(x) is an integral over a line."""
    x = (torch.rand(60, D, generator=generator(1)) < 0.4).to(torch.uint8)
    splits = from_tensors(x[:30], x[:20], x[:40], levels=2)
    model = build(BITS.model, splits.shape, splits.levels).eval()
    with torch.no_grad():
        model.decoder[0].weight.normal_(0, 2, generator=generator(2))
    found = measure(BITS, model, splits, check=Check.NONE)
    z = np.linspace(-9, 9, 20_001)
    logits = np.outer(z, model.decoder[0].weight.detach().double().numpy()[:, 0])
    logits = logits + model.decoder[0].bias.detach().double().numpy()
    bits = splits.test.batch().double().numpy()
    log_px_given = -np.logaddexp(0, -(2 * bits[:, None] - 1) * logits).sum(-1)
    px = np.trapezoid(np.exp(log_px_given) * distributions.norm.pdf(z), z, axis=1)
    nll = -np.log(px).mean()
    assert found["test/nll"] == pytest.approx(nll, abs=6 * found["test/nll_stderr"])
    assert found["test/nll_stderr"] < 0.02
    assert found["test/bits_per_dim"] == pytest.approx(found["test/nll"] / (D * math.log(2)))


@pytest.mark.parametrize(("target", "direction"), [("nll", "minimize"), ("mig", "maximize")])
def test_the_best_of_the_parent_run_is_optunas(target, direction):
    sprites = ("--dataset", "sprites", "--set", "data.size=50", "--set", "model.likelihood=bernoulli")
    plan = make_plan("--target", target, *(sprites if target == "mig" else ()))
    study = optuna.create_study(direction=direction, sampler=optuna.samplers.RandomSampler(seed=0))
    states = optuna.trial.TrialState
    ends = [(3.0, None), (-7.0, None), (9.0, None), (5.0, None), (-99.0, states.PRUNED), (99.0, states.PRUNED)]
    for value, state in [*ends, (None, states.FAIL)]:
        trial = study.ask()
        plan.space.suggest(trial)
        if state == states.PRUNED:
            trial.report(value, 0)
        if state == states.FAIL:
            trial.set_user_attr(RAISED, "InputError: no data")
        study.tell(trial, value if state is None else None, state)
    plan.folder.mkdir(parents=True, exist_ok=True)
    job = Job(plan, None, None, {"command": "python studies/sweep.py"}, 1)
    read = Study.read(plan, study.trials)
    lasted = [(trial.datetime_complete - trial.datetime_start).total_seconds() for trial in study.trials]
    assert read.frame["seconds"].tolist() == lasted
    record = finish.final_parent_record(job, read, study.trials, [])
    found = {name: value for name, value, _, _ in record.metrics}
    assert found[plan.target.metrics[0]] == study.best_value
    assert found[f"study/best_{plan.target.metrics[0]}"] == study.best_value == {"nll": -7.0, "mig": 9.0}[target]
    assert (found["study/finished"], found["study/pruned"], found["study/failed"]) == (4, 2, 1)
    curve = [(step, value) for name, value, _, step in record.metrics if name == "study/finished"]
    assert curve == [(1, 1), (2, 2), (3, 3), (4, 4), (5, 4), (6, 4), (7, 4)], "a point for each trial"
    best = [value for name, value, _, _ in record.metrics if name == f"study/best_{plan.target.metrics[0]}"]
    assert best == {"nll": [3, -7, -7, -7, -7, -7, -7], "mig": [3, 3, 9, 9, 9, 9, 9]}[target]


@pytest.mark.parametrize(("target", "best"), [("nll", 1), ("mig", 2)])
def test_the_measured_the_registered_and_the_printed_trial_are_the_best_that_optuna_knows(monkeypatch, target, best):
    sprites = ("--dataset", "sprites", "--set", "data.size=50", "--set", "model.likelihood=bernoulli")
    plan = make_plan("--target", target, *(sprites if target == "mig" else ()))
    search = queue.create_study(plan)
    study = search.study
    study.sampler = optuna.samplers.RandomSampler(seed=0)
    for value in (3.0, -7.0, 9.0, 5.0):
        trial = study.ask()
        plan.space.suggest(trial)
        study.tell(trial, value)
    assert study.best_trial.number == best
    measured = []
    monkeypatch.setattr(best_trials, "measure_all", lambda job, ranked: measured.extend(one.number for one in ranked))
    monkeypatch.setattr(finish, "register", lambda job, trial: f"registered: {trial.number}")
    monkeypatch.setattr(finish.files, "write", lambda study: [])
    sync = SimpleNamespace(flush=lambda: None, error="")
    said = finish.write_results(Job(plan, None, None, {"command": ""}, 1), search, sync).splitlines()
    assert measured == {"nll": [1, 0, 3, 2], "mig": [2, 3, 0, 1]}[target]
    assert f"registered: {best}" in said
    (command,) = [shlex.split(line.partition(":")[2]) for line in said if line.startswith("the best again:")]
    assert f"model.latent={study.best_params['model.latent']}" in command
    assert len({trial.params["model.latent"] for trial in study.trials}) == 4


def test_the_course_of_a_study_is_in_the_order_in_which_trials_ended():
    """The second trial ends first; one that lost its worker is counted apart."""
    plan = make_plan()
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    first, second, third = (study.ask() for _ in range(3))
    study.tell(second, 3.0)
    study.tell(third, state=TrialState.FAIL)
    study.tell(first, 5.0)
    points = finish.trace_study(plan, study.trials)
    ended = [trial.datetime_complete.timestamp() for trial in (study.trials[1], study.trials[2], study.trials[0])]
    course = {}
    for name, value, when, step in points:
        assert abs(when / 1000 - ended[step - 1]) < 0.002
        course.setdefault(name, []).append((step, value))
    assert course["study/best_valid/nll"] == [(1, 3.0), (2, 3.0), (3, 3.0)]
    assert course["study/finished"] == [(1, 1), (2, 1), (3, 2)]
    assert course["study/lost"] == [(2, 1), (3, 1)]


class Written:
    """A tracker that keeps what it is given."""

    uri, parent = "here", "the study's own"

    def __init__(self, registered=None):
        self.registered, self.records, self.tags = registered, [], {}

    def tag_of(self, run, name):
        return self.registered if (run, name) == (self.parent, finish.REGISTERED) else None

    def runs(self, number):
        return [SimpleNamespace(id=f"run of {number}")]

    def extend(self, run, metrics, params, tags):
        self.tags[run] = tags

    def upsert(self, record):
        self.records.append(record)


@pytest.mark.parametrize(("registered", "again"), [(None, True), ("2", True), ("3", False)])
def test_the_best_model_is_registered_once_from_its_own_run(monkeypatch, registered, again):
    model, splits = build_linear(1.1)
    job = Job(make_plan(), splits, Written(registered), {}, 1)
    keep(LINEAR, model, splits, job.trial_folder(3))
    calls = []
    monkeypatch.setattr(finish.mlflow_models, "register", lambda *arguments: calls.append(arguments))
    assert finish.register(job, finished_trial()) == ""
    assert len(calls) == again
    if again:
        tracker, run, exported, example, description = calls[0]
        assert (tracker, run) == (job.tracker, "run of 3")
        assert torch.equal(example, splits.test.batch()[: len(example)])
        assert torch.equal(exported(example), model.decode(model.represent(example)).mean)
        assert "trial 3 of" in description
        assert job.tracker.tags == {job.tracker.parent: {finish.REGISTERED: "3"}}


def test_the_end_of_a_study_writes_its_own_run_and_says_where_the_leaderboard_is(monkeypatch):
    plan = dataclasses.replace(make_plan("--trials", "3"), tracking="http://127.0.0.1:1")
    search = queue.create_study(plan)
    trial = search.study.ask()
    plan.space.suggest(trial)
    search.study.tell(trial, 3.0)
    monkeypatch.setattr(best_trials, "measure_all", lambda job, ranked: None)
    monkeypatch.setattr(finish, "register", lambda job, trial: "")
    monkeypatch.setattr(finish.files, "write", lambda study: [])
    monkeypatch.setattr(Study, "addresses", {finish.LEADERBOARD: "http://there"})
    sync = SimpleNamespace(flush=lambda: None, error="")
    job = Job(plan, None, Written(), {"command": ""}, 1)
    said = finish.write_results(job, search, sync).splitlines()
    assert said[said.index("the leaderboard:   http://there") - 1] == ""
    assert any("different settings, and all were tried; --trials asked for 3" in line for line in said)
    (record,) = job.tracker.records
    assert (record.trial, record.status, record.tags["best_trial"]) == (PARENT_TRIAL, "FINISHED", "0")
    for _ in range(2):
        trial = search.study.ask()
        plan.space.suggest(trial)
        search.study.tell(trial, 4.0)
    said = finish.write_results(job, search, sync)
    assert "all were tried" not in said
    assert "\n\n\n" not in said


def test_the_note_of_a_measured_trial_has_the_command_of_its_best_seed():
    plan = make_plan()
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    trial = study.ask()
    plan.space.suggest(trial)
    trial.set_user_attr(BEST_SEED, 7)
    study.tell(trial, 1.0)
    record = RunRecord(0, "0", 1)
    tracker = SimpleNamespace(runs=lambda number: [])
    best_trials.extend_note(Job(plan, None, None, {}, 1), tracker, record, study.trials[0])
    assert "--set train.seed=7" in record.tags[NOTE]


def test_the_rank_correlation_of_quick_values_is_spearmans():
    """Of the last value of each finished trial; pruned trials, whose figures are both high, would raise it."""
    plan = make_plan()
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    ends = [(3.0, 3.5), (-7.0, -6.0), (9.0, 8.0), (5.0, 8.5), (-2.0, 2.0), (4.0, 1.0)]
    for value, quick in [*ends, (None, 99.0)]:
        trial = study.ask()
        plan.space.suggest(trial)
        trial.report(-quick, 5)
        trial.report(quick, 10)
        study.tell(trial, value, optuna.trial.TrialState.PRUNED if value is None else None)
    plan.folder.mkdir(parents=True, exist_ok=True)
    read = Study.read(plan, study.trials)
    record = finish.final_parent_record(Job(plan, None, None, {"command": ""}, 1), read, study.trials, [])
    found = {name: value for name, value, _, _ in record.metrics}
    expected = distributions.spearmanr(*zip(*ends, strict=True)).statistic
    assert found["study/quick_rank_correlation"] == pytest.approx(expected)
    (remark,) = page.describe_estimates(read)
    assert f"has a rank correlation of {expected:.3f} with valid/nll over 6 finished trials." in remark
    assert "which decides on pruning" in remark
    (remark,) = page.describe_estimates(Study.read(dataclasses.replace(plan, pruner="none"), study.trials))
    assert "which decides on pruning" not in remark
    few, enough = (Study.read(plan, study.trials[:count]) for count in (4, 5))
    assert page.describe_estimates(few) == []
    assert "over 5 finished trials" in page.describe_estimates(enough)[0]


def test_both_targets_of_the_parent_run_are_of_the_trial_with_the_least_distortion():
    plan = make_plan("--target", "rate-distortion")
    study = optuna.create_study(directions=["minimize"] * 2, sampler=optuna.samplers.RandomSampler(seed=0))
    for values in ((5.0, 1.0), (2.0, 8.0), (3.0, 9.0)):
        trial = study.ask()
        plan.space.suggest(trial)
        study.tell(trial, values)
    plan.folder.mkdir(parents=True, exist_ok=True)
    record = finish.final_parent_record(
        Job(plan, None, None, {"command": ""}, 1), Study.read(plan, study.trials), study.trials, []
    )
    found = {name: value for name, value, _, _ in record.metrics}
    best = min(study.best_trials, key=lambda trial: trial.values[0])
    assert [found["study/best_valid/distortion"], found["study/best_valid/rate"]] == best.values == [2.0, 8.0]


def test_metrics_of_a_trial_are_means_over_its_seeds():
    """Of 1, 2 and 6 the mean is 3 and the variance (4 + 1 + 9) / 2."""
    metrics = [{"valid/nll": nll, "valid/nll_ess": ess} for nll, ess in ((1.0, 50.0), (2.0, 100.0), (6.0, 150.0))]
    found = average_seeds(metrics)
    assert found == pytest.approx({"valid/nll": 3, "valid/nll_seed_sd": math.sqrt(7), "valid/nll_ess": 100})
    assert average_seeds(metrics[2:]) == metrics[2]


def test_the_error_of_a_mean_over_seeds_is_that_of_independent_figures():
    """sqrt(0.3^2 + 0.4^2) / 2."""
    metrics = [{"valid/nll": 1.0, "valid/nll_stderr": 0.3}, {"valid/nll": 2.0, "valid/nll_stderr": 0.4}]
    assert average_seeds(metrics)["valid/nll_stderr"] == pytest.approx(0.25)


def test_a_metric_that_a_seed_lacks_has_no_mean():
    """A standard error is missing where some examples of a seed are unresolved."""
    metrics = [{"valid/nll": 1.0, "valid/nll_stderr": 0.1}, {"valid/nll": 2.0}, {"valid/nll": 3.0, "other": 1.0}]
    assert average_seeds(metrics) == {"valid/nll": 2, "valid/nll_seed_sd": 1}
