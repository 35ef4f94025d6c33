"""The page of a report: its figures and groups, and in a browser what is sorted, selected and pointed at."""

import dataclasses
import re
from decimal import Decimal

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from tests import browser
from tests.report_page import PHONE, ReportPage
from vaebench.studies import sweep as sweep_command
from vaebench.studies.commands import sweep
from vaebench.studies.engine.report import files, page_data, table
from vaebench.studies.engine.report.chart_data import ChartData
from vaebench.studies.engine.report.comparison import UNRESOLVED
from vaebench.studies.engine.report.page import Study

SPACE = """
[model]
latent = { low = 2, high = 32, log = true }
network = { choices = ["mlp", "residual"] }
[objective]
beta = { low = 0.1, high = 10.0, log = true }
alpha = { low = 0.0, high = 1.0 }
"""
COUNT, FINISHED, TIED = 36, 24, (5, 9)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder := tmp_path_factory.mktemp("made"))
        (folder / "space.toml").write_text(SPACE)
        yield folder


def make_study(name, *arguments, seed=0):
    """Return a study of made-up results: the last third of the trials was pruned, one failed, two tie with the best."""
    line = ["--study", name, "--tracking-uri", "none", "--space", "space.toml", *arguments]
    plan, draw = sweep.make_plan(sweep_command.parser().parse_args(line)), np.random.default_rng(seed)
    rows = pd.DataFrame({"trial": range(COUNT), "state": ["finished"] * FINISHED + ["pruned"] * (COUNT - FINISHED)})
    rows["model.latent"], rows["model.network"] = draw.integers(2, 32, COUNT), draw.choice(["mlp", "residual"], COUNT)
    rows["objective.beta"], rows["objective.alpha"] = 10 ** draw.uniform(-1, 1, COUNT), draw.uniform(0, 1, COUNT)
    rows["w_kl"] = rows["objective.beta"] * (1 - rows["objective.alpha"])
    rows["valid/rate"] = 20 / (1 + rows["w_kl"]) + draw.uniform(0, 2, COUNT)
    rows["valid/distortion"] = 80 - rows["valid/rate"] + draw.uniform(0, 5, COUNT)
    rows["valid/nll"] = rows["valid/rate"] + rows["valid/distortion"]
    rows["valid/nll_stderr"] = 0.0123
    best = rows["valid/nll"][:FINISHED].idxmin()
    rows["difference to best"], rows["difference_stderr"] = rows["valid/nll"] - rows["valid/nll"][best], 0.25
    rows["tied"] = pd.array([i in TIED if i < FINISHED and i != best else pd.NA for i in range(COUNT)], "boolean")
    rows["command"], rows["seconds"], rows["error"] = (
        [f"python studies/train.py --set i={i}" for i in range(COUNT)],
        1,
        None,
    )
    rows.loc[COUNT - 1, ["state", "error"]] = "failed", "a shape of </script><script>alert(1)</script>"
    for number in rows["trial"][:FINISHED]:
        kept = plan.folder / "trials" / str(number)
        kept.mkdir(parents=True)
        for picture in ("reconstructions_0", "samples_0", "traversal"):
            Image.new("L", (80, 24), number).save(kept / f"{picture}.png")
    return Study(plan, rows)


@pytest.fixture(scope="module")
def study(folder):
    return make_study("made")


@pytest.fixture(scope="module")
def front(folder):
    return make_study("front", "--target", "rate-distortion", seed=1)


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (83.32604, 0.00461, "83.3260 ± 0.0046"),
        (1234.5, 120.0, "1234 ± 120"),
        (0.999, 0.0996, "1.00 ± 0.10"),
        (-2.5, 0.5, "-2.50 ± 0.50"),
        (7.271703840, 2.6e-8, "7.2717"),
        (5.0, 0.0, "5"),
        (0.1234567, np.nan, "0.1235"),
        (np.nan, 0.1, ""),
    ],
)
def test_decimals_are_those_of_the_error(value, error, text):
    assert page_data.format_with_error(value, error) == text
    if "±" in text:
        shown, by = text.split(" ± ")
        assert Decimal(shown).as_tuple().exponent == Decimal(by).as_tuple().exponent
        assert len(by.replace(".", "").lstrip("0")) in (2, 3)


