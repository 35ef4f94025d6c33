"""From a saved session to page, figures and MLflow: the numbers are those of the samples."""

import contextlib
import dataclasses
import errno
import itertools
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import mlflow
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from scipy import stats
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile, record_function

from tests import ROOT, chaos
from vaebench.bench import profile_step, report, selfcheck
from vaebench.bench.cases import step_profile, training_step
from vaebench.bench.session import compare, figures
from vaebench.bench.session.read import UnreadableError, load
from vaebench.bench.timing import machine
from vaebench.bench.timing.ratios import AGAIN, Comparison, Ratio
from vaebench.studies import track_bench
from vaebench.studies.commands import track_bench as track_work
from vaebench.studies.tracking.mlflow_runs import Tracker

MACHINE = {
    "device": "CPU",
    "machine": "x86_64",
    "cores": 2,
    "threads": 1,
    "load": 0.5,
    "python_version": "3.12.0",
    "torch": "2.15.0",
    "triton": None,
    "allocator_pinned": True,
    "note": "Nothing else ran.",
    "copy_bytes_per_s": 1e10,
    "floor_seconds": 4e-8,
    "floor_ratio": {"median": 1.0, "low": 0.99, "high": 1.01},
}
ELEMENTS = (1000, 1_000_000)
KEPT = ROOT / "bench" / "results" / "cpu-2-threads.json"


def session(path, *, numba=0.5, machine=1.0, noise=0.02, seed=0):
    """Write a session in which eager takes `machine` nanoseconds an element, and numba so much of that."""
    draw = random.Random(seed)
    rows = []
    for elements in ELEMENTS:
        rounds = [[draw.lognormvariate(0, noise) * elements * machine * 1e-9 for _ in range(31)] for _ in range(3)]
        for provider, share, samples in (("eager", 1.0, rounds[0]), ("numba", numba, rounds[1])):
            rows.append(row(elements, provider, [share * sample for sample in samples], rounds[2]))
    commit = {"id": "0123456789abcdef", "dirty": False}
    when = "2026-01-02T03:04:05+00:00"
    path.write_text(json.dumps({"machine_info": MACHINE, "commit_info": commit, "datetime": when, "benchmarks": rows}))
    return path


@contextlib.contextmanager
def edit(path, source=None):
    """Give a saved session to be changed, and write it to `path`."""
    saved = json.loads((source or path).read_text())
    yield saved
    path.write_text(json.dumps(saved))


