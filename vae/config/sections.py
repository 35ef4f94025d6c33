"""Settings of the data, of the training and of the evaluation."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from vaebench.vae.config.fields import Predicate, Section, Stack, field

LARGEST_SEED = 2**63 - 2


def _data(*names: str) -> Predicate:
    return lambda run: run.data.name in names


@dataclass(frozen=True)
class Data(Section):
    """The examples and their processing before training. All models of a stack read the same ones."""

    stack: ClassVar[Stack] = "shared"

    name: str = field(
        "digits",
        "Data set: digits, linear, sprites; from data.dir: mnist, binarized_mnist, fashion_mnist, cifar10, folder.",
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
        "Stop after so many epochs without a better validation ELBO, or bound of iwae, and keep the best; 0: never.",
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
        "auto", "Backend of the draw and its KL in training; all else takes auto.", stack="shared"
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
