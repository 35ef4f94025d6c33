"""The settings of a run: frozen records, validated on construction, with conversions to a flat dict and to TOML.

    Run = Data + Model + Objective + Train + Eval

Trackers log the flat form (`model.latent`, `objective.lambda`), sweeps vary it and `--set` changes it.
"""

import dataclasses
import difflib
import math
import tomllib
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from vaebench.vae.config.fields import Plain, Predicate, Section, Stack, field, flat_name, to_plain, to_toml_value
from vaebench.vae.config.model import Model as Model
from vaebench.vae.config.objective import Objective as Objective
from vaebench.vae.errors import InputError

LARGEST_SEED = 2**63 - 2


def _data(*names: str) -> Predicate:
    return lambda run: run.data.name in names


@dataclass(frozen=True)
class Data(Section):
    """The examples and their processing before training. All models of a stack read the same ones."""

    stack: ClassVar[Stack] = "shared"

    name: str = field(
        "digits", "Data set: digits, linear, sprites; read from data.dir: mnist, fashion_mnist, cifar10, folder."
    )
    dir: str = field("data", "The tree of images of folder; the folder above that of any other set.", location=True)
    binarise: Literal["none", "static", "dynamic"] = field(
        "none", "none keeps the levels; static draws each pixel once from Bernoulli(x); dynamic redraws in training."
    )
    seed: int = field(
        0,
        "Chooses the splits, the static binarisation and what `linear` and `sprites` draw.",
        at_least=0,
        at_most=LARGEST_SEED,
    )
    side: int = field(
        64, "folder: height and width of the images, pixels.", at_least=4, at_most=1024, used=_data("folder")
    )
    channels: Literal[1, 3] = field(3, "folder: 3 is RGB, 1 is grey.", used=_data("folder"))
    cache: str = field(
        "auto", "folder: where the decoded images are kept; auto is .vaebench in the tree.", location=True
    )
    size: int = field(
        10_000, "linear, sprites: examples to draw.", at_least=10, at_most=10**8, used=_data("linear", "sprites")
    )
    features: int = field(16, "linear: data size D.", at_least=1, at_most=10**5, used=_data("linear"))
    rank: int = field(4, "linear: number of directions above the noise.", at_least=1, used=_data("linear"))
    noise: float = field(0.5, "linear: standard deviation of the noise.", above=0, used=_data("linear"))


@dataclass(frozen=True)
class Train(Section):
    """How the parameters are found."""

    epochs: int = field(150, "Passes over the training split, at most.", at_least=1, stack="own")
    batch_size: int = field(
        64,
        "Examples a step; the last batch of an epoch may be smaller, but is left out if it has one.",
        at_least=2,
        stack="shared",
    )
    learning_rate: float = field(2e-3, "Step size of Adam, the highest one of the schedule.", above=0, stack="own")
    schedule: Literal["cosine", "constant"] = field("cosine", "cosine falls to zero at the last step.", stack="own")
    weight_decay: float = field(0.0, "Decoupled weight decay (AdamW); 0 is Adam.", at_least=0, stack="own")
    warmup_epochs: int = field(
        0,
        "Epochs over which all weights but the reconstruction's rise linearly; patience waits for their end.",
        at_least=0,
        stack="own",
    )
    clip_norm: float = field(100.0, "Gradients are scaled down to this norm.", above=0, stack="own")
    patience: int = field(
        30,
        "Stop after so many epochs without a better validation ELBO, and keep the best; 0: never.",
        at_least=0,
        stack="own",
    )
    ema: float = field(
        0.0,
        "Decay, a step, of an average of the weights, which is then validated and kept in their place; 0: none.",
        at_least=0,
        at_most=0.999999,
    )
    precision: Literal["auto", "float32", "bfloat16"] = field(
        "auto", "auto is bfloat16 autocast on a GPU, else float32.", stack="shared"
    )
    device: Literal["auto", "cpu", "cuda"] = field("auto", "auto is the GPU where there is one.", stack="shared")
    backend: Literal["auto", "eager", "numba", "triton"] = field(
        "auto", "Backend of the draw and its KL, reparam_kl; D and q(z) take auto.", stack="shared"
    )
    checkpoint_epochs: int = field(10, "Epochs between checkpoints, where a folder is given.", at_least=1, stack="own")
    seed: int = field(
        0, "Initial weights, order of the data, and noise.", at_least=0, at_most=LARGEST_SEED, stack="own"
    )


@dataclass(frozen=True)
class Eval(Section):
    """How a trained model is measured."""

    stack: ClassVar[Stack] = "own"

    samples: int = field(
        200, "Importance samples S a test example, for log p(x); examples that need more get more.", at_least=2
    )
    examples: int = field(1000, "Test examples whose log p(x) is estimated; all where there are fewer.", at_least=2)
    codes: int = field(
        10_000, "Training examples, spread evenly, over which q(z) is summed; all where there are fewer.", at_least=2
    )
    labels: Literal["none", "fast", "all"] = field(
        "fast",
        "Scores against labels: fast takes seconds; all adds FactorVAE, DCI, SAP and Chen's MIG, minutes; or none.",
    )
    seed: int = field(0, "Noise of the estimates.", at_least=0, at_most=LARGEST_SEED)