def row(elements, provider, samples, again):
    share = 0.5 if provider == "numba" else 1.0
    over = {"median": share, "low": 0.9 * share, "high": 1.1 * share}
    facts = {
        "subject": "reparam_kl",
        "provider": provider,
        "baseline": "eager",
        "ratio": over,
        "noise_floor": over,
        "op": "reparam_kl",
        "size": str(elements),
        "dtype": "float32",
        "direction": "both",
        "input_bytes": 8 * elements,
        "model_bytes": 32 * elements,
        "model_flops": 20 * elements,
        "saved_bytes": 12 * elements,
        "peak_bytes": 40 * elements,
        **({"again": again} if provider == "eager" else {}),
    }
    stats = {"data": samples, "median": sorted(samples)[len(samples) // 2]}
    return {"group": f"reparam_kl {elements}", "name": provider, "extra_info": facts, "stats": stats}


def test_page_has_speed_bandwidth_and_memory_of_every_provider(tmp_path, capsys):
    assert report.main([str(session(tmp_path / "a.json"))]) == 0
    page = (tmp_path / "a.md").read_text()
    (line,) = [line for line in page.splitlines() if line.startswith("| reparam_kl 1000000 | numba")]
    _, _, time, speed, share, flops, kept, peak, _ = [cell.strip() for cell in line.strip("|").split("|")]
    assert abs(float(time.removesuffix(" us")) - 500) < 10
    assert 1.9 < float(speed.split()[0]) < 2.1
    assert abs(float(share.removesuffix("%")) - 640) < 15  # 32 bytes an element in half a nanosecond, over 10 GB/s
    assert abs(float(flops) - 40) < 2
    assert (kept, peak) == ("12 MB", "40 MB")
    assert "allocator pinned; it copies 10.0 GB/s; an empty call" in page
    assert "Nothing else ran." in page
    assert "speed over eager: numba 1." in capsys.readouterr().out
    for picture in ("speed", "bandwidth", "memory"):
        assert f"(a-{picture}.png)" in page
        assert (tmp_path / f"a-{picture}.png").stat().st_size > 5000


def test_tables_have_the_columns_that_something_fills_and_a_legend(tmp_path):
    kept = load(KEPT)
    page = report.format_page(kept, None, [])
    headings = {}
    for line in page.splitlines():
        if line.startswith("## "):
            subject = line.removeprefix("## ")
        elif line.startswith("| work"):
            headings[subject] = line
    assert headings["loading"] == "| work | by | time | speed over DataLoader | sees |"
    assert headings["mmd2"].endswith("| Gflop/s | kept | peak | sees |")
    assert [name for name, heading in headings.items() if "of copy" in heading] == ["reparam_kl"]
    for name in ("speed", "of copy", "kept", "peak", "sees"):
        assert f"*{name}*: " in page.partition("\n## ")[0]
    assert report._format_speed(kept.groups["loading digits"].speed("index select")) in page


def test_a_fused_backend_has_its_speed_over_its_peer_beside_that_over_the_baseline(tmp_path):
    path = session(tmp_path / "a.json", numba=0.25)
    with edit(path) as saved:
        for eager in saved["benchmarks"][::2]:
            compiled = json.loads(json.dumps(eager))
            compiled["extra_info"]["provider"] = "compile"
            compiled["stats"]["data"] = [seconds / 2 for seconds in eager["stats"]["data"]]
            saved["benchmarks"].append(compiled)
    page = report.format_page(load(path), None, [])
    (heading,) = {line for line in page.splitlines() if line.startswith("| work")}
    assert heading.startswith("| work | by | time | speed over eager | speed over compile | of copy")
    rows = [line.split(" | ") for line in page.splitlines() if line.startswith("| reparam_kl 1000 |")]
    over = {cells[1]: [cell.split(" ")[0] for cell in cells[3:5]] for cells in rows}
    assert (over["eager"], over["compile"]) == (["1", ""], ["2.00", ""])
    assert [float(speed) for speed in over["numba"]] == pytest.approx([4, 2], rel=0.02)
    assert "numba over compile, over all 2 works: median " in page


@pytest.mark.parametrize(
    ("ratio", "expected"),
    [
        (Ratio(2, 1.9, 2.1), "2.00 (1.90 to 2.10)"),
        (Ratio(1, 0.996, 1.02), "1.000 (0.996 to 1.020)"),
        (Ratio(1, 0.9999, 1.00001), "1.0000 (0.9999 to 1.0000)"),
        (Ratio(1, 1, 1), "1.00 (1.00 to 1.00)"),
    ],
)
def test_a_speed_near_1_has_digits_that_tell_it_from_1(ratio, expected):
    assert report._format_speed(ratio) == expected


@pytest.mark.parametrize(("load_of", "expected"), [(1.4, False), (1.5, True), (2.6, True)])
def test_a_page_says_first_that_other_programs_ran(tmp_path, capsys, load_of, expected):
    path = session(tmp_path / "a.json")
    with edit(path) as saved:
        saved["machine_info"]["load"] = load_of
    assert report.main([str(path)]) == 0
    said = "other programs run here, or did a minute ago; do not trust these verdicts: "
    said += f"the load was {load_of} on 2 cores"
    assert (tmp_path / "a.md").read_text().splitlines()[2].startswith(said) == expected
    assert capsys.readouterr().out.startswith(said) == expected


def test_speeds_that_are_missing_or_cannot_be_compared_are_told(tmp_path):
    before = load(session(tmp_path / "before.json"))
    with edit(tmp_path / "some.json", before.path) as saved:
        saved["benchmarks"] = saved["benchmarks"][::2]
    output = in_terminal(load(tmp_path / "some.json"), before)
    assert "2 speeds of the earlier session are missing (reparam_kl 1000 by numba; reparam_kl 1000000 by" in output
    with edit(tmp_path / "many.json", before.path) as saved:
        saved["benchmarks"] = [one | {"group": f"{one['group']} {i}"} for i in range(3) for one in saved["benchmarks"]]
    with edit(tmp_path / "one.json", tmp_path / "many.json") as saved:
        saved["benchmarks"] = saved["benchmarks"][:2]
    output = in_terminal(load(tmp_path / "one.json"), load(tmp_path / "many.json"))
    assert "5 speeds of the earlier session are missing" in output
    assert "by numba; 1 more)" in " ".join(output.split())
    with edit(tmp_path / "few.json", before.path) as saved:
        for one in saved["benchmarks"]:
            del one["stats"]["data"][5:]
    output = in_terminal(load(tmp_path / "few.json"), before)
    assert "of 2 speeds: 2 that cannot be compared" in output


def test_the_spread_between_sessions_is_three_standard_deviations_by_the_lower_quartile_of_the_changes():
    """A quarter of a normal distribution lies within 0.3186 standard deviations of 0."""
    changes = [SimpleNamespace(size=sign * size) for sign, size in itertools.product((-1, 1), range(1, 20))]
    quartile = np.quantile(np.abs([change.size for change in changes]), 0.25)
    assert compare.estimate_spread(changes) == pytest.approx(3 * quartile / stats.norm.ppf(0.625), rel=0.06)


def test_the_span_of_the_baselines_is_told(tmp_path):
    """Of three sizes the first takes twice as long now, and the last half as long."""
    with edit(tmp_path / "before.json", session(tmp_path / "one.json")) as saved:
        saved["benchmarks"] += [one | {"group": f"{one['group']} more"} for one in saved["benchmarks"][:2]]
    with edit(tmp_path / "now.json", tmp_path / "before.json") as saved:
        for factor, rows in ((2.0, saved["benchmarks"][:2]), (0.5, saved["benchmarks"][-2:])):
            for one in rows:
                one["stats"]["data"] = [factor * seconds for seconds in one["stats"]["data"]]
    output = in_terminal(load(tmp_path / "now.json"), load(tmp_path / "before.json"))
    assert "the baselines run 0.50 to 2.00 times as fast as before, the median 1.00" in " ".join(output.split())


def test_a_session_of_few_rounds_is_reported_without_verdicts(tmp_path, capsys):
    path = session(tmp_path / "a.json")
    with edit(path) as saved:
        for row in saved["benchmarks"]:
            del row["stats"]["data"][3:]
            for ratio in ("ratio", "noise_floor"):
                row["extra_info"][ratio] |= {"low": None, "high": None}
    assert report.main([str(path), str(path)]) == 0
    assert "(no verdict)" in capsys.readouterr().out
    assert "(too few rounds)" in (tmp_path / "a.md").read_text()


@pytest.fixture
def drawn(monkeypatch):
    """The figures that are saved, by the ends of their files' names."""
    saved, save = {}, Figure.savefig

    def savefig(figure, path, **options):
        saved[Path(path).stem.rpartition("-")[2]] = figure
        save(figure, path, **options)

    monkeypatch.setattr(Figure, "savefig", savefig)
    return saved


def labels(axes):
    axes.figure.draw_without_rendering()
    low, high = axes.get_ylim()
    return [tick.get_text() for tick in axes.get_yticklabels() if low <= tick.get_position()[1] <= high]


def test_pictures_can_be_read(tmp_path, drawn):
    kept = load(KEPT)
    figures.draw(dataclasses.replace(kept, path=tmp_path / "kept.json"))
    assert [axes.get_title() for axes in drawn["bandwidth"].axes] == ["reparam_kl"]
    for axes in (axes for figure in drawn.values() for axes in figure.axes):
        assert len(labels(axes)) >= 2
        assert "e+" not in "".join(labels(axes))
    colours = {
        (line.get_label(), line.get_color()) for figure in drawn.values() for axes in figure.axes for line in axes.lines
    }
    timed = {name for group in kept.groups.values() if group.name.startswith("reparam_kl") for name in group.providers}
    assert {"eager", "compile"} <= timed
    for provider in (timed & figures.COLOURS.keys()) - {"eager"}:
        of_lines = {colour for label, colour in colours if label == provider}
        of_bars = {
            box[0].get_color() for axes in drawn["speed"].axes for box in axes.containers if box.get_label() == provider
        }
        assert of_lines | of_bars == {figures.COLOURS[provider]}


def test_a_profile_stacks_the_parts_of_a_step_each_in_a_colour(tmp_path, drawn):
    parts = {part: 10.0 + i for i, part in enumerate(step_profile.PARTS)}
    profile_step.draw([step_profile.Profile("eager", parts, {}, 16.0)], tmp_path)
    (axes,) = drawn["profile"].axes
    bars = {box.get_label(): box[0] for box in axes.containers}
    assert {name: bar.get_width() for name, bar in bars.items()} == parts
    assert len({bar.get_facecolor() for bar in bars.values()}) == len(parts)
    assert bars["others"].get_x() + bars["others"].get_width() == sum(parts.values())


def test_a_page_of_profiles_has_the_shares_of_parts_and_of_operations():
    parts = dict.fromkeys(step_profile.PARTS, 0.0) | {"encoder": 30.0, "decoder": 90.0}
    spent = {f"kernel {i}": 2.0 for i in range(step_profile.SHOWN + 3)}
    page = profile_step.format_page([step_profile.Profile("eager", parts, spent, 16.0)], "m", torch.device("cpu"))
    assert "| all | 120 |\n| encoder | 30 (25%) |\n" in page
    assert "| decoder | 90 (75%) |" in page
    assert "| 6.0 | 20% | 3 others |" in page


@pytest.mark.parametrize(("low", "high"), [(0.9, 2.5), (0.8, 60), (0.004, 1000), (1, 1.2), (0.9, 1.1)])
def test_an_axis_has_ticks_that_it_can_be_read_by_and_that_fit(low, high):
    assert 1 <= len(figures.choose_ticks(low, high)) <= 10


def in_terminal(*sessions):
    return " ".join(" ".join(compare.summarise(*sessions)).split())


def test_a_slower_backend_is_named_and_a_slower_machine_is_not(tmp_path):
    before = load(session(tmp_path / "before.json", seed=1))
    slower = load(session(tmp_path / "slower.json", numba=0.6, seed=2))
    busy = load(session(tmp_path / "busy.json", machine=1.3, seed=3))
    same = load(session(tmp_path / "same.json", seed=4))
    both = "(reparam_kl 1000 by numba; reparam_kl 1000000 by numba)"
    assert f"of 2 speeds: 2 slower {both}" in in_terminal(slower, before)
    assert f"of 2 speeds: 2 faster {both}" in in_terminal(before, slower)
    assert "of 2 speeds: nothing beyond the noise" in in_terminal(same, before)
    assert "of 2 speeds: nothing beyond the noise" in in_terminal(busy, before)
    assert "times as fast as before, the median 0.76" in in_terminal(busy, before)


def count_speeds(session):
    return sum(len(group.providers) - 1 for group in session.groups.values())


def test_another_machine_is_named_and_is_no_regression(tmp_path, capsys):
    path = tmp_path / "slow.json"
    with edit(path, KEPT) as saved:
        saved["machine_info"]["threads"] = 64
        for row in saved["benchmarks"]:
            row["stats"]["data"] = [2 * seconds for seconds in row["stats"]["data"]]
    assert report.main([str(path), str(KEPT)]) == 0
    output = capsys.readouterr().out
    kept = load(KEPT)
    assert f"of {count_speeds(kept)} speeds: nothing beyond the noise" in output
    assert "0.50 to 0.50 times as fast as before" in output
    assert f"different machines or software: threads {kept.machine['threads']} before, 64 now\n" in output
    seconds = kept.groups["evaluation digits-mlp"].seconds("measure")
    then, now = report._format_time(seconds), report._format_time(2 * seconds)
    assert f"| evaluation digits-mlp | measure | {then} | {now} | 0.50 |" in (tmp_path / "slow.md").read_text()


def test_many_changes_are_told_in_lines_that_a_terminal_shows(tmp_path):
    path = tmp_path / "slow.json"
    with edit(path, KEPT) as saved:
        slowed = [row for row in saved["benchmarks"] if row["extra_info"]["provider"] == "compile"]
        for row in slowed:
            row["stats"]["data"] = [1.5 * seconds for seconds in row["stats"]["data"]]
    lines = compare.summarise(load(path), load(KEPT))
    assert f"of {count_speeds(load(KEPT))} speeds: {len(slowed)} slower" in lines[0]
    assert max(len(line) for paragraph in lines for line in paragraph.splitlines()) <= 120


@pytest.mark.parametrize(
    ("then", "now", "verdict"),
    [
        (Ratio(1, 0.9, 1.1), Ratio(1.15, 1.05, 1.25), "none beyond"),
        (Ratio(1, 0.9, 1.1), Ratio(1.3, 1.11, 1.5), "faster"),
        (Ratio(1, 0.9, 1.1), Ratio(0.8, 0.7, 0.89), "slower"),
    ],
)
def test_a_change_must_exceed_the_spread_of_both(then, now, verdict):
    change = compare.Change("work", "numba", then, now)
    assert change.verdict(spread=0.05).startswith(verdict)
    assert change.verdict(spread=0.5).startswith("none beyond 64.9%")
    assert change.verdict(spread=2.0) == "too far apart to compare"


def test_what_would_have_been_seen_stands_beside_no_change():
    then, now = Ratio(1, 0.8, 1.1), Ratio(1, 0.9, 1.2)
    assert compare.Change("work", "numba", then, now).verdict(spread=0.05) == "none beyond 50.0%"


def test_sessions_that_differ_in_everything_are_not_compared(tmp_path):
    draw = random.Random(0)
    with edit(tmp_path / "other.json", KEPT) as saved:
        for row in saved["benchmarks"]:
            factor = draw.choice([0.2, 3.0]) if row["extra_info"]["provider"] != row["extra_info"]["baseline"] else 1.0
            row["stats"]["data"] = [factor * seconds for seconds in row["stats"]["data"]]
    assert "differ too much to be compared" in in_terminal(load(tmp_path / "other.json"), load(KEPT))


def test_a_session_without_rows_of_the_baseline_has_its_samples_beside_the_others(tmp_path, capsys):
    path = session(tmp_path / "a.json")
    with edit(path) as saved:
        eager, numba = (saved["benchmarks"][place::2] for place in (0, 1))
        saved["benchmarks"] = numba
    assert report.main([str(path)]) == 2
    assert "a.json has no samples of eager: run reparam_kl 1000 again" in capsys.readouterr().err
    with edit(path) as saved:
        for row, other in zip(saved["benchmarks"], eager, strict=True):
            row["extra_info"]["baseline_samples"] = other["stats"]["data"]
    assert report.main([str(path)]) == 0
    assert "speed over eager: numba 1.9" in capsys.readouterr().out
    (line,) = [line for line in (tmp_path / "a.md").read_text().splitlines() if "reparam_kl 1000000 | eager" in line]
    assert "MB" not in line


def test_a_session_is_not_overwritten_by_its_page(tmp_path, capsys):
    path = session(tmp_path / "keep.md")
    saved = path.read_text()
    assert report.main([str(path)]) == 2
    assert capsys.readouterr().err.endswith("rename it to keep.json.\n")
    assert path.read_text() == saved
    path.write_text("# A page")
    assert report.main([str(path)]) == 2
    assert "--benchmark-json=keep.json." in capsys.readouterr().err


def test_a_tracker_that_cannot_be_is_refused_in_one_sentence(tmp_path, capsys):
    path = session(tmp_path / "a.json")
    for uri in ("none", "nothing://here", f"sqlite:///{path}/mlflow.db", f"sqlite:///{tmp_path}/none/mlflow.db"):
        assert track_bench.main([str(path), "--tracking-uri", uri]) == 2
        output = capsys.readouterr().err
        assert output.startswith("track_bench.py: ")
        assert output.count("\n") == 1
        assert "or none" not in output


def test_where_a_page_cannot_be_written_the_summary_is_told(tmp_path, monkeypatch, capsys):
    def refuse(self, text):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(self))

    path = session(tmp_path / "a.json")
    monkeypatch.setattr(Path, "write_text", refuse)
    assert report.main([str(path)]) == 2
    out, err = capsys.readouterr()
    assert "speed over eager: numba" in out
    assert err == f"report.py: cannot write beside {path}: Permission denied; copy it elsewhere.\n"


def test_a_profile_that_cannot_be_written_is_not_begun(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(profile_step, "profile_model", None)
    file = tmp_path / "README.md"
    file.write_text("A page")
    for folder, reason in (
        (file, "File exists"),
        (file / "profile", "Not a directory"),
        (Path("/proc"), "No such file"),
    ):
        assert profile_step.main(["--folder", str(folder)]) == 2
        output = capsys.readouterr().err
        assert output.startswith(f"profile_step.py: cannot write to {folder} ({reason}")
        assert output.count("\n") == 1


FOREIGN = {"group": "x", "extra_info": {}, "stats": {"data": [1.0], "median": 1.0}}


@pytest.mark.parametrize("text", ["", "{}", '{"benchmarks": [{"group": "x"}]}', "[1]", '{"benchmarks": [1]}'])
def test_other_files_are_refused_in_one_sentence(tmp_path, text, capsys):
    path = tmp_path / "other.json"
    path.write_text(text)
    with pytest.raises(UnreadableError, match="no session of this suite"):
        load(path)
    assert report.main([str(path)]) == 2
    assert track_bench.main([str(path), "--tracking-uri", f"sqlite:///{tmp_path}/mlflow.db"]) == 2
    assert "Traceback" not in capsys.readouterr().err
    assert report.main([str(tmp_path / "missing.json")]) == 2


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda saved: saved["machine_info"].pop("copy_bytes_per_s"), "it has no 'copy_bytes_per_s'"),
        (lambda saved: saved["machine_info"].update(copy_bytes_per_s=0), "copies nothing"),
        (lambda saved: saved["machine_info"].pop("torch"), "it has no 'torch'"),
        (lambda saved: saved["benchmarks"].append(FOREIGN), "it has no 'provider'"),
        (lambda saved: saved["benchmarks"].clear(), "has no benchmarks"),
        (lambda saved: saved["benchmarks"][1]["stats"]["data"].pop(), "more samples of one provider"),
        (lambda saved: [row["stats"].update(data=[0.0] * 31) for row in saved["benchmarks"]], "no times above 0"),
        (lambda saved: [row["stats"].update(data=[]) for row in saved["benchmarks"]], "no times above 0"),
        (lambda saved: saved["benchmarks"][1]["stats"].update(median=0.0), "no times above 0"),
    ],
)
def test_a_session_that_cannot_be_used_is_refused_alike_by_report_and_tracker(tmp_path, change, expected, capfd):
    path = session(tmp_path / "a.json")
    with edit(path) as saved:
        change(saved)
    for command in (report.main, track_bench.main):
        options = ["--tracking-uri", f"sqlite:///{tmp_path}/mlflow.db"] if command is track_bench.main else []
        assert command([str(path), *options]) == 2
        said = capfd.readouterr().err
        assert expected in said
        assert said.count("\n") == 1


