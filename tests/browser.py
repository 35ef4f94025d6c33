"""A headless Chromium over `mlflow ui`: what a person clicks to compare the trials of a study.

`python -m tests.browser STUDY FOLDER`, in the folder of a study's mlflow.db, takes the pictures of docs/images.
"""

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from PIL import Image
from selenium import webdriver
from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

from tests import chaos
from vaebench.studies.tracking import views

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
FLAGS = [
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--window-size=1440,1000",
]
PATIENCE_SECONDS, SETTLE_SECONDS = 90, 12


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
    """The pages of a server, and what is seen on them."""

    def __init__(self, driver, server):
        self.driver, self.server = driver, server
        self.wait = WebDriverWait(driver, PATIENCE_SECONDS, ignored_exceptions=[StaleElementReferenceException])

    def open(self, place):
        """Open a place of the server, such as `/#/experiments`, as a page of its own."""
        self.driver.get("about:blank")
        self.driver.get(self.server + place)

    def find(self, selector):
        """Wait for an element that is shown."""
        return self.wait.until(lambda _: next(filter(_is_shown, self.all(selector)), None), selector)

    def all(self, selector):
        """Return the elements that are there now."""
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def text(self, fragment):
        """Wait for a text anywhere on the page."""
        self.wait.until(lambda driver: fragment in driver.find_element(By.TAG_NAME, "body").text, fragment)

    def close_assistant(self):
        """Close the panel that MLflow opens beside its first pages, some time after them."""
        self.find("[data-component-id='mlflow.assistant.chat_panel.close']").click()

    def names(self):
        """Return the names of the runs in the table, from top to bottom."""
        links = self.all(".ag-row [col-id*='Run Name'] a")
        return [link.text for link in sorted(links, key=lambda link: link.location["y"])]

    def sort_by(self, column):
        """Press the head of a column."""
        self.find(f".ag-header-cell[col-id*='{column}'] [role='columnheader']").click()

    def axes(self):
        """Wait for the parallel coordinates and return the names of their axes."""
        self.find(".parcoords .axis-title")
        return [title.text for title in self.all(".parcoords .axis-title")]

    def lines(self):
        """Return how many runs the parallel coordinates were given."""
        script = "return document.querySelector('.js-plotly-plot').data[0].dimensions[0].values.length"
        return self.driver.execute_script(script)

    def right_edge(self, heading):
        """Return where the section under a heading ends, as a share of the window's width."""
        script = """
            let found = [...document.querySelectorAll('*')].find(
                e => e.children.length === 0 && e.textContent.trim() === arguments[0]);
            while (found.getBoundingClientRect().width < 250) found = found.parentElement;
            return found.getBoundingClientRect().right / window.innerWidth;
        """
        return self.driver.execute_script(script, heading)

    def open_picture(self, run, name):
        """Open a picture among a run's artifacts and wait until it is drawn; return its width."""
        self.open(f"{run}/artifacts/{name}")
        width = (
            "return Math.max(0, ...[...document.images].filter(i => i.src.startsWith('blob')).map(i => i.naturalWidth))"
        )
        return self.wait.until(lambda driver: driver.execute_script(width))


def _is_shown(element):
    return element.is_displayed()


def save_window(driver, path):
    """Save what the window shows, with few colours."""
    driver.save_screenshot(str(path))
    Image.open(path).convert("RGB").quantize(256, Image.Quantize.MAXCOVERAGE).save(path, optimize=True)


def take_pictures(uri, study, folder):
    """Save what the leaderboard, its charts, the comparison of the best and the best trial's page look like."""
    tracker = chaos.Tracker(uri, study)
    ended = [run for run in tracker.runs() if run.tags.get("state") == "finished"]
    best = [run.id for run in sorted(ended, key=lambda run: run.metrics["valid/nll"])[:10]]
    with serve(uri, tempfile.gettempdir()) as server, browser() as driver:
        page = Page(driver, server)
        addresses = views.list_addresses(server, tracker.experiment, best)
        trial = f"/#/experiments/{tracker.experiment}/runs/{best[0]}"
        places = {name: address.removeprefix(server) for name, address in addresses.items()}
        places |= {"trial": f"{trial}?{views.KIND}", "curves": f"{trial}/model-metrics?{views.KIND}"}
        page.open("/")
        page.close_assistant()
        for name, place in places.items():
            page.open(place)
            time.sleep(SETTLE_SECONDS)
            save_window(driver, folder / f"mlflow-{name.replace(' ', '-')}.png")


if __name__ == "__main__":
    take_pictures(f"sqlite:///{Path('mlflow.db').resolve()}", sys.argv[1], Path(sys.argv[2]))
