"""One headless Chromium for the tests of all pages."""

import pytest
from browsing import open_browser


@pytest.fixture(scope="session")
def browser(tmp_path_factory):
    with open_browser(tmp_path_factory.mktemp("profile")) as chrome:
        yield chrome
