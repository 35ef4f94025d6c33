"""The cost of a trial beside its training: the measurement runs a real study, whose report can be written."""

from vaebench.studies import report
from vaebench.studies.engine.workers import trial
from vaebench.studies.overhead import trial_cost


def test_a_study_is_measured_and_kept_in_the_folder(tmp_path, monkeypatch, capsys):
    real = trial.run_trial
    assert trial_cost.main(["--trials", "6", "--tracking-uri", "none", "--folder", str(tmp_path)]) == 0
    assert trial.run_trial is real
    head, row, closing = capsys.readouterr().out.splitlines()
    assert head.split()[:8] == ["trial", "all", "cpu", "ask", "prune", "track", "tell", "rest"]
    figures = [float(figure) for figure in row.split()]
    wall, cpu, ask, prune, track, tell, rest = figures[1:8]
    assert figures[0] == 6
    assert 0 < cpu < 2 * wall
    assert track == 0
    assert ask + prune + tell + rest <= 3 * wall
    assert closing.startswith("report written in ")
    assert trial_cost.main(["--trials", "6", "--folder", str(tmp_path)]) == 2
    assert "holds a study that was measured; give another --folder" in capsys.readouterr().err
    assert trial_cost.main(["--tracking-uri", "nonsense"]) == 2
    assert "--tracking-uri takes" in capsys.readouterr().err
    monkeypatch.chdir(tmp_path)
    assert report.main(["cost"]) == 0
    assert (tmp_path / "runs/cost/report.html").exists()
