"""Runs every example in docstrings, in the README and in the docs."""

import signal
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


def _take_signals_back(_namespace: object = None) -> None:
    """Undo what importing dask_jobqueue does: it takes Ctrl-C over for the whole process."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


_take_signals_back()  # a shell lets what it starts in the background ignore Ctrl-C, which some tests send

pages = Sybil(
    teardown=_take_signals_back,
    parsers=[PythonCodeBlockParser(), SkipParser()],
    # docs/tutorials are executed when the site is built, which tests/docs does.
    patterns=[
        "README.md",
        *("docs/*.md", "docs/explanation/*.md", "docs/how-to/*.md", "docs/reference/*.md"),
    ],
)

pytest_collect_file = (docstrings + pages).pytest()
