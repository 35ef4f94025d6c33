"""Settings that were tried already: told by their effect, not trained again, and replaced while there are others."""

from pathlib import Path

import optuna
import pytest

from tests import chaos
from tests.elsewhere import elsewhere as elsewhere
from vaebench.studies import sweep as sweep_command
from vaebench.studies.commands import sweep
from vaebench.studies.engine.report import table
from vaebench.studies.engine.search import queue
from vaebench.studies.engine.search.repeats import REPLACES, SETTING, different_settings, setting_of
from vaebench.studies.engine.search.states import OF_THE_END, REPEATS, state_of
from vaebench.studies.engine.workers import loop
from vaebench.vae.config.run import Run
from vaebench.vae.ensemble.fit_many import Ensemble


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ({"objective.beta": 2, "objective.alpha": 0.5, "objective.lambda": 5}, {}, False),
        (
            {"objective.beta": 2, "objective.alpha": 0.5, "objective.lambda": 1},
            {"objective.beta": 1, "objective.alpha": 0, "objective.lambda": 2},
            True,
        ),
        (
            {"objective.beta": 0.3, "objective.alpha": 0.9, "objective.lambda": 1},
            {"objective.beta": 0.03, "objective.alpha": 0, "objective.lambda": 10},
            True,
        ),
        ({"objective.kernel": "rbf"}, {}, True),
        ({"objective.kernel": "rbf", "objective.lambda": 2}, {"objective.lambda": 2}, False),
        ({"objective.name": "tc_vae", "objective.beta": 3}, {"objective.name": "tc_vae"}, True),
        ({"objective.name": "tc_vae"}, {}, False),
        ({"model.latent": 3}, {"model.latent": 4}, False),
        ({"train.seed": 1}, {}, False),
    ],
)
def test_settings_are_the_same_where_their_trainings_are(one, other, same):
    """w_kl = beta (1 - alpha), w_d = beta (alpha + lambda - 1); a kernel matters where w_d is not 0."""
    assert (setting_of(Run().replace(one)) == setting_of(Run().replace(other))) == same


QUICK = (*chaos.SHORT, "--set", "train.epochs=1", "--set", "eval.codes=50", "--set", "eval.labels=none")


def make_plan(name, *arguments):
    line = [*QUICK, "--study", name, "--workers", "1", "--tracking-uri", "none"]
    return sweep.make_plan(sweep_command.parser().parse_args([*line, *arguments]))


SMALL = """
[model]
latent = { low = 2, high = 4 }
[objective]
name = { choices = ["infovae", "tc_vae"] }
beta = { choices = [1.0, 2.0] }
"""


def test_a_finite_space_is_counted_by_its_different_settings():
    Path("small.toml").write_text(SMALL)
    plan = make_plan("counted", "--space", "small.toml")
    assert len(plan.space.points(12)) == 12
    assert plan.space.points(11) is None
    assert len(different_settings(plan)) == 9, "beta has no effect in tc_vae"
    assert make_plan("latent", "--space", "latent").space.points(31) == [{"model.latent": k} for k in range(2, 33)]
    assert make_plan("infinite").space.points(10**9) is None


@pytest.mark.parametrize("sampler", ["tpe", "random", "grid"])
def test_a_study_of_a_finite_space_trains_each_setting_once_and_says_that_it_is_exhausted(sampler, monkeypatch):
    Path("small.toml").write_text(SMALL)
    trained = []
    train_epoch = Ensemble.train_epoch
    monkeypatch.setattr(
        Ensemble, "train_epoch", lambda seeds: trained.append(seeds.members[0].config) or train_epoch(seeds)
    )
    plan = make_plan("all", "--space", "small.toml", "--trials", "14", "--sampler", sampler)
    search, job = queue.create_study(plan), sweep.open_job(plan, "python studies/sweep.py")
    for _ in range(40):
        if not search.top_up().waiting:
            break
        loop.run_trials(job, "me", 0, lambda message: None, lambda: True)
    trials = search.trials()
    assert len(trained) == len({setting_of(config) for config in trained}) == search.counts().done == 9
    assert search.explain_shortfall().endswith("has 9 different settings, and all were tried; --trials asked for 14")
    repeated = [trial for trial in trials if state_of(trial) == "repeated"]
    assert repeated
    for trial in repeated:
        earlier = trials[trial.user_attrs[REPEATS]]
        assert trial.values == earlier.values
        assert setting_of(plan.config(trial.params)) == setting_of(plan.config(earlier.params))
    frame = table.build(plan, trials, [])
    assert len(table.rank(frame, plan)) == 9
    assert (frame["state"] == "repeated").sum() == len(repeated)