def test_sessions_become_runs_with_size_as_their_step(tmp_path, capsys):
    path = session(tmp_path / "a.json")
    report.main([str(path)])
    (tmp_path / "a-profile").mkdir()
    (tmp_path / "a-profile" / "trace-eager.json").write_text("{}")
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    assert track_bench.main([str(path), "--tracking-uri", uri]) == 0
    assert track_bench.main([str(path), "--tracking-uri", uri]) == 0
    assert "is there already" in capsys.readouterr().out
    client = mlflow.MlflowClient(uri)
    experiment = client.get_experiment_by_name("benchmarks")
    runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    assert set(runs) == {"a", "reparam_kl float32 both"}
    parent, child = runs["a"], runs["reparam_kl float32 both"]
    assert child.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert parent.data.tags["commit"] == "0123456789abcdef"
    assert {child.data.tags[name] for name in ("device", "torch")} == {"CPU", "2.15.0"}
    assert parent.data.metrics["copy_bytes_per_s"] == 1e10
    curve = chaos.metric_history(uri, child.info.run_id, "speed/numba")
    assert curve == [(8 * elements, 2.0) for elements in ELEMENTS]
    files = {file.path for file in client.list_artifacts(parent.info.run_id)}
    assert files == {"a.json", "a.md", "a-speed.png", "a-bandwidth.png", "a-memory.png", "trace-eager.json"}


