"""Audit a model and write what was found, a page, JSON and a run in MLflow: the work of studies/audit.py."""

import argparse
import hashlib
import json
from pathlib import Path
from typing import Any

import torch

from vaebench.studies import machine
from vaebench.studies.auditing import page
from vaebench.studies.auditing.findings import Finding, find
from vaebench.studies.auditing.measure import PER_EXAMPLE, Audit, run_audit
from vaebench.studies.auditing.subject import Subject, load_subject
from vaebench.studies.tracking import mlflow_runs
from vaebench.studies.tracking.mlflow_runs import Tracker
from vaebench.studies.tracking.mlflow_store import choose_uri
from vaebench.studies.tracking.provenance import provenance
from vaebench.studies.tracking.record import RunRecord, milliseconds
from vaebench.vae.config.unused import unused
from vaebench.vae.errors import InputError
from vaebench.vae.training.setup import open_folder

EXPERIMENT, TAG = "audits", "audit"
PAGE, RESULTS = "audit.html", "audit.json"


def run(options: argparse.Namespace) -> None:
    """Audit the model that the command line names."""
    started, uri = milliseconds(), choose_uri(options.tracking_uri)
    subject = load_subject(options)
    torch.set_num_threads(machine.threads(subject.adapted.splits.shape))
    folder = open_folder(options.folder or Path("runs") / f"audit-{subject.name}-{subject.digest[:8]}")
    try:
        audit = run_audit(subject, options, folder)
    except OSError as error:
        raise InputError(f"cannot write to {error.filename or folder}: {error.strerror}.") from error
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"Stopped. The same command goes on with what is in {folder}.") from None
    findings = find(audit.figures, subject.adapted.model.latent, flow=subject.adapted.model.posterior_flow is not None)
    files = write(audit, findings, options.command, folder)
    print(page.summarise(audit, findings))
    print(f"\nin {folder}: {', '.join(path.name for path in files)}")
    if uri is not None:
        record = describe_run(audit, findings, options.command, started)
        record.files = [str(path) for path in files]
        Tracker(uri, EXPERIMENT, mlflow_runs.describe(subject.adapted.splits)).upsert(record)
        print(f"a run in MLflow, experiment {EXPERIMENT}")


def write(audit: Audit, findings: list[Finding], command: str, folder: Path) -> list[Path]:
    """Write the page and the results; return their files and those of the pictures."""
    paths = [folder / PAGE, folder / RESULTS]
    paths[0].write_text(page.render(audit, findings, command))
    paths[1].write_text(json.dumps(to_json(audit, findings, command), indent=1))
    return [*paths, *audit.drawn]


def to_json(audit: Audit, findings: list[Finding], command: str) -> dict[str, Any]:
    """Return everything that was found; numbers that are not finite are null."""
    subject, latents = audit.subject, audit.latents
    per_example = {name: getattr(audit.log_px, name).tolist() for name in PER_EXAMPLE}
    each = [] if latents is None else [row._asdict() for row in page.describe_each(latents)]
    return {
        "model": subject.name,
        "data": subject.adapted.splits.name,
        "notes": list(subject.adapted.notes),
        "findings": [{"text": finding.text, "severe": finding.severe} for finding in findings],
        "figures": {name: page.plain(value) for name, value in audit.figures.items()},
        "latents": each,
        "log_px": {name: [page.plain(value) for value in values] for name, values in per_example.items()},
        "settings": select_settings(subject),
        "seconds": audit.seconds,
        "command": command,
    }


def describe_run(audit: Audit, findings: list[Finding], command: str, started: int) -> RunRecord:
    """Return the run for the tracker."""
    now, subject = milliseconds(), audit.subject
    return RunRecord(
        trial=None,
        key=TAG,
        name=f"audit of {subject.name}",
        start=started,
        status="FINISHED",
        end=now,
        params={name: str(value) for name, value in select_settings(subject).items()},
        tags={
            **provenance(command),
            TAG: identify(subject, audit),
            "findings": " ".join(finding.text for finding in findings) or "none",
        },
        metrics=[(name, value, now, 0) for name, value in audit.figures.items() if page.plain(value) is not None],
    )


def identify(subject: Subject, audit: Audit) -> str:
    """Return a hash of the model, the data and the figures."""
    figures = json.dumps([subject.digest, select_settings(subject), audit.figures], sort_keys=True)
    return hashlib.sha256(figures.encode()).hexdigest()[:16]


def select_settings(subject: Subject) -> dict[str, Any]:
    """Return what the figures depend on: the model, the data, and the settings of both that have an effect."""
    config, data = subject.config, subject.adapted.splits
    sections = ("data.", "eval.") if config.data.name == data.name else ("eval.",)
    left_out = unused(config)
    chosen = {name: x for name, x in config.flat().items() if name.startswith(sections) and name not in left_out}
    return {"model": subject.name, "data": data.name, "data_sha256": data.digest[:16], **chosen}
