"""Print the weight of the project beside its budget: code, modules, imports, exports, parameters, tests, words.

    python studies/size.py           prints the table
    python studies/size.py --hold    lets the tests hold the figures that fell

Counted as the budget counts: code is lines without docstrings, comments and blanks; run-time imports are those between
modules of the package, ``__init__`` and ``TYPE_CHECKING`` aside; an export is a name in a room's stub; a test's import is
private if it comes from anywhere but ``evenslice`` itself.
"""

from __future__ import annotations

import ast
import json
import re
import sys
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "evenslice"
HELD = ROOT / "tests" / "layout" / "size.json"
ROOMS = sorted(path.parent.name for path in PACKAGE.glob("*/__init__.py"))
BUDGET = {
    "code": 22000,
    "code of _core": 1200,
    "code of auditing": 1600,
    "code of cli": 1900,
    "code of inference": 2400,
    "code of napari_plugin": 450,
    "code of networks": 1500,
    "code of neutralizing": 2300,
    "code of report": 1900,
    "code of results": 1500,
    "code of studying": 1050,
    "code of training": 2400,
    "code of volumes": 3800,
    "modules": 150,
    "run-time imports": 800,
    "longest chain of imports": 18,
    "names between rooms": 180,
    "most parameters": 12,
    "most fields of a value": 12,
    "doors with **kwargs": 0,
    "lines of tests": 28000,
    "lines of benchmarks and studies": 4000,
    "private imports of tests, %": 30,
    "words of docs": 30000,
    "words of README": 500,
}
"""What the design allows; raises are counted, too, without a budget."""


@cache
def tree(path: Path) -> ast.Module:
    """Return the syntax tree of a file."""
    return ast.parse(path.read_text())


@cache
def modules() -> dict[str, Path]:
    """Return every module of the package by its name, packages aside."""
    return {
        ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts): path
        for path in sorted(PACKAGE.rglob("*.py"))
        if path.name != "__init__.py"
    }


def nodes(*kinds: type[ast.AST]) -> Iterator[tuple[str, Any]]:
    """Yield every node of some kinds in the package, with its module."""
    for module, path in modules().items():
        yield from ((module, node) for node in ast.walk(tree(path)) if isinstance(node, kinds))


def code_lines(path: Path) -> int:
    """Return the number of lines that hold code: no docstring, no comment, no blank."""
    docstrings = {
        line
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
        for line in range(node.lineno, (node.end_lineno or node.lineno) + 1)
    }
    lines = enumerate(path.read_text().splitlines(), start=1)
    return sum(line.strip()[:1] not in ("", "#") and number not in docstrings for number, line in lines)


@cache
def exports(room: str = "") -> dict[str, str]:
    """Return the module that each name in the stub of a room, or of the package, comes from."""
    stub = PACKAGE / room / "__init__.pyi"
    return {
        alias.asname or alias.name: ".".join(filter(None, ("evenslice", room, node.module)))
        for node in (tree(stub).body if stub.exists() else ())
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }


def imports(*, typing: bool = True) -> Iterator[tuple[str, str, str]]:
    """Yield each name that a module imports from the package, wherever in it: its module, from where, and the name."""
    skipped = {
        id(inner)
        for _, node in nodes(ast.If)
        if not typing and "TYPE_CHECKING" in ast.unparse(node.test)
        for inner in ast.walk(node)
    }
    for module, node in nodes(ast.ImportFrom):
        if id(node) not in skipped and (node.module or "").startswith("evenslice"):
            yield from ((module, node.module, alias.name) for alias in node.names)


def import_graph(*, typing: bool = True) -> dict[str, set[str]]:
    """Return which modules each module imports, through the doors of rooms."""
    known, found = modules(), dict[str, set[str]]()
    doors = {"evenslice": exports(), **{f"evenslice.{room}": exports(room) for room in ROOMS}}
    for module, source, name in imports(typing=typing):
        target = f"{source}.{name}"
        target = target if target in known else doors.get(source, {}).get(name, source)
        if target in known and target != module:
            found.setdefault(module, set()).add(target)
    return found


