"""Everything public has a page, with an example that is run; and the pages are made from the code."""

import doctest
import importlib
import inspect
import pydoc
import re
import sys
from pathlib import Path
from types import FunctionType

import pytest

import evenslice

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *(path for path in DOCS.rglob("*.md") if "_build" not in path.parts)]


def documented():
    """Return the names on the page of the Python API, with their module."""
    names, module = set(), ""
    for line in (DOCS / "reference" / "api.md").read_text().splitlines():
        if found := re.match(r"\.\. currentmodule:: (\S+)", line):
            module = found[1]
        elif found := re.match(r"   (\w+)$", line):
            names.add(f"{module}.{found[1]}")
    return names


@pytest.mark.slow
def test_every_public_name_has_a_page_with_an_example_and_so_has_what_pages_import():
    imports = re.compile(r"^(?:>>> )?from evenslice\.(\w+) import (.+)$", re.MULTILINE)
    shown = {
        f"evenslice.{package}.{name.strip()}"
        for path in PAGES
        for package, names in imports.findall(path.read_text())
        for name in names.split(",")
    }
    assert documented() == {f"evenslice.{name}" for name in evenslice.__all__} | shown
    for name in documented():  # the examples themselves are run by sybil, see conftest.py
        module, _, attribute = name.rpartition(".")
        assert ">>> " in (inspect.getdoc(getattr(importlib.import_module(module), attribute)) or ""), name


OFTEN = {"what": 0.8, "that of": 0.3, "those of": 0.3, "as it": 0.3, "of which": 0.3}
"""Phrases that stilted English repeats, and how often they may stand in a thousand words of a native editor."""


def prose(kind):
    """Return the text of all pages, of the docstrings of public names and their methods, or of the help texts."""
    if kind == "pages":
        code_or_address = re.compile(r"^ *```.*?^ *```|\]\([^)]*\)", re.DOTALL | re.MULTILINE)
        return " ".join(code_or_address.sub(" ", path.read_text()) for path in PAGES)
    if kind == "help":
        from typer.main import get_command

        from evenslice.cli.app import app

        commands = get_command(app).commands.values()
        return " ".join(item.help or "" for command in commands for item in (command, *command.params))
    values = [pydoc.locate(name) for name in sorted(documented())]
    values += [
        value
        for owner in values
        if inspect.isclass(owner)
        for name, value in vars(owner).items()
        if not name.startswith("_")
        and isinstance(value, FunctionType | property | classmethod | staticmethod)
    ]
    return " ".join(value.__doc__ or "" for value in values)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["pages", "docstrings", "help"])
def test_the_english_is_as_plain_as_a_native_editor_would_have_it(kind):
    words = prose(kind).split()
    text = " ".join(words)
    often = {
        phrase: 1000 * len(re.findall(rf"\b{phrase}\b", text, re.IGNORECASE)) / len(words) for phrase in OFTEN
    }
    assert {phrase: part for phrase, part in often.items() if part > OFTEN[phrase]} == {}


@pytest.fixture(scope="module")
def reference():
    """The module of the directives."""
    pytest.importorskip("sphinx", reason="no sphinx; install the group docs")
    sys.path.insert(0, str(DOCS / "_ext"))
    try:
        yield importlib.import_module("evenslice_reference")
    finally:
        sys.path.pop(0)


def test_every_command_has_a_page(reference):
    folder = DOCS / "reference" / "commands"
    assert {path.stem for path in folder.glob("*.md")} == set(reference.commands())
    listed = re.findall(
        r"^commands/(\w+)$", (DOCS / "reference" / "command-line.md").read_text(), re.MULTILINE
    )
    assert listed == list(reference.commands())  # in the order of --help
    for path in folder.glob("*.md"):
        assert f"```{{command}} {path.stem}\n" in path.read_text()


def test_the_page_of_a_command_has_its_options(reference):
    lines = reference.command_lines("audit")
    assert lines.index("**Network**") < lines.index("**Output**")
    found = {option for line in lines for option in re.findall(r"^\| `.*?(--[a-z-]+)", line)}
    options = {option for parameter in reference.commands()["audit"].params for option in parameter.opts}
    assert found == {option for option in options if option.startswith("--")} | {"--help"}


def test_the_options_of_the_program_itself_are_on_the_page_of_commands():
    from typer import Context
    from typer.main import get_command

    from evenslice.cli.app import app

    program = get_command(app)
    context = Context(program, **program.context_settings)
    records = [option.get_help_record(context) for option in program.get_params(context)]
    page = (DOCS / "reference" / "command-line.md").read_text()
    rows = re.findall(r"^\| `(-[^`]+)` \| (.+) \|$", page, re.MULTILINE)
    assert [names for names, _ in rows] == [names for names, _ in records]
    for (_, text), (_, expected) in zip(rows, records, strict=True):
        assert text.startswith(expected.rstrip("."))


def test_the_options_of_a_configuration_are_all_there_once(reference):
    text = "\n".join(reference.configuration_lines(evenslice.StudyConfig))
    for row in ("**`training`**", "**`arms`**", "| `missing_slices` | `0.0` | Probability", "| `warmup` |"):
        assert text.count(row) == 1
    assert doctest.testmod(reference).failed == 0 < doctest.testmod(reference).attempted


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_between_files_lead_somewhere_on_github_too(path):
    text = re.sub(r"^```.*?^```", "", path.read_text(), flags=re.DOTALL | re.MULTILINE)
    for target in re.findall(r"\]\(([^)#\s]+)", text):
        if not re.match(r"[a-z]+:", target):
            assert (path.parent / target).exists(), target


def test_the_page_on_security_is_short_and_names_tests_that_exist():
    text = (DOCS / "security.md").read_text()
    named = set(re.findall(r"`(\w+/test_\w+\.py)`", text))
    assert len(named) > 10
    assert [name for name in named if not (ROOT / "tests" / name).exists()] == []
    assert len(re.findall(r"\w+", re.sub(r"`[^`]*`", "", text))) <= 500
