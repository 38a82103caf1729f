"""The house is as CONTRIBUTING and src/README say: packages, what they export, who imports whom."""

import ast
import importlib
import re
from collections import defaultdict
from pathlib import Path

import pytest
from scripts import script

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "evenslice"
ROOMS = sorted(path.parent.name for path in SOURCE.glob("*/__init__.py"))


def module_name(path):
    parts = path.relative_to(SOURCE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in SOURCE.rglob("*.py")}


def exports(room):
    """Return the module that each exported name of a package comes from, as its stub says."""
    tree = ast.parse((SOURCE / room / "__init__.pyi").read_text())
    return {
        alias.name: f"evenslice.{room}.{node.module}"
        for node in tree.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }


EXPORTS = {room: exports(room) for room in ROOMS}


def imported(path):
    """Yield (module, name) for everything that a module imports from evenslice, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("evenslice"):
            for alias in node.names:
                yield node.module, alias.name
        elif isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names if alias.name.startswith("evenslice."))


def room_of(module):
    return [*module.split("."), ""][1]


def test_the_folder_lists_the_twelve_packages_and_nothing_else_but_what_python_wants_there():
    entries = {path.name for path in SOURCE.iterdir()} - {"__pycache__"}
    assert entries - set(ROOMS) == {"__init__.py", "__init__.pyi", "__main__.py", "py.typed"}
    assert len(ROOMS) == 12


@pytest.mark.slow
@pytest.mark.parametrize("room", ROOMS)
def test_every_export_exists_and_no_module_hides_it(room):
    package = importlib.import_module(f"evenslice.{room}")
    modules = {path.stem for path in (SOURCE / room).iterdir()}
    for name, module in EXPORTS[room].items():
        assert getattr(package, name) is getattr(importlib.import_module(module), name)
        assert name not in modules


@pytest.mark.parametrize("room", ROOMS)
def test_packages_export_nothing_that_nobody_uses(room):
    users = [
        *(path for path in SOURCE.rglob("*.py") if room_of(module_name(path)) != room),
        *(ROOT / "docs").rglob("*.md"),
        ROOT / "README.md",
        SOURCE / "__init__.pyi",
        *(SOURCE / room).rglob("*.py"),  # in the examples of docstrings
        *(SOURCE / room).glob("napari.yaml"),
    ]
    text = "\n".join(path.read_text() for path in users)
    text = re.sub(r"python_name: (evenslice\.\w+):(\w+)", r"from \1 import \2", text)
    found = re.findall(rf"from (?:evenslice)?\.{room} import (\([^)]*\)|[^\n]*)", text)
    used = set(re.findall(r"\w+", " ".join(found)))
    assert set(EXPORTS[room]) - used == set()


@pytest.mark.slow
def test_other_packages_are_imported_through_their_front_door():
    wrong = [
        f"{module}: from {source} import {name}"
        for module, path in MODULES.items()
        for source, name in imported(path)
        if room_of(source) != room_of(module) and source.count(".") > 1
    ]
    assert wrong == []


@pytest.mark.slow
def test_no_module_enters_its_own_package_through_the_front_door():
    wrong = [
        f"{module}: from {source} import {name}"
        for module, path in MODULES.items()
        for source, name in imported(path)
        if source == f"evenslice.{room_of(module)}" and f"{source}.{name}" not in MODULES
    ]
    assert wrong == []


@pytest.mark.slow
def test_no_circle_of_files():
    graph = defaultdict(set)
    for module, path in MODULES.items():
        for source, name in imported(path):
            room = room_of(source)
            target = EXPORTS[room].get(name, source) if source == f"evenslice.{room}" else source
            target = f"{source}.{name}" if f"{source}.{name}" in MODULES else target
            if target in MODULES and target != module:
                graph[module].add(target)
    done, path = set(), []

    def visit(module):
        assert module not in path, f"circle: {' -> '.join([*path[path.index(module) :], module])}"
        if module in done:
            return
        path.append(module)
        for target in sorted(graph[module]):
            visit(target)
        path.pop()
        done.add(module)

    for module in sorted(MODULES):
        visit(module)


@pytest.mark.slow
def test_every_module_says_what_it_holds_and_one_page_lists_it():
    with script("write_modules") as module:
        text = module.PAGE.read_text()
        assert module.page(text) == text, "run make modules"
        assert "|  |" not in module.table()
