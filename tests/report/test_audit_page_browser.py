"""The report as headless Chromium shows it: no error, no request, a slider that works, readable on light and dark."""

import json

import numpy as np
import pytest
from browsing import CHARTS, CONTRASTS, look, pdf_of, picture_of
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from synthetic import CYCLIC, PRETRAINED, UNIFORM, make_audit

from evenslice.report.files import write_report

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    audits = [
        make_audit("pretrained", PRETRAINED, examples=3),
        make_audit("uniform", UNIFORM, examples=3),
        make_audit("cyclic", CYCLIC, examples=3),
    ]
    return write_report(audits, tmp_path_factory.mktemp("report") / "report.html")


@pytest.fixture
def page(browser, report):
    """The page as just opened, 1400 pixels wide, on light ground."""
    look(browser, width=1400, scheme="light")
    for kind in ("browser", "performance"):
        browser.get_log(kind)  # forget what earlier tests did
    browser.get(report.as_uri())
    return browser


def shown(page):
    """Return the title and the numbers of the one example that can be seen."""
    (example,) = [figure for figure in page.find_elements(By.CLASS_NAME, "example") if figure.is_displayed()]
    return example.find_element(By.TAG_NAME, "h3").text


def at(page):
    return page.find_element(By.ID, "shown").text


def test_opening_the_page_logs_no_error_and_asks_for_nothing(page, report):
    page.find_element(By.ID, "next").click()
    assert page.get_log("browser") == []
    messages = [json.loads(entry["message"])["message"] for entry in page.get_log("performance")]
    urls = {m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"}
    assert report.as_uri() in urls
    assert [url for url in urls if url != report.as_uri() and not url.startswith("data:")] == []
    entries = page.execute_script(
        "return performance.getEntriesByType('resource').map((entry) => entry.name)"
    )
    assert [url for url in entries if not url.startswith("data:")] == []


def test_the_slider_changes_the_example(page):
    assert (at(page), shown(page)) == ("1 of 3", "volume 1, z = 8, y = 0, x = 0")
    slider = page.find_element(By.ID, "slider")
    slider.send_keys(Keys.ARROW_RIGHT)
    assert (at(page), shown(page)) == ("2 of 3", "volume 1, z = 28, y = 0, x = 32")
    slider.send_keys(Keys.END)
    assert at(page) == "3 of 3"


def test_the_buttons_step_and_stop_at_the_ends(page):
    previous, following = (page.find_element(By.ID, name) for name in ("previous", "next"))
    assert not previous.is_enabled()
    following.click()
    following.click()
    assert (at(page), following.is_enabled()) == ("3 of 3", False)
    previous.click()
    assert at(page) == "2 of 3"


def test_the_saliency_fades_with_its_slider(page):
    page.find_element(By.ID, "opacity").send_keys(Keys.HOME)
    layer = page.find_element(By.CSS_SELECTOR, ".example:not([hidden]) .saliency")
    assert layer.value_of_css_property("opacity") == "0"


def test_the_pictures_are_drawn(page):
    """A slice and its map have colours in between; an image that failed to load would leave one flat colour."""
    page.execute_script("document.querySelector('.slice').scrollIntoView({block: 'center'})")
    picture = picture_of(page.find_element(By.CSS_SELECTOR, ".slice svg").screenshot_as_png)
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 500
    red, blue = picture[..., 0], picture[..., 2]
    assert (red > blue + 40).mean() > 0.01  # what adds
    assert (blue > red + 40).mean() > 0.01  # and what takes away


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1400, 400])
def test_the_page_is_readable(page, scheme, width):
    look(page, width=width, scheme=scheme)
    assert page.execute_script("return document.documentElement.scrollWidth") <= width
    contrasts = page.execute_script(CONTRASTS)
    assert len(contrasts) > 100
    assert [contrast for contrast in contrasts if contrast[0] < 4.5] == []
    picture = picture_of(page.get_screenshot_as_png())
    assert (picture.mean() > 128) == (scheme == "light")
    assert picture.std() > 10


@pytest.mark.parametrize("width", [420, 1200])
def test_every_plot_fits_the_screen(page, width):
    look(page, width=width, scheme="light")
    charts = page.execute_script(CHARTS)
    assert [chart["name"] for chart in charts] == ["shares", "biases", "kernels-1"]
    for chart in charts:
        assert chart["shown"] == 1, chart
        assert chart["overflow"] <= 0, chart
        assert chart["outside"] == 0, chart
        assert chart["smallest"] > 6, chart


@pytest.mark.parametrize(("width", "rows"), [(420, 2), (1300, 1)])
def test_the_four_answers_stand_side_by_side(page, tmp_path, width, rows):
    page.get(write_report([make_audit("alone", PRETRAINED, examples=1)], tmp_path / "one.html").as_uri())
    look(page, width=width, scheme="light")
    answers = page.find_elements(By.CSS_SELECTOR, ".questions li")
    names = [item.find_element(By.TAG_NAME, "h3").text for item in answers]
    assert names == ["saliency", "reliance", "answer", "use"]
    assert len({item.rect["y"] for item in answers}) == rows


def test_no_card_stands_alone_below_the_others(page, tmp_path):
    audits = [make_audit(f"audit {number}", PRETRAINED, examples=1) for number in range(5)]
    page.get(write_report(audits, tmp_path / "five.html").as_uri())
    places = [card.rect for card in page.find_elements(By.CLASS_NAME, "verdict")]
    rows = [
        [place["x"] for place in places if place["y"] == y] for y in sorted({place["y"] for place in places})
    ]
    assert [len(row) for row in rows] == [3, 2]
    assert rows[1] == rows[0][:2]


def test_figures_take_the_colours_of_dark_ground(page):
    bar = page.find_element(By.CSS_SELECTOR, "#shares path[style*='--audit-0']")
    light = bar.value_of_css_property("fill")
    look(page, width=1400, scheme="dark")
    assert bar.value_of_css_property("fill") != light


def test_the_page_prints(page):
    assert pdf_of(page).startswith(b"%PDF")


def test_without_scripts_every_example_shows(page, report):
    page.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        page.get(report.as_uri())
        examples = page.find_elements(By.CLASS_NAME, "example")
        assert [example.is_displayed() for example in examples] == [True, True, True]
        assert not page.find_element(By.CLASS_NAME, "controls").is_displayed()
    finally:
        page.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})
