"""The house is as CONTRIBUTING and src/README say: packages, what they export, who imports whom."""

import graphlib
import importlib
import re
from pathlib import Path

import fill_pages
import pytest
import size

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "evenslice"

pytestmark = pytest.mark.slow
ROOMS = size.ROOMS


def room_of(module):
    return [*module.split("."), ""][1]


def test_the_folder_lists_the_twelve_packages_and_nothing_else_but_what_python_wants_there():
    entries = {path.name for path in SOURCE.iterdir()} - {"__pycache__"}
    assert entries - set(ROOMS) == {"__init__.py", "__init__.pyi", "__main__.py", "py.typed"}
    assert len(ROOMS) == 12


@pytest.mark.parametrize("room", ROOMS)
def test_every_export_exists_and_no_module_hides_it(room):
    package = importlib.import_module(f"evenslice.{room}")
    modules = {path.stem for path in (SOURCE / room).iterdir()}
    for name, module in size.exports(room).items():
        assert getattr(package, name) is getattr(importlib.import_module(module), name)
        assert name not in modules


@pytest.mark.parametrize("room", ROOMS)
def test_packages_export_nothing_that_nobody_uses(room):
    """Pages, examples in docstrings and other packages use them."""
    users = [*SOURCE.rglob("*.py"), *(ROOT / "docs").rglob("*.md"), ROOT / "README.md"]
    users += [SOURCE / "__init__.pyi", *(SOURCE / room).glob("napari.yaml")]
    text = "\n".join(path.read_text() for path in users)
    text = re.sub(r"python_name: (evenslice\.\w+):(\w+)", r"from \1 import \2", text)
    found = re.findall(rf"from (?:evenslice)?\.{room} import (\([^)]*\)|[^\n]*)", text)
    used = set(re.findall(r"\w+", " ".join(found)))
    assert set(size.exports(room)) - used == set()


def test_packages_are_imported_through_their_front_door_by_others_alone():
    wrong = [
        f"{module}: from {source} import {name}"
        for module, source, name in size.imports()
        if (source.count(".") > 1 if room_of(source) != room_of(module) else source.count(".") == 1)
        and f"{source}.{name}" not in size.modules()
        and room_of(source)
    ]
    assert wrong == []


def test_the_command_line_and_the_plugin_take_public_names_from_evenslice_itself_and_no_other_package_does():
    wrong = [
        f"{module}: from {source} import {name}"
        for module, source, name in size.imports()
        if name in size.exports() and room_of(source) != room_of(module)
        if (source == "evenslice") != (room_of(module) in {"cli", "napari_plugin"})
    ]
    assert wrong == []


def test_no_circle_of_files():
    graphlib.TopologicalSorter(size.import_graph()).prepare()


def test_every_module_says_what_it_holds():
    assert "|  |" not in fill_pages.module_tables()
