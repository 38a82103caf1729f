"""The tables that ``evaluate`` prints for people."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from evenslice.cli.tables import new_table, rich_table
from evenslice.report import stress_table

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.table import Table

    from evenslice.inference import Evaluation

__all__ = ["evaluation_tables"]

SCORES = ("dice", "iou", "surface_dice", "surface_dice_3", "hd95")


def evaluation_tables(found: Evaluation) -> Iterator[Table]:
    """Yield a table of the scores by class, of objects, and of what disturbed slices cost, as far as they were measured."""
    from evenslice.inference import LARGEST_SURFACE

    if found.scores is not None:
        document = found.to_dict()
        table = _scores_table(document)
        if math.prod(found.volume.shape) > LARGEST_SURFACE:
            table.caption = (
                f"surfaces are compared in volumes of up to {LARGEST_SURFACE:,} voxels; give a --region"
            )
        yield table
        if not math.isnan(document["adapted_rand_error"]):
            yield _objects_table(document)
    if found.stress is not None:
        yield rich_table(stress_table(found.stress.summary()), breaks=False)


def _scores_table(document: dict[str, Any]) -> Table:
    """Return one row for each class, and one for the mean."""
    unit = document["volumes"][0]["unit"]
    distance = f"HD95\n({unit})" if unit else "HD95"
    table = new_table(
        "agreement with the labels", "class", "Dice", "IoU", "surface Dice\n1 voxel", "3 voxels", distance
    )
    for number in range(len(document["dice"]["per_class"])):
        cells = [document[name]["per_class"][number] for name in SCORES]
        table.add_row(str(number), *(_score(value) for value in cells))
    table.add_section()
    table.add_row("mean without 0", *(_score(document[name]["mean"]) for name in SCORES))
    return table


def _objects_table(document: dict[str, Any]) -> Table:
    """Return one row about the objects that boundaries separate."""
    table = new_table(
        "objects between the boundaries",
        "adapted\nRand error",
        "variation of information\nby splits",
        "by mergers",
    )
    found = document["variation_of_information"]
    table.add_row(*map(_score, (document["adapted_rand_error"], found["split"], found["merge"])))
    return table


def _score(value: float) -> str:
    return "none" if math.isnan(value) else f"{value:.3f}".removeprefix("0")
