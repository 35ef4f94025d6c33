"""Counts on the command lines of the experiments: each value works, is lowered to what there is, or is one sentence."""

import csv

import pytest

from vaebench.studies.experiments import (
    annealing,
    evidence,
    flow_limit,
    gradient_variance,
    information_preference,
    linear_vae,
    metric_bounds,
    posterior,
    signal_to_noise,
    vae_vs_flow,
    vaebench_vs_pythae,
)
from vaebench.vae.config.run import Run
from vaebench.vae.data import from_tensors, load
from vaebench.vae.training.fit import fit

COUNTS = {
    annealing: ("images", "temperatures", "chains"),
    evidence: ("data", "images"),
    flow_limit: ("steps",),
    gradient_variance: ("repeats",),
    information_preference: ("seeds", "epochs"),
    linear_vae: ("epochs",),
    metric_bounds: ("points", "votes"),
    posterior: ("latent",),
    signal_to_noise: ("repeats",),
    vae_vs_flow: ("seeds", "epochs"),
    vaebench_vs_pythae: ("epochs", "seeds", "train", "examples", "threads"),
}
OPTIONS = [(module, option) for module, options in COUNTS.items() for option in options]
NAMES = [f"{module.__name__.rpartition('.')[2]}-{option}" for module, option in OPTIONS]


@pytest.fixture(autouse=True)
def in_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def run(module, *arguments):
    return module.main([*arguments, "--tracking-uri", "none"])


@pytest.mark.parametrize(("module", "option"), OPTIONS, ids=NAMES)
@pytest.mark.parametrize("value", ["0", "-1", "1.5", "many", "10" * 10])
def test_counts_that_cannot_be_are_one_sentence(module, option, value, capsys):
    with pytest.raises(SystemExit, match="2"):
        run(module, f"--{option}={value}")
    said = capsys.readouterr().err.splitlines()[-1]
    assert f"argument --{option}: must be a whole number of at " in said
    assert said.endswith(f"got {value}; see --help.")


@pytest.mark.parametrize(
    ("module", "option", "value"),
    [(posterior, "latent", 1000), (gradient_variance, "repeats", 10**6), (evidence, "data", 10**5)],
)
def test_counts_that_take_too_much_memory_are_one_sentence(module, option, value, capsys):
    with pytest.raises(SystemExit, match="2"):
        run(module, f"--{option}={value}")
    assert f"argument --{option}: must be a whole number of at " in capsys.readouterr().err


@pytest.mark.parametrize("images", ["5", "6", "500", "1000000"])
def test_annealing_takes_all_images_where_there_are_fewer(images, monkeypatch, capsys):
    """The data have five test images; the run says how many it measured."""
    x = load(Run().data).train.stored[:40]
    splits = from_tensors(x, x[:10], x[:5], levels=17)
    small = Run().replace({"train.epochs": 1, "model.hidden": 4, "train.device": "cpu"})
    monkeypatch.setattr(annealing, "fit", lambda config, folder, progress: fit(small, data=splits))
    kept = []
    monkeypatch.setattr(
        annealing, "write_results", lambda rows, figure, options: kept.append((rows, options.images)) or 0
    )
    assert run(annealing, "--images", images, "--temperatures", "2", "--chains", "2") == 0
    ((rows, counted),) = kept
    assert counted == 5
    assert len(rows) == 5
    said = f"annealing.py: there are 5 test images, fewer than {images}; all are used.\n"
    assert (said in capsys.readouterr().err) == (images != "5")


@pytest.mark.parametrize("points", ["40", "41", "1000000"])
def test_metric_bounds_takes_all_sprites_where_there_are_fewer(points, monkeypatch, capsys):
    seen, kept = [], []
    monkeypatch.setattr(metric_bounds.sprites, "COUNT", 40)
    monkeypatch.setattr(metric_bounds, "measure", lambda name, labels, published: seen.append(len(labels)) or [])
    monkeypatch.setattr(metric_bounds, "measure_votes", lambda votes: {"score": "none", "held against": "nothing"})
    monkeypatch.setattr(metric_bounds, "plot", lambda rows: None)
    monkeypatch.setattr(metric_bounds, "write_results", lambda rows, figure, options: kept.append(options.points) or 0)
    assert run(metric_bounds, "--points", points) == 0
    assert (seen, kept) == ([40, 40], [40])
    said = f"metric_bounds.py: there are 40 sprites, fewer than {points}; all are used.\n"
    assert capsys.readouterr().err == (said if points != "40" else "")


def test_the_smallest_count_gives_a_table(tmp_path):
    assert run(gradient_variance, "--repeats", "2", "--folder", str(tmp_path)) == 0
    with (tmp_path / "table.csv").open() as file:
        assert len(list(csv.DictReader(file))) > 5
