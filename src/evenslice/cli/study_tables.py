"""The tables and lines about studies that commands print for people."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final

from evenslice.cli.tables import failed_table, new_table, without_zero
from evenslice.report import decimals, p_value, removed_part
from evenslice.results import (
    MAIN_SCORES,
    Interval,
    failed_runs,
    inferiority,
    read_unit,
    run_name,
    score_title,
)

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray
    from rich.table import Table

    from evenslice.results import StudyRun
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
        for value, title, form in (*scores, (outcome.directional_bias, "D_m", "+.4f"))
        if value is not None
    )
    return f"{place}: {figures} in {outcome.seconds:.0f} s"


def study_tables(summary: Mapping[str, Any]) -> Iterator[Table]:
    """Yield tables of the arms, over all data sets and for each data set and architecture, and one of failed runs.

    "not inferior" means that the loss of the main score, such as Dice, against the baseline is below the margin,
    "inferior" that it is above it, "not settled" that it may be either.
    """
    score = summary.get("score", MAIN_SCORES["segmentation"])  # not in those of earlier versions
    interim = summary["finished"] < summary["planned"]
    for item in summary.get("pooled", ()):
        if len(item["datasets"]) > 1 or any(arm.get("primary") for arm in item["arms"]):
            sets = [
                found for found in summary["comparisons"] if found["architecture"] == item["architecture"]
            ]
            yield _pooled_table(item, sets, summary["baseline"], score, interim=interim)
    for comparison in summary["comparisons"]:
        unit = read_unit(comparison)
        title = (
            f"{comparison['dataset']}, {comparison['architecture']}: means over {unit}s with 95 % intervals"
        )
        name = score_title(score, first=True)
        difference = f"{name} minus\n{summary['baseline']}"
        extents = _extents([comparison], comparison["arms"]) if unit == "fold" else {}
        count = _EXTENT if extents else "n"
        table = new_table(title, "arm", count, name, difference, "D_m", "bias\nremoved")
        table.show_lines = True
        for arm in comparison["arms"]:
            # Results of earlier versions have no folds.
            replicates = extents.get(arm["arm"], str(len(arm.get(f"{unit}s", (0,)))))
            table.add_row(arm["arm"], replicates, *_arm_cells(arm, score, interim=interim))
        yield table
    if summary["failed"]:
        yield failed_table("failed; repeat the command to retry", "run", failed_runs(summary))


def _pooled_table(
    item: Mapping[str, Any],
    comparisons: Sequence[Mapping[str, Any]],
    baseline: str,
    score: str,
    *,
    interim: bool,
) -> Table:
    """Return the arms over all data sets, with the primary comparison marked by a star."""
    count, missing = len(item["datasets"]), len(item.get("missing", ()))  # not in those of earlier versions
    sets = item["datasets"][0] if count == 1 else f"{'Both' if count == 2 else f'All {count}'} data sets"
    if missing:
        sets = f"{count} of {count + missing} data sets"
    extents = _extents(comparisons, item["arms"])
    folded = any(read_unit(found) == "fold" for found in comparisons)
    columns = (
        "arm",
        *([_EXTENT if folded else "seeds"] if extents else []),
        score_title(score, first=True),
        f"{score_title(score, first=True)} minus\n{baseline}",
        "p of the\ndifference",
        "loss, both\nmissing",
    )
    table = new_table(f"{sets}, {item['architecture']}: means with 95 % intervals", *columns)
    table.show_lines = True
    for arm in item["arms"]:
        name = arm["arm"] + (" *" if arm.get("primary") else "")
        table.add_row(
            name, *([extents[arm["arm"]]] if extents else []), *_pooled_cells(arm, score, interim=interim)
        )
    notes = ["p of the difference is adjusted for the number of comparisons (Holm)."]
    if any(arm.get("primary") for arm in item["arms"]):
        notes.append(
            "* Primary comparison: tested for superiority (p) where it is not inferior, without adjustment."
        )
    if interim:
        notes.append("Runs are missing, so every p is interim: 5 % holds for one look at the finished study.")
    table.caption, table.caption_justify = " ".join(notes), "left"
    return table


def _extents(comparisons: Sequence[Mapping[str, Any]], arms: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Return how many folds and seeds each arm has, as ``"4 x 2"``, one a line; nothing if all have the same.

    Without folds, how many seeds.
    """
    found: dict[str, set[str]] = {arm["arm"]: set() for arm in arms}
    for comparison in comparisons:
        known = {arm["arm"]: arm for arm in comparison["arms"]}
        for name, own in found.items():
            arm = known.get(name, {"seeds": (), "folds": ()})
            folds = f"{len(arm.get('folds', (0,)))} x " if read_unit(comparison) == "fold" else ""
            own.add(f"{folds}{len(arm['seeds'])}")
    texts = {name: "\n".join(sorted(own)) for name, own in found.items()}
    return texts if len(set(texts.values())) > 1 else {}