@pytest.mark.parametrize(("method", "call"), [("_write", 1), ("add", 2), ("_write", 2), ("close", 2), ("extend", 4)])
def test_a_session_that_was_stopped_halfway_is_completed_by_the_next_call(tmp_path, monkeypatch, capsys, method, call):
    calls, right = itertools.count(1), getattr(Tracker, method)

    def stop(self, *arguments):
        if next(calls) == call:
            raise KeyboardInterrupt
        return right(self, *arguments)

    command = [str(session(tmp_path / "a.json")), "--tracking-uri", f"sqlite:///{tmp_path}/mlflow.db"]
    with monkeypatch.context() as patched:
        patched.setattr(Tracker, method, stop)
        assert track_bench.main(command) == 130
    client = mlflow.MlflowClient(command[-1])
    where = [client.get_experiment_by_name("benchmarks").experiment_id]
    (parent,) = [run for run in client.search_runs(where) if run.info.run_name == "a"]
    assert (parent.info.status == "RUNNING") == (method != "extend")
    assert track_bench.main(command) == track_bench.main(command) == 0
    assert "already" in capsys.readouterr().out.splitlines()[-1]
    runs = {run.info.run_name: run for run in client.search_runs(where)}
    assert len(client.search_runs(where)) == 2
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    assert runs["a"].data.metrics["copy_bytes_per_s"] == 1e10
    curve = chaos.metric_history(command[-1], runs["reparam_kl float32 both"].info.run_id, "speed/numba")
    assert curve == [(8 * elements, 2.0) for elements in ELEMENTS]


