"""What the tests of pages share: a parser that judges, and a hostile text."""

import re
from html.parser import HTMLParser

HOSTILE = '"><script>alert(1)</script><img src=x onerror=alert(2)> $\\frac{1}{2$ =1+1 {{ 7*7 }} \x00\n面 %s'


class Page(HTMLParser):
    """Collects what a page could load, its identifiers and its text, and checks that tags are balanced."""

    VOID = frozenset({"meta", "link", "input"})

    def __init__(self, text):
        super().__init__()
        self.links: list[str] = []
        self.ids: list[str] = []
        self.references: list[str] = []
        self.text: list[str] = []
        self.tags: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.handle_startendtag(tag, attrs)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        for key, value in attrs:
            assert not key.startswith("on")
            if key in {"src", "href", "xlink:href", "action", "data", "poster"}:
                self.links.append(value)
            if key == "id":
                self.ids.append(value)
            self.references += re.findall(r"url\(#([^)]*)\)", value or "")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in {"script", "style"}:
            self.text.append(data)


def standing_alone(text):
    """Parse a page that loads nothing, and whose identifiers are unique and referred to as they are."""
    page = Page(text)
    assert page.links
    assert all(link.startswith(("data:", "#")) for link in page.links)
    assert "://" not in re.sub(r' xmlns(:xlink)?="[^"]*"', "", text)
    assert "default-src 'none'" in text
    assert len(set(page.ids)) == len(page.ids)
    inner = {link.removeprefix("#") for link in page.links if link.startswith("#")}
    assert inner | set(page.references) <= set(page.ids)
    return page


def plain(text):
    return text.replace("\N{MINUS SIGN}", "-").replace("\N{NO-BREAK SPACE}", " ")
