"""The studies of the exact models, at sizes that take seconds: what they claim, and what they leave behind."""

import csv
import math

import pytest
import torch
from mlflow import MlflowClient

from vaebench.studies.experiments import annealing, evidence, gradient_variance, linear_vae, metric_bounds, posterior
from vaebench.studies.experiments.output import render, save
from vaebench.vae.config.run import Model, Run, Train
from vaebench.vae.data import load, sprites
from vaebench.vae.training.fit import fit


def kept(rows, figure, folder):
    """Save rows and figure and return the rows read back."""
    save(rows, figure, folder)
    assert (folder / "picture.png").stat().st_size > 1000
    with (folder / "table.csv").open() as file:
        return list(csv.DictReader(file))


def test_evidence(tmp_path):
    rows = list(evidence.measure(evidence.ppca_world(2, 5))) + list(evidence.measure(evidence.mixture_world(4, 5)))
    assert len(kept(rows, evidence.draw(rows), tmp_path)) == len(rows)
    best = {row["estimator"]: row for row in rows if row["model"] == "ppca 2"}
    assert best["riemann"]["rmse"] < 1e-6
    assert best["sampling, q"]["rmse"] < best["naive"]["rmse"]
    assert "1.41e+12 cells" in evidence.refusal()


def test_posterior(tmp_path, monkeypatch):
    monkeypatch.setattr(
        posterior, "METHODS", {name: (run, sizes[:2]) for name, (run, sizes) in posterior.METHODS.items()}
    )
    rows = list(posterior.measure(posterior.build(3)))
    assert len(kept(rows, posterior.draw(rows), tmp_path)) == 2 * 5
    for few, many in zip(rows[::2], rows[1::2], strict=True):
        assert 0 < many["kl to the posterior"] < few["kl to the posterior"]


def test_gradients(tmp_path):
    rows = [row for K in (8, 16) for row in gradient_variance.measure(K, 100)]
    assert len(kept(rows, gradient_variance.draw(rows), tmp_path)) == len(rows)
    variance = {row["estimator"]: row["variance"] for row in rows if row["K"] == 8 and row["samples"] == 16}
    assert variance["pathwise"] < variance["score, baseline"] < variance["score"]


def test_linear_vae(tmp_path):
    splits = load(linear_vae.DATA)
    x = splits.train.batch().double()
    train = Train(epochs=3, batch_size=400, learning_rate=3e-2, patience=0, device="cpu")
    walks = {beta: linear_vae.walk(beta, train, splits) for beta in (1.0, 50.0)}
    rows = [linear_vae.compare(beta, walk[-1], x) for beta, walk in walks.items()]
    assert len(kept(rows, linear_vae.draw(walks, x), tmp_path)) == 2
    assert [row["directions predicted"] for row in rows] == [4, 0]
    for walk, row in zip(walks.values(), rows, strict=True):
        assert len(walk) == 3
        assert walk[0].objective < walk[-1].objective
        assert row["nats below the optimum"] > 0


def test_metric_bounds(tmp_path):
    drawn = torch.randperm(sprites.COUNT, generator=torch.Generator().manual_seed(0))[:300]
    known = sprites.factors(drawn)[:, :2]
    rows = list(metric_bounds.measure("factors", known, published=True)) + list(metric_bounds.measure_votes(150))
    assert len(kept(rows, metric_bounds.draw(rows), tmp_path)) == 11
    scores = {row["score"]: row for row in rows}
    for name in ("MIG", "MIG of posteriors", "SAP", "DCI disentanglement", "DCI completeness"):
        of = scores[name]
        assert abs(of["constant"]) < 1e-6, name
        assert of["random"] < of["rotated"] < of["perfect"], name
    for name in ("disentanglement", "completeness", "informativeness"):
        assert scores[f"DCI {name}, exact trees"]["perfect"] > 0.9
        assert scores[f"DCI {name}"]["perfect"] == pytest.approx(1, abs=0.01)
    assert scores["FactorVAE"]["perfect"] == scores["FactorVAE"]["rotated"] == 1


def test_annealing(tmp_path):
    result = fit(Run(model=Model(hidden=(16,), latent=2), train=Train(epochs=2, device="cpu")))
    rows = annealing.measure(result, images=3, temperatures=20, chains=4, start="q")
    assert len(kept(rows, annealing.draw(rows), tmp_path)) == 5
    nats = [row["nats"] for row in rows]
    assert nats[0] < nats[1] < nats[2]
    assert all(math.isfinite(value) for value in nats)


def test_annealing_asks_for_two_chains_before_it_trains(capsys, monkeypatch):
    monkeypatch.setattr(annealing, "fit", lambda *_, **__: pytest.fail("it trained"))
    with pytest.raises(SystemExit, match="2"):
        annealing.main(["--chains", "1"])
    assert "--chains: must be a whole number of at least 2, got 1" in capsys.readouterr().err


def test_tables_align_text_left_and_numbers_right():
    rows = [{"name": "a", "value": 1.0}, {"name": "long", "value": 12345.678}]
    assert render(rows).splitlines() == ["name      value", "a             1", "long  1.235e+04"]


@pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SADeprecationWarning")  # raised by MLflow's own models
def test_every_call_leaves_table_picture_and_a_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        assert gradient_variance.main(["--repeats", "20"]) == 0
        assert "in runs/gradients: table.csv, picture.png; in MLflow: experiment gradients" in capsys.readouterr().out
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    first, second = client.search_runs([client.get_experiment_by_name("gradients").experiment_id])
    assert (first.info.status, first.data.params) == ("FINISHED", {"repeats": "20"})
    with (tmp_path / "runs/gradients/table.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["estimator"] == "pathwise"]
    curve = client.get_metric_history(first.info.run_id, "variance/pathwise")
    assert [point.value for point in curve] == [float(row["variance"]) for row in rows]
    for run in (first, second):
        files = tmp_path.glob(f"mlruns/gradients/{run.info.run_id}/artifacts/*")
        assert {path.name for path in files} == {"table.csv", "picture.png"}


def test_a_tracker_that_is_not_there_costs_a_sentence_and_no_result(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert gradient_variance.main(["--repeats", "20", "--tracking-uri", "http://127.0.0.1:9"]) == 0
    said = capsys.readouterr()
    assert "table and picture are written" in said.err
    assert said.err.count("\n") == 1
    assert (tmp_path / "runs/gradients/table.csv").exists()
    assert gradient_variance.main(["--repeats", "20", "--tracking-uri", "none"]) == 0
    assert "MLflow" not in capsys.readouterr().out
