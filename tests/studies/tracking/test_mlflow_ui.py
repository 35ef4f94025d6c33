"""A finished study in `mlflow ui`, through a real browser: leaderboard, charts, comparison, pages of runs."""

import re

import pytest

from tests import browser, chaos
from vaebench.studies.engine.workers.job import name_run
from vaebench.studies.tracking import views
from vaebench.studies.tracking.mlflow_runs import Tracker

TRIALS = 4
SEARCHED = ["log10_model.latent", "log10_objective.beta", "log10_objective.lambda"]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (browser.CHROMIUM and browser.DRIVER),
        reason="Chromium is not installed: apt-get install chromium chromium-driver",
    ),
]


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """The tracker of a study that has ended, and what its command has printed."""
    folder = tmp_path_factory.mktemp("finished")
    sweep = chaos.start(folder, "--study", "seen", "--trials", str(TRIALS), "--workers", "2")
    out, err = sweep.communicate(timeout=300)
    assert err == "", out
    return Tracker(f"sqlite:///{folder}/mlflow.db", "seen"), out


@pytest.fixture(scope="module")
def page(study, tmp_path_factory):
    with browser.serve(study[0].uri, tmp_path_factory.mktemp("ui")) as server, browser.browser() as driver:
        yield browser.Page(driver, server)


def names_by(study, metric):
    """Return the names of the trials' runs, the one with the least value first."""
    runs = sorted(study[0].runs(), key=lambda run: run.metrics[metric])
    return [run.tags["mlflow.runName"] for run in runs]


def test_the_printed_address_opens_a_sorted_leaderboard_and_a_click_sorts_it_anew(page, study):
    (address,) = re.findall(rf"{views.LOCAL_SERVER}(\S+)", study[1])
    page.open("/")
    page.close_assistant()
    page.open(address)
    best_first = names_by(study, "valid/nll")
    page.wait.until(lambda _: page.names() == best_first, f"the table shows {page.names()}")
    shown = " ".join(head.text for head in page.all(".ag-header-cell"))
    for column in ("valid/nll", "valid/rate", "valid/distortion"):
        assert column in shown
    page.sort_by("valid/rate")
    orders = [names_by(study, "valid/rate"), names_by(study, "valid/rate")[::-1]]
    page.wait.until(lambda _: page.names() in orders, f"the table shows {page.names()}")


def test_runs_are_named_by_number_and_settings_and_none_looks_like_a_failure(study):
    for run in study[0].runs():
        settings = {name: float(value) if "." in value else int(value) for name, value in run.params.items()}
        point = {name: settings[name] for name in run.params if "." in name and not name.startswith("log10")}
        assert run.tags["mlflow.runName"] == name_run(run.trial, point)
        assert (run.status, run.tags["state"] in ("finished", "pruned")) == ("FINISHED", True)


def test_the_charts_of_the_leaderboard_are_preset(page, study):
    (address,) = re.findall(rf"{views.LOCAL_SERVER}(\S+)", study[1])
    page.open(f"{address}&compareRunsMode=CHART")
    for title in ("study/trial vs. valid/nll", "valid/rate vs. valid/distortion", "Parallel Coordinates"):
        page.text(title)
    page.find(".parcoords .label")
    assert len(page.all(".parcoords .label")) == len(SEARCHED) + 3, "all five settings and the target"


def test_the_best_are_compared_along_what_was_searched_and_by_the_target(page, study):
    runs = [run.id for run in study[0].runs()]
    address = views.list_addresses("", study[0].experiment, runs)["the best compared"]
    page.open(address.removeprefix(views.LOCAL_SERVER))
    assert page.axes() == [*SEARCHED, "valid/nll"]
    assert page.lines() == TRIALS, "none is dropped for want of a value"


def test_the_pages_of_a_trial_and_of_the_study_keep_to_the_window(page, study):
    tracker = study[0]
    for run in (tracker.runs()[0].id, tracker.parent):
        page.open(f"/#/experiments/{tracker.experiment}/runs/{run}?{views.KIND}")
        page.text("valid/nll")
        page.text("About this run")
        assert page.right_edge("About this run") <= 1, "the note pushes nothing off the screen"


def test_a_picture_of_the_study_is_drawn(page, study):
    assert page.open_picture(f"/#/experiments/{study[0].experiment}/runs/{study[0].parent}", "history.png") > 100
