"""The pages as headless Chromium shows them: no error, no request, readable on light and dark, at any width, and in print."""

import json

import numpy as np
import pytest
from browsing import CHARTS, CONTRASTS, look, pdf_of, picture_of
from commands import call
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from surveyed import make_survey
from synthetic import CYCLIC, PRETRAINED, UNIFORM, make_audit, save_audits
from synthetic_study import make_study

pytestmark = pytest.mark.browser

FAILED = {
    "dataset": "ISBI 2012",
    "architecture": "VGG16 U-Net",
    "arm": "random",
    "seed": 7,
    "error": "no luck",
}
KINDS = ("audit", "study", "survey")


@pytest.fixture(scope="module")
def reports(tmp_path_factory):
    """The page of each kind."""
    shares = {"pretrained": PRETRAINED, "uniform": UNIFORM, "cyclic": CYCLIC}
    audits = [make_audit(name, values, examples=3) for name, values in shares.items()]
    comparisons = [("Lucchi++", "EfficientNet-Lite0 U-Net"), ("ISBI 2012", "VGG16 U-Net")]
    audited, studied, surveyed = (tmp_path_factory.mktemp(kind) for kind in KINDS)
    save_audits(audits, audited)
    make_study(studied, comparisons=comparisons, seeds=(0, 1), failed=[FAILED])
    make_survey().to_html(surveyed / "report.html")
    assert call("report", audited) == call("report", studied) == 0
    return {
        kind: folder / "report.html" for kind, folder in zip(KINDS, (audited, studied, surveyed), strict=True)
    }


@pytest.fixture
def opened(browser, reports):
    """Open the page of a kind as it is at first, on light ground."""

    def opened(kind, width=1300, scheme="light"):
        look(browser, width=width, scheme=scheme)
        for log in ("browser", "performance"):
            browser.get_log(log)  # forget what earlier tests did
        browser.get(reports[kind].as_uri())
        return browser

    return opened


@pytest.mark.parametrize("kind", KINDS)
def test_opening_a_page_logs_no_error_and_asks_for_nothing(opened, reports, kind):
    page = opened(kind)
    assert page.get_log("browser") == []
    messages = [json.loads(entry["message"])["message"] for entry in page.get_log("performance")]
    urls = {m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"}
    assert {url for url in urls if not url.startswith("data:")} == {reports[kind].as_uri()}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("scheme", "width"), [("light", 420), ("dark", 1300)])
def test_a_page_is_readable(opened, kind, scheme, width):
    page = opened(kind, width, scheme)
    assert page.execute_script("return document.documentElement.scrollWidth") <= width
    contrasts = page.execute_script(CONTRASTS)
    assert len(contrasts) > 30
    assert [contrast for contrast in contrasts if contrast[0] < 4.5] == []
    picture = picture_of(page.get_screenshot_as_png())
    assert (picture.mean() > 128) == (scheme == "light")
    assert picture.std() > 10


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("width", [420, 1300])
def test_every_chart_fits_the_screen(opened, kind, width):
    charts = opened(kind, width).execute_script(CHARTS)
    assert charts
    for chart in charts:
        assert (chart["shown"], chart["outside"]) == (1, 0), chart
        assert chart["overflow"] <= 0, chart
        assert chart["smallest"] > 6, chart


@pytest.mark.parametrize("kind", KINDS)
def test_a_page_prints(opened, kind):
    assert pdf_of(opened(kind)).startswith(b"%PDF")


def test_examples_are_stepped_through(opened):
    page = opened("audit")

    def shown():
        (example,) = [one for one in page.find_elements(By.CLASS_NAME, "example") if one.is_displayed()]
        return page.find_element(By.ID, "shown").text, example.find_element(By.TAG_NAME, "h3").text

    previous, following, slider = (page.find_element(By.ID, name) for name in ("previous", "next", "slider"))
    assert shown() == ("1 of 3", "volume 1, z = 8, y = 0, x = 0")
    assert not previous.is_enabled()
    slider.send_keys(Keys.ARROW_RIGHT)
    assert shown() == ("2 of 3", "volume 1, z = 28, y = 0, x = 32")
    following.click()
    assert (shown()[0], following.is_enabled()) == ("3 of 3", False)
    previous.click()
    assert shown()[0] == "2 of 3"
    page.find_element(By.ID, "opacity").send_keys(Keys.HOME)
    layer = page.find_element(By.CSS_SELECTOR, ".example:not([hidden]) .saliency")
    assert layer.value_of_css_property("opacity") == "0"


@pytest.mark.parametrize(("kind", "place"), [("audit", ".slice svg"), ("study", ".outlined svg")])
def test_the_pictures_are_drawn(opened, kind, place):
    """A slice and its layer have colours in between; an image that failed to load would leave one flat colour."""
    page = opened(kind)
    element = page.find_element(By.CSS_SELECTOR, place)
    page.execute_script("arguments[0].scrollIntoView({block: 'center'})", element)
    picture = picture_of(element.screenshot_as_png)
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 200
    red, blue = picture[..., 0], picture[..., 2]
    assert (red > blue + 40).mean() > 0.001  # what adds, or a prediction
    assert (blue > red + 40).mean() > 0.001  # and what takes away, or a label


@pytest.mark.parametrize(("width", "rows"), [(420, 2), (1300, 1)])
def test_the_four_answers_stand_side_by_side(opened, tmp_path, width, rows):
    page = opened("audit", width)
    page.get(make_audit("alone", PRETRAINED, examples=1).to_html(tmp_path / "one.html").as_uri())
    answers = page.find_elements(By.CSS_SELECTOR, ".questions li")
    names = [item.find_element(By.TAG_NAME, "h3").text for item in answers]
    assert names == ["saliency", "reliance", "answer", "use"]
    assert len({item.rect["y"] for item in answers}) == rows
