"""What a run is: frozen records, validated on construction, to and from a flat dict of plain values.

    Run = Data + Model + Objective + Train + Eval

The flat form (`model.latent`, `objective.lambda`) is what a tracker logs, what a sweep varies and what `--set` reaches.
"""

import dataclasses
import difflib
import math
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from vaebench.vae.config.fields import Plain, Section, flat_name, knob, plain, toml
from vaebench.vae.config.objective import Objective as Objective
from vaebench.vae.errors import InputError

LARGEST_SEED = 2**63 - 2


@dataclass(frozen=True)
class Data(Section):
    """Which examples, and what happens to them before a model sees them."""

    name: str = knob(
        "digits", "Data set: digits, linear, sprites; read from data.dir: mnist, fashion_mnist, cifar10, folder."
    )
    dir: str = knob("data", "The tree of images of folder; the folder above that of any other set.", place=True)
    binarise: str = knob(
        "none",
        "none keeps the levels; static draws each pixel once from Bernoulli(x); dynamic redraws in training.",
        choices=("none", "static", "dynamic"),
    )
    seed: int = knob(
        0,
        "Chooses the splits, the static binarisation and what `linear` and `sprites` draw.",
        at_least=0,
        at_most=LARGEST_SEED,
    )
    side: int = knob(64, "folder: height and width of the images, pixels.", at_least=4, at_most=1024)
    channels: int = knob(3, "folder: 3 is RGB, 1 is grey.", choices=(1, 3))
    cache: str = knob("auto", "folder: where the decoded images are kept; auto is .vaebench in the tree.", place=True)
    size: int = knob(10_000, "linear, sprites: examples to draw.", at_least=10, at_most=10**8)
    features: int = knob(16, "linear: data size D.", at_least=1, at_most=10**5)
    rank: int = knob(4, "linear: number of directions above the noise.", at_least=1)
    noise: float = knob(0.5, "linear: standard deviation of the noise.", above=0)


@dataclass(frozen=True)
class Model(Section):
    """Networks, code and likelihood, or the layers of a flow."""

    kind: str = knob(
        "vae",
        "vae; coupling, autoregressive: a flow of the dequantised data, with networks of the widths in hidden.",
        choices=("vae", "coupling", "autoregressive"),
    )
    network: str = knob(
        "mlp", "Encoder and decoder: mlp, conv, residual, linear.", choices=("mlp", "conv", "residual", "linear")
    )
    latent: int = knob(8, "Size K of the code z.", at_least=1)
    hidden: tuple[int, ...] = knob(
        (256, 256), "mlp: widths from data to code; conv, residual: channels at each halving.", at_least=1
    )
    dense: tuple[int, ...] = knob(
        (), "conv, residual: widths of fully connected layers between convolutions and code; auto: none.", at_least=1
    )
    dropout: float = knob(0.0, "mlp: share of hidden units dropped in training.", at_least=0, at_most=0.95)
    likelihood: str = knob(
        "discretised_logistic",
        "p(x|z): bernoulli needs binarised data, discretised_logistic and logistic_mixture data with levels.",
        choices=("bernoulli", "gaussian", "discretised_logistic", "logistic_mixture"),
    )
    components: int = knob(5, "logistic_mixture: discretised logistics M for each element.", at_least=1)
    sigma: float = knob(0.1, "gaussian: standard deviation of p(x|z), the starting value if learned.", above=0)
    learn_sigma: bool = knob(False, "gaussian: learn one sigma for all of x.")
    prior: str = knob("normal", "vae: p(z), N(0, I) or a coupling flow that is learned.", choices=("normal", "flow"))
    posterior: str = knob(
        "gaussian",
        "vae: q(z|x), a diagonal Gaussian, or one moved by an inverse autoregressive flow.",
        choices=("gaussian", "iaf"),
    )
    flow_layers: int = knob(4, "Layers of each flow, masks or orders taking turns.", at_least=1)
    spline_bins: int = knob(
        0, "Flows: bins of the rational-quadratic spline of each element, at least 2; 0: affine.", at_least=0
    )


