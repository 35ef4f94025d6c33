"""A headless Chromium over `mlflow ui`: what a person clicks to compare the trials of a study.

`python -m tests.browser STUDY FOLDER`, in the folder of a study's mlflow.db, takes the pictures of the README.
"""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from selenium import webdriver
from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

from tests import chaos

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
FLAGS = [
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--window-size=1700,1000",
]
PATIENCE_SECONDS = 60


@contextlib.contextmanager
def serve(uri, folder):
    """Run `mlflow ui` on a store and yield its address; it is ended by its id."""
    port = chaos.free_port()
    command = [sys.executable, "-m", "mlflow", "ui", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    settings = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with (Path(folder) / "ui.log").open("w") as log:
        process = subprocess.Popen(
            [*command, "--backend-store-uri", uri],
            env=os.environ | settings,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        chaos.wait_for_port(port, process)
        yield f"http://127.0.0.1:{port}"
    finally:
        chaos.end_group(process)


@contextlib.contextmanager
def browser():
    """Yield a browser with a profile of its own."""
    with tempfile.TemporaryDirectory() as profile:
        options = webdriver.ChromeOptions()
        options.binary_location = CHROMIUM
        for flag in (*FLAGS, f"--user-data-dir={profile}"):
            options.add_argument(flag)
        driver = webdriver.Chrome(options=options, service=Service(DRIVER))
        try:
            yield driver
        finally:
            driver.quit()


class Page:
    """The pages of one experiment, and what is seen on them."""

    def __init__(self, driver, address, experiment):
        self.driver, self.root = driver, f"{address}/#/experiments/{experiment}"
        self.wait = WebDriverWait(driver, PATIENCE_SECONDS, ignored_exceptions=[StaleElementReferenceException])

    def find(self, selector):
        """Wait for an element that is shown."""
        return self.wait.until(lambda _: next(filter(_is_shown, self.all(selector)), None), selector)

    def all(self, selector):
        """Return the elements that are there now."""
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def text(self, fragment):
        """Wait for a text anywhere on the page."""
        self.wait.until(lambda driver: fragment in driver.find_element(By.TAG_NAME, "body").text, fragment)

    def open_runs(self):
        """Open the table of runs, and in it the children of the parent run."""
        self.driver.get(f"{self.root}/runs")
        self.find(".ag-row [col-id*='Run Name'] button").click()

    def names(self):
        """Return the names of the runs in the table."""
        return [link.text for link in self.all(".ag-row [col-id*='Run Name'] a")]

    def compare_all(self):
        """Select all runs and press Compare."""
        self.find(".ag-header-select-all:not(.ag-hidden)").click()
        button = "//button[normalize-space()='Compare']"
        self.wait.until(lambda driver: driver.find_elements(By.XPATH, button))[0].click()
        self.text("Comparing ")

    def compare(self, runs):
        """Open the comparison of some runs, as its link does."""
        experiment = self.root.rpartition("/")[2]
        page = self.root.partition("/experiments/")[0]
        self.driver.get(f"{page}/compare-runs?runs={json.dumps(runs)}&experiments={json.dumps([experiment])}")

    def axes(self):
        """Wait for the parallel coordinates and return the names of their axes."""
        self.find(".parcoords .axis-title")
        return [title.text for title in self.all(".parcoords .axis-title")]

    def lines(self):
        """Return how many runs the parallel coordinates were given."""
        script = "return document.querySelector('.js-plotly-plot').data[0].dimensions[0].values.length"
        return self.driver.execute_script(script)

    def open_picture(self, run, name):
        """Open a picture among a run's artifacts and wait until it is drawn; return its width."""
        self.driver.get("about:blank")
        self.driver.get(f"{self.root}/runs/{run}/artifacts/{name}")
        width = (
            "return Math.max(0, ...[...document.images].filter(i => i.src.startsWith('blob')).map(i => i.naturalWidth))"
        )
        return self.wait.until(lambda driver: driver.execute_script(width))


def _is_shown(element):
    return element.is_displayed()


def take_pictures(uri, study, folder):
    """Save what the table, the comparison and a picture of the parent run look like."""
    tracker = chaos.Tracker(uri, study)
    experiment = tracker.experiment
    with serve(uri, tempfile.gettempdir()) as address, browser() as driver:
        page = Page(driver, address, experiment)
        page.open_runs()
        page.find("[data-component-id='mlflow.assistant.chat_panel.close']").click()
        page.wait.until(lambda _: len(page.names()) > 1)
        driver.save_screenshot(str(folder / "mlflow-runs.png"))
        page.compare([run.id for run in tracker.runs()])
        page.axes()
        driver.save_screenshot(str(folder / "mlflow-compare.png"))
        page.open_picture(tracker.parent, "rate_distortion.png")
        driver.save_screenshot(str(folder / "mlflow-picture.png"))


if __name__ == "__main__":
    take_pictures(f"sqlite:///{Path('mlflow.db').resolve()}", sys.argv[1], Path(sys.argv[2]))
