"""The page of a report in a headless Chromium: what a person points at, selects and sorts.

`python -m tests.report_page runs/STUDY/report.html FOLDER` takes the pictures of docs/sweep.md.
"""

import json
import sys
from pathlib import Path

from selenium.webdriver import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

from tests import browser

WIDE, PHONE = (1440, 1000), (390, 844)


class ReportPage:
    """A report that is open in a browser."""

    def __init__(self, driver, path):
        self.driver, self.path = driver, Path(path).resolve()
        self.wait = WebDriverWait(driver, browser.PATIENCE_SECONDS)

    def open(self, size=WIDE, *, phone=False, dark=False):
        """Open the page in a window of this size and wait until its charts are drawn."""
        media = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": media})
        self.driver.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": phone})
        window = {"width": size[0], "height": size[1], "deviceScaleFactor": 1, "mobile": phone}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", window)
        self.driver.get(self.path.as_uri())
        self.wait.until(lambda _: self.run("return document.body.dataset.drawn === 'yes'"))

    def run(self, script, *arguments):
        """Return what a piece of JavaScript returns."""
        return self.driver.execute_script(script, *arguments)

    def all(self, selector):
        """Return the elements that are there now."""
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def find(self, selector):
        """Return the first element; there must be one."""
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def column(self, name):
        """Return the texts of a column of the table."""
        names = [cell.get_attribute("data-column") for cell in self.all(".trials th")]
        return [cell.text for cell in self.all(f".trials tbody td:nth-child({1 + names.index(name)})")]

    def sort(self, name):
        """Press the head of a column."""
        self.run("arguments[0].click()", self.find(f'.trials th[data-column="{name}"] button'))

    def places(self, chart):
        """Return the centre of each point of a chart in the window and whether it is faded, in the order of drawing."""
        return self.run(
            """return [...document.querySelectorAll(`#${arguments[0]} .mark-symbol.role-mark path`)]
                .map(path => [path.getBoundingClientRect(), Number(getComputedStyle(path).opacity)])
                .filter(([box]) => box.width)
                .map(([box, opacity]) => [box.x + box.width / 2, box.y + box.height / 2, opacity < 0.5])""",
            chart,
        )

    def show(self, selector):
        """Scroll an element to the middle of the window."""
        self.run("arguments[0].scrollIntoView({block: 'center'})", self.find(selector))

    def point_at(self, x, y):
        """Move the pointer."""
        actions = ActionChains(self.driver)
        actions.w3c_actions.pointer_action.move_to_location(round(x), round(y))
        actions.perform()

    def drag(self, start, end):
        """Drag from one place of the window to another."""
        actions = ActionChains(self.driver)
        pointer = actions.w3c_actions.pointer_action
        pointer.move_to_location(*map(round, start))
        pointer.pointer_down()
        pointer.move_to_location(*(round((a + b) / 2) for a, b in zip(start, end, strict=True)))
        pointer.move_to_location(*map(round, end))
        pointer.pointer_up()
        actions.perform()

    def selected(self):
        """Wait for a selection and return the numbers of its trials in the table."""
        self.wait.until(lambda _: self.all("tr.picked"))
        return {int(row.text) for row in self.all("tr.picked td.group")}

    def data(self):
        """Return what the page holds for its program."""
        return json.loads(self.run("return document.getElementById('data').textContent"))

    def complaints(self):
        """Return the errors of the browser's console since the last call."""
        return [entry["message"] for entry in self.driver.get_log("browser") if entry["level"] == "SEVERE"]


def take_pictures(path, folder):
    """Save the page with a selection: wide with trials that a chart selects, and on a phone with chosen rows."""
    with browser.browser() as driver:
        page = ReportPage(driver, path)
        page.open((WIDE[0], 1720))
        places = page.places("rate_distortion")
        across = sorted(x for x, _, _ in places)
        page.drag((across[-16] - 4, max(y for _, y, _ in places) + 2), (across[-1] + 4, min(y for _, y, _ in places)))
        page.selected()
        _save(page, folder / "report.png")
        page.open((PHONE[0], 1000), phone=True)
        for i in range(3):
            page.run("document.querySelectorAll('.trials tbody tr')[arguments[0]].click()", i)
        page.run("document.querySelector('#card .close').click(); document.querySelector('.bar').scrollIntoView()")
        _save(page, folder / "report-phone.png")


def _save(page, path):
    """Wait until the charts show the selection, and save the window."""
    page.wait.until(lambda _: any(faded for *_, faded in page.places("history")))
    browser.save_window(page.driver, path)


if __name__ == "__main__":
    take_pictures(Path(sys.argv[1]), Path(sys.argv[2]))
