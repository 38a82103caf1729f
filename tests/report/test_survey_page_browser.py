"""The page of a survey as headless Chromium shows it: no error, no request, readable on light and dark, printable."""

import json

import pytest
from browsing import CHARTS, CONTRASTS, look, pdf_of, picture_of
from selenium.webdriver.common.by import By

from evenslice.auditing.documents import Survey
from evenslice.results.intervals import Interval
from evenslice.results.surveys import SurveyedNetwork, SurveyRun

pytestmark = pytest.mark.browser


def network(spec, bias, energy=(0.2, 0.7, 0.1), shares=(0.3, 0.5, 0.2)):
    known = Interval(bias, bias - 0.02, bias + 0.02)
    return SurveyedNetwork(
        spec=spec,
        weights="imagenet",
        origin="a-package 0.1.0",
        random=("decoder", "segmentation_head"),
        stems=("encoder.model.conv_stem",),
        energy=energy,
        chromatic=0.49,
        verdict="biased" if abs(bias) > 0.05 else "symmetric",
        shares=tuple(Interval(share, share, share) for share in shares),
        pairs=(known,) * (len(shares) // 2),
        directional_bias=known,
        mirror_error=Interval(0.7, 0.6, 0.8),
        windows=32,
    )


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    networks = (
        network("smp:Unet/tu-tf_efficientnet_lite0", -0.21),
        network("timm:mobilenetv1_100?pad_type=same&bn_eps=1e-3", 0.08, energy=(0.4, 0.35, 0.25)),
        network("package.module:five_slices", 0.0, energy=(0.2,) * 5, shares=(0.2,) * 5),
        SurveyedNetwork("timm:nix", "imagenet", error="timm has no network 'nix'"),
    )
    run = SurveyRun(windows=32, command="evenslice survey timm:nix")
    return Survey(networks, run).to_html(tmp_path_factory.mktemp("report") / "report.html")


@pytest.fixture
def page(browser, report):
    """The page as just opened, 1400 pixels wide, on light ground."""
    look(browser, width=1400, scheme="light")
    for kind in ("browser", "performance"):
        browser.get_log(kind)  # forget what earlier tests did
    browser.get(report.as_uri())
    return browser


def test_opening_the_page_logs_no_error_and_asks_for_nothing(page, report):
    assert page.get_log("browser") == []
    messages = [json.loads(entry["message"])["message"] for entry in page.get_log("performance")]
    urls = {m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"}
    assert report.as_uri() in urls
    assert [url for url in urls if url != report.as_uri() and not url.startswith("data:")] == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1400, 400])
def test_the_page_is_readable(page, scheme, width):
    look(page, width=width, scheme=scheme)
    assert page.execute_script("return document.documentElement.scrollWidth") <= width
    contrasts = page.execute_script(CONTRASTS)
    assert len(contrasts) > 60
    assert [contrast for contrast in contrasts if contrast[0] < 4.5] == []
    picture = picture_of(page.get_screenshot_as_png())
    assert (picture.mean() > 128) == (scheme == "light")
    assert picture.std() > 10


def test_the_strips_are_as_wide_as_the_energies(page):
    strip = page.find_element(By.CSS_SELECTOR, "#networks .strip")
    widths = [part.size["width"] for part in strip.find_elements(By.TAG_NAME, "span")]
    assert [width / sum(widths) for width in widths] == pytest.approx([0.2, 0.7, 0.1], abs=0.02)


def test_figures_take_the_colours_of_dark_ground(page):
    bar = page.find_element(By.CSS_SELECTOR, "#balance path[style*='--audit-1']")
    light = bar.value_of_css_property("fill")
    look(page, width=1400, scheme="dark")
    assert bar.value_of_css_property("fill") != light


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
