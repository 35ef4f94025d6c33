"""Train one model, measure it, draw pictures of it: the work of studies/train.py."""

import argparse
import contextlib
import hashlib
import json
import logging
import signal
import sys
from pathlib import Path

import torch

from vaebench.studies import machine, pictures
from vaebench.studies.learning_curves import draw_curves
from vaebench.studies.tracking.figures import CODE_FIGURES
from vaebench.studies.tracking.training_run import TrainingRun, track_training
from vaebench.studies.train import SHORTCUTS
from vaebench.studies.whole_file import append_line
from vaebench.vae.config import run as configs
from vaebench.vae.config.model import OWN_NONE
from vaebench.vae.config.run import Model, Run
from vaebench.vae.config.unused import unused
from vaebench.vae.data import Splits, download, load
from vaebench.vae.errors import InputError
from vaebench.vae.evaluation.evaluate import active_units, evaluate, format_metric
from vaebench.vae.model.own import digest_source
from vaebench.vae.training import checkpoint, distributed
from vaebench.vae.training.epoch import Metrics
from vaebench.vae.training.fit import Result, fit
from vaebench.vae.training.setup import initial_model, open_folder, pick_device, require_own_folder
from vaebench.vae.training.streams import evaluation_generator

_log = logging.getLogger(__name__)

METRICS, CURVES = "metrics.jsonl", "curves.png"
ACTIVE = "latent/active_units"

SHOWN = {
    "test/bits_per_dim": "of nll, lower is better",
    "test/nll": "nats, -log p(x), estimated; of a flow its upper bound by dequantisation",
    "test/elbo": "nats, lower bound of log p(x)",
    "test/bound": "nats, importance-weighted bound of order k",
    "test/distortion": "nats, -E log p(x|z)",
    "test/rate": "nats, KL(q(z|x)||p(z))",
    "test/nll_ess": "effective importance samples, median",
    **CODE_FIGURES,
    "latent/mig": "mutual information gap of latents and factors",
    "latent/posterior_mig": "the same of posteriors, as Chen et al. define it",
    "latent/factor_vae": "FactorVAE score",
    "latent/dci_disentanglement": "latents needed for one factor",
    "latent/dci_completeness": "factors in need of one latent",
    "latent/dci_informativeness": "factors told from the code",
    "latent/sap": "accuracy gap of latents on their own",
    "latent/svm_error": "share of examples told wrong from the code, few labels",
    "samples/class_mismatch": "of the classes of samples from those of the data",
    "perf/images_per_s": "training speed, median epoch",
    "perf/peak_memory_mb": "MiB, most memory held",
}

BOUNDS = ("floor", "ceiling", "chance", "pixels")


def run(options: argparse.Namespace) -> None:
    """List the settings, or train and measure a model, in one process or in those that `torchrun` started."""
    if options.settings:
        print(configs.describe())
        return
    logging.basicConfig(format="%(message)s")
    before = signal.signal(signal.SIGTERM, _stop)
    try:
        with distributed.process_group():
            train_and_measure(options)
    finally:
        signal.signal(signal.SIGTERM, before)


def _stop(number: int, frame: object) -> None:
    """End as Ctrl-C does where a scheduler asks for the end."""
    raise KeyboardInterrupt


def train_and_measure(options: argparse.Namespace) -> None:
    """Train, evaluate, write the results and print a summary; of several processes only the main one prints."""
    folder = None
    try:
        config, uri = read_config(options), choose_tracker(options.tracking_uri)
        without_effect = unused(config) & set(read_overrides(options))
        if without_effect and distributed.is_main_process():
            _log.warning("without effect in this run: %s", ", ".join(sorted(without_effect)))
        if options.download:
            download(config.data)
        data = load(config.data)
        folder = open_folder(options.folder or default_folder(config, data))
        torch.set_num_threads(machine.threads(data.shape))
        with track_training(uri, config, data, folder, options.command) as run:
            result = train(config, data, folder, run)
            if not distributed.is_main_process():
                return
            metrics = evaluate(result, progress=sys.stderr.isatty())
            history = complete_history(result, folder)
            written = write_results(result, history, metrics, folder)
            tracked = run.finish(metrics, history, written)
    except OSError as error:
        raise InputError(f"cannot write to {error.filename or folder}: {error.strerror}.") from error
    except KeyboardInterrupt:
        raise KeyboardInterrupt(explain_stop(folder)) from None
    print(summarise(result, metrics))
    if pictures.are_images(data) and (reason := pictures.reason_not_drawn(result.model)):
        print(f"\n{reason}")
    print(f"\nin {folder}: {', '.join(path.name for path in written)}, {checkpoint.CURRENT}{tracked}")


def choose_tracker(option: str | None) -> str | None:
    """Return the URI of the tracker, which the main process writes to, or None; one that cannot work is refused."""
    if option == "none" or not distributed.is_main_process():
        return None
    from vaebench.studies.tracking.mlflow_store import choose_uri  # MLflow takes seconds to import

    return choose_uri(option)


def read_config(options: argparse.Namespace) -> Run:
    """Return the run of the TOML file or the default; shortcuts override it, and `--set` overrides both."""
    base = configs.from_toml(options.config) if options.config else Run()
    return base.replace(read_overrides(options))


