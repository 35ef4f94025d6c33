"""Configuration: every field documented, typed and bounded; the flat dict and the TOML file lose nothing."""

import dataclasses
import tomllib
from dataclasses import dataclass
from typing import ClassVar

import pytest

from vaebench.vae.config import run as configs
from vaebench.vae.config.fields import field
from vaebench.vae.config.objective import Objective
from vaebench.vae.config.run import SECTIONS, Data, Model, Run, Train
from vaebench.vae.errors import InputError
from vaebench.vae.objective import TCVAE, Capacity, FactorVAE, InfoVAE

UNUSUAL = {
    "data.name": "linear",
    "model.hidden": (32, 16, 8),
    "model.likelihood": "gaussian",
    "model.learn_sigma": True,
    "objective.lambda": 12.5,
    "objective.alpha": -0.5,
    "objective.bandwidth": (0.5, 2.0),
    "train.learning_rate": 3e-5,
    "train.seed": 7,
}


def test_every_field_has_a_sentence():
    for kind in (*SECTIONS.values(), *configs.FAMILIES.values()):
        for declared in dataclasses.fields(kind):
            assert declared.metadata["doc"].endswith("."), f"{kind.__name__}.{declared.name}"


def test_flat_round_trip():
    run = Run().replace(UNUSUAL)
    flat = run.flat()
    assert flat["objective.lambda"] == 12.5
    assert flat["model.hidden"] == "32,16,8"
    assert all(type(value) in (str, int, float, bool) for value in flat.values())
    assert Run().replace(flat) == run
    assert Run().replace({name: str(value) for name, value in flat.items()}) == run


def test_toml_round_trip(tmp_path):
    run = Run().replace(UNUSUAL)
    path = tmp_path / "run.toml"
    path.write_text(configs.to_toml(run))
    assert configs.from_toml(path) == run
    assert set(tomllib.loads(path.read_text())) == set(SECTIONS)


def test_toml_keeps_names_of_every_script(tmp_path):
    """TOML knows no surrogate pairs, by which JSON writes a character like the folder below."""
    run, path = Run().replace({"data.dir": 'Daten/\U0001f4c1/"ä"\\b\x7f'}), tmp_path / "run.toml"
    path.write_text(configs.to_toml(run), encoding="utf-8")
    assert configs.from_toml(path) == run


def test_describe_names_every_setting():
    lines = configs.describe().splitlines()
    assert [line.split()[0] for line in lines] == list(Run().flat())


def test_resolve_makes_the_bandwidth_twice_the_latent_size():
    assert Run(model=Model(latent=3)).resolve().flat()["objective.bandwidth"] == "6.0"
    fixed = Run(objective=InfoVAE(bandwidth=(1.5,)))
    assert fixed.resolve() == fixed


def test_resolve_makes_the_bandwidth_of_a_flow_of_its_own_twice_the_size_of_the_data():
    """Its codes are as large as the data, whatever model.latent says, and a record alone does not know these."""
    flow = Run(model=Model(kind="coupling", latent=3))
    assert flow.resolve().flat()["objective.bandwidth"] == "auto"
    assert flow.resolve((1, 8, 8)).flat()["objective.bandwidth"] == "128.0"
    assert Run(model=Model(latent=3)).resolve((1, 8, 8)).flat()["objective.bandwidth"] == "6.0"


def test_ramp_epochs_end_when_no_weight_changes_any_more():
    rising = {"objective.capacity_epochs": 40, "train.warmup_epochs": 10}
    assert Run().ramp_epochs == 0
    assert Run().replace(rising).ramp_epochs == 10
    assert Run().replace({**rising, "objective.name": "capacity"}).ramp_epochs == 40
    assert Run().replace({**rising, "objective.name": "capacity", "train.warmup_epochs": 50}).ramp_epochs == 50


def test_a_critic_is_trained_only_if_the_objective_uses_it():
    adversarial = InfoVAE(divergence="adversarial")
    assert adversarial.critic is None
    assert dataclasses.replace(adversarial, lambda_=2.0, critic_hidden=(7,)).critic.hidden == (7,)
    assert FactorVAE(critic_learning_rate=0.1).critic.learning_rate == 0.1
    assert TCVAE().critic is None


def test_settings_of_a_family_that_is_not_in_use_are_kept_and_checked():
    """A sweep that chooses the family holds settings of each; a name that two families share is one setting."""
    idle = Run().replace({"objective.w_tc": 3, "objective.gamma": 7, "objective.beta": 2})
    assert idle.objective == InfoVAE(beta=2.0)
    assert idle.flat()["objective.w_tc"] == 3
    assert idle.replace({"objective.name": "tc_vae"}).objective == TCVAE(w_tc=3.0)
    assert idle.replace({"objective.name": "capacity"}).replace({"objective.name": "infovae"}) == idle
    assert [idle.replace({"objective.name": name}).objective.gamma for name in ("capacity", "factor_vae")] == [7, 7]
    with pytest.raises(InputError, match=r"objective\.w_tc must be >= 0, got -1\.0: Weight of the total"):
        Run().replace({"objective.w_tc": -1})
    with pytest.raises(InputError, match=r"objective\.name must be one of infovae, tc_vae, .*, got 'vae'"):
        Run().replace({"objective.name": "vae"})


def test_a_name_that_two_families_declare_must_have_one_type():
    @dataclass(frozen=True)
    class Other(Capacity):
        name: ClassVar[str] = "other"
        gamma: int = field(3, "Another.")

    with pytest.raises(InputError, match=r"objective\.gamma of other must have the type that it has in factor_vae"):
        configs.register(Other)
    assert "other" not in configs.FAMILIES