def test_a_report_made_after_tracking_is_added_by_the_next_call(tmp_path, capsys):
    path = session(tmp_path / "a.json")
    command = [str(path), "--tracking-uri", f"sqlite:///{tmp_path}/mlflow.db"]
    assert track_bench.main(command) == 0
    (tmp_path / "a.md").write_text("A page")
    assert track_bench.main(command) == track_bench.main(command) == 0
    (tmp_path / "a.md").write_text("A gape")
    assert track_bench.main(command) == 0
    first, second, third, fourth = capsys.readouterr().out.splitlines()
    assert "1 children" in first
    assert second.endswith("is there already; attached a.md")
    assert third.endswith("is there already")
    assert fourth.endswith("is there already; attached a.md")
    client = mlflow.MlflowClient(command[-1])
    (run,) = client.search_runs([client.get_experiment_by_name("benchmarks").experiment_id], "tags.session != 'x'")
    assert {file.path for file in client.list_artifacts(run.info.run_id)} == {"a.json", "a.md"}


@pytest.mark.parametrize("stem", ["gpu", "gpu[1]*"])
def test_a_session_has_the_files_of_its_own_name_alone(tmp_path, stem):
    own = [f"{stem}.json", f"{stem}.md", f"{stem}-speed.png", f"{stem}-profile/trace-eager.json"]
    for name in [
        *own,
        f"{stem}-full.json",
        f"{stem}-full-speed.png",
        f"{stem}-full-profile/profile.md",
        "gpu1-speed.png",
    ]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert track_work.artifacts(tmp_path / own[0]) == [str(tmp_path / name) for name in own]


