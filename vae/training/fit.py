"""`fit(config, report=...) -> Result`: train one model, resumably, without knowing a tracker or a search."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from vaebench.vae import model as models
from vaebench.vae.config.model import OWN_NONE
from vaebench.vae.config.run import Run
from vaebench.vae.data import Splits
from vaebench.vae.data import load as load_data
from vaebench.vae.training import distributed
from vaebench.vae.training.epoch import Metrics, run_epoch
from vaebench.vae.training.setup import initial_model, open_folder, own_random_state, pick_device, resolve, start
from vaebench.vae.training.state import State

Report = Callable[[int, Metrics], None]


@dataclass(frozen=True)
class Result:
    """A trained model, on the device that trained it, and the history of its training.

    Attributes:
        config: the run, every automatic choice made.
        model: has the weights of the best epoch with early stopping, else of the last; with `train.ema`, averages.
        splits: the data, on the model's device.
        history: one dict of metrics an epoch.
        best_epoch: the epoch, from 1, with the highest validation ELBO, or bound of `iwae`.
        error: the exception that ended the run early, in `vae.ensemble.fit_many.fit_many`; `fit` raises it.
    """

    config: Run
    model: models.GenerativeModel
    splits: Splits
    history: list[Metrics]
    best_epoch: int
    error: Exception | None = None


def fit(
    config: Run,
    *,
    data: Splits | None = None,
    model: models.GenerativeModel | None = None,
    report: Report | None = None,
    folder: Path | None = None,
    progress: bool = False,
) -> Result:
    """Train to the last epoch, or until the validation score has not improved for `train.patience` epochs.

    The score is the ELBO, or the bound of `iwae` with k > 1.

    Args:
        data: your own splits, see `vae.data.from_tensors`; `config.data` names them otherwise.
        model: your own networks, see `vae.model.autoencoder.VAE` and `FlowModel`; `config.model` builds them otherwise.
        report: called after each epoch with its number, from 1, and its metrics; an exception in it ends the run.
        folder: holds the checkpoints; a run found there resumes as if it had not stopped, on a CPU bit for bit.
        progress: show a bar with the ELBO and images/s.
    """
    device = pick_device(config.train)
    with own_random_state(config.train.seed, device):
        splits = load_data(config.data, data).to(device)
        if model is None and config.model.build != OWN_NONE:
            model = initial_model(config, splits, device)  # it may have other settings than the configuration
        config = resolve(config, device, model, splits.shape)
        folder = open_folder(folder) if folder is not None else None
        state = start(config, splits, model, folder)
        if not distributed.is_main_process():
            folder, report, progress = None, None, False
        with tqdm(total=config.train.epochs, initial=state.epoch, unit="epoch", disable=not progress) as bar:
            while not state.is_finished(config):
                metrics = run_epoch(state, config, splits)
                speed = f"{metrics['perf/images_per_s']:,.0f} images/s"
                bar.set_postfix_str(f"elbo {metrics['valid/elbo']:.2f}, {speed}", refresh=False)
                bar.update()
                if folder is not None and state.is_checkpoint_due(config):
                    state.save(config, splits, folder)
                if report is not None:
                    report(state.epoch, dict(metrics))
    return finish(state, config, splits)


def finish(state: State, config: Run, splits: Splits, error: Exception | None = None) -> Result:
    """Return the result of a run that has ended, with its best weights if early stopping was on."""
    if config.train.patience and state.best:
        state.model.load_state_dict(state.best)
    state.model.eval()
    return Result(config, state.model, splits, state.history, state.best_epoch, error)
