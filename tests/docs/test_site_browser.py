"""The documentation site as headless Chromium shows it: navigation, search, narrow windows, light and dark."""

import re

import pytest
from browsing import look, picture_of
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

pytestmark = [pytest.mark.browser, pytest.mark.timeout(1500)]  # the first of them builds the site


@pytest.fixture
def opened(browser, site):
    """Opens a page by its name."""

    def open_page(name, width=1280, scheme="light"):
        look(browser, width=width, scheme=scheme)
        browser.get_log("browser")
        browser.get(f"{(site / name).as_uri()}.html")
        WebDriverWait(browser, 20).until(
            lambda browser: browser.execute_script("return document.documentElement.dataset.theme") == scheme
        )
        return browser

    return open_page


def heading(browser):
    return browser.find_element(By.TAG_NAME, "h1").text.rstrip("#\N{LINK SYMBOL}")


def test_one_finds_the_way_from_the_front_page_to_a_tutorial(opened):
    browser = opened("index")
    assert [entry for entry in browser.get_log("browser") if entry["level"] != "INFO"] == []
    assert heading(browser) == "evenslice"
    browser.find_element(By.CSS_SELECTOR, ".bd-header").find_element(By.LINK_TEXT, "Tutorials").click()
    assert heading(browser) == "Tutorials"
    sidebar = browser.find_element(By.CSS_SELECTOR, ".bd-sidebar-primary")
    sidebar.find_element(By.PARTIAL_LINK_TEXT, "Your own PyTorch loop").click()
    assert heading(browser) == "Your own PyTorch loop"
    assert browser.find_elements(By.CSS_SELECTOR, ".cell_output img")


def test_the_search_finds_a_function_and_a_question(opened):
    for query, wanted in (("neutralize", "evenslice.neutralize"), ("nnunet adjacent", "nnunet")):
        browser = opened("search")
        browser.get(f"{browser.current_url}?q={query.replace(' ', '+')}")
        WebDriverWait(browser, 20).until(
            lambda browser: browser.find_elements(By.CSS_SELECTOR, "#search-results li a")
        )
        links = [
            link.get_attribute("href")
            for link in browser.find_elements(By.CSS_SELECTOR, "#search-results li a")
        ]
        assert any(wanted in link for link in links), links


def test_every_page_fits_a_narrow_window(opened, site):
    wide = {}
    names = sorted(str(path.relative_to(site).with_suffix("")) for path in site.rglob("*.html"))
    alike = re.compile(
        r"_|genindex|reference/api/evenslice\.(?!audit|Audit|neutralize)|reference/commands/(?!audit)"
    )
    names = [name for name in names if not alike.match(name)]
    assert len(names) > 40
    for name in names:
        browser = opened(name, width=420)
        width = browser.execute_script("return document.documentElement.scrollWidth")
        if width > 420:
            wide[name] = width
    assert wide == {}


def test_a_narrow_window_has_the_navigation_behind_a_button(opened):
    browser = opened("tutorials/own-loop", width=420)
    assert not browser.find_element(By.CSS_SELECTOR, ".bd-sidebar-primary a").is_displayed()
    browser.find_element(By.CSS_SELECTOR, ".primary-toggle").click()
    WebDriverWait(browser, 10).until(
        lambda browser: browser.find_element(By.PARTIAL_LINK_TEXT, "How-to guides").is_displayed()
    )


@pytest.mark.parametrize("name", ["index", "tutorials/audit-and-repair", "reference/api/evenslice.audit"])
def test_pages_take_the_colours_of_dark_ground(opened, name):
    pictures = {
        scheme: picture_of(opened(name, scheme=scheme).get_screenshot_as_png())
        for scheme in ("light", "dark")
    }
    assert pictures["light"].mean() > 128 > pictures["dark"].mean()
    assert pictures["dark"].std() > 10