def test_a_child_has_one_point_of_a_metric_at_each_step():
    rows = json.loads(KEPT.read_text())["benchmarks"]
    rows += [row(1000, "eager", [1.0], [1.0]), row(1000, "eager", [2.0], [2.0]) | {"group": "reparam_kl 10_100"}]
    found = track_work.children(rows)
    about = {"machine_info": MACHINE}
    for name, members in found.items():
        points = [(one[0], one[3]) for member in members for one in track_work.metric_values(member, about, 0)]
        assert len(set(points)) == len(points), name
    assert {"training 16 digits-mlp, elbo", "training 16 digits-mlp, mmd", "reparam_kl 10_100"} <= set(found)
    assert len(found["mmd2 float32 both"]) == 9


def event(name, start, own, device=DeviceType.CPU, annotation=False, number=-1, parent=None, kernels=()):
    times = {"self_cpu_time_total": own, "self_device_time_total": own, "is_user_annotation": annotation}
    times |= {"kernels": [SimpleNamespace(duration=one) for one in kernels]}
    place = {"sequence_nr": number, "cpu_parent": parent}
    return SimpleNamespace(name=name, time_range=SimpleNamespace(start=start), device_type=device, **times, **place)


def test_a_profile_is_of_the_median_step():
    events = [event(step_profile.STEP, 100 * i, 1.0) for i in range(5)]
    events += [event("mul", 100 * i + 1, 2.0) for i in range(5)] + [event("mul", 100 * i + 2, 3.0) for i in range(5)]
    events += [event("add", 250, 500.0), event("warm-up", -5, 9.0), event("kernel", 10, 7.0, DeviceType.CUDA)]
    found = step_profile.summarise_events("eager", events, on_gpu=False)
    assert found.microseconds == {"mul": 5.0, "add": 0.0}
    assert found.launches == 2
    assert step_profile.summarise_events("eager", events, on_gpu=True).microseconds == {"kernel": 0.0}


