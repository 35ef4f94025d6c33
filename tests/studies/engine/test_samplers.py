"""Seeds of the samplers: every allowed seed proposes settings, each seed others, and no trial repeats another's."""

import dataclasses
import itertools

import optuna
import pytest

from vaebench.studies import sweep as sweep_command
from vaebench.studies.commands import sweep
from vaebench.studies.engine.search import samplers
from vaebench.studies.engine.search.samplers import bound_study, make_sampler, sampler_seed
from vaebench.studies.engine.study.choices import SAMPLERS
from vaebench.vae.config.run import LARGEST_SEED

LARGE_SEEDS = (4295, 2**32, LARGEST_SEED)
TINY = (
    *("--set", "train.epochs=1", "--set", "model.hidden=4", "--set", "eval.examples=4"),
    *("--set", "eval.codes=50", "--set", "eval.labels=none", "--set", "train.device=cpu"),
)


@pytest.fixture(autouse=True)
def in_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def make_plan(*arguments):
    return sweep.make_plan(sweep_command.parser().parse_args([*TINY, *arguments]))


def propose(plan, trials=12):
    """Return the settings of trials whose value is their number; TPE and GP model results from the tenth on."""
    study, points = optuna.create_study(), []
    for number in range(trials):
        study.sampler = make_sampler(plan, number)
        trial = study.ask()
        points.append(plan.space.suggest(trial))
        study.tell(trial, float(number))
    return points


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_allowed_seed_proposes_settings_of_its_own(sampler):
    plans = {seed: make_plan("--sampler", sampler, "--set", f"train.seed={seed}") for seed in (0, *LARGE_SEEDS)}
    found = {seed: propose(plan) for seed, plan in plans.items()}
    assert found[LARGEST_SEED] == propose(plans[LARGEST_SEED]), "a retry draws the same"
    for one, other in itertools.combinations(found.values(), 2):
        assert one[0] != other[0]
        assert one[-1] != other[-1]


@pytest.mark.parametrize("seed", [0, 1, 4294])
def test_seeds_that_always_worked_keep_their_bits(seed):
    """Optuna's own random sampler with the seed of old, `1_000_003 * seed + number`."""
    plan = make_plan("--sampler", "random", "--set", f"train.seed={seed}")
    for number in (0, 1, 999):
        study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1_000_003 * seed + number))
        ours = optuna.create_study(sampler=make_sampler(plan, number))
        assert plan.space.suggest(ours.ask()) == plan.space.suggest(study.ask())


@pytest.mark.parametrize("seed", [4294, *LARGE_SEEDS])
def test_trials_of_a_study_have_different_seeds_that_numpy_takes(seed):
    numbers = [*range(100_000), 10**6, 2**32 - 1]
    seeds = {sampler_seed(seed, number) for number in numbers}
    assert len(seeds) == len(numbers)
    assert 0 <= min(seeds) <= max(seeds) < 2**32


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("seed", LARGE_SEEDS)
def test_a_dry_run_with_a_large_seed_shows_the_plan(sampler, seed, capsys):
    seeds = [text for section in ("train", "eval", "data") for text in ("--set", f"{section}.seed={seed}")]
    assert sweep_command.main([*TINY, *seeds, "--sampler", sampler, "--dry-run", "--trials", "32"]) == 0
    assert "first settings:" in capsys.readouterr().out


def test_trainings_of_a_setting_count_on_from_zero_after_the_largest_seed():
    plan = dataclasses.replace(make_plan("--set", f"train.seed={LARGEST_SEED - 1}"), seeds=3)
    seeds = [config.train.seed for config in plan.seeded(plan.base)]
    assert seeds == [LARGEST_SEED - 1, LARGEST_SEED, 0]


@pytest.mark.parametrize(("direction", "best"), [("minimize", [1, 3]), ("maximize", [0, 2])])
def test_of_older_trials_tpe_is_given_the_best_whichever_way_is_better(monkeypatch, direction, best):
    monkeypatch.setattr(samplers, "LATEST", 2)
    monkeypatch.setattr(samplers, "BEST", 2)
    study = optuna.create_study(direction=direction)
    for value in (9.0, 1.0, 8.0, 2.0, 5.0, 4.0):
        study.tell(study.ask(), value)
    given = bound_study(study)._get_trials(deepcopy=False)
    assert [trial.number for trial in given] == [*best, 4, 5]


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_first_settings_that_a_dry_run_shows_are_those_of_the_first_trials(sampler):
    plan = make_plan("--sampler", sampler, "--trials", "32")
    expected = plan.space.grid(32)[:5] if sampler == "grid" else propose(plan, trials=5)
    assert samplers.draw_first_points(plan) == expected


def test_with_two_targets_tpe_is_given_the_study_itself():
    study = optuna.create_study(directions=["minimize", "minimize"])
    assert bound_study(study) is study
