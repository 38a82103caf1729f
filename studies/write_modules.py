"""The tables of modules in src/README.md, from the first line of their docstrings.

python studies/write_modules.py
"""

from __future__ import annotations

import ast
import sys
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src" / "evenslice"
PAGE = ROOT / "src" / "README.md"
BEGIN, END = "<!-- modules: made by studies/write_modules.py -->\n", "<!-- end of modules -->\n"


def rooms() -> list[str]:
    """Return the packages from the highest to the lowest, as the contract in pyproject.toml lists them."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    (contract,) = project["tool"]["importlinter"]["contracts"]
    layers = [name.strip() for layer in contract["layers"] for name in layer.split("|")]
    return [name for name in layers if (SOURCE / name).is_dir()]


def table() -> str:
    """Return the tables of all packages in Markdown."""
    return "\n".join(line for room in rooms() for line in _room(SOURCE / room))


def _room(folder: Path) -> Iterator[str]:
    yield f"**`{folder.name}/`** {_summary(folder / '__init__.py')}\n"
    yield "| module | what it holds |"
    yield "| --- | --- |"
    for path in sorted(folder.rglob("*.py"), key=lambda path: (len(path.parts), path)):
        if path.name != "__init__.py":
            yield f"| `{path.relative_to(folder).as_posix()}` | {_summary(path)} |"
    yield ""


def _summary(path: Path) -> str:
    """Return the first sentence or paragraph of a module's docstring, whichever is shorter, in one line."""
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return " ".join(text.partition("\n\n")[0].split()).replace("|", "\\|")


def page(text: str) -> str:
    """Return a page with its tables renewed."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{table()}\n{END}{after}"


def main() -> int:
    """Renew the page."""
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    print(PAGE)
    return 0


if __name__ == "__main__":
    sys.exit(main())