def test_ranges_on_the_timeline_of_a_gpu_are_not_counted_beside_their_kernels():
    name = "Optimizer.step#Adam.step"
    events = [event(step_profile.STEP, 0, 1.0, annotation=True), event(name, 1, 3.0, annotation=True)]
    on_gpu = [event("adam", 2, 40.0, DeviceType.CUDA), event(name, 2, 50.0, DeviceType.CUDA, annotation=True)]
    found = step_profile.summarise_events("eager", events + on_gpu, on_gpu=True)
    assert (found.microseconds, found.launches) == ({"adam": 40.0}, 1)
    assert step_profile.summarise_events("eager", events + on_gpu, on_gpu=False).microseconds == {name: 3.0}


def test_the_backward_pass_counts_to_the_part_that_made_its_node():
    """The last operator of the encoder makes no node, and reads the number of the decoder's first one."""
    encoder, decoder = event("encoder", 1, 1.0), event("decoder", 4, 2.0)
    wrapper = event("aten::linear", 2, 1.0, number=7, parent=encoder)
    forward = [encoder, wrapper, event("aten::addmm", 2.5, 4.0, number=7, parent=wrapper, kernels=(100.0,))]
    forward += [event("aten::size", 3, 8.0, number=8, parent=encoder), decoder]
    forward += [event("aten::mul", 5, 16.0, number=8, parent=decoder, kernels=(200.0, 300.0))]
    nodes = [event(f"{step_profile.BACKWARD}: A", 7 - i, 0.0, number=7 + i) for i in (1, 0)]
    optimizer = event("Optimizer.step#Adam.step", 9, 0.0)
    backward = [event("MulBackward0", 6, 32.0, number=8, parent=nodes[0], kernels=(1000.0,))]
    backward += [event("AddmmBackward0", 7, 64.0, number=7, parent=nodes[1], kernels=(2000.0,))]
    rest = [event("aten::ones_like", 5.5, 128.0), event("adam", 9, 256.0, parent=optimizer, kernels=(4000.0,))]
    events = [event(step_profile.STEP, 0, 512.0), *forward, *nodes, *backward, optimizer, *rest]
    on_cpu, on_gpu = (step_profile.summarise_events("eager", events, on_gpu=place).parts for place in (False, True))
    none = {"latent head": 0.0, "likelihood": 0.0}
    assert on_cpu == {"encoder": 78.0, "decoder": 50.0, "optimizer": 256.0, "others": 640.0, **none}
    assert on_gpu == {"encoder": 2100.0, "decoder": 1500.0, "optimizer": 4000.0, "others": 0.0, **none}