@dataclass(frozen=True)
class Run:
    """All settings that determine a run's result."""

    data: Data = dataclasses.field(default_factory=Data)
    model: Model = dataclasses.field(default_factory=Model)
    objective: Objective = dataclasses.field(default_factory=Objective)
    train: Train = dataclasses.field(default_factory=Train)
    eval: Eval = dataclasses.field(default_factory=Eval)

    def __post_init__(self) -> None:
        for name, kind in SECTIONS.items():
            if not isinstance(getattr(self, name), kind):
                raise InputError(f"{name} must be a {kind.__name__}, got {type(getattr(self, name)).__name__}.")
        self._require_known_densities()

    def _require_known_densities(self) -> None:
        """Refuse an objective that needs a density which a flow does not give."""
        unknown = self.model.kind != "vae" or self.model.posterior == "iaf"
        if self.objective.name == "tc_vae" and (unknown or self.model.prior == "flow"):
            raise InputError(
                "objective.name = tc_vae needs q(z_k|x) and p(z_k) of each latent, which are not known with model.kind "
                f"= {self.model.kind}, model.prior = {self.model.prior}, model.posterior = {self.model.posterior}; "
                "use infovae."
            )
        if self.objective.uses_divergence and self.objective.divergence == "kl" and unknown:
            raise InputError(
                "objective.divergence = kl needs q(z|x) of each code under each example, which is not known with "
                f"model.kind = {self.model.kind}, model.posterior = {self.model.posterior}; use mmd, sliced, stein or "
                "adversarial, which need draws alone."
            )
        if self.objective.name == "capacity" and self.model.kind != "vae":
            raise InputError(
                f"objective.name = capacity holds KL(q(z|x)||p(z)) at C, and model.kind = {self.model.kind} has none; "
                "use infovae."
            )

    @property
    def ramp_epochs(self) -> int:
        """Return the number of epochs in which the objective still changes: patience and the best begin after them."""
        capacity_epochs = self.objective.capacity_epochs if self.objective.name == "capacity" else 0
        return max(self.train.warmup_epochs, capacity_epochs)

    def resolve(self, shape: Sequence[int] = ()) -> "Run":
        """Return the run with every `auto` replaced that follows from the record, or from the shape of the data.

        The bandwidth becomes 2K, with K the size of a code: `model.latent`, or the data's size for a flow of its own.
        """
        own_flow = self.model.kind != "vae"
        if self.objective.bandwidth or (own_flow and not shape):
            return self
        bandwidth = (2.0 * (math.prod(shape) if own_flow else self.model.latent),)
        return dataclasses.replace(self, objective=dataclasses.replace(self.objective, bandwidth=bandwidth))

    def flat(self) -> dict[str, Plain]:
        """Return `{"data.name": "digits", ...}`: plain values only; a tuple becomes `256,256`, an empty one `auto`."""
        return {
            name: to_plain(getattr(getattr(self, section), declared.name))
            for name, (section, declared) in SETTINGS.items()
        }

    def identity(self) -> dict[str, Plain]:
        """Return `flat` without the locations of data: two runs are the same run if their identities are equal."""
        return {name: value for name, value in self.flat().items() if not SETTINGS[name][1].metadata["location"]}

    def replace(self, changes: Mapping[str, object]) -> "Run":
        """Return the run with flat names changed: `run.replace({"objective.lambda": 10})`."""
        sections: dict[str, dict[str, object]] = {section: {} for section in SECTIONS}
        for name, value in changes.items():
            _require_known(name)
            section, declared = SETTINGS[name]
            sections[section][declared.name] = value
        return Run(**{name: dataclasses.replace(getattr(self, name), **sections[name]) for name in SECTIONS})


SECTIONS: dict[str, type[Section]] = typing.get_type_hints(Run)
# The section and the field of each flat name.
SETTINGS: dict[str, tuple[str, "dataclasses.Field[Any]"]] = {
    f"{section}.{flat_name(declared)}": (section, declared)
    for section, kind in SECTIONS.items()
    for declared in dataclasses.fields(kind)
}


def from_toml(path: Path) -> Run:
    """Build a run from a file with the tables `[data]`, `[model]`, `[objective]`, `[train]`, `[eval]`."""
    tables = read_toml(path, "config")
    strange = [name for name, table in tables.items() if name not in SECTIONS or not isinstance(table, dict)]
    if strange:
        raise InputError(
            f"{path} has {strange[0]!r} where only the tables {', '.join(f'[{name}]' for name in SECTIONS)} may stand."
        )
    settings = {f"{section}.{key}": value for section, table in tables.items() for key, value in table.items()}
    return Run().replace(settings)


def read_toml(path: Path, kind: str) -> dict[str, Any]:
    """Read a TOML file; errors call it a file of this kind."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise InputError(f"cannot read the {kind} file {path}: {error.strerror}.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not valid TOML: {error}.") from error


def to_toml(run: Run) -> str:
    """Write a run as the file that `from_toml` reads."""
    lines: list[str] = []
    for section, kind in SECTIONS.items():
        lines.append(f"[{section}]")
        for declared in dataclasses.fields(kind):
            value = getattr(getattr(run, section), declared.name)
            lines.append(f"{flat_name(declared)} = {to_toml_value(value)}")
        lines.append("")
    return "\n".join(lines)


def describe() -> str:
    """Return one line for each setting: flat name, default, sentence."""
    width = max(map(len, SETTINGS))
    return "\n".join(
        f"{name:<{width}}  {to_plain(declared.default)!s:<20}  {declared.metadata['doc']}"
        for name, (_, declared) in SETTINGS.items()
    )


def _require_known(name: str) -> None:
    if name not in SETTINGS:
        close = difflib.get_close_matches(name, SETTINGS, n=1)
        hint = f"did you mean {close[0]}?" if close else f"the sections are {', '.join(SECTIONS)}."
        raise InputError(f"there is no setting {name!r}; {hint}")
