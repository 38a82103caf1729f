"""The page of a study as headless Chromium shows it: no error, no request, readable on light and dark."""

import json

import numpy as np
import pytest
from browsing import CHARTS, CONTRASTS, look, pdf_of, picture_of
from selenium.webdriver.common.by import By
from synthetic_study import make_study

from evenslice.report.files import write_study_report
from evenslice.results.studies import load_study

pytestmark = pytest.mark.browser

FAILED = {
    "dataset": "ISBI 2012",
    "architecture": "VGG16 U-Net",
    "arm": "random",
    "seed": 7,
    "error": "no luck",
}


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    comparisons = [("Lucchi++", "EfficientNet-Lite0 U-Net"), ("ISBI 2012", "VGG16 U-Net")]
    folder = make_study(
        tmp_path_factory.mktemp("study"), comparisons=comparisons, seeds=(0, 1), failed=[FAILED]
    )
    return write_study_report(load_study(folder), folder / "report.html")


@pytest.fixture
def page(browser, report):
    """The page as just opened, 1400 pixels wide, on light ground."""
    look(browser, width=1400, scheme="light")
    for kind in ("browser", "performance"):
        browser.get_log(kind)  # forget what earlier tests did
    browser.get(report.as_uri())
    return browser


def test_opening_the_page_logs_no_error_and_asks_for_nothing(page, report):
    page.find_element(By.TAG_NAME, "summary").click()
    assert page.find_element(By.TAG_NAME, "pre").is_displayed()
    assert page.get_log("browser") == []
    messages = [json.loads(entry["message"])["message"] for entry in page.get_log("performance")]
    urls = {m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"}
    assert report.as_uri() in urls
    assert [url for url in urls if url != report.as_uri() and not url.startswith("data:")] == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1400, 400])
def test_the_page_is_readable(page, scheme, width):
    look(page, width=width, scheme=scheme)
    page.find_element(By.TAG_NAME, "summary").click()
    assert page.execute_script("return document.documentElement.scrollWidth") <= width
    contrasts = page.execute_script(CONTRASTS)
    assert len(contrasts) > 300
    assert [contrast for contrast in contrasts if contrast[0] < 4.5] == []
    picture = picture_of(page.get_screenshot_as_png())
    assert (picture.mean() > 128) == (scheme == "light")
    assert picture.std() > 10


def test_the_arms_keep_their_colours_in_words_charts_and_tables(page):
    def colours(scheme):
        look(page, width=1400, scheme=scheme)
        edges = page.find_elements(By.CSS_SELECTOR, ".arms li")[:6]
        heads = page.find_elements(By.CSS_SELECTOR, ".numbers thead th")[1:7]
        chart = page.find_element(By.CSS_SELECTOR, "#forest path[style*='--audit-2']")
        found = [edge.value_of_css_property("border-left-color") for edge in edges]
        assert found == [head.value_of_css_property("border-bottom-color") for head in heads]
        assert len(set(found)) == 6
        assert channels(chart.value_of_css_property("stroke")) == channels(found[2])
        return found

    assert not set(colours("light")) & set(colours("dark"))


def channels(colour):
    return colour.removeprefix("rgb").strip("a()").split(", ")[:3]


def test_the_link_leads_to_what_failed(page):
    page.find_element(By.LINK_TEXT, "What failed, and why").click()
    assert page.execute_script("return document.querySelector('#failed').getBoundingClientRect().top") < 600
    assert page.find_element(By.CSS_SELECTOR, "#failed td").text == "no luck"


def test_the_pictures_are_drawn(page):
    """Outlines are in colour, the slice below them is gray; an image that failed to load would leave one flat colour."""
    shown = page.find_element(By.CSS_SELECTOR, ".outlined svg")
    page.execute_script("arguments[0].scrollIntoView({block: 'center'})", shown)
    picture = picture_of(shown.screenshot_as_png)
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 200
    coloured = np.ptp(picture, axis=2) > 60
    assert 0.002 < coloured.mean() < 0.3


@pytest.mark.parametrize(("width", "lines"), [(1400, 1), (400, 3)])
def test_examples_stand_beside_one_another_as_far_as_there_is_room(page, width, lines):
    look(page, width=width, scheme="light")
    shown = page.find_elements(By.CSS_SELECTOR, ".example:first-of-type .audit")
    assert len(shown) == 6
    assert len({round(item.rect["y"]) for item in shown}) == lines


@pytest.mark.parametrize("width", [420, 1200])
def test_every_plot_fits_the_screen(page, width):
    look(page, width=width, scheme="light")
    charts = page.execute_script(CHARTS)
    assert charts
    for chart in charts:
        assert chart["shown"] == 1, chart
        assert chart["overflow"] <= 0, chart
        assert chart["outside"] == 0, chart
        assert chart["smallest"] > 6, chart


def test_the_page_prints(page):
    assert pdf_of(page).startswith(b"%PDF")