def longest_chain(graph: dict[str, set[str]]) -> int:
    """Return the number of modules on the longest path of imports."""

    @cache
    def depth(module: str) -> int:
        return 1 + max((depth(target) for target in graph.get(module, ())), default=0)

    return max(map(depth, graph))


def parameters(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Return the number of parameters that a function declares."""
    given = function.args
    names = [entry.arg for entry in (*given.posonlyargs, *given.args, *given.kwonlyargs)]
    return len([name for name in names if name not in ("self", "cls")])


def most_fields() -> int:
    """Return the largest number of fields of a value, files of configuration and of results aside."""
    return max(
        sum(isinstance(entry, ast.AnnAssign) for entry in node.body)
        for module, node in nodes(ast.ClassDef)
        if not re.search(r"config|document|results\.|outcome|run_files", module)
    )


def doors_with_kwargs() -> int:
    """Return how many functions that the package or a room exports, and methods of such classes, take any keyword.

    Hooks of a library, such as ``__pydantic_init_subclass__``, take what it gives them.
    """
    doors = {name for room in ("", *ROOMS) for name in exports(room)}
    tops = (node for path in modules().values() for node in tree(path).body)
    exported = (node for node in tops if getattr(node, "name", None) in doors)
    inner = (
        entry for node in exported for entry in (node.body if isinstance(node, ast.ClassDef) else [node])
    )
    return sum(
        isinstance(entry, ast.FunctionDef)
        and entry.args.kwarg is not None
        and not entry.name.startswith("__")
        for entry in inner
    )


def files(*folders: str) -> list[Path]:
    """Return the Python files of some folders."""
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def lines(*folders: str) -> int:
    """Return the number of lines of the Python files of some folders."""
    return sum(len(path.read_text().splitlines()) for path in files(*folders))


def private_imports() -> int:
    """Return the percentage of the names which tests import that are not imported from ``evenslice`` itself."""
    sources = []
    for node in (node for path in files("tests") for node in ast.walk(tree(path))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "evenslice":
            sources += [node.module] * len(node.names)
        elif isinstance(node, ast.Import):
            sources += [alias.name for alias in node.names if alias.name == "evenslice"]
    return round(100 * sum(source != "evenslice" for source in sources) / len(sources))


def words(*paths: Path) -> int:
    """Return the number of words in some files."""
    return sum(len(path.read_text().split()) for path in paths)


def measure() -> dict[str, int]:
    """Return every figure by its name."""
    code = {module: code_lines(path) for module, path in modules().items()}
    graph = import_graph(typing=False)
    pages = [path for path in (ROOT / "docs").rglob("*.md") if not {"_build", "api"} & {*path.parts}]
    return {
        "code": sum(code.values()),
        **{
            f"code of {room}": sum(count for module, count in code.items() if module.split(".")[1] == room)
            for room in ROOMS
        },
        "modules": len(code),
        "run-time imports": sum(map(len, graph.values())),
        "longest chain of imports": longest_chain(graph),
        "names between rooms": sum(len(exports(room)) for room in ROOMS),
        "most parameters": max(parameters(node) for _, node in nodes(ast.FunctionDef, ast.AsyncFunctionDef)),
        "most fields of a value": most_fields(),
        "doors with **kwargs": doors_with_kwargs(),
        "raises": len(list(nodes(ast.Raise))),
        "lines of tests": lines("tests"),
        "lines of benchmarks and studies": lines("benchmarks", "studies"),
        "private imports of tests, %": private_imports(),
        "words of docs": words(*pages),
        "words of README": words(ROOT / "README.md"),
    }


def main() -> None:
    """Print the table, or hold its figures."""
    found = measure()
    if "--hold" in sys.argv[1:]:
        known = json.loads(HELD.read_text()) if HELD.exists() else {}
        held = {name: min(value, known.get(name, value)) for name, value in found.items()}
        HELD.write_text(json.dumps(held, indent=1) + "\n")
    for name, value in found.items():
        print(f"{name:30} {value:7,} {BUDGET.get(name, ''):>7}")


if __name__ == "__main__":
    main()