def test_the_best_its_ties_and_pruned_trials_are_told_apart(study):
    data = ChartData.read([study])
    groups = data.trials.groupby("group")["trial"].agg(set).to_dict()
    best = int(study.frame["valid/nll"][:FINISHED].idxmin())
    assert groups["best"] == {best}
    assert groups["tied"] == set(TIED) - {best}
    assert groups["pruned"] == set(range(FINISHED, COUNT - 1))
    assert groups["failed"] == {COUNT - 1}
    told = page_data.describe_best(study)
    assert (told["trial"], set(told["tied"])) == (best, set(TIED) - {best})
    assert told["value"] == f"{study.frame['valid/nll'][best]:.3f} ± 0.012"


def test_the_best_has_its_true_place_where_most_trials_collapsed(study):
    """Five of six have a rate of almost 0, so that 11 is an outlier among them; so is a diverged trial's distortion."""
    rows = study.frame.iloc[:7].assign(state="finished", tied=pd.NA)
    rows["valid/nll"] = [120.0, 119.0, 121.0, 118.0, 100.0, 122.0, 900.0]
    rows["valid/rate"], rows["valid/distortion"] = (
        [0.1, 0.2, 0.0, 0.3, 11.0, 0.1, 0.0],
        [120, 119, 121, 118, 95, 122, 1e6],
    )
    data = ChartData.read([dataclasses.replace(study, frame=rows)])
    assert data.trials.loc[data.trials["group"] == "best", "trial"].tolist() == [4]
    for name, value in (("valid/rate", 11.0), ("valid/distortion", 95.0), ("valid/nll", 100.0)):
        low, high = data.ranges[name]
        assert low < value < high < 1000


def test_a_study_of_two_targets_has_a_front_and_no_best(front):
    told, data = page_data.describe_best(front), ChartData.read([front])
    values = front.frame[["valid/distortion", "valid/rate"]][:FINISHED].to_numpy()
    on_front = {i for i, one in enumerate(values) if not ((values <= one).all(1) & (values < one).any(1)).any()}
    assert set(told["front"]) == on_front == set(data.trials["trial"][data.trials["group"] == "front"])
    ranked = table.rank(front.frame, front.plan)
    assert set(ranked["trial"][: len(on_front)]) == on_front, "what is measured, drawn and listed first"
    assert ranked["valid/distortion"].iloc[: len(on_front)].is_monotonic_increasing
    assert ranked["valid/distortion"].iloc[len(on_front) :].is_monotonic_increasing
    assert not {"best", "tied"} & set(data.trials["group"])
    drawn = files.render(data, "front", front.plan.folder)
    assert "On the front of valid/distortion and valid/rate" in drawn
    assert "Best setting" not in drawn


def test_a_difference_is_a_bound_where_the_best_trial_of_its_own_study_is_one(study):
    best = int(study.frame["valid/nll"][:FINISHED].idxmin())
    unresolved = [3.0 if i == best else 0.0 for i in range(COUNT)]
    bounded = Study(dataclasses.replace(study.plan, name="bounded"), study.frame.assign(**{UNRESOLVED: unresolved}))
    both = ChartData.read([bounded, Study(study.plan, study.frame.assign(**{UNRESOLVED: 0.0}))])
    shown = page_data.build_table(both.studies, both.trials)["texts"]["difference to best"]
    others = [i for i in range(FINISHED) if i != best]
    assert all(shown[i].startswith(">= ") for i in others)
    assert not any(shown[COUNT + i].startswith(">= ") for i in others)


def test_several_seeds_give_the_error_of_the_target(study):
    rows = study.frame.assign(**{"valid/nll_seed_sd": 1.5})
    cells = page_data.format_cells(rows, "valid/nll")
    assert cells[0] == f"{rows['valid/nll'][0]:.1f} ± 1.5"


