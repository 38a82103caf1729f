"""What the scripts that write pages of the documentation share."""

from __future__ import annotations

import os
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2

from evenslice._core.errors import ConfigError
from evenslice._core.staging import staged_file
from evenslice.report import style

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from evenslice.report import Table
    from evenslice.report.style import Drawing

STUDIES = Path(__file__).parent
DOCS = STUDIES.parent / "docs"


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table in Markdown.

    Args:
        header: the title of each column.
        rows: one cell for each column.
    """
    lines = [list(header), ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def markdown(item: Table) -> str:
    """Return a table of a report in Markdown."""
    rows: list[list[str]] = []
    for group in item.groups:
        rows += [[f"**{group.title}**", *[""] * (len(item.columns) - 1)]] if group.title else []
        rows += [[row.label, *(cell.replace("\n", ", ") for cell in row.cells)] for row in group.rows]
    return table(item.columns, rows)


def versions(packages: Iterable[str]) -> str:
    """Name the versions of those packages that are installed, in one line."""
    found = []
    for package in packages:
        try:
            found.append(f"{package} {metadata.version(package)}")
        except metadata.PackageNotFoundError:
            continue
    return ", ".join(found)


def shared_folder(given: Path | None) -> Path | None:
    """Return the folder of data and weights that are not in the repository, or None where none is named.

    Args:
        given: what the user named; else the environment variable ``EVENSLICE_SHARED`` counts.

    Raises:
        ConfigError: it is no folder.
    """
    named = given or os.environ.get("EVENSLICE_SHARED")
    if not named:
        return None
    folder = Path(named)
    if not folder.is_dir():
        raise ConfigError(f"{folder}: no such folder; name the one that holds data and weights")
    return folder


def write_page(template: str, path: Path, **values: Any) -> None:
    """Fill a template of this folder and write the page, which replaces that of an earlier run."""
    environment = jinja2.Environment(  # noqa: S701  # it writes Markdown
        loader=jinja2.FileSystemLoader(STUDIES),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    text = environment.get_template(template).render(**values).rstrip("\n") + "\n"
    with staged_file(path, force=True) as beside:
        beside.write_text(text, encoding="utf-8")


def write_figure(drawing: Drawing, path: Path) -> None:
    """Write a figure as a small SVG; call it inside ``style.settings()``."""
    with staged_file(path, force=True) as beside:
        beside.write_text(style.svg_text(drawing.figure), encoding="utf-8")
