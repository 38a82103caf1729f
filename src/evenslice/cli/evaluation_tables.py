"""The tables that ``evaluate`` prints for people; the second also stands below that of an audit with labels."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from evenslice.cli.tables import new_table
from evenslice.report import counted

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.table import Table

    from evenslice.inference import Evaluation
    from evenslice.results import Interval, StressSummary

__all__ = ["evaluation_tables", "stress_table"]

MINUS = "\N{MINUS SIGN}"
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
        yield stress_table(found.stress.summary())


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


def stress_table(stress: StressSummary, network: str | None = None) -> Table:
    """Return the mean Dice for each kind of disturbance: of the slice at -k, at +k and both, and the asymmetry."""
    what = "Dice" if stress.reference == "labels" else "Dice with the intact answer"
    whose = "" if network is None else f"{network}: "
    table = new_table(
        f"{whose}{what} when slices are disturbed, {counted(stress.slices, 'window')}",
        "slice is",
        "k",
        f"{MINUS}k",
        "+k",
        "both",
        f"loss at {MINUS}k\nminus at +k",
    )
    table.add_row("intact", "", *[_score(stress.intact)] * 3, "")
    for loss in stress.losses:
        table.add_row(
            loss.kind,
            str(loss.offset),
            *(_score(side) for side in (loss.before, loss.after, loss.both)),
            _signed(loss.asymmetry),
        )
    table.add_row("reversed stack", "", "", "", _score(stress.reversed), "")
    if not stress.intact > 0:
        found = "the answer is right about" if stress.reference == "labels" else "the network finds"
        table.caption = f"{found} no class but 0 in these slices, so there is nothing to lose"
    return table


def _score(value: float) -> str:
    return "none" if math.isnan(value) else f"{value:.3f}".removeprefix("0")


def _signed(value: Interval) -> str:
    if math.isnan(value.estimate):
        return "none"
    estimate, low, high = (
        f"{bound:+z.3f}".replace("0.", ".", 1) for bound in (value.estimate, value.low, value.high)
    )
    return f"{estimate} [{low}, {high}]"
