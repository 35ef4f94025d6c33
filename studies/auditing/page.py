"""An audit as text, and as one HTML page that needs no other file."""

import base64
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import jinja2

from vaebench.studies.auditing.findings import Finding
from vaebench.studies.auditing.measure import Audit
from vaebench.studies.tracking.figures import CODE_FIGURES
from vaebench.vae.evaluation import enclosure
from vaebench.vae.evaluation.codes import Latents
from vaebench.vae.evaluation.evaluate import format_metric

MOST_LATENTS = 32

MEANINGS = {
    "test/nll": "nats, -log p(x), estimated",
    "test/bits_per_dim": "of nll",
    "test/elbo": "nats, lower bound of log p(x), over the whole split",
    "test/distortion": "nats, -E log p(x|z)",
    "test/rate": "nats, KL(q(z|x)||p(z))",
    "test/nll_ess": "effective importance samples, median",
    "test/nll_evaluations": "evaluations of log p(x, z) an example",
    "gap/amortisation": "nats that the encoder costs",
    "gap/family": "nats that a Gaussian q costs at its best",
    "q/narrowness": "posterior's standard deviation over q's",
    "q/narrowness_of_best": "the same of the best Gaussian q",
    "q/offset": "standard deviations from q's mean to the posterior's",
    "enclosure/lower": "nats, lower bound of log p(x) of simulated data",
    "enclosure/log_px": "nats, the estimate of the same data",
    "enclosure/upper": "nats, upper bound of the same data",
    **CODE_FIGURES,
    "model/sigma": "standard deviation of p(x|z)",
    "model/sigma_fitted": "the one that the validation data prefer",
}
CAPTIONS = {
    "reconstructions": "Test examples, E[x|z] at their codes, and the absolute difference.",
    "samples": "E[x|z] at codes drawn from the prior.",
    "traversal": "One latent in each row from -3 to 3, that of the largest KL on top.",
    "latent": "Codes of training data in the two latents of largest KL; circles of the prior at 1 and 2.",
}

PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>Audit of {{ name }}</title>
<style>
:root { color-scheme: light dark; --text: #1d2129; --soft: #667080; --page: #fbfbfc; --card: #fff; --line: #e3e6eb;
  --first: #2f6fde; --second: #9db8ea; --severe: #b3261e; --mild: #a36a00 }
@media (prefers-color-scheme: dark) { :root { --text: #e6e8ec; --soft: #98a1b0; --page: #14161a; --card: #1c1f25;
  --line: #2e333c; --first: #6ea0ff; --second: #34507f; --severe: #ff8a80; --mild: #e8b04a } }
* { box-sizing: border-box } body { font: 16px/1.5 system-ui, sans-serif; max-width: 66rem; margin: 0 auto;
  padding: 2.5rem 1.25rem; color: var(--text); background: var(--page) }
h1 { font-size: 1.7rem; margin: 0 } h2 { font-size: 1.1rem; margin: 2.2rem 0 .7rem }
p { margin: .3rem 0 } .soft, figcaption { color: var(--soft); font-size: .88rem }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(11rem, 1fr)); gap: .9rem; margin-top: 1.4rem }
.card { background: var(--card); border: 1px solid var(--line); border-radius: .7rem; padding: 1rem 1.1rem }
.card b { display: block; font-size: 1.2rem; font-variant-numeric: tabular-nums; line-height: 1.35 }
.split { display: flex; height: .55rem; border-radius: .3rem; overflow: hidden; margin: .5rem 0;
  background: var(--line) }
.split i { background: var(--first) } .split i + i { background: var(--second) }
ul { padding: 0; margin: 0; list-style: none } li { border-left: .25rem solid var(--mild); padding: .15rem .8rem;
  margin: .5rem 0 } li.severe { border-color: var(--severe) } li.good { border-color: var(--first) }
table { border-collapse: collapse; width: 100%; font-size: .9rem } td { border-bottom: 1px solid var(--line);
  padding: .3rem .6rem .3rem 0 }
td.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap }
.wide { overflow-x: auto } td.bar { width: 45% } td.bar i { display: block; height: .6rem; border-radius: .2rem;
  background: var(--first); min-width: 1px } tr.idle { color: var(--soft) }