def test_a_study_ends_with_as_many_different_settings_as_were_asked_for():
    plan = make_plan("some", "--space", "latent", "--trials", "6", "--sampler", "random", "--set", "train.seed=3")
    search, job = queue.create_study(plan), sweep.open_job(plan, "python studies/sweep.py")
    study = search.study
    for _ in range(3):
        study.enqueue_trial({"model.latent": 5})
    while search.top_up().waiting:
        loop.run_trials(job, "me", 0, lambda message: None, lambda: True)
    done = [trial for trial in search.trials() if state_of(trial) != "repeated"]
    assert len(done) == len({trial.params["model.latent"] for trial in done}) == 6
    assert search.explain_shortfall() == ""


def test_the_place_of_the_data_is_no_part_of_a_setting():
    """A helper of a study may have the data elsewhere."""
    assert setting_of(Run().replace({"data.dir": "elsewhere"})) == setting_of(Run())


def test_a_grid_queues_a_setting_that_another_trial_is_training_once():
    """beta has no effect in tc_vae: while one of the two points trains, the other one is repeated, and that is all."""
    Path("small.toml").write_text(SMALL)
    plan = make_plan("grid", "--space", "small.toml", "--trials", "12", "--sampler", "grid")
    search, job = queue.create_study(plan), sweep.open_job(plan, "python studies/sweep.py")
    counted = []

    def look(message):
        if message["trial"] == 0:
            for _ in range(3):
                search.top_up()
                loop.run_trials(job, "other", 0, lambda message: None, lambda: True)
                counted.append(len(search.trials()))

    search.top_up()
    loop.run_trials(job, "me", 0, look, lambda: True)
    assert counted[0] == counted[-1] == 12
    assert search.counts().done == 9


def test_of_two_workers_with_one_setting_the_later_trial_leaves_it_to_the_other():
    plan = make_plan("two", "--space", "latent", "--trials", "2")
    search, job = queue.create_study(plan), sweep.open_job(plan, "python studies/sweep.py")
    for _ in range(2):
        search.study.enqueue_trial({"model.latent": 5})
    other = queue.connect(plan)

    def claim_and_run(message):
        if message["trial"] == 0:
            loop.run_trials(job, "other", 0, lambda message: None, lambda: True)

    loop.run_trials(job, "me", 0, claim_and_run, lambda: True)
    assert [state_of(trial) for trial in other.trials()] == ["finished", "repeated"]
    assert other.trials()[1].state == optuna.trial.TrialState.FAIL
    assert other.top_up().waiting == 1


def test_a_trial_that_is_run_again_has_nothing_of_its_first_end():
    """A worker may die after it has noted that its trial repeats another one, and before it tells the study so."""
    plan = make_plan("again", "--space", "latent", "--trials", "1")
    search = queue.create_study(plan)
    search.top_up()
    trial = search.claim("me")
    trial.set_user_attr(REPEATS, 7)
    trial.set_user_attr(SETTING, "kept")
    assert search.requeue("me", "its worker died") == [0]
    (again,) = search.trials(optuna.trial.TrialState.WAITING)
    assert again.user_attrs.keys() & OF_THE_END == set()
    assert again.user_attrs[SETTING] == "kept"


def test_a_point_of_a_grid_that_a_trial_is_about_to_draw_is_not_queued_again():
    Path("small.toml").write_text(SMALL)
    plan = make_plan("begun", "--space", "small.toml", "--trials", "12", "--sampler", "grid")
    search = queue.create_study(plan)
    search.top_up()
    trial = search.claim("me")
    plan.space.dimensions[0].suggest(trial)  # the others are not drawn yet
    assert search._queue_grid(100) == 0


def test_a_replacement_that_is_lost_and_queued_again_replaces_one_trial():
    plan = make_plan("lost", "--space", "latent", "--trials", "9", "--sampler", "random")
    search = queue.create_study(plan)
    settings = search.settings
    assert search._queue_untried(1, settings, repeated=1) == 1
    search.claim("me")
    search.requeue("me", "its worker died")
    assert [REPLACES in trial.user_attrs for trial in search.trials()] == [True, True]
    search._queue_untried(5, settings, repeated=2)
    waiting = [trial for trial in search.trials() if state_of(trial) == "waiting"]
    assert sum(REPLACES in trial.user_attrs for trial in waiting) == 2
