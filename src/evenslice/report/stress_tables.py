"""What disturbed slices cost as tables: for one network, and for the arms of a study."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from evenslice.report.formatting import MINUS, NOTHING, counted, difference, interval, number
from evenslice.report.tables import Group, Row, Table, plain_table
from evenslice.results import replicate_means, student_interval

if TYPE_CHECKING:
    from collections.abc import Sequence

    from evenslice.results import AuditResult, Comparison, StressSummary, StudyResults

SIDES = {
    "before": f"at {MINUS}{{}}",
    "after": "at +{}",
    "both": "both at ±{}",
    "asymmetry": "asymmetry at ±{}",
}


def stressed(audits: Sequence[AuditResult]) -> list[tuple[int, str, StressSummary]]:
    """Return index, name and losses of one audit of each network, though several methods may have audited it."""
    found: dict[str, tuple[int, str, StressSummary]] = {}
    for index, audit in enumerate(audits):
        if audit.stress is not None and audit.stress.losses:
            found.setdefault(repr(audit.stress), (index, audit.name, audit.stress))
    return list(found.values())


def stress_table(stress: StressSummary, network: str = "") -> Table:
    """Return the mean Dice for each kind of disturbance: of the slice at -k, at +k and both, and the asymmetry."""
    labelled = stress.reference == "labels"
    note = ""
    if not stress.intact > 0:
        found = "The answer is right about" if labelled else "The network finds"
        note = f"{found} no class but 0 in these slices, so there is nothing to lose."
    rows = [
        Row("intact", ("", *[number(stress.intact)] * 3, "")),
        *(
            Row(
                loss.kind,
                (
                    str(loss.offset),
                    *(number(side) for side in (loss.before, loss.after, loss.both)),
                    difference(loss.asymmetry),
                ),
            )
            for loss in stress.losses
        ),
        Row("reversed stack", ("", NOTHING, NOTHING, number(stress.reversed), "")),
    ]
    return plain_table(
        f"{network and f'{network}: '}{'Dice' if labelled else 'Dice with the intact answer'} when slices are disturbed, "
        f"{counted(stress.slices, 'window')}",
        ("slice is", "k", f"{MINUS}k", "+k", "both", f"loss at {MINUS}k minus at +k"),
        rows,
        note,
    )


def stress_group(results: StudyResults, comparison: Comparison) -> Group:
    """Return the losses of Dice of each arm, means over folds or seeds; without rows if no run measured them."""
    arms = [
        [run for run in results.runs_of(comparison, arm.arm) if run.stress is not None and run.stress.losses]
        for arm in comparison.arms
    ]
    losses = [loss for runs in arms for run in runs if run.stress for loss in run.stress.losses]
    found = dict.fromkeys((loss.kind, loss.offset) for loss in losses)
    keys = [(kind, k, side) for kind, k in found for side in SIDES]
    keys += [("reversed", 0, "")] if losses else []
    rows = []
    for kind, k, side in keys:
        means = []
        for runs in arms:
            values = [lost(run.stress, kind, k, side) for run in runs if run.stress]
            known = replicate_means([vars(run) for run in runs], values, comparison.unit)
            means.append(interval(student_interval(known, (-1, 1))))
        rows.append(Row(f"{kind}, {SIDES[side].format(k)}" if side else kind, tuple(means)))
    return Group(
        "What a disturbed slice costs",
        (
            "Loss of Dice on a sample of the test slices when one neighbour of the middle slice, or both, are missing "
            "(the middle slice in their place), blank (0), noisy or shifted, and when the stack is reversed. "
            f"Asymmetry: the loss at {MINUS}k less that at +k, 0 if both are worth the same."
        ),
        tuple(rows),
    )


def lost(summary: StressSummary, kind: str, offset: int, side: str) -> float:
    """Return a loss, or the asymmetry of one; NaN if the summary lacks it."""
    if not side:
        return summary.intact - summary.reversed
    for loss in summary.losses:
        if (loss.kind, loss.offset) == (kind, offset):
            return (
                loss.asymmetry.estimate
                if side == "asymmetry"
                else summary.intact - float(getattr(loss, side))
            )
    return math.nan
