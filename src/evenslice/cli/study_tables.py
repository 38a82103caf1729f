"""The tables and lines about studies that commands print for people."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from evenslice.cli.tables import new_table, without_zero
from evenslice.results import MAIN_SCORES, run_name, score_title

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    import numpy as np
    from numpy.typing import NDArray
    from rich.table import Table

    from evenslice.results import StudyRun
    from evenslice.studying import RunOutcome

__all__ = ["course_table", "run_line"]


def run_line(outcome: RunOutcome, count: int, total: int, *, folded: Collection[str] = ()) -> str:
    """Return the result of a run of a study in one line, with its fold if its data set is among those that have any."""
    place = f"{count}/{total} {run_name(vars(outcome), folded=outcome.dataset in folded)}"
    if outcome.status == "failed":
        return f"{place}: failed: {outcome.error}"
    scores = [(getattr(outcome, name), score_title(name), ".3f") for name in MAIN_SCORES.values()]
    figures = " ".join(
        f"{title} {value:{form}}"
        for value, title, form in (*scores, (outcome.directional_bias, "D_m", "+z.4f"))
        if value is not None
    )
    return f"{place}: {figures}, trained in {outcome.seconds:.0f} s"


def course_table(runs: Sequence[StudyRun]) -> Table:
    """Return one row for each run of a study: Dice and bias at the start and at the end of the training."""
    table = new_table("training", "start", "validation Dice", "test Dice", "D_m")
    for run in runs:
        table.add_row(
            run.arm,
            _course(run.curves.get("validation_dice"), ".3f"),
            without_zero(f"{run.metrics['dice']:.3f}"),
            _course(run.curves.get("directional_bias"), "+z.3f"),
        )
    return table


def _course(values: NDArray[np.float64] | None, form: str) -> str:
    """Format the first and the last logged value."""
    known = [] if values is None else [value for value in values.tolist() if not math.isnan(value)]
    return without_zero(f"{known[0]:{form}} \N{RIGHTWARDS ARROW} {known[-1]:{form}}") if known else "none"
