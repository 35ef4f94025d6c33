"""Scores of disentanglement for codes of known quality: `python studies/experiments/metric_bounds.py`.

A score can be read only between its own floor and ceiling. The codes are constant, random, the factors rotated into
each other, and the factors themselves. They are held against the factors of 15 000 sprites, and against their labels,
which join orientations that look alike and which every reported score uses. Scores learn from 10 000 points and are
tested on 5 000, with 20 bins and 15 000 votes, as in Locatello et al., 2019. It prints one row for each score and one
column for each code. It takes four minutes on one core.
"""

import argparse
import dataclasses
import sys
from collections.abc import Callable, Sequence

import torch
from matplotlib.figure import Figure
from sklearn.ensemble import GradientBoostingClassifier
from torch import Tensor
from tqdm import tqdm

from vaebench.studies.experiments import output, parts
from vaebench.studies.experiments.output import Row, add_count, command_line, limit_count, write_results
from vaebench.vae import metrics
from vaebench.vae.data import sprites
from vaebench.vae.evaluation.factor_metrics import REFERENCE_LOGVAR
from vaebench.vae.metrics.dci import concentration

LATENTS = 10
TEST_SHARE = 3
MARKERS = {"constant": "|", "random": "x", "rotated": "D", "perfect": "o"}

Code = Callable[[Tensor], Tensor]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the experiment and return its exit code."""
    parser = command_line(__file__, __doc__)
    add_count(parser, "--points", 15_000, "sprites, a third of them for tests", least=30)
    add_count(parser, "--votes", 15_000, "FactorVAE votes, a third of them for tests", least=30)
    parser.add_argument("--published", action="store_true", help="DCI also by scikit-learn's exact trees: an hour more")
    return output.run(parser.parse_args(arguments), run)


def run(options: argparse.Namespace) -> None:
    """Score the reference codes against factors and against labels."""
    limit_count(options, "points", sprites.COUNT, "sprites")
    index = torch.randperm(sprites.COUNT, generator=torch.Generator().manual_seed(0))[: options.points]
    kinds = {"factors": sprites.factors(index), "labels": sprites.labels(index)}
    rows: list[Row] = []
    for name, labels in kinds.items():
        rows += parts.keep(options, name, measure, name, labels, published=options.published)
    rows.append(parts.keep(options, "votes", measure_votes, options.votes))
    write_results(rows, plot(rows), options)


def measure(name: str, labels: Tensor, *, published: bool = False) -> list[Row]:
    """Return a row for each score of the codes against labels `(N, F)`."""
    codes = tqdm(reference_codes(labels.shape[1]).items(), desc=f"scores of {name}", leave=False)
    scores = {kind: score(labels, code, published=published) for kind, code in codes}
    return [
        {"score": title, "held against": name, **{kind: values[title] for kind, values in scores.items()}}
        for title in scores["perfect"]
    ]


def measure_votes(votes: int) -> Row:
    """Return the row of the FactorVAE score, which draws factors itself and needs no labels."""
    scores = {}
    for kind, code in reference_codes(len(sprites.SIZES)).items():
        scores[kind] = metrics.factor_vae_score(
            code,
            tuple(sprites.SIZES.values()),
            train_votes=votes - votes // TEST_SHARE,
            test_votes=votes // TEST_SHARE,
            generator=torch.Generator().manual_seed(0),
        )
    return {"score": "FactorVAE", "held against": "factors", **scores}


def reference_codes(factors: int) -> dict[str, Code]:
    """Return the codes of sprites with this many factors."""
    sizes = tuple(sprites.SIZES.values())[:factors]
    codes = metrics.reference_codes(sizes, LATENTS, generator=torch.Generator().manual_seed(0))
    return {kind: codes[kind] for kind in MARKERS}


def score(labels: Tensor, code: Code, *, published: bool) -> dict[str, float]:
    """Return every score of a code; each group of scores encodes the labels again, and so draws random codes anew."""
    codes, mu, points = code(labels), code(labels), split(labels, code)
    logvar, generator = torch.full_like(mu, REFERENCE_LOGVAR), torch.Generator().manual_seed(0)
    dci = dataclasses.asdict(metrics.dci(*points))
    return {
        "MIG": metrics.binned_mig(codes, labels),
        "Gaussian TC": metrics.gaussian_total_correlation(codes),
        "MIG of posteriors": metrics.posterior_mig(mu, logvar, labels, generator=generator),
        "SAP": metrics.sap_score(*points),
        **{f"DCI {name}": value for name, value in dci.items()},
        **(score_exact_trees(labels, code) if published else {}),
    }


def score_exact_trees(labels: Tensor, code: Code) -> dict[str, float]:
    """Return DCI by gradient boosting without histograms, 100 trees of depth 3 for each value of a factor."""
    train_codes, train_labels, test_codes, test_labels = (part.numpy() for part in split(labels, code))
    importances, accuracies = [], []
    for f in range(labels.shape[1]):
        model = GradientBoostingClassifier(random_state=0).fit(train_codes, train_labels[:, f])
        importances.append(torch.from_numpy(model.feature_importances_))
        accuracies.append(model.score(test_codes, test_labels[:, f]))
    matrix = torch.stack(importances, dim=1)
    return {
        "DCI disentanglement, exact trees": concentration(matrix),
        "DCI completeness, exact trees": concentration(matrix.T),
        "DCI informativeness, exact trees": sum(accuracies) / len(accuracies),
    }


def split(labels: Tensor, code: Code) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return codes and labels to learn from, and a third of all to test on."""
    codes, test = code(labels), len(labels) // TEST_SHARE
    return codes[test:], labels[test:], codes[:test], labels[:test]


def plot(rows: Sequence[Row]) -> Figure:
    """Return one line for each score, with one mark for each code."""
    figure = Figure(figsize=(8, 0.35 * len(rows) + 1), layout="constrained")
    axes = figure.subplots()
    shown = [row for row in rows if row["score"] != "Gaussian TC"]
    for kind, marker in MARKERS.items():
        axes.plot([float(row[kind]) for row in shown], [-i for i in range(len(shown))], marker, label=kind)
    axes.set_yticks([-i for i in range(len(shown))], [f"{row['score']}, {row['held against']}" for row in shown])
    axes.set(xlim=(-0.02, 1.02), xlabel="score")
    axes.grid(axis="y", alpha=0.3)
    axes.legend()
    return figure


if __name__ == "__main__":
    sys.exit(main())
