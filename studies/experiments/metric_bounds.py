"""What scores of disentanglement give to codes whose worth is known: `python studies/experiments/metric_bounds.py`.

The factors themselves, all of them rotated into each other, nothing at all, and noise; on the factors of 15 000 sprites
as they are, and on their labels, in which orientations that look alike are one and which every reported score uses.
Learned from 10 000 points and tested on 5 000, 20 bins, 15 000 votes, as in Locatello et al., 2019.
"""

import dataclasses
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

import torch
from matplotlib.figure import Figure
from sklearn.ensemble import GradientBoostingClassifier
from torch import Tensor
from tqdm import tqdm

from vaebench.studies.experiments.output import Row, at_least, leave, render
from vaebench.studies.experiments.output import parser as command_line
from vaebench.vae import metrics
from vaebench.vae.data import sprites
from vaebench.vae.evaluation.factor_metrics import REFERENCE_LOGVAR
from vaebench.vae.metrics.dci import completeness, disentanglement

LATENTS = 10
TEST_SHARE = 3

Code = Callable[[Tensor], Tensor]
Score = Callable[[Code], Mapping[str, float]]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the study and return its exit code."""
    parser = command_line("metric_bounds", __doc__)
    parser.add_argument(
        "--points", type=at_least(30), default=15_000, help="sprites, a third of them for tests (15000)"
    )
    parser.add_argument(
        "--votes", type=at_least(30), default=15_000, help="FactorVAE votes, a third of them for tests (15000)"
    )
    parser.add_argument(
        "--published", action="store_true", help="DCI also by scikit-learn's exact trees, as published: an hour"
    )
    options = parser.parse_args(arguments)
    index = torch.randperm(sprites.COUNT, generator=torch.Generator().manual_seed(0))[: options.points]
    kinds = {"factors": sprites.factors(index), "labels": sprites.labels(index)}
    rows = [row for name, known in kinds.items() for row in measure(name, known, published=options.published)]
    rows += measure_votes(options.votes)
    print(render(rows))
    leave(rows, draw(rows), options)
    return 0


def measure(name: str, known: Tensor, *, published: bool = False) -> Iterator[Row]:
    """Yield a row for each score that is held against labels `(N, F)`."""
    codes = references(known.shape[1])
    scores: list[Score] = [partial(of_moments, known), partial(of_posteriors, known), partial(of_predictions, known)]
    scores += [partial(exact_trees, known)] if published else []
    for score in tqdm(scores, desc=f"scores of {name}", leave=False):
        found = {code: score(function) for code, function in codes.items()}
        for title in found["perfect"]:
            yield {"score": title, "held against": name, **{code: values[title] for code, values in found.items()}}


def measure_votes(votes: int) -> Iterator[Row]:
    """Yield the row of the FactorVAE score, which draws factors and is held against nothing else."""
    found = {}
    for code, function in references(len(sprites.SIZES)).items():
        found[code] = metrics.factor_vae_score(
            function,
            tuple(sprites.SIZES.values()),
            train_votes=votes - votes // TEST_SHARE,
            test_votes=votes // TEST_SHARE,
            generator=torch.Generator().manual_seed(0),
        )
    yield {"score": "FactorVAE", "held against": "factors", **found}


def references(factors: int) -> dict[str, Code]:
    """Return codes of the sprites' factors."""
    sizes = tuple(sprites.SIZES.values())[:factors]
    codes = metrics.references(sizes, LATENTS, generator=torch.Generator().manual_seed(0))
    return {name: codes[name] for name in ("constant", "random", "rotated", "perfect")}


def of_moments(known: Tensor, code: Code) -> Mapping[str, float]:
    """Return what needs no classifier."""
    codes = code(known)
    return {"MIG": metrics.binned_mig(codes, known), "Gaussian TC": metrics.gaussian_total_correlation(codes)}


def of_posteriors(known: Tensor, code: Code) -> Mapping[str, float]:
    """Return Chen's MIG of narrow posteriors around the codes."""
    mu = code(known)
    generator = torch.Generator().manual_seed(0)
    gap = metrics.posterior_mig(mu, torch.full_like(mu, REFERENCE_LOGVAR), known, generator=generator)
    return {"MIG of posteriors": gap}


def of_predictions(known: Tensor, code: Code) -> Mapping[str, float]:
    """Return the scores that learn from some points and are tested on others."""
    points = split(known, code)
    found = dataclasses.asdict(metrics.dci(*points))
    return {"SAP": metrics.sap_score(*points), **{f"DCI {name}": value for name, value in found.items()}}


def exact_trees(known: Tensor, code: Code) -> Mapping[str, float]:
    """Return DCI by gradient boosting without histograms, 100 trees of depth 3 for each value of a factor."""
    train_codes, train_known, test_codes, test_known = (part.numpy() for part in split(known, code))
    needs, right = [], []
    for f in range(known.shape[1]):
        model = GradientBoostingClassifier(random_state=0).fit(train_codes, train_known[:, f])
        needs.append(torch.from_numpy(model.feature_importances_))
        right.append(model.score(test_codes, test_known[:, f]))
    matrix = torch.stack(needs, dim=1)
    return {
        "DCI disentanglement, exact trees": disentanglement(matrix),
        "DCI completeness, exact trees": completeness(matrix),
        "DCI informativeness, exact trees": sum(right) / len(right),
    }


def split(known: Tensor, code: Code) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return codes and labels to learn from, and a third of all to test on."""
    codes, test = code(known), len(known) // TEST_SHARE
    return codes[test:], known[test:], codes[:test], known[:test]


def draw(rows: Sequence[Row]) -> Figure:
    """Return a line for each score, a mark on it for each code."""
    figure = Figure(figsize=(8, 0.35 * len(rows) + 1), layout="constrained")
    axes = figure.subplots()
    shown = [row for row in rows if row["score"] != "Gaussian TC"]
    for code, marker in (("constant", "|"), ("random", "x"), ("rotated", "D"), ("perfect", "o")):
        axes.plot([float(row[code]) for row in shown], [-i for i in range(len(shown))], marker, label=code)
    axes.set_yticks([-i for i in range(len(shown))], [f"{row['score']}, {row['held against']}" for row in shown])
    axes.set(xlim=(-0.02, 1.02), xlabel="score")
    axes.grid(axis="y", alpha=0.3)
    axes.legend()
    return figure


if __name__ == "__main__":
    sys.exit(main())
