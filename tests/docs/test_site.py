"""The documentation site is built without a warning, its tutorials run, and every link inside it leads somewhere."""

import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

pytestmark = [
    pytest.mark.site,
    pytest.mark.slow,
    pytest.mark.timeout(1500),
]  # the first of them builds the site


class Links(HTMLParser):
    """Collects what a page links to and loads, and what can be linked to in it."""

    def __init__(self, path):
        super().__init__()
        self.links: list[str] = []
        self.ids: set[str] = set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, _tag, attrs):
        for key, value in attrs:
            if key == "id":
                self.ids.add(value)
            elif key in {"href", "src"} and value:
                self.links.append(value)


@pytest.fixture(scope="module")
def pages(site):
    return {path.resolve(): Links(path) for path in site.rglob("*.html") if "_static" not in path.parts}


def test_no_link_inside_the_site_is_broken(site, pages):
    broken, followed = [], 0
    for path, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            followed += 1
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if not target.is_file():
                broken.append(f"{path.name}: {link}: no such file")
            elif parts.fragment and target in pages and unquote(parts.fragment) not in pages[target].ids:
                broken.append(f"{path.name}: {link}: no such place")
    assert broken == []
    assert followed > 2000
    assert site.resolve() / "index.html" in pages


def test_pages_load_nothing_from_elsewhere(site):
    loaded = re.compile(
        r"<(?:script|img|iframe)[^>]*\ssrc=\"(https?:[^\"]*)|<link[^>]*rel=\"stylesheet\"[^>]*href=\"(https?:[^\"]*)"
    )
    found = {match for path in site.rglob("*.html") for match in loaded.findall(path.read_text())}
    assert found == set()


def test_tutorials_show_what_they_printed_and_no_page_names_a_folder_of_this_machine(site):
    folders = (str(Path(__file__).parents[2]), str(site.parent))
    for path in site.rglob("*.html"):
        text = path.read_text()
        assert not any(folder in text for folder in folders), path
        assert path.parent.name != "tutorials" or path.stem == "index" or "cell_output" in text, path
