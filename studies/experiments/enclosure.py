"""log p(x) of a trained model from both sides: `python studies/experiments/enclosure.py runs/FOLDER`.

On data that the model has simulated, annealing forwards gives a lower bound of log p(x), and annealing backwards from
the code that made each example an upper bound. It prints both beside the usual estimate of the same data, which shows
how far that estimate can be trusted, and the usual estimate on the test split. For the digits it takes 15 seconds.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from matplotlib.figure import Figure

from vaebench.studies import command_line as scripts
from vaebench.studies import machine
from vaebench.studies.experiments.output import Row, add_count, command_line, write_results
from vaebench.vae.config.run import LARGEST_SEED, Run
from vaebench.vae.data import Splits, load
from vaebench.vae.errors import InputError
from vaebench.vae.estimators.evidence import Estimate
from vaebench.vae.estimators.log_likelihood import Policy
from vaebench.vae.evaluation import enclosure
from vaebench.vae.evaluation.enclosure import Enclosure, enclose
from vaebench.vae.evaluation.evaluate import estimate_log_px
from vaebench.vae.model import GenerativeModel
from vaebench.vae.training import checkpoint
from vaebench.vae.training.setup import pick_device, require_match
from vaebench.vae.training.state import load_model


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the experiment and return its exit code."""
    parser = command_line(__file__, __doc__)
    parser.add_argument("run", type=Path, metavar="FOLDER", help="folder of a run of train.py, or of a sweep's trial")
    add_count(parser, "--examples", enclosure.EXAMPLES, "simulated examples, and test examples", least=2)
    add_count(parser, "--temperatures", enclosure.TEMPERATURES, "temperatures of the annealing")
    add_count(parser, "--chains", enclosure.CHAINS, "chains for each example, in either direction", least=2)
    add_count(parser, "--seed", 0, "noise of data and chains", least=0, most=LARGEST_SEED)
    options = parser.parse_args(arguments)
    return scripts.run("enclosure.py", lambda: run(options))


def run(options: argparse.Namespace) -> None:
    """Enclose log p(x) of a run's model, estimate that of its test data, and write the results."""
    model, config = load_model(options.run)
    splits = load_own_data(config, options.run)
    torch.set_num_threads(machine.threads(model.likelihood.shape))
    model.to(pick_device(config.train))
    found = enclose(
        model,
        options.examples,
        seed=options.seed,
        temperatures=options.temperatures,
        chains=options.chains,
        policy=Policy(samples=config.eval.samples),
        progress=sys.stderr.isatty(),
    )
    real = None if splits is None else estimate_real(model, splits, config, options)
    rows = tabulate(found, real)
    write_results(rows, plot(found), options, printed=[mark(row) for row in rows])
    print(f"\n{found}")


def load_own_data(config: Run, folder: Path) -> Splits | None:
    """Return the data of a run; without them return None, and say that their estimate is left out."""
    try:
        splits = load(config.data)
        if splits.digest != checkpoint.read(folder / checkpoint.CURRENT)[1]["data"]:
            raise InputError(f"{folder} is of a run on other data than {splits.name} is now.")
    except InputError as error:
        print(f"enclosure.py: {str(error).rstrip('.')}; the row of the test data is left out.", file=sys.stderr)
        return None
    return splits


def estimate_real(model: GenerativeModel, splits: Splits, config: Run, options: argparse.Namespace) -> Estimate:
    """Return the usual estimate for examples of the test split."""
    require_match(model, splits)
    chosen = config.replace({"eval.examples": options.examples, "eval.seed": options.seed})
    test = splits.to(pick_device(config.train)).test
    return estimate_log_px(model, test, chosen, progress=sys.stderr.isatty())


def tabulate(found: Enclosure, real: Estimate | None) -> list[Row]:
    """Return a row for each bound and each estimate, in nats; the errors of the bounds are over the examples."""
    of_test = [] if real is None else [_estimate_row("test", real)]
    lower, upper = found.lower.double().mean().item(), found.upper.double().mean().item()
    return [
        _row("simulated", "annealing forwards", "lower", lower, found.width[1]),
        _estimate_row("simulated", found.estimate),
        _row("simulated", "annealing backwards", "upper", upper, found.width[1]),
        *of_test,
    ]


def _estimate_row(data: str, estimate: Estimate) -> Row:
    kind = "lower" if estimate.unresolved else "estimate"
    return _row(data, "usual estimate", kind, *estimate.mean(), estimate.unresolved)


def _row(data: str, by: str, kind: str, value: float, stderr: float, unresolved: int = 0) -> Row:
    return {"data": data, "by": by, "kind": kind, "log p(x)": value, "stderr": stderr, "unresolved": unresolved}


def mark(row: Row) -> Row:
    """Return a row as it is printed: three decimals, and no standard error where examples are unresolved."""
    value, stderr, unresolved = float(row["log p(x)"]), float(row["stderr"]), row["unresolved"]
    shown = f">= {value:.3f}" if unresolved else f"{value:.3f} ± {stderr:.3f}"
    return {"data": row["data"], "by": row["by"], "kind": row["kind"], "log p(x)": shown, "unresolved": unresolved}


def plot(found: Enclosure) -> Figure:
    """Return both bounds of each example relative to its estimate, in the order of the estimates."""
    order = found.estimate.value.argsort()
    value = found.estimate.value[order].cpu()
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for name, bound in (("annealing backwards", found.upper), ("annealing forwards", found.lower)):
        axes.plot(value, bound[order].cpu() - value, "o", markersize=4, label=name)
    axes.axhline(0, color="grey", linewidth=1, label="usual estimate")
    axes.set(xlabel="log p(x) of a simulated example, nats", ylabel="bound - estimate, nats")
    axes.legend()
    return figure


if __name__ == "__main__":
    sys.exit(main())
