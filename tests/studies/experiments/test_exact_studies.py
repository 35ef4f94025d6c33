"""The experiments on exact models, at sizes that take seconds: their claims and their files."""

import csv
import math

import pytest
import torch
from mlflow import MlflowClient

from vaebench.studies.experiments import (
    annealing,
    evidence,
    gradient_variance,
    known_evidence,
    linear_vae,
    metric_bounds,
    posterior,
)
from vaebench.studies.experiments.output import format_table, save
from vaebench.vae.config.run import Model, Run, Train
from vaebench.vae.data import load, sprites
from vaebench.vae.training.fit import fit


def save_and_read(rows, figure, folder):
    """Save rows and figure and return the rows read back."""
    save(rows, figure, folder)
    assert (folder / "picture.png").stat().st_size > 1000
    with (folder / "table.csv").open() as file:
        return list(csv.DictReader(file))


def test_evidence(tmp_path, monkeypatch):
    short = {name: (estimate, sizes[:2]) for name, (estimate, sizes) in evidence.ESTIMATORS.items()}
    monkeypatch.setattr(evidence, "ESTIMATORS", short)
    problems = [known_evidence.build_ppca(2, 5), known_evidence.build_ppca(3, 5), known_evidence.build_mixture(2, 5)]
    rows = [row for problem in problems for row in evidence.measure(problem)]
    assert len(save_and_read(rows, evidence.plot(rows), tmp_path)) == len(rows) == 2 * (9 + 8 + 9)
    found = {(row["problem"], row["estimator"]): row for row in rows}
    rmse = {name: found["probabilistic PCA, K = 2", name]["rmse"] for name in short}
    assert rmse["q"] < rmse["prior"]
    for K in (2, 3):
        for name in ("fitted Gaussian", evidence.POLICY):
            assert found[f"probabilistic PCA, K = {K}", name]["rmse"] < 1e-9
            assert found[f"probabilistic PCA, K = {K}", name]["covered"] == 1
    for problem in ("probabilistic PCA, K = 2", "mixture of 4 such models, K = 2"):
        assert found[problem, "Riemann sum"]["rmse"] < 1e-5
        assert found[problem, evidence.POLICY]["unresolved"] == 0
    assert "1.41e+12 cells" in evidence.refuse_grid()


def test_evidence_counts_what_is_spent_on_a_proposal():
    """Annealing has 16 chains and 4 for its step sizes, of 5 leapfrog steps; a gradient counts as two evaluations."""
    problem, g = known_evidence.build_ppca(3, 4), torch.Generator().manual_seed(0)
    assert evidence.sample_q(problem, 50, g).cost == 50
    assert evidence.sample_widened(problem, 50, g).cost == 50 + 4 * evidence.WIDTH_SAMPLES
    assert evidence.anneal_from_q(problem, 10, g).cost == 2 * (16 * (1 + 9 * 6) + 4 * 10 * 6)
    assert evidence.sample_fitted(problem, 50, g).cost > 50 + 2 + 2 * 3


def test_the_truth_of_a_vae_agrees_with_its_integral(monkeypatch):
    result = fit(Run(model=Model(hidden=(16,), latent=2), train=Train(epochs=5, device="cpu")))
    problem = known_evidence.problem_of(result, 6, 100, 64)
    exact = evidence.sum_grid(problem, 257, torch.Generator())
    assert problem.truth.stderr.max() < 0.1
    assert ((problem.truth.value - exact.value).abs() <= 6 * problem.truth.stderr + exact.stderr + 1e-4).all()
    monkeypatch.setitem(known_evidence.PROBLEMS, "vae", lambda images: problem)
    monkeypatch.setattr(evidence, "ESTIMATORS", {evidence.GRID: (evidence.sum_grid, (257,))})
    (row,) = evidence.measure_problem(("vae", 6))
    assert row["rmse"] == (exact.value - problem.truth.value).square().mean().sqrt().item()
    assert row["truth +-"] == problem.truth.stderr.square().mean().sqrt().item()


def test_posterior(tmp_path, monkeypatch):
    monkeypatch.setattr(
        posterior, "METHODS", {name: (run, sizes[:2]) for name, (run, sizes) in posterior.METHODS.items()}
    )
    problem = posterior.build(3)
    rows = [row for name in posterior.METHODS for row in posterior.measure(name, problem)]
    assert len(save_and_read(rows, posterior.plot(rows), tmp_path)) == 2 * 5
    for few, many in zip(rows[::2], rows[1::2], strict=True):
        assert 0 < many["kl to the posterior"] < few["kl to the posterior"]
    spent = {row["method"]: row["evaluations"] for row in rows[::2]}
    chains = posterior.CHAINS
    assert spent == {
        "Metropolis-Hastings": chains * (1 + 100 + 25),
        "Gibbs": chains * (100 + 25),
        "HMC": 2 * chains * (2 + (posterior.TUNING + 25) * 10),
        "mean-field VI": 2 * 16 * 25,
        "amortised VI": 2 * posterior.BATCH * 25 / len(problem.x),
    }
    assert posterior.plot(rows).axes[0].get_xlabel().startswith("evaluations")