class Undecorated(Capacity):
    name: ClassVar[str] = "undecorated"


@dataclass(frozen=True)
class Nameless(Capacity):
    pass


@dataclass(frozen=True)
class Speechless(Objective):
    name: ClassVar[str] = "speechless"


@dataclass(frozen=True)
class Abstract(Objective):
    name: ClassVar[str] = "abstract"
    sentence: ClassVar[str] = "nothing"


@dataclass(frozen=True)
class Undocumented(Capacity):
    name: ClassVar[str] = "undocumented"
    free: float = 2.0


@dataclass(frozen=True, kw_only=True)
class WithoutDefault(Capacity):
    name: ClassVar[str] = "without_default"
    free: float


@pytest.mark.parametrize(
    ("family", "message"),
    [
        (Undecorated, r"Undecorated must have the decorator @dataclass\(frozen=True\)\."),
        (Nameless, r"Nameless must have a name of its own"),
        (Speechless, r"Speechless must have a sentence"),
        (Abstract, r"Abstract must define describe, value, weights\."),
        (Undocumented, r"Undocumented\.free must be a ClassVar or declared by `field\(default, sentence\)`"),
        (WithoutDefault, r"WithoutDefault\.free must be a ClassVar or declared by `field\(default, sentence\)`"),
    ],
)
def test_a_family_that_lacks_something_is_refused(family, message):
    with pytest.raises(InputError, match=message):
        configs.register(family)
    assert family not in configs.FAMILIES.values()


def test_weights_have_two_degrees_of_freedom():
    objective = InfoVAE(beta=2.0, alpha=0.25, lambda_=3.0)
    assert objective.w_kl == 2.0 * 0.75
    assert objective.w_d == 2.0 * 2.25


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"objective.beta": -1}, r"objective\.beta must be >= 0, got -1\.0: .*weight"),
        ({"objective.alpha": 1.5}, r"objective\.alpha must be <= 1, got 1\.5: .*mutual information"),
        ({"objective.lambda": 0.5}, r"alpha \+ lambda - 1 >= 0.*alpha = 0, lambda = 0\.5"),
        ({"objective.bandwidth": "1,-2"}, r"objective\.bandwidth must be > 0, got -2\.0"),
        ({"model.latent": 0}, r"model\.latent must be >= 1, got 0: Size K of the code z\."),
        ({"model.latent": 2.5}, r"model\.latent must be int, got 2\.5\."),
        ({"model.latent": True}, r"model\.latent must be int, got True\."),
        ({"model.latent": "eight"}, r"model\.latent must be int, got 'eight'\."),
        ({"model.hidden": {"a": 1}}, r"model\.hidden must be a list of int"),
        ({"model.learn_sigma": "perhaps"}, r"model\.learn_sigma must be true or false, got 'perhaps'\."),
        (
            {"model.network": "transformer"},
            r"model\.network must be one of mlp, conv, residual, linear, got 'transformer'\.",
        ),
        ({"model.sigma": float("nan")}, r"model\.sigma must be finite, got nan\."),
        ({"train.learning_rate": float("inf")}, r"train\.learning_rate must be finite, got inf\."),
        ({"model.latnt": 3}, r"no setting 'model\.latnt'; did you mean model\.latent\?"),
        ({"qqq": 3}, r"no setting 'qqq'; the sections are data, model, objective, train, eval\."),
        ({"train.ema": 1.0}, r"train\.ema must be <= 0\.999999, got 1\.0: Decay, a step"),
        ({"objective.projections": 0}, r"objective\.projections must be >= 1, got 0: sliced"),
        ({"objective.divergence": "wasserstein"}, r"must be one of mmd, kl, sliced, stein, adversarial, got"),
        ({"train.seed": 2**64}, r"train\.seed must be <= 9\.22337e\+18"),
        ({"objective.beta": 10**400}, r"objective\.beta must be finite"),
    ],
)
def test_what_is_refused_and_how(changes, message):
    with pytest.raises(InputError, match=message):
        Run().replace(changes)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[model]\nlatnt = 3\n", r"did you mean model\.latent\?"),
        ("[model]\nlatent = '3.5'\n", r"model\.latent must be int"),
        ("latent = 3\n", r"'latent' where only the tables \[data\], \[model\]"),
        ("[trian]\n", r"'trian' where only the tables"),
        ("[[model]]\nlatent = 3\n", r"'model' where only the tables"),
        ("[model\n", r"is not valid TOML"),
        ('[objective]\nname = ["iwae"]\n', r"objective\.name must be one of .*, got \['iwae'\]"),
    ],
)
def test_files_that_are_refused(tmp_path, text, message):
    path = tmp_path / "run.toml"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        configs.from_toml(path)


def test_weights_that_sum_to_one_but_for_rounding_are_taken():
    objective = InfoVAE(alpha=-1.97, lambda_=2.97)
    assert objective.w_d == 0
    assert not objective.estimates_divergence


def test_names_with_quotes_and_a_byte_order_mark(tmp_path):
    run = Run(Data(name='my "own" \\ set'))
    path = tmp_path / "run.toml"
    path.write_text("\ufeff" + configs.to_toml(run), encoding="utf-8")
    assert configs.from_toml(path) == run


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"cannot read the config file .*nowhere\.toml: No such file"):
        configs.from_toml(tmp_path / "nowhere.toml")


def test_sections_are_checked_by_type():
    with pytest.raises(InputError, match=r"data must be a Data, got Model"):
        Run(data=Model())
    assert Run(Data(), Model(), InfoVAE(), Train()) == Run()
