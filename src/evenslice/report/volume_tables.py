"""Tables and sentences of an audit of whole volumes: verdicts by axis, classes, objects, and agreement with labels."""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING, Final

from evenslice.report.tables import NOTHING, Row, Table, flatten, number, plain_table, run_table

if TYPE_CHECKING:
    from collections.abc import Callable

    from evenslice.results import AxisChange, ClassChange, VolumeAuditResult

ADVICE: Final = {
    "symmetric": "You may write: the answers do not depend on which way round the stack is, in these volumes.",
    "balanced": "You may write: which way round the stack is changes no class by more than .05 (1 - IoU). To remove the "
    "rest, average both ways with symmetrize_volume, or evenslice flip --merge.",
    "biased": "Average both ways with symmetrize_volume, or evenslice flip --merge; or train with flips along this axis. If "
    "the method reads orientation, check that the files state it.",
}
"""What to do next, by the worst verdict."""

SCORES: Final = {"dice": "Dice with the labels", "surface_dice": "Surface Dice within one voxel"}


def volume_sentence(result: VolumeAuditResult) -> str:
    """Say the verdict along each axis, and how many voxels and which class change most."""
    return " ".join(map(_axis_sentence, result.axes))


def _axis_sentence(found: AxisChange) -> str:
    share = f"{found.differing:,} of {found.voxels:,} voxels differ"
    repeat = (
        f", {found.repeat_differing:,} between two runs on the same volume" if found.repeat_differing else ""
    )
    text = f"{found.verdict.capitalize()} along {found.axis}: {share}{repeat}"
    if found.verdict != "symmetric" and found.largest is not None:
        text += f"; most in {class_name(found.largest)} (C {number(found.largest.change)})"
    return f"{text}."


def class_name(found: ClassChange) -> str:
    """Return the name of a class."""
    return "objects" if found.label is None else f"class {found.label}"


def tables_of_volumes(result: VolumeAuditResult) -> list[Table]:
    """Return a table of verdicts by axis, of C by class, of objects, and of Dice, as far as they were measured."""
    labelled = any(not math.isnan(found.dice[0]) for axis in result.axes for found in axis.classes)
    tables = [_axis_table(result), _by_class(result, "C = 1 - IoU by class", _change_cell)]
    rows = [
        Row(axis.axis, (f"{axis.objects.partners:,}", *(f"{count:,}" for count in axis.objects.alone)))
        for axis in result.axes
        if axis.objects
    ]
    if rows:
        columns = ("flipped along", "objects with a partner", "without, intact", "without, flipped")
        tables.append(plain_table("Objects", columns, rows, "Partners have an IoU above .5."))
    for name, title in SCORES.items() if labelled else ():
        tables.append(_by_class(result, f"{title}, intact and flipped", partial(_pair, name=name)))
    return tables


def _axis_table(result: VolumeAuditResult) -> Table:
    rows = [
        Row(
            axis.axis,
            (
                axis.verdict,
                f"{axis.differing:,}",
                f"{axis.repeat_differing:,}",
                NOTHING
                if axis.largest is None
                else f"{number(axis.largest.change)}\n{class_name(axis.largest)}",
            ),
            colour,
        )
        for colour, axis in enumerate(result.axes)
    ]
    columns = ("flipped along", "verdict", "voxels that differ", "between two runs", "largest C")
    return plain_table("By axis", columns, rows, ADVICE[result.verdict])


def _by_class(result: VolumeAuditResult, title: str, cell: Callable[[ClassChange], str]) -> Table:
    labels = dict.fromkeys(found.label for axis in result.axes for found in axis.classes)
    rows = []
    for label in labels:
        found = [next((one for one in axis.classes if one.label == label), None) for axis in result.axes]
        name = class_name(next(one for one in found if one))
        rows.append(Row(name, tuple(NOTHING if one is None else cell(one) for one in found)))
    return plain_table(title, ("", *(f"flipped along {axis.axis}" for axis in result.axes)), rows)


def _change_cell(found: ClassChange) -> str:
    more = f"\n{number(found.repeat)} between two runs" if found.repeat > 0 else ""
    return f"{number(found.change)}{more}" + ("" if found.judged else f"\nnot judged: {found.voxels} voxels")


def _pair(found: ClassChange, name: str) -> str:
    values = getattr(found, name)
    return NOTHING if math.isnan(values[0]) else f"{number(values[0])}, {number(values[1])}"


def settings_table(result: VolumeAuditResult) -> Table:
    """Return what was run."""
    settings = {name: text for name, text in flatten(result.to_dict()) if not name.startswith("axes")}
    return run_table(["Value"], [settings])
