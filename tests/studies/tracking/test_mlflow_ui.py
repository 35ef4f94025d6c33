"""A finished study in `mlflow ui`, through a real browser: its table, the comparison of its trials, its pictures."""

import pytest

from tests import browser, chaos
from vaebench.studies.tracking.mlflow_runs import Tracker

TRIALS = 4
SEARCHED = ["log10_model.latent", "log10_objective.beta", "log10_objective.lambda"]

pytestmark = [
    pytest.mark.skipif(
        not (browser.CHROMIUM and browser.DRIVER),
        reason="Chromium is not installed: apt-get install chromium chromium-driver",
    ),
    pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SADeprecationWarning"),  # raised by MLflow's own models
]


@pytest.fixture(scope="module")
def tracker(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished")
    out, err = chaos.start(folder, "--study", "seen", "--trials", str(TRIALS), "--workers", "2").communicate(
        timeout=300
    )
    assert err == "", out
    return Tracker(f"sqlite:///{folder}/mlflow.db", "seen")


@pytest.fixture(scope="module")
def address(tracker, tmp_path_factory):
    with browser.serve(tracker.uri, tmp_path_factory.mktemp("ui")) as found:
        yield found


@pytest.fixture
def page(address, tracker):
    """A browser of its own for each test: the pages remember what was opened and closed."""
    with browser.browser() as driver:
        yield browser.Page(driver, address, tracker.experiment)


def test_the_trials_are_the_children_of_the_study(page):
    page.open_runs()
    wanted = {"seen", *(f"seen {number}" for number in range(TRIALS))}
    page.wait.until(lambda _: set(page.names()) == wanted, f"the table shows {page.names()}")


def test_all_runs_are_selected_and_compared_along_what_was_searched(page):
    page.open_runs()
    page.compare_all()
    page.text(f"Comparing {1 + TRIALS} Runs from 1 Experiment")
    assert page.axes() == SEARCHED
    assert page.lines() == 1 + TRIALS


def test_trials_alone_are_coloured_by_their_bound(page, tracker):
    page.compare([run.id for run in tracker.runs()])
    assert page.axes() == [*SEARCHED, "valid/elbo"]
    assert page.lines() == TRIALS, "none is dropped for want of a value"


@pytest.mark.parametrize("name", ["history.png", "parallel.png", "rate_distortion.png", "best_samples.png"])
def test_the_pictures_of_the_study_are_drawn(page, tracker, name):
    assert page.open_picture(tracker.parent, name) > 100
