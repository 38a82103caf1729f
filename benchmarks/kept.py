"""What long benchmarks keep as they go, and the tables that they write: into pages, and to CSV files."""

from __future__ import annotations

import csv
import json
import time
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evenslice._core.staging import staged_file

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence


RESULTS = Path(__file__).parent / "results"


class Cache:
    """What is measured, saved to a file as it is found if one is given, so that a later run goes on there."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.known: dict[str, dict[str, Any]] = {}
        if path is not None and path.exists():
            self.known = json.loads(path.read_text(encoding="utf-8"))

    def get(self, key: str, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Return what is known, or measure it."""
        if key not in self.known:
            started = time.monotonic()
            self.known[key] = measure()
            if self.path is not None:
                print(f"{key}: {time.monotonic() - started:.0f} s", flush=True)
                with staged_file(self.path, force=True) as beside:
                    beside.write_text(json.dumps(self.known, indent=1), encoding="utf-8")
        return self.known[key]


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table in Markdown."""
    rule = ["---"] * len(header)
    return "\n".join("| " + " | ".join(cells) + " |" for cells in chain([header, rule], rows))


def insert_tables(page: Path, tables: dict[str, str]) -> None:
    """Insert tables into a page, each between its two markers, ``<!-- name -->`` and ``<!-- end of name -->``.

    Raises:
        SystemExit: the page lacks the markers of one.
    """
    text = page.read_text(encoding="utf-8")
    for name, new in tables.items():
        start, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
        if start not in text or end not in text:
            raise SystemExit(
                f"{page}: has no place for the results of {name}; add the markers {start} and {end}"
            )
        before, rest = text.split(start)
        text = f"{before}{start}\n{new}\n{end}{rest.split(end)[1]}"
    with staged_file(page, force=True) as beside:
        beside.write_text(text, encoding="utf-8")


def write_csvs(prefix: str, tables: dict[str, str], folder: Path = RESULTS) -> None:
    """Write each table in Markdown to a CSV file, ``PREFIX-NAME.csv``."""
    for name, text in tables.items():
        header, _, *rows = text.splitlines()
        with (folder / f"{prefix}-{name.replace(' ', '-')}.csv").open(
            "w", newline="", encoding="utf-8"
        ) as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerows(
                [cell.strip() for cell in line.strip("|").split("|")] for line in (header, *rows)
            )