def _pooled_cells(arm: Mapping[str, Any], score: str, *, interim: bool) -> Iterator[str]:
    figures = arm["figures"]
    yield _estimate(figures[score], ".3f")
    yield _difference(arm, score, interim=interim)
    p = arm.get("difference", {}).get("p_adjusted")
    if "superiority" in arm:
        p = arm["superiority"]["p"]
    yield "" if p is None else p_value(p).removeprefix("p ").removeprefix("= ")
    yield _estimate(figures["loss_both"], ".3f")


def course_table(runs: Sequence[StudyRun]) -> Table:
    """Return one row for each run of a study: Dice and bias at the start and at the end of the training."""
    table = new_table("training", "start", "validation Dice", "test Dice", "D_m")
    for run in runs:
        table.add_row(
            run.arm,
            _course(run.curves.get("validation_dice"), ".3f"),
            without_zero(f"{run.metrics['dice']:.3f}"),
            _course(run.curves.get("directional_bias"), "+.3f"),
        )
    return table


def _course(values: NDArray[np.float64] | None, form: str) -> str:
    """Format the first and the last logged value."""
    known = [] if values is None else [value for value in values.tolist() if not math.isnan(value)]
    return without_zero(f"{known[0]:{form}} \N{RIGHTWARDS ARROW} {known[-1]:{form}}") if known else "none"


def _arm_cells(arm: Mapping[str, Any], score: str, *, interim: bool) -> Iterator[str]:
    yield _estimate(arm["figures"][score], ".3f")
    yield _difference(arm, score, interim=interim)
    yield _estimate(arm["figures"]["directional_bias"], "+.3f")
    yield _removed(arm.get("bias_removed"))


def _removed(value: Any) -> str:
    """Format the part of the bias that is removed as the page does, but shorter; earlier versions wrote a number."""
    if not isinstance(value, dict) or value["estimate"] is None:
        return ""
    text = removed_part(Interval(value["estimate"], value["low"], value["high"]))
    for long, short in _SHORTER.items():
        text = text.replace(long, short)
    return text


def _difference(arm: Mapping[str, Any], score: str, *, interim: bool) -> str:
    """Format the difference of an arm from the baseline in the main score, and whether it is inferior."""
    if "differences" not in arm:
        return ""
    test = arm["non_inferiority"]
    change = arm["differences"][score]
    ends = [change[name] for name in ("low", "high") if change[name] is not None]
    difference = _estimate(change, f"+.{decimals(ends, (0.0, -test['margin']))}f")
    if test["holds"] is None:
        return difference
    outcome = inferiority(test["holds"], change["high"], test["margin"])
    return f"{difference}\n{outcome}\n{p_value(test['p'], interim=interim)}"


def _estimate(interval: Mapping[str, float | None], form: str) -> str:
    """Format an estimate and, below it, its interval, if they exist; without the zeros before the points."""
    estimate, low, high = (interval[name] for name in ("estimate", "low", "high"))
    if estimate is None:
        return "none"
    return without_zero(f"{estimate:{form}}" + ("" if low is None else f"\n[{low:{form}}, {high:{form}}]"))