@dataclass(frozen=True)
class Train(Section):
    """How the parameters are found."""

    epochs: int = knob(150, "Passes over the training split, at most.", at_least=1)
    batch_size: int = knob(
        64, "Examples a step; the last batch of an epoch may be smaller, but is left out if it has one.", at_least=2
    )
    learning_rate: float = knob(2e-3, "Step size of Adam, the highest one of the schedule.", above=0)
    schedule: str = knob("cosine", "cosine falls to zero at the last step.", choices=("cosine", "constant"))
    weight_decay: float = knob(0.0, "Decoupled weight decay (AdamW); 0 is Adam.", at_least=0)
    warmup_epochs: int = knob(
        0,
        "Epochs over which all weights but the reconstruction's rise linearly; patience waits for their end.",
        at_least=0,
    )
    clip_norm: float = knob(100.0, "Gradients are scaled down to this norm.", above=0)
    patience: int = knob(
        30, "Stop after so many epochs without a better validation ELBO, and keep the best; 0: never.", at_least=0
    )
    ema: float = knob(
        0.0,
        "Decay, a step, of an average of the weights, which is then validated and kept in their place; 0: none.",
        at_least=0,
        at_most=0.999999,
    )
    precision: str = knob(
        "auto", "auto is bfloat16 autocast on a GPU, else float32.", choices=("auto", "float32", "bfloat16")
    )
    device: str = knob("auto", "auto is the GPU where there is one.", choices=("auto", "cpu", "cuda"))
    backend: str = knob(
        "auto",
        "Backend of the draw and its KL, reparam_kl; D and q(z) take auto.",
        choices=("auto", "eager", "analytic", "triton"),
    )
    checkpoint_epochs: int = knob(10, "Epochs between checkpoints, where a folder is given.", at_least=1)
    seed: int = knob(0, "Initial weights, order of the data, and noise.", at_least=0, at_most=LARGEST_SEED)


@dataclass(frozen=True)
class Eval(Section):
    """How a trained model is measured."""

    samples: int = knob(500, "Importance samples S a test example, for log p(x).", at_least=2)
    examples: int = knob(1000, "Test examples whose log p(x) is estimated; all where there are fewer.", at_least=2)
    codes: int = knob(
        10_000, "Training examples, spread evenly, over which q(z) is summed; all where there are fewer.", at_least=2
    )
    labels: str = knob(
        "fast",
        "Scores against labels: fast takes seconds; all adds FactorVAE, DCI, SAP and Chen's MIG, minutes; or none.",
        choices=("none", "fast", "all"),
    )
    seed: int = knob(0, "Noise of the estimates.", at_least=0, at_most=LARGEST_SEED)


