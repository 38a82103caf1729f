"""Runs every example in docstrings, in the README and in the docs."""

from doctest import ELLIPSIS, NORMALIZE_WHITESPACE

from sybil import Sybil
from sybil.document import PythonDocStringDocument
from sybil.parsers.doctest import DocTestParser
from sybil.parsers.markdown import PythonCodeBlockParser, SkipParser

docstrings = Sybil(
    parsers=[DocTestParser(optionflags=ELLIPSIS | NORMALIZE_WHITESPACE)],
    document_types={".py": PythonDocStringDocument},
    patterns=[
        "src/*/*.py",
        "src/*/*/*.py",
        "src/*/*/*/*.py",
    ],  # "**" stands for one folder before Python 3.13
)
pages = Sybil(
    parsers=[PythonCodeBlockParser(), SkipParser()],
    # docs/tutorials are executed when the site is built, which tests/docs does.
    patterns=[
        "README.md",
        *("docs/*.md", "docs/explanation/*.md", "docs/how-to/*.md", "docs/reference/*.md"),
    ],
)

pytest_collect_file = (docstrings + pages).pytest()
