"""The documentation site as headless Chromium shows it: navigation, narrow windows."""

import pytest
from browsing import look
from selenium.webdriver.common.by import By

pytestmark = [
    pytest.mark.site,
    pytest.mark.browser,
    pytest.mark.timeout(1500),
]  # the first of them builds the site


@pytest.fixture
def opened(browser, site):
    """Opens a page by its name."""

    def open_page(name, width=1280):
        look(browser, width=width, scheme="light")
        browser.get_log("browser")
        browser.get(f"{(site / name).as_uri()}.html")
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
    sidebar.find_element(By.PARTIAL_LINK_TEXT, "Your own training loop").click()
    assert heading(browser) == "Your own training loop"
    assert browser.find_elements(By.CSS_SELECTOR, ".cell_output img")


@pytest.mark.parametrize(
    "name",
    [
        "index",
        "tutorials/audit-and-repair",
        "reference/api/evenslice.audit",
        "results",
        "volumes",
        "changelog",
    ],
)
def test_a_page_fits_a_narrow_window(opened, name):
    assert opened(name, width=420).execute_script("return document.documentElement.scrollWidth") <= 420
