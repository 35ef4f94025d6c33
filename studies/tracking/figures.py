"""The final figures of a run: those that runs are sorted by as metrics, all others as JSON in tags, all in a note.

MLflow draws a chart for every metric, and a figure without a course has nothing to draw.
"""

import json
from collections.abc import Collection, Iterator, Mapping
from itertools import groupby, islice

from vaebench.studies.tracking.record import NOTE, MetricValue, RunRecord, milliseconds
from vaebench.vae.evaluation.evaluate import format_metric
from vaebench.vae.training.epoch import Metrics

TAG = "figures."
FIGURES_A_TAG = 60  # of at most 80 characters each
SORTABLE = frozenset(
    {
        *("valid/elbo", "valid/bound", "valid/distortion", "valid/rate"),
        *(f"{split}/{name}" for split in ("valid", "test") for name in ("nll", "bits_per_dim")),
        *("latent/active_units", "latent/mi", "latent/mig"),
    }
)
CODE_FIGURES = {
    "latent/active_units": "latents whose mean moves with x",
    "latent/mi": "nats, mutual information of x and z",
    "latent/log_n": "nats, what the mutual information cannot exceed",
    "latent/kl_aggregate": "nats, KL(q(z)||p(z))",
    "latent/mmd2": "MMD^2(q(z), p(z)), unbiased",
    "latent/log_det_cov": "nats, log det Cov[z], 0 where it is that of N(0, I)",
}


def add_figures(
    record: RunRecord,
    figures: Metrics,
    targets: Collection[str] = (),
    *,
    before: int = 0,
    steps: Mapping[str, int] | None = None,
) -> None:
    """Add final figures to a record, as metrics or as tags; metrics go in front of the record's metric `before`.

    MLflow compares runs by the metric that was written first. A final figure whose course is a curve has the curve's
    last step, in the record or in `steps`; any other has step 0.
    """
    last = dict(steps or {})
    for name, _, _, step in record.metrics:
        last[name] = max(step, last.get(name, 0))
    now, chosen = milliseconds(), SORTABLE | set(targets)
    first = sorted((name for name in figures if name in chosen), key=lambda name: name not in targets)
    points: list[MetricValue] = [(name, figures[name], now, last.get(name, 0)) for name in first]
    record.metrics[before:before] = points
    record.tags |= to_tags({name: value for name, value in figures.items() if name not in chosen})


def add_note(record: RunRecord, figures: Metrics, title: str, command: str = "") -> None:
    """Give the run's page a note: a title, the command that trains it, and a table of the figures."""
    fenced = ["", "```", wrap_command(command), "```"] if command else []
    record.tags[NOTE] = "\n".join([title, *fenced, "", *list_figures(figures)])


def to_tags(figures: Metrics) -> dict[str, str]:
    """Return tags with the figures as JSON, one for each prefix, such as `latent`, and for each sixty figures of it.

    >>> to_tags({"latent/tc": 0.5, "latent/log_n": 7.0, "ais/gap": -0.25})
    {'figures.ais': '{"ais/gap": -0.25}', 'figures.latent': '{"latent/log_n": 7.0, "latent/tc": 0.5}'}
    """
    tags = {}
    for prefix, names in groupby(sorted(figures), key=lambda name: name.partition("/")[0]):
        for i, part in enumerate(_parts(names)):
            tags[f"{TAG}{prefix}" + (f".{i}" if i else "")] = json.dumps({name: figures[name] for name in part})
    return tags


def from_tags(tags: Mapping[str, str]) -> tuple[Metrics, dict[str, str]]:
    """Return the figures that are kept in tags, and the other tags."""
    figures: Metrics = {}
    for name, value in tags.items():
        if name.startswith(TAG):
            figures |= json.loads(value)
    return figures, {name: value for name, value in tags.items() if not name.startswith(TAG)}


def list_figures(figures: Metrics) -> list[str]:
    """Return the lines of a Markdown table: a row for each figure, with its standard error where it has one.

    >>> list_figures({"latent/mi": 7.1, "latent/mi_stderr": 0.01, "latent/mmd2": 0.00128})[2:]
    ['| latent/mi | 7.1 ± 0.01 |', '| latent/mmd2 | 0.00128 |']
    """
    shown = [name for name in figures if name.removesuffix("_stderr") not in figures or not name.endswith("_stderr")]
    return ["| figure | value |", "| --- | ---: |", *(f"| {name} | {_format(figures, name)} |" for name in shown)]


def wrap_command(command: str) -> str:
    r"""Return a shell command with a line for each option.

    MLflow does not break a line of code, so that a long one would push the rest of the page off the screen.

    >>> print(wrap_command("python studies/train.py --set model.latent=4 --set train.seed=1"))
    python studies/train.py \
      --set model.latent=4 \
      --set train.seed=1
    """
    return command.replace(" --", " \\\n  --")


def _format(figures: Metrics, name: str) -> str:
    if name.endswith("/nll") or f"{name}_unresolved" in figures:
        return format_metric(figures, name)
    stderr = figures.get(f"{name}_stderr")
    return f"{figures[name]:.4g}" + ("" if stderr is None else f" ± {stderr:.2g}")


def _parts(names: Iterator[str]) -> Iterator[list[str]]:
    while part := list(islice(names, FIGURES_A_TAG)):
        yield part