figure { margin: 0 0 1.4rem } img { max-width: 100%; border-radius: .4rem; background: #fff }
code { font-size: .85rem; overflow-wrap: anywhere }
</style>
<h1>Audit of {{ name }}</h1>
<p class="soft">{{ about }}</p>
{% for note in notes %}<p class="soft">{{ note }}.</p>{% endfor %}
<div class="cards">
{% for card in cards %}<div class="card"><span class="soft">{{ card.label }}</span><b>{{ card.value }}</b>
{% if card.shares %}<div class="split">
{% for share in card.shares %}<i style="width: {{ share }}%"></i>{% endfor %}</div>{% endif %}
<span class="soft">{{ card.text }}</span></div>
{% endfor %}</div>
<h2>Findings</h2>
<ul>{% for finding in findings %}<li{% if finding.severe %} class="severe"{% endif %}>{{ finding.text }}</li>
{% else %}<li class="good">Nothing that this audit looks for is wrong with this model.</li>{% endfor %}</ul>
<h2>Figures</h2>
<div class="wide"><table>{% for row in rows %}
<tr><td><code>{{ row.name }}</code></td><td class="number">{{ row.value }}</td>
<td class="soft">{{ row.meaning }}</td></tr>
{% endfor %}</table></div>
{% if latents %}<h2>Latents</h2>
<p class="soft">KL(q(z_k|x)||p(z_k)) in nats, mean and standard deviation of q(z_k){{ left_out }}.</p>
<div class="wide"><table>{% for row in latents %}<tr{% if not row.active %} class="idle"{% endif %}>
<td>z[{{ row.number }}]</td><td class="bar"><i style="width: {{ row.share }}%"></i></td>
<td class="number">{{ row.rate }}</td><td class="number">{{ row.moments }}</td></tr>
{% endfor %}</table></div>{% endif %}
{% if pictures %}<h2>Pictures</h2>
{% for caption, png in pictures %}<figure><img src="data:image/png;base64,{{ png }}" alt="{{ caption }}">
<figcaption>{{ caption }}</figcaption></figure>
{% endfor %}{% endif %}
<h2>The same again</h2><p><code>{{ command }}</code></p>
<p class="soft">{{ seconds }} seconds of computation. log p(x) is estimated from a Gaussian fitted to each posterior,
and each estimate is checked. The bounds on simulated data come from annealing in both directions.</p>
</html>
"""


class Card(NamedTuple):
    """A headline figure."""

    label: str
    value: str
    text: str
    shares: tuple[float, ...] = ()


class Row(NamedTuple):
    """A figure with its meaning."""

    name: str
    value: str
    meaning: str


class LatentRow(NamedTuple):
    """A latent in the table of latents; `share` is its part of the largest KL, in percent."""

    number: int
    share: float
    rate: str
    moments: str
    active: bool


def render(audit: Audit, findings: list[Finding], command: str) -> str:
    """Return the page."""
    latents = [] if audit.latents is None else list(describe_each(audit.latents))
    hidden = len(latents) - MOST_LATENTS
    return (
        jinja2.Environment(autoescape=True)
        .from_string(PAGE)
        .render(
            name=audit.subject.name,
            about=describe(audit),
            notes=audit.subject.adapted.notes,
            cards=list(headline(audit)),
            findings=findings,
            rows=list(list_rows(audit.figures)),
            latents=latents[:MOST_LATENTS],
            left_out=f"; {hidden} more are left out" if hidden > 0 else "",
            pictures=[(CAPTIONS[path.stem], _encode(path)) for path in audit.drawn],
            command=command,
            seconds=f"{sum(audit.seconds.values()):.0f}",
        )
    )


def summarise(audit: Audit, findings: list[Finding]) -> str:
    """Return the table that is printed."""
    rows = [f"{row.name:<22}{row.value:>18}  {row.meaning}" for row in list_rows(audit.figures)]
    found = [f"- {finding.text}" for finding in findings] or ["- Nothing that this audit looks for is wrong."]
    notes = [f"{note}." for note in audit.subject.adapted.notes]
    bounds = f"{enclosure.describe(audit.figures)}."
    return "\n".join([describe(audit), *notes, "", *rows, "", bounds[0].upper() + bounds[1:], "", *found])


def describe(audit: Audit) -> str:
    """Return a line on the model and its data."""
    model, splits = audit.subject.adapted.model, audit.subject.adapted.splits
    sizes = f"{len(splits.train)} train, {len(splits.valid)} valid, {len(splits.test)} test"
    return f"{audit.subject.name}, {model.latent} latents, p(x|z) {model.likelihood.name}; {splits.name} ({sizes})"


def headline(audit: Audit) -> Iterator[Card]:
    """Yield the figures that a reader should see first."""
    figures, model = audit.figures, audit.subject.adapted.model
    count, unresolved = figures["test/nll_examples"], figures["test/nll_unresolved"]
    checked = f"{unresolved:.0f} of them failed their check" if unresolved else "every one passed its check"
    yield Card("log p(x) of test data", format_log_px(figures), f"nats, mean of {count:.0f} examples; {checked}")
    low, high = enclosure.interval_of(figures)
    estimate = f"encloses log p(x); estimate {figures['enclosure/log_px']:.2f}"
    yield Card("on simulated data", f"{low:.2f} to {high:.2f}", estimate)
    parts = [figures[f"gap/{name}"] for name in ("amortisation", "family")]
    split = f"nats: {parts[0]:.2f} of the encoder, {parts[1]:.2f} of a Gaussian q"
    total = sum(max(part, 0.0) for part in parts)
    shares = tuple(_percent(max(part, 0.0), total) for part in parts) if total else ()
    yield Card("log p(x) - ELBO", f"{sum(parts):.2f}", split, shares)
    active = figures["latent/active_units"]
    moving = (_percent(active, model.latent),)
    yield Card("active latents", f"{active:.0f} of {model.latent}", "latents whose mean moves with x", moving)
    if "latent/mi" in figures:
        mi, most = figures["latent/mi"], figures["latent/log_n"]
        yield Card("mutual information", f"{mi:.2f}", f"nats, of at most log N = {most:.2f}", (_percent(mi, most),))


def format_log_px(figures: Mapping[str, float]) -> str:
    """Return log p(x) with its standard error, or as the bound that it is."""
    stderr = figures.get("test/nll_stderr")
    sign = ">= " if figures["test/nll_unresolved"] else ""
    return f"{sign}{-figures['test/nll']:.2f}" + ("" if stderr is None else f" ± {stderr:.2f}")


def list_rows(figures: Mapping[str, float]) -> Iterator[Row]:
    """Yield the figures that there are, each with its standard error or as the bound that it is."""
    for name, meaning in MEANINGS.items():
        if name in figures:
            yield Row(name, format_metric(figures, name), meaning)


def describe_each(latents: Latents) -> Iterator[LatentRow]:
    """Yield every latent, the one of the largest KL first."""
    largest = max(latents.rate.max().item(), 1e-12)
    for k in latents.rate.argsort(descending=True).tolist():
        rate = latents.rate[k].item()
        moments = f"{latents.mean[k].item():.2f} ± {latents.std[k].item():.2f}"
        yield LatentRow(k, round(100 * rate / largest, 1), f"{rate:.2f}", moments, bool(latents.active[k]))


def plain(value: float) -> float | None:
    """Return a number as JSON has it, which knows neither infinity nor NaN."""
    return value if math.isfinite(value) else None


def _percent(part: float, whole: float) -> float:
    return round(min(max(100 * part / whole, 0.0), 100.0), 1)


def _encode(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode()
