"""The tables and lines about studies that commands print for people."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final

from evenslice.cli.tables import failed_table, new_table, without_zero
from evenslice.report import decimals, p_value, removed_part
from evenslice.results import (
    MAIN_SCORES,
    failed_runs,
    inferiority,
    read_comparisons,
    read_pooled,
    read_score,
    run_name,
    score_title,
)

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray
    from rich.table import Table

    from evenslice.results import ArmSummary, Comparison, Interval, PooledArm, PooledComparison, StudyRun
    from evenslice.studying import RunOutcome

__all__ = ["course_table", "run_line", "study_tables"]

_EXTENT: Final = "folds x\nseeds"
_SHORTER: Final = {
    " [": "\n[",
    "\N{NO-BREAK SPACE}": "",
    "\N{MINUS SIGN}": "-",
    "more than ": ">",
    "less than ": "<",
    "below ": "<",
}


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


def study_tables(summary: Mapping[str, Any]) -> Iterator[Table]:
    """Yield tables of the arms, over all data sets and for each data set and architecture, and one of failed runs.

    "not inferior" means that the loss of the main score, such as Dice, against the baseline is below the margin,
    "inferior" that it is above it, "not settled" that it may be either.
    """
    comparisons, baseline, score = read_comparisons(summary), summary["baseline"], read_score(summary)
    interim = summary["finished"] < summary["planned"]
    for item in read_pooled(summary):
        if len(item.datasets) > 1 or any(arm.primary for arm in item.arms):
            sets = [found for found in comparisons if found.architecture == item.architecture]
            yield _pooled_table(item, sets, baseline, score, interim=interim)
    for comparison in comparisons:
        yield _comparison_table(comparison, baseline, score, interim=interim)
    if summary["failed"]:
        yield failed_table("failed; repeat the command to retry", "run", failed_runs(summary))


def _comparison_table(comparison: Comparison, baseline: str, score: str, *, interim: bool) -> Table:
    """Return the arms on one data set with one architecture."""
    extents = _extents([comparison], comparison.arms) if comparison.unit == "fold" else {}
    name = score_title(score, first=True)
    table = new_table(
        f"{comparison.title}: means over {comparison.unit}s with 95 % intervals",
        *("arm", _EXTENT if extents else "n", name, f"{name} minus\n{baseline}", "D_m", "bias\nremoved"),
    )
    table.show_lines = True
    for arm in comparison.arms:
        replicates = extents.get(arm.arm, str(comparison.replicates(arm)))
        table.add_row(arm.arm, replicates, *_arm_cells(arm, interim=interim))
    return table


def _pooled_table(
    item: PooledComparison, comparisons: Sequence[Comparison], baseline: str, score: str, *, interim: bool
) -> Table:
    """Return the arms over all data sets, with the primary comparison marked by a star."""
    count = len(item.datasets)
    sets = item.datasets[0] if count == 1 else f"{'Both' if count == 2 else f'All {count}'} data sets"
    if item.missing:
        sets = f"{count} of {count + len(item.missing)} data sets"
    extents = _extents(comparisons, item.arms)
    folded = any(found.unit == "fold" for found in comparisons)
    columns = (
        "arm",
        *([_EXTENT if folded else "seeds"] if extents else []),
        score_title(score, first=True),
        f"{score_title(score, first=True)} minus\n{baseline}",
        "p of the\ndifference",
        "loss, both\nmissing",
    )
    table = new_table(f"{sets}, {item.architecture}: means with 95 % intervals", *columns)
    table.show_lines = True
    for arm in item.arms:
        name = arm.arm + (" *" if arm.primary else "")
        table.add_row(name, *([extents[arm.arm]] if extents else []), *_pooled_cells(arm, interim=interim))
    notes = ["p of the difference is adjusted for the number of comparisons (Holm)."]
    if any(arm.primary for arm in item.arms):
        notes.append(
            "* Primary comparison: tested for superiority (p) where it is not inferior, without adjustment."
        )
    if interim:
        notes.append("Runs are missing, so every p is interim: 5 % holds for one look at the finished study.")
    table.caption, table.caption_justify = " ".join(notes), "left"
    return table


def _extents(comparisons: Sequence[Comparison], arms: Sequence[ArmSummary | PooledArm]) -> dict[str, str]:
    """Return how many folds and seeds each arm has, as ``"4 x 2"``, one a line; nothing if all have the same.

    Without folds, how many seeds.
    """
    found: dict[str, set[str]] = {arm.arm: set() for arm in arms}
    for comparison in comparisons:
        known = {arm.arm: arm for arm in comparison.arms}
        for name, own in found.items():
            folds, seeds = (known[name].folds, known[name].seeds) if name in known else ((), ())
            own.add((f"{len(folds)} x " if comparison.unit == "fold" else "") + str(len(seeds)))
    texts = {name: "\n".join(sorted(own)) for name, own in found.items()}
    return texts if len(set(texts.values())) > 1 else {}


def _pooled_cells(arm: PooledArm, *, interim: bool) -> Iterator[str]:
    yield _estimate(arm.metrics[arm.score], ".3f")
    yield _difference(arm, interim=interim)
    p = arm.p_superior if arm.primary else arm.p_adjusted
    yield "" if math.isnan(p) else p_value(p).removeprefix("p ").removeprefix("= ")
    yield _estimate(arm.metrics["loss_both"], "z.3f")


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


def _arm_cells(arm: ArmSummary, *, interim: bool) -> Iterator[str]:
    yield _estimate(arm.metrics[arm.score], ".3f")
    yield _difference(arm, interim=interim)
    yield _estimate(arm.metrics["directional_bias"], "+z.3f")
    yield _removed(arm.bias_removed)


def _removed(value: Interval) -> str:
    """Format the part of the bias that is removed as the page does, but shorter."""
    if math.isnan(value.estimate):
        return ""
    text = removed_part(value)
    for long, short in _SHORTER.items():
        text = text.replace(long, short)
    return text


def _difference(arm: ArmSummary | PooledArm, *, interim: bool) -> str:
    """Format the difference of an arm from the baseline in the main score, and whether it is inferior."""
    if not arm.differences:
        return ""
    change = arm.differences[arm.score]
    places = decimals((change.low, change.high), (0.0, -arm.margin))
    difference = _estimate(change, f"+z.{places}f")
    if arm.holds is None:
        return difference
    outcome = inferiority(arm.holds, change.high, arm.margin)
    return f"{difference}\n{outcome}\n{p_value(arm.p, interim=interim)}"


def _estimate(value: Interval, form: str) -> str:
    """Format an estimate and, below it, its interval, if they exist; without the zeros before the points."""
    if math.isnan(value.estimate):
        return "none"
    ends = "" if math.isnan(value.low) else f"\n[{value.low:{form}}, {value.high:{form}}]"
    return without_zero(f"{value.estimate:{form}}{ends}")
