"""Everything public has a page, with an example that is run; and the pages are made from the code."""

import doctest
import importlib
import inspect
import re
import sys
from pathlib import Path

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


def shown():
    """Return what the code on the pages imports from the packages of evenslice: what readers will use."""
    found = set()
    for path in PAGES:
        for package, names in re.findall(
            r"^(?:>>> )?from evenslice\.(\w+) import (.+)$", path.read_text(), re.MULTILINE
        ):
            found |= {f"evenslice.{package}.{name.strip()}" for name in names.split(",")}
    return found


def test_every_public_name_has_a_page_and_no_other_name_has():
    assert documented() == {f"evenslice.{name}" for name in evenslice.__all__} | shown()


@pytest.mark.parametrize("name", sorted(documented()))
def test_every_public_name_has_an_example(name):
    module, _, attribute = name.rpartition(".")
    docstring = inspect.getdoc(getattr(importlib.import_module(module), attribute))
    assert docstring
    assert ">>> " in docstring  # the examples themselves are run by sybil, see conftest.py


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
    assert any(line.startswith("| `--volume") for line in lines)
    assert lines.index("**Network**") < lines.index("**Output**")
    found = {option for line in lines for option in re.findall(r"^\| `.*?(--[a-z-]+)", line)}
    parameters = reference.commands()["audit"].params
    expected = {option for parameter in parameters for option in parameter.opts if option.startswith("--")}
    assert found == expected | {"--help"}


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
    for section in ("training", "datasets", "arms", "audit", "primary"):
        assert text.count(f"**`{section}`**") == 1
    assert "| `missing_slices` | `0.0` | Probability" in text
    assert text.count("| `warmup` |") == 1


def test_the_examples_of_the_directives_hold(reference):
    assert doctest.testmod(reference).failed == 0
    assert doctest.testmod(reference).attempted >= 2


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_between_files_lead_somewhere_on_github_too(path):
    text = re.sub(r"^```.*?^```", "", path.read_text(), flags=re.DOTALL | re.MULTILINE)
    for target in re.findall(r"\]\(([^)#\s]+)", text):
        if not re.match(r"[a-z]+:", target):
            assert (path.parent / target).exists(), target
