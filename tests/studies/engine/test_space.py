"""Search spaces: what they reach, what they refuse, and what a grid of them is."""

import numpy as np
import optuna
import pytest

from vaebench.studies import sweep as sweep_command
from vaebench.studies.commands import sweep
from vaebench.studies.engine.study.space import PRESETS, Dimension, Space, check_space, load_space
from vaebench.vae.config.run import Run
from vaebench.vae.data import load
from vaebench.vae.errors import InputError

DIGITS = load(Run().data)


def space(text, tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(text)
    return load_space(str(path))


@pytest.mark.parametrize("name", PRESETS)
def test_every_point_of_a_preset_is_a_run_with_weights_that_reward_no_mismatch(name):
    preset = load_space(name)
    base = Run().replace(preset.constants)
    check_space(preset, base, DIGITS)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for _ in range(100):
        run = base.replace(preset.suggest(study.ask()))
        beta, alpha, lambda_ = run.objective.beta, run.objective.alpha, run.objective.lambda_
        assert beta * (alpha + lambda_ - 1) >= 0
        assert beta * (1 - alpha) >= 0


def test_presets_hold_what_their_names_say():
    held = {name: Run().replace(load_space(name).constants).objective for name in ("beta", "infovae")}
    assert (held["beta"].alpha, held["beta"].lambda_) == (0.0, 1.0)
    assert held["infovae"].beta == 1.0
    varied = {name: {d.name.partition(".")[2] for d in load_space(name).dimensions} for name in PRESETS}
    assert varied["full"] == {"latent", "beta", "alpha", "lambda", "learning_rate"}
    assert varied["infovae"] == {"latent", "alpha", "lambda", "learning_rate"}
    assert varied["beta"] == {"latent", "beta"}
    assert varied["latent"] == {"latent"}


def test_a_file_is_read_in_the_types_of_the_settings(tmp_path):
    found = space(
        "[model]\nlatent = { low = 2, high = 8 }\n[objective]\nbeta = { low = 1, high = 4 }\n"
        "divergence = { choices = ['mmd', 'kl'] }\n[train]\nepochs = 7\n",
        tmp_path,
    )
    assert found.dimensions == (
        Dimension("model.latent", 2, 8),
        Dimension("objective.beta", 1.0, 4.0),
        Dimension("objective.divergence", choices=("mmd", "kl")),
    )
    assert isinstance(found.dimensions[1].low, float)
    assert found.constants == {"train.epochs": 7}
    assert Space.from_json(found.to_json()) == found


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "[objective]\nalpha = { low = 0.0, high = 0.5 }\nlambda = { low = 0.5, high = 2.0 }",
            "alpha + lambda - 1 >= 0",
        ),
        ("[objective]\nalpha = { low = 0.0, high = 0.5 }\nlambda = 0.9", "alpha + lambda - 1 >= 0"),
        ("[objective]\nalpha = { low = 0.0, high = 1.5 }", "objective.alpha must be <= 1, got 1.5"),
        ("[objective]\nbeta = { low = 4.0, high = 1.0 }", "must have low < high; got 4 and 1"),
        ("[objective]\nbeta = { low = 0.0, high = 1.0, log = true }", "must have 0 < low < high, since it is log"),
        ("[objective]\nbeta = { low = 1.0 }", "must have numbers low and high"),
        ("[objective]\nbeta = { low = 1.0, high = 2.0, log = 'no' }", "and log, true or false"),
        ("[model]\nlatent = { low = false, high = 3 }", "must have whole numbers low and high"),
        ("[model]\nlatent = { low = 1.5, high = 3 }", "must have whole numbers low and high"),
        ("[model]\nlatent = { low = 2, hihg = 3 }", "must have whole numbers low and high"),
        ("[model]\nlatnt = { low = 2, high = 3 }", "did you mean model.latent?"),
        ("[model]\nnetwork = { low = 2, high = 3 }", "must have choices"),
        ("[model]\nlatent = 3", "must vary at least one setting"),
        ("latent = 3", "has 'latent' outside any table"),
        ("[model", "is not valid TOML"),
    ],
)
def test_a_space_that_cannot_be_searched_is_refused_with_a_sentence(tmp_path, text, message):
    def use():
        found = space(text, tmp_path)
        check_space(found, Run().replace(found.constants), DIGITS)

    with pytest.raises(InputError) as refused:
        use()
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("likelihood = { choices = ['discretised_logistic', 'bernoulli'] }", "bernoulli needs data of 2 levels"),
        ("network = { choices = ['mlp', 'conv'] }\nhidden = []", "network conv needs"),
    ],
)
def test_a_choice_that_does_not_fit_the_data_or_another_setting_is_found(tmp_path, text, message):
    found = space(f"[model]\n{text}\n", tmp_path)
    with pytest.raises(InputError, match=message):
        check_space(found, Run().replace(found.constants), DIGITS)