class Slow(torch.autograd.Function):
    """The identity, which sleeps for a while in its backward pass."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        time.sleep(0.03)
        return gradient.clone()


def test_a_decoder_that_is_slow_in_its_backward_pass_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(step_profile, "MEASURED", 3)
    started = training_step.TrainingStep.prepare("digits-mlp", torch.device("cpu"))
    last = started.model.decoder[-1]
    monkeypatch.setattr(last, "forward", lambda x, right=last.forward: right(Slow.apply(x)))
    step = step_profile.divide(started, "eager")
    found = step_profile.profile_call("eager", step, torch.device("cpu"), tmp_path)
    assert found.parts["decoder"] > 30_000
    assert all(value > 0 for value in found.parts.values())


def test_a_range_of_the_profiler_is_distinguished_from_an_operator():
    with profile(activities=[ProfilerActivity.CPU]) as recorded, record_function("a range"):
        torch.ones(1)
    is_range = {one.name: one.is_user_annotation for one in recorded.events()}
    assert (is_range["a range"], is_range["aten::ones"]) == (True, False)


@pytest.mark.parametrize(
    ("package", "expected"), [("PIL", "needs PIL, which is"), ("sklearn", "data set digits is read from")]
)
def test_a_package_that_is_missing_is_named_without_a_traceback(tmp_path, package, expected):
    code = "import runpy; runpy.run_path('bench/profile_step.py', run_name='__main__')"
    done = run_without([package], f"sys.argv[1:] = ['--folder', {str(tmp_path)!r}]; {code}")
    assert done.returncode == 2
    assert done.stderr.startswith(f"profile_step.py: {expected}")
    assert "pip install" in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_step_is_profiled_with_every_backend(tmp_path, capsys):
    assert profile_step.main(["--folder", str(tmp_path)]) == 0
    output = capsys.readouterr().out
    for backend in training_step.list_backends(machine.pick_device()):
        assert json.loads((tmp_path / f"trace-{backend}.json").read_text())["traceEvents"]
        assert f"| {backend} |" in output
    assert (tmp_path / "profile.png").stat().st_size > 5000


def test_a_step_with_another_loss_is_refused(monkeypatch):
    started = training_step.TrainingStep.prepare("digits-mlp", torch.device("cpu"))
    started.require_agreement("numba")
    right = started._loss_and_gradients("eager")
    monkeypatch.setattr(
        training_step.TrainingStep,
        "_loss_and_gradients",
        lambda self, backend: [(1.01 if backend == "numba" else 1.0) * x for x in right],
    )
    with pytest.raises(AssertionError, match="numba is off"):
        started.require_agreement("numba")


def test_the_self_check_counts_what_was_found_and_what_was_not_there():
    calm = Comparison({"as it is": [1.0] * 20, "slower": [1.1] * 20, AGAIN: [1.0] * 20})
    noisy = Comparison({"as it is": [1.0] * 20, "slower": [0.9, 1.3] * 10, AGAIN: [1.2] * 20})
    output = selfcheck.summarise([calm, calm, calm, noisy])
    assert output.startswith("a planted slowdown of 10% was found in 3 of 4 runs, unchanged work flagged in 1; ")


def test_the_kernel_part_needs_torch_numpy_pandas_and_pytest_alone():
    modules = ("conftest", "bench_kernels", "report", "selfcheck", "session.compare", "timing.memory")
    packages = ("mlflow", "optuna", "matplotlib", "sklearn", "scipy", "torchvision", "safetensors", "PIL")
    done = run_without([*packages, "vaebench.vae"], f"import {', '.join(f'vaebench.bench.{name}' for name in modules)}")
    assert done.returncode == 0, done.stderr


def run_without(packages, code):
    """Run code in a process where these packages are missing."""
    hidden = f"import sys; sys.modules.update(dict.fromkeys({list(packages)!r}))"
    return subprocess.run([sys.executable, "-c", f"{hidden}; {code}"], cwd=ROOT, capture_output=True, text=True)