def read_overrides(options: argparse.Namespace) -> dict[str, str]:
    """Return the settings that the command line names, by a shortcut or by `--set`."""
    short = {name: vars(options)[option.replace("-", "_")] for option, name in SHORTCUTS.items()}
    return {**{name: value for name, value in short.items() if value is not None}, **dict(options.set)}


def default_folder(config: Run, data: Splits) -> Path:
    """Return a folder named after a hash of the data and of all settings, so that the same command finds it again."""
    source = digest_source(config.model.build)
    identity = json.dumps([config.identity(), data.digest, *([source] if source else [])], sort_keys=True)
    digest = hashlib.sha256(identity.encode()).hexdigest()
    model = config.model
    kind = f"{describe_network(model)}-k{model.latent}" if model.kind == "vae" else model.kind
    return Path("runs") / f"{config.data.name}-{kind}-{digest[:8]}"


def explain_stop(folder: Path | None) -> str:
    """Return a sentence on how a run that Ctrl-C stopped goes on."""
    if folder is None or not (folder / checkpoint.CURRENT).exists():
        return "Stopped before the first checkpoint; the same command starts again."
    return f"Stopped. The same command goes on from the last checkpoint in {folder}."


def train(config: Run, data: Splits, folder: Path, run: TrainingRun) -> Result:
    """Fit with checkpoints in the folder; write the metrics of each epoch, and samples after some."""
    device = pick_device(config.train)
    model, valid = initial_model(config, data, device), data.valid.to(device)
    require_own_folder(config, data, model, folder)
    run.begin()

    def report(epoch: int, metrics: Metrics) -> None:
        if model.has_codes:
            metrics[ACTIVE] = active_units(model, valid, evaluation_generator(config.eval.seed, device))
        with (folder / METRICS).open("a+") as file:
            append_line(file, json.dumps({"epoch": epoch, **metrics}))
        run.log(epoch, metrics)
        if pictures.are_images(data):
            pictures.extend_strip(model, epoch, device, folder)

    return fit(config, data=data, model=model, folder=folder, report=report, progress=sys.stderr.isatty())


def complete_history(result: Result, folder: Path) -> list[Metrics]:
    """Return the figures of each epoch, with its active units, which the history of a checkpoint does not hold."""
    units = read_active_units(folder / METRICS)
    return [
        values | ({ACTIVE: units[epoch]} if epoch in units else {})
        for epoch, values in enumerate(result.history, start=1)
    ]


def write_results(result: Result, history: list[Metrics], metrics: Metrics, folder: Path) -> list[Path]:
    """Write configuration, metrics and pictures; return the files.

    The file of metrics is rewritten: a run that was stopped and resumed may have appended an epoch twice.
    """
    configs.write_toml(result.config, folder / "config.toml")
    records = [{"epoch": epoch, **values} for epoch, values in enumerate(history, start=1)]
    draw_curves(records, result.config, result.best_epoch).savefig(folder / CURVES)
    records.append({"epoch": result.best_epoch, **metrics})
    (folder / METRICS).write_text("".join(json.dumps(record) + "\n" for record in records))
    drawn = pictures.draw_all(result.model, result.splits, folder)
    strip = [folder / pictures.STRIP] if (folder / pictures.STRIP).exists() else []
    return [folder / "config.toml", folder / METRICS, folder / CURVES, *drawn, *strip]


def read_active_units(path: Path) -> dict[int, float]:
    """Return the active units of each epoch, which `report` appends to the file of metrics."""
    found: dict[int, float] = {}
    for line in path.read_text().splitlines() if path.exists() else []:
        with contextlib.suppress(ValueError):  # half a line of a process that was killed
            record = json.loads(line)
            if ACTIVE in record and "valid/elbo" in record:
                found[record["epoch"]] = record[ACTIVE]
    return found


def summarise(result: Result, metrics: Metrics) -> str:
    """Return the table that is printed at the end of a run."""
    splits, config = result.splits, result.config
    sizes = f"{len(splits.train)} train, {len(splits.valid)} valid, {len(splits.test)} test"
    title = f"{splits.name} ({sizes}), {describe_model(config.model)}, {config.objective.describe(config.train.epochs)}"
    epochs = f"{len(result.history)} epochs, the best of them {result.best_epoch}"
    rows = [
        f"{name:<28}{format_metric(metrics, name):>16}  {meaning}{_format_bounds(metrics, name)}"
        for name, meaning in SHOWN.items()
        if name in metrics
    ]
    return "\n".join([title, epochs, "", *rows])


def describe_model(model: Model) -> str:
    """Return the model's network, latent size and flows in words."""
    if model.kind != "vae":
        return f"{model.kind} flow of {model.flow_layers} layers"
    flows = (", flow prior" if model.prior == "flow" else "") + (", flow posterior" if model.posterior == "iaf" else "")
    return f"{describe_network(model)}, latent {model.latent}{flows}"


def describe_network(model: Model) -> str:
    """Return the network's name: that of the setting, or of the file of one's own."""
    return model.network if model.build == OWN_NONE else Path(model.build.rpartition(":")[0]).stem


def _format_bounds(metrics: Metrics, name: str) -> str:
    """Return the bounds and baselines that a metric is compared with, in brackets."""
    found = [f"{bound} {metrics[f'{name}_{bound}']:.3f}" for bound in BOUNDS if f"{name}_{bound}" in metrics]
    if name == "samples/class_mismatch":
        found.append(f"classifier {metrics['samples/classifier_accuracy']:.3f} right")
    return f" ({', '.join(found)})" if found else ""