@dataclass(frozen=True)
class Run:
    """All that determines a run's result."""

    data: Data = dataclasses.field(default_factory=Data)
    model: Model = dataclasses.field(default_factory=Model)
    objective: Objective = dataclasses.field(default_factory=Objective)
    train: Train = dataclasses.field(default_factory=Train)
    eval: Eval = dataclasses.field(default_factory=Eval)

    def __post_init__(self) -> None:
        for field, kind in SECTIONS.items():
            if not isinstance(getattr(self, field), kind):
                raise InputError(f"{field} must be a {kind.__name__}, got {type(getattr(self, field)).__name__}.")
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
    def settled_after(self) -> int:
        """Return the epochs after which the objective is the same to the end: patience and the best begin there."""
        rising = self.objective.capacity_epochs if self.objective.name == "capacity" else 0
        return max(self.train.warmup_epochs, rising)

    def resolved(self, shape: Sequence[int] = ()) -> "Run":
        """Return the run with every `auto` replaced by its value that the record, or the shape of the data, settles.

        The bandwidth is 2K, K the size of a code: `model.latent`, but for a flow of its own the size of the data.
        """
        own_flow = self.model.kind != "vae"
        if self.objective.bandwidth or (own_flow and not shape):
            return self
        bandwidth = (2.0 * (math.prod(shape) if own_flow else self.model.latent),)
        return dataclasses.replace(self, objective=dataclasses.replace(self.objective, bandwidth=bandwidth))

    def flat(self) -> dict[str, Plain]:
        """Return `{"data.name": "digits", ...}`: plain values only; a tuple becomes `256,256`, an empty one `auto`."""
        return {
            f"{section}.{flat_name(field)}": plain(getattr(getattr(self, section), field.name))
            for section, kind in SECTIONS.items()
            for field in dataclasses.fields(kind)
        }

    def identity(self) -> dict[str, Plain]:
        """Return what two runs share if they are the same run: `flat`, without the places that data are read from."""
        places = {
            f"{section}.{flat_name(field)}"
            for section, kind in SECTIONS.items()
            for field in dataclasses.fields(kind)
            if field.metadata["place"]
        }
        return {name: value for name, value in self.flat().items() if name not in places}

    def replace(self, changes: Mapping[str, object]) -> "Run":
        """Return the run with flat names changed: `run.replace({"objective.lambda": 10})`."""
        sections: dict[str, dict[str, object]] = {section: {} for section in SECTIONS}
        for name, value in changes.items():
            section, field = _locate(name)
            sections[section][field] = value
        return Run(**{name: dataclasses.replace(getattr(self, name), **sections[name]) for name in SECTIONS})


SECTIONS: dict[str, type[Section]] = {
    "data": Data,
    "model": Model,
    "objective": Objective,
    "train": Train,
    "eval": Eval,
}


def from_flat(values: Mapping[str, object]) -> Run:
    """Build a run from flat names; what is not named keeps its default."""
    return Run().replace(values)


def from_toml(path: Path) -> Run:
    """Build a run from a file with the tables `[data]`, `[model]`, `[objective]`, `[train]`, `[eval]`."""
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise InputError(f"cannot read the config file {path}: {error.strerror}.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not valid TOML: {error}.") from error
    strange = [name for name, table in tables.items() if name not in SECTIONS or not isinstance(table, dict)]
    if strange:
        raise InputError(
            f"{path} has {strange[0]!r} where only the tables {', '.join(f'[{name}]' for name in SECTIONS)} may stand."
        )
    return from_flat({f"{section}.{key}": value for section, table in tables.items() for key, value in table.items()})


def to_toml(run: Run) -> str:
    """Write a run as the file that `from_toml` reads."""
    lines: list[str] = []
    for section, kind in SECTIONS.items():
        lines.append(f"[{section}]")
        for field in dataclasses.fields(kind):
            value = getattr(getattr(run, section), field.name)
            lines.append(f"{flat_name(field)} = {toml(value)}")
        lines.append("")
    return "\n".join(lines)


def describe() -> str:
    """Return one line a field: flat name, default, sentence."""
    rows = [
        (f"{section}.{flat_name(field)}", plain(field.default), field.metadata["doc"])
        for section, kind in SECTIONS.items()
        for field in dataclasses.fields(kind)
    ]
    width = max(len(name) for name, _, _ in rows)
    return "\n".join(f"{name:<{width}}  {default!s:<20}  {doc}" for name, default, doc in rows)


def _locate(name: str) -> tuple[str, str]:
    """Split `objective.lambda` into the section and the field's name in Python."""
    known = {
        f"{section}.{flat_name(field)}": (section, field.name)
        for section, kind in SECTIONS.items()
        for field in dataclasses.fields(kind)
    }
    if name not in known:
        close = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {close[0]}?" if close else f"the sections are {', '.join(SECTIONS)}."
        raise InputError(f"there is no setting {name!r}; {hint}")
    return known[name]
