"""The tables of modules in src/README.md, from the first line of their docstrings.

python studies/write_modules.py
"""

from __future__ import annotations

import ast
import tomllib
from pathlib import Path

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
    lines = []
    for folder in (SOURCE / room for room in rooms()):
        lines += [f"**`{folder.name}/`** {_summary(folder / '__init__.py')}\n"]
        lines += ["| module | what it holds |", "| --- | --- |"]
        for path in sorted(folder.rglob("*.py"), key=lambda path: (len(path.parts), path)):
            if path.name != "__init__.py":
                lines.append(f"| `{path.relative_to(folder).as_posix()}` | {_summary(path)} |")
        lines.append("")
    return "\n".join(lines)


def _summary(path: Path) -> str:
    """Return the first sentence or paragraph of a module's docstring, whichever is shorter, in one line."""
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return " ".join(text.partition("\n\n")[0].split()).replace("|", "\\|")


def page(text: str) -> str:
    """Return a page with its tables renewed."""
    before, _, rest = text.partition(BEGIN)
    return f"{before}{BEGIN}\n{table()}\n{END}{rest.partition(END)[2]}"


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