def test_gradient_variance(tmp_path):
    rows = [row for K in (8, 16) for row in gradient_variance.measure(K, 100)]
    assert len(save_and_read(rows, gradient_variance.plot(rows), tmp_path)) == len(rows)
    variance = {row["estimator"]: row["variance"] for row in rows if row["K"] == 8 and row["samples"] == 16}
    assert variance["pathwise"] < variance["score, baseline"] < variance["score"]


def test_linear_vae(tmp_path):
    splits = load(linear_vae.DATA)
    x = splits.train.batch().double()
    settings = Train(epochs=3, batch_size=400, learning_rate=3e-2, patience=0, device="cpu")
    paths = {beta: linear_vae.train(beta, settings, splits) for beta in (1.0, 50.0)}
    rows = [linear_vae.compare(beta, path[-1], x) for beta, path in paths.items()]
    assert len(save_and_read(rows, linear_vae.plot(paths, x), tmp_path)) == 2
    assert [row["directions predicted"] for row in rows] == [4, 0]
    for path, row in zip(paths.values(), rows, strict=True):
        assert len(path) == 3
        assert path[0].objective < path[-1].objective
        assert row["nats below the optimum"] > 0


def test_metric_bounds(tmp_path):
    drawn = torch.randperm(sprites.COUNT, generator=torch.Generator().manual_seed(0))[:300]
    known = sprites.factors(drawn)[:, :2]
    rows = [*metric_bounds.measure("factors", known, published=True), metric_bounds.measure_votes(150)]
    assert len(save_and_read(rows, metric_bounds.plot(rows), tmp_path)) == 11
    scores = {row["score"]: row for row in rows}
    for name in ("MIG", "MIG of posteriors", "SAP", "DCI disentanglement", "DCI completeness"):
        of = scores[name]
        assert abs(of["constant"]) < 1e-6, name
        assert of["random"] < of["rotated"] < of["perfect"], name
    for name in ("disentanglement", "completeness", "informativeness"):
        assert scores[f"DCI {name}, exact trees"]["perfect"] > 0.9
        assert scores[f"DCI {name}"]["perfect"] == pytest.approx(1, abs=0.01)
    assert scores["FactorVAE"]["perfect"] == scores["FactorVAE"]["rotated"] == 1


def test_annealing(tmp_path, monkeypatch):
    result = fit(Run(model=Model(hidden=(16,), latent=2), train=Train(epochs=2, device="cpu")))
    asked = ["--images", "3", "--temperatures", "20", "--chains", "4", "--folder", str(tmp_path)]
    kept = []
    monkeypatch.setattr(annealing, "fit", lambda config, folder, progress: result)
    monkeypatch.setattr(annealing, "write_results", lambda rows, figure, options: kept.append(rows))
    assert annealing.main([*asked, "--tracking-uri", "none"]) == 0
    (rows,) = kept
    assert len(save_and_read(rows, annealing.plot(rows), tmp_path)) == 5
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
    assert format_table(rows).splitlines() == ["name      value", "a             1", "long  1.235e+04"]


def test_every_call_writes_table_picture_and_a_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        assert gradient_variance.main(["--repeats", "20"]) == 0
        assert (
            "in runs/gradient_variance: table.csv, picture.png; in MLflow: experiment gradient_variance"
            in capsys.readouterr().out
        )
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    runs = client.search_runs([client.get_experiment_by_name("gradient_variance").experiment_id])
    with (tmp_path / "runs/gradient_variance/table.csv").open() as file:
        rows = list(csv.DictReader(file))
    whole = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    assert len(whole) == 2
    for run in whole:
        assert (run.info.status, run.data.params) == ("FINISHED", {"repeats": "20"})
        assert "| estimator |" in run.data.tags["mlflow.note.content"]
        files = tmp_path.glob(f"mlruns/gradient_variance/{run.info.run_id}/artifacts/*")
        assert {path.name for path in files} == {"table.csv", "picture.png"}
        inside = [child for child in runs if child.data.tags.get("mlflow.parentRunId") == run.info.run_id]
        assert {child.data.params["estimator"] for child in inside} == {row["estimator"] for row in rows}
        for child in inside:
            curve = client.get_metric_history(child.info.run_id, "variance")
            own = [float(row["variance"]) for row in rows if row["estimator"] == child.data.params["estimator"]]
            assert [point.value for point in curve] == own


def test_an_unreachable_tracker_costs_a_sentence_and_no_result(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert gradient_variance.main(["--repeats", "20", "--tracking-uri", "http://127.0.0.1:9"]) == 0
    said = capsys.readouterr()
    assert "table and picture are written" in said.err
    assert said.err.count("\n") == 1
    assert (tmp_path / "runs/gradient_variance/table.csv").exists()
    assert gradient_variance.main(["--repeats", "20", "--tracking-uri", "none"]) == 0
    assert "MLflow" not in capsys.readouterr().out
