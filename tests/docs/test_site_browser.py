"""The documentation site as headless Chromium shows it: navigation, search, narrow windows, light and dark."""

import pytest
from browsing import look, picture_of
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

pytestmark = [
    pytest.mark.site,
    pytest.mark.browser,
    pytest.mark.timeout(1500),
]  # the first of them builds the site


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


@pytest.mark.parametrize(
    ("query", "wanted"), [("neutralize", "evenslice.neutralize"), ("nnunet adjacent", "nnunet")]
)
def test_the_search_finds_a_function_and_a_question(opened, query, wanted):
    browser = opened("search")
    browser.get(f"{browser.current_url}?q={query.replace(' ', '+')}")
    WebDriverWait(browser, 20).until(
        lambda browser: browser.find_elements(By.CSS_SELECTOR, f"#search-results li a[href*='{wanted}']")
    )


PAGES = ["index", "tutorials/audit-and-repair", "reference/api/evenslice.audit", "reference/commands/audit"]


@pytest.mark.parametrize("name", [*PAGES, "results", "statistics", "volumes", "coverage", "changelog"])
def test_a_page_fits_a_narrow_window(opened, name):
    assert opened(name, width=420).execute_script("return document.documentElement.scrollWidth") <= 420


@pytest.mark.parametrize("name", PAGES[:3])
def test_pages_take_the_colours_of_dark_ground(opened, name):
    pictures = {
        scheme: picture_of(opened(name, scheme=scheme).get_screenshot_as_png())
        for scheme in ("light", "dark")
    }
    assert pictures["light"].mean() > 128 > pictures["dark"].mean()
    assert pictures["dark"].std() > 10