def test_how_long_a_study_took():
    start = pd.to_datetime(["2026-01-01 10:00:00", "2026-01-01 11:30:00"])
    frame = pd.DataFrame({"state": "finished", "start": start, "seconds": [20.0, 2100.0]})
    assert page_data._describe_time(frame) == (
        "2026-01-01 10:00 to 2026-01-01 12:05, 2 h 05 min; the trials took 35 min 20 s together"
    )


def test_a_large_picture_is_made_smaller(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (900, 1200, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "large.png")
    address = page_data.embed(tmp_path / "large.png")
    assert address.startswith("data:image/jpeg;base64,")
    assert len(address) < (tmp_path / "large.png").stat().st_size / 4


def test_a_study_without_a_finished_trial_has_a_page_too(study):
    rows = study.frame.assign(state="pruned", tied=pd.NA)
    none = Study(study.plan, rows)
    assert "No trial finished." in files.render(ChartData.read([none]), "none", study.plan.folder)


@pytest.fixture(scope="module")
def driver():
    if not (browser.CHROMIUM and browser.DRIVER):
        pytest.skip("Chromium is not installed: apt-get install chromium chromium-driver")
    with browser.browser() as driver:
        yield driver


@pytest.fixture(scope="module")
def report(study, driver):
    (study.plan.folder / "report.html").write_text(files.render(ChartData.read([study]), "made", study.plan.folder))
    page = ReportPage(driver, study.plan.folder / "report.html")
    page.open()
    return page


def test_the_table_sorts_by_any_column(report, study):
    finished = study.frame[:FINISHED]
    assert report.column("trial") == finished.sort_values("valid/nll")["trial"].astype(str).tolist()
    report.sort("objective.beta")
    assert report.column("trial") == finished.sort_values("objective.beta")["trial"].astype(str).tolist()
    report.sort("objective.beta")
    assert (
        report.column("trial") == finished.sort_values("objective.beta", ascending=False)["trial"].astype(str).tolist()
    )
    report.sort("rank")
    assert report.column("tied").count("yes") == len(page_data.describe_best(study)["tied"])
    assert report.complaints() == []


def test_pruned_and_failed_trials_stand_apart(report):
    tabs = {tab.text: tab for tab in report.all("#tabs button")}
    assert set(tabs) == {f"{FINISHED} finished", f"{COUNT - 1 - FINISHED} pruned", "1 failed"}
    tabs["1 failed"].click()
    assert report.column("error") == ["a shape of </script><script>alert(1)</script>"]
    report.all("#tabs button")[0].click()
    assert len(report.column("trial")) == FINISHED


def test_a_selection_in_one_chart_marks_the_trials_in_all(report, study):
    report.show(".history")
    places = report.places("history")[:-1]  # the last one is the ring around the trial that is pointed at
    across = sorted(x for x, _, _ in places)
    left, right = across[4] - 3, across[12] + 3
    top, bottom = min(y for _, y, _ in places) - 6, max(y for _, y, _ in places) + 3
    report.drag((left, bottom), (right, top))  # it must begin within the axes
    # the axis of the history is the number of the trial
    ended = range(COUNT - 1)
    expected = set(ended[4:13])
    assert report.selected() == expected
    assert report.find("#selection").text.startswith("9 selected")
    for chart in ("rate_distortion", "history"):
        report.wait.until(lambda _, chart=chart: sum(faded for *_, faded in report.places(chart)) == len(ended) - 9)
    assert len(report.all("#parallel .mark-line path")) >= FINISHED
    report.find("#clear").click()
    assert not report.all("tr.picked")
    report.wait.until(lambda _: not any(faded for *_, faded in report.places("rate_distortion")))


def test_pointing_at_a_trial_shows_it(report, study):
    best = page_data.describe_best(study)["trial"]
    report.show(".rate_distortion")
    x, y, _ = report.places("rate_distortion")[-2]  # the best is drawn last, and after it the ring
    report.point_at(x, y)
    report.wait.until(lambda _: report.find("#card h3").text.lower() == f"trial {best}, best")
    widths = report.run("return [...document.querySelectorAll('#card img')].map(image => image.naturalWidth)")
    assert widths == [80, 80]
    assert "test examples" in report.find("#card").text
    ring = report.places("history")[-1]
    assert any(np.hypot(ring[0] - x, ring[1] - y) < 2 for x, y, _ in report.places("history")[:-1])
    report.find("#card .bar button").click()
    report.wait.until(lambda _: report.find("#card .bar button").text == "copied")
    assert report.find("#card .bar button").get_attribute("title") == study.frame["command"][best]


def test_the_effects_are_of_the_setting_that_is_chosen(report):
    assert report.find("#effects select").get_attribute("value") == "w_kl"
    report.run("arguments[0].value = 'model.network'; arguments[0].onchange()", report.find("#effects select"))
    report.wait.until(lambda _: "residual" in report.run("return document.getElementById('panels').textContent"))
    assert report.complaints() == []


def test_the_page_fits_a_phone(report):
    report.open(PHONE, phone=True)
    assert report.run("return document.documentElement.scrollWidth") <= PHONE[0]
    widths = report.run(
        "return [...document.querySelectorAll('.chart svg')].map(svg => svg.getBoundingClientRect().right)"
    )
    assert len(widths) >= 6
    assert max(widths) <= PHONE[0]
    assert not report.find("#card").is_displayed()
    report.run("arguments[0].click()", report.find("tbody tr"))
    assert report.find("#card").is_displayed()
    box = report.run("const box = document.querySelector('#card').getBoundingClientRect(); return [box.top, box.right]")
    assert box[0] > PHONE[1] / 2
    assert box[1] <= PHONE[0]
    report.find("#card .close").click()
    assert not report.find("#card").is_displayed()
    assert report.complaints() == []


def test_the_page_is_dark_where_the_reader_is(report):
    def lightness():
        channels = re.findall(r"\d+", report.run("return getComputedStyle(document.body).backgroundColor"))
        return sum(map(int, channels[:3])), report.run(
            "return getComputedStyle(document.querySelector('#history .role-axis-label text')).fill"
        )

    light = lightness()
    report.open(dark=True)
    dark = lightness()
    assert light[0] > 700 > 120 > dark[0]
    assert light[1] != dark[1]


def test_a_study_of_two_targets_points_at_no_trial_before_the_reader_does(report, front):
    path = front.plan.folder / "report.html"
    path.write_text(files.render(ChartData.read([front]), "front", front.plan.folder))
    page = ReportPage(report.driver, path)
    page.open()
    assert "undefined" not in page.run("return document.body.innerText")
    assert not page.all("#card h3")
    page.run("arguments[0].click()", page.find("tbody tr"))
    assert page.find("#card h3").text.lower().endswith(", front")
    assert page.complaints() == []


def test_several_studies_share_the_axes(report, study, folder):
    other = make_study("other", seed=2)
    both = ChartData.read([study, other])
    ranked = both.trials.dropna(subset=["rank"]).sort_values("rank")
    assert ranked["rank"].tolist() == [*range(1, 2 * FINISHED + 1)]
    assert ranked["valid/nll"].is_monotonic_increasing
    assert set(ranked["study"][:FINISHED]) == {"made", "other"}
    path = folder / "runs" / "both.html"
    path.write_text(files.render(both, "made and other", folder / "runs"))
    page = ReportPage(report.driver, path)
    page.open()
    assert len(page.places("history")) == 2 * (COUNT - 1) + 1  # and the ring
    marks = "document.querySelectorAll('#history .mark-symbol.role-mark path')"
    colours = page.run(f"return [...{marks}].map(path => path.getAttribute('fill'))")
    assert len({colour for colour in colours if colour and colour.startswith("#")}) == 2
    chip = page.find('.chip[data-study="other"]')
    page.run("arguments[0].click()", chip)
    assert page.find("tr.picked td:nth-child(3)").text == "other"
    assert page.complaints() == []
