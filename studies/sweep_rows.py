"""The results of the sweep: one row a network, in a CSV for each way, which grows while the sweep runs."""

from __future__ import annotations

import csv
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

__all__ = ["RESULTS", "SLICES", "WAYS", "Result", "Row", "append", "read_rows", "write_rows"]

WAYS = ("uniform", "twin", "symmetrize")
"""What the sweep does with a network: neutralize it by "uniform" or by "twin", or symmetrize it at its output."""
RESULTS = {
    way: Path(__file__).parent / "sweep" / f"{'coverage' if way == 'uniform' else way}.csv" for way in WAYS
}
SLICES = (3, 5)


NUMBERS = ("mirror_error", "permutation_error", "gray_error", "seconds")


@dataclass(frozen=True)
class Result:
    """What came of one network with one number of slices.

    Attributes:
        outcome: "ok" where it was neutralized and holds its promise; "no place" where "twin" finds no activation to
            average behind; "failed" where not; empty where it was not tried.
        mirror_error: as the record states it.
        permutation_error: as the record states it.
        gray_error: as the record states it.
        seconds: of one CPU core that neutralizing took, with copying the network; the mixer included where it was
            tried.
        precision: of the numbers in which it held: "float32"; or "float64" where the network magnifies rounding too
            much, "float64, settled" where it did so even then until its batch norms had the statistics of what they
            meet.
        error: why it failed, in one line.
        mixer: "ok" or "failed" where the strategy "mixer" was tried after a failure; empty where not.
        mixer_error: why that failed.
        note: what was done in place of what was asked for.
    """

    outcome: str = ""
    mirror_error: float | None = None
    permutation_error: float | None = None
    gray_error: float | None = None
    seconds: float | None = None
    precision: str = ""
    error: str = ""
    mixer: str = ""
    mixer_error: str = ""
    note: str = ""


@dataclass(frozen=True)
class Row:
    """What came of one network.

    Attributes:
        library: whose it is.
        name: its name there.
        spec: what was built: the specification, with arguments that make the image or the network small.
        parameters: in millions; None where not even that could be found.
        pixels: size of the image along y; None where the network was not run.
        checked: "network", or "stem" where the network is too large to run here.
        unbuilt: why the library itself cannot build the network, or what it builds cannot be run, and nothing could be
            tried; empty where it can.
        results: by number of slices.
    """

    library: str
    name: str
    spec: str
    parameters: float | None = None
    pixels: int | None = None
    checked: str = "network"
    unbuilt: str = ""
    results: Mapping[int, Result] = field(default_factory=dict)

    def to_cells(self) -> dict[str, str]:
        """Return the row as the cells of the CSV."""
        values = {entry.name: getattr(self, entry.name) for entry in fields(self) if entry.name != "results"}
        for slices in SLICES:
            found = asdict(self.results.get(slices, Result()))
            values |= {f"{name}_{slices}": value for name, value in found.items()}
        return {name: _cell(value) for name, value in values.items()}

    @classmethod
    def from_cells(cls, cells: Mapping[str, str]) -> Row:
        """Return the row that cells of the CSV state."""
        results = {}
        for slices in SLICES:
            found = {entry.name: cells[f"{entry.name}_{slices}"] for entry in fields(Result)}
            numbers = {name: _number(found[name]) for name in NUMBERS}
            results[slices] = Result(**{**found, **numbers})  # type: ignore[arg-type]  # by name, as above
        pixels = _number(cells["pixels"])
        return cls(
            **{name: cells[name] for name in ("library", "name", "spec", "checked", "unbuilt")},
            parameters=_number(cells["parameters"]),
            pixels=None if pixels is None else int(pixels),
            results=results,
        )


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _number(cell: str) -> float | None:
    return float(cell) if cell else None


def read_rows(path: Path) -> list[Row]:
    """Read the rows that there are, none where there is no file; of a network that is there twice, the later."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        rows = [Row.from_cells(cells) for cells in csv.DictReader(file)]
    return list({(row.library, row.name): row for row in rows}.values())


def append(row: Row, path: Path) -> None:
    """Add one row to the file, which is made if there is none."""
    cells = row.to_cells()
    path.parent.mkdir(parents=True, exist_ok=True)
    new = not path.exists()
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, cells, lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerow(cells)


def write_rows(rows: Iterable[Row], path: Path) -> None:
    """Write the file anew, sorted."""
    beside = path.with_suffix(".new")
    beside.unlink(missing_ok=True)
    for row in sorted(rows, key=lambda row: (row.library, row.name.lower(), row.name)):
        append(row, beside)
    if beside.exists():
        beside.replace(path)
    else:
        path.unlink(missing_ok=True)