def test_choices_of_lists_and_of_several_types_are_kept_as_plain_values(tmp_path):
    found = space(
        "[model]\nhidden = { choices = [[8], [8, 4]] }\nlatent = { choices = [2, 3] }\n"
        '[objective]\nbandwidth = { choices = ["auto", 4.0] }\n',
        tmp_path,
    )
    hidden, latent, bandwidth = found.dimensions
    assert (hidden.choices, bandwidth.choices) == (("8", "8,4"), ("auto", 4.0))
    assert Run().replace({"model.hidden": hidden.choices[1]}).model.hidden == (8, 4)
    assert latent.restore_type(3.0) == 3
    assert isinstance(latent.restore_type(3.0), int)
    assert bandwidth.restore_type("auto") == "auto"


def test_data_are_not_searched(tmp_path):
    found = space("[data]\nseed = { low = 0, high = 3 }\n", tmp_path)
    with pytest.raises(InputError, match=r"varies data\.seed, and figures of different data do not compare"):
        check_space(found, Run(), DIGITS)


def test_unknown_presets_and_files_are_named():
    with pytest.raises(InputError, match="there is no space 'ful'; choose from full"):
        load_space("ful")
    with pytest.raises(InputError, match=r"cannot read the space file nowhere\.toml"):
        load_space("nowhere.toml")


def test_what_the_command_line_sets_is_not_searched():
    found = load_space("full").drop({"model.latent", "objective.beta"})
    assert [d.name for d in found.dimensions] == ["objective.alpha", "objective.lambda", "train.learning_rate"]
    with pytest.raises(InputError, match="must keep a setting that varies"):
        load_space("latent").drop({"model.latent"})


def test_what_changes_nothing_is_not_searched(caplog):
    plan = sweep.make_plan(sweep_command.parser().parse_args(["--set", "objective.name=tc_vae"]))
    assert [dimension.name for dimension in plan.space.dimensions] == ["model.latent", "train.learning_rate"]
    (said,) = caplog.messages
    assert said.endswith("without effect in every run: objective.beta, objective.alpha, objective.lambda")
    kept = sweep.make_plan(sweep_command.parser().parse_args(["--space", "infovae", "--set", "model.kind=coupling"]))
    assert [dimension.name for dimension in kept.space.dimensions][:2] == ["objective.alpha", "objective.lambda"]
    with pytest.raises(InputError, match=r"without effect in every run are model\.latent, objective\.beta"):
        sweep.make_plan(sweep_command.parser().parse_args(["--space", "beta", "--set", "model.kind=coupling"]))


def test_a_grid_spans_the_space_evenly_and_stays_within_its_budget():
    curve = Space("curve", (Dimension("objective.beta", 0.1, 10.0, log=True),))
    assert [p["objective.beta"] for p in curve.grid(5)] == pytest.approx(np.geomspace(0.1, 10, 5))
    line = Space("line", (Dimension("objective.alpha", 0.0, 1.0),))
    assert [p["objective.alpha"] for p in line.grid(4)] == pytest.approx(np.linspace(0, 1, 4))
    integers = Space("integers", (Dimension("model.latent", 2, 5),))
    assert [p["model.latent"] for p in integers.grid(100)] == [2, 3, 4, 5]
    both = Space("both", (*curve.dimensions, *line.dimensions, Dimension("model.network", choices=("mlp", "linear"))))
    grid = both.grid(40)
    assert len(both.grid(1)) == 2 * 2 * 2, "both ends of every dimension, however small the budget"
    assert len(grid) == 4 * 4 * 2
    assert len({tuple(p.items()) for p in grid}) == len(grid)


def test_logarithms_are_only_taken_of_what_cannot_be_zero():
    positive = {d.name for d in load_space("full").dimensions if d.positive}
    assert "objective.alpha" not in positive
    assert {"objective.beta", "objective.lambda", "model.latent"} <= positive
