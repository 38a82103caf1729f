"""What ``studies/candidates.py`` found: one row a training in studies/candidates.csv, and the table of docs/results.md."""

from __future__ import annotations

import csv
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

from paging import table

from evenslice.report.formatting import difference, percent
from evenslice.results.intervals import student_interval

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["BASELINE", "ROWS", "Row", "append_row", "candidate_table", "read_rows"]

ROWS = Path(__file__).parent / "candidates.csv"
BASELINE = "pretrained"
LOST = {
    "before": "Dice, slice before missing",
    "after": "Dice, slice after missing",
    "both": "Dice, both missing",
}


@dataclass(frozen=True)
class Row:
    """What one training gave.

    Attributes:
        arm: name of the arm.
        seed: random seed of network and crops.
        dice: Dice of the foreground over all tested slices.
        changed: the pixels whose class changes if the window is reversed, over those that are foreground in either answer.
        before: Dice with the middle slice in place of the slice before.
        after: the same for the slice after.
        both: the same for both neighbours.
        seconds: of training, with that of a teacher.
    """

    arm: str
    seed: int
    dice: float
    changed: float
    before: float
    after: float
    both: float
    seconds: float


def read_rows(path: Path = ROWS) -> list[Row]:
    """Return the rows found so far."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as lines:
        return [
            Row(
                arm=line.pop("arm"),
                seed=int(line.pop("seed")),
                **{name: float(value) for name, value in line.items()},
            )
            for line in csv.DictReader(lines)
        ]


def append_row(row: Row, path: Path = ROWS) -> None:
    """Write one more row."""
    new = not path.exists()
    with path.open("a", newline="", encoding="utf-8") as lines:
        writer = csv.DictWriter(lines, [field.name for field in fields(Row)], lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerow(
            {
                name: f"{value:.4f}" if isinstance(value, float) else value
                for name, value in asdict(row).items()
            }
        )


def candidate_table(rows: Sequence[Row]) -> str:
    """Return the mean of each arm over the seeds that all arms have, one arm a row, and its difference from the baseline.

    Empty with fewer than two such seeds.
    """
    arms, found = dict.fromkeys(row.arm for row in rows), {(row.arm, row.seed): row for row in rows}
    seeds = [seed for seed in sorted({row.seed for row in rows}) if all((arm, seed) in found for arm in arms)]
    if len(seeds) < 2:
        return ""
    header = ("arm", "Dice", f"Dice minus {BASELINE}", "classes changed by reversing", *LOST.values())
    baseline = [found[BASELINE, seed] for seed in seeds]
    return table(header, ([arm, *_cells([found[arm, seed] for seed in seeds], baseline)] for arm in arms))


def _cells(rows: Sequence[Row], baseline: Sequence[Row]) -> list[str]:
    gained = student_interval([row.dice - other.dice for row, other in zip(rows, baseline, strict=True)])
    means = {name: fmean(getattr(row, name) for row in rows) for name in ("dice", "changed", *LOST)}
    return [
        f"{means.pop('dice'):.3f}",
        "" if rows == baseline else difference(gained),
        percent(means.pop("changed")),
        *(f"{mean:.3f}" for mean in means.values()),
    ]
