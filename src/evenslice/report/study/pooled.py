"""The arms of a study over all its data sets, in words and as rows of tables."""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from evenslice.report.base.tables import Group
from evenslice.report.base.wording import MINUS, NOTHING, interval, listed
from evenslice.report.study.tables import FIGURE_GROUPS, SCORE_LABELS, Row, difference_text
from evenslice.report.study.wording import BIAS, counted, difference, judgement, p_value
from evenslice.results import ENOUGH_REPLICATES, LOSSES, POOLED, score_title

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from evenslice.results import PooledArm, PooledComparison, StudyResults

__all__ = [
    "POOLED_READING",
    "pooled_arm_sentence",
    "pooled_groups",
    "pooled_lines",
    "pooled_sentence",
    "shown_pooled",
    "superiority",
]

POOLED_READING: Final = (
    "Each data set has the same weight: means over the data sets of their means, with 95 % intervals from the variances "
    "within them (Welch and Satterthwaite)."
)

_LOSSES: Final = dict(
    zip(LOSSES, (f"missing, at {MINUS}1", "missing, at +1", "missing, both at ±1"), strict=True)
)

_COMPARED: Final = {
    **{name: label for name, label in SCORE_LABELS.items() if name in POOLED},
    "largest_bias": "largest |B|",
}


def shown_pooled(results: StudyResults) -> list[PooledComparison]:
    """Return the comparisons over all data sets that say more than those of single ones."""
    return [
        item
        for item in results.pooled
        if any(arm.differences for arm in item.arms)
        and (len(item.datasets) > 1 or any(arm.primary for arm in item.arms))
    ]


def pooled_sentence(results: StudyResults, item: PooledComparison) -> str:
    """Say what was pooled, and which comparison is the primary one."""
    primary = [arm for arm in item.arms if arm.primary]
    several = len(item.datasets) > 1
    text = (
        f"Over {listed(list(item.datasets))}, each with the same weight."
        if several
        else "The study has one data set."
    )
    if primary:
        text += f" The primary comparison, named in the configuration, compares {primary[0].arm} with {results.baseline}."
    if item.missing:
        text += f" {listed(list(item.missing))} {_have(item.missing)} no results yet, so nothing is tested."
    for arm in item.arms:
        if lacking := _without(results, item, arm):
            text += f" {arm.arm} has no result on {listed(lacking)}."
        if short := _short(results, item, arm):
            text += f" {arm.arm} lacks folds of {listed(short)}, so it is not tested."
    if unequal := _unequal(results, item):
        text += f" The numbers of replicates differ: {listed(unequal)}."
    few = _few(results, item)
    if few:
        text += (
            f" {listed(few)} {_have(few)} fewer than {ENOUGH_REPLICATES} replicates: if the data set that varies most is "
            "among them, the 95 % intervals cover in only 89 % of cases."
        )
    return text


def _have(names: Sequence[str]) -> str:
    return "has" if len(names) == 1 else "have"


def _without(results: StudyResults, item: PooledComparison, arm: PooledArm) -> list[str]:
    """Return the data sets on which an arm has no results; what earlier versions wrote of an arm does not say."""
    known = {
        found.dataset
        for found in results.comparisons
        if found.architecture == item.architecture and arm.arm in [own.arm for own in found.arms]
    }
    return [name for name in item.datasets if name not in known]


def _short(results: StudyResults, item: PooledComparison, arm: PooledArm) -> list[str]:
    """Return the data sets on which an arm has results, but not for all folds that the baseline has."""
    lacking = []
    for found in results.comparisons:
        folds = {own.arm: {*own.folds} for own in found.arms}
        mine, whole = folds.get(arm.arm), folds.get(results.baseline, set())
        if found.architecture == item.architecture and mine is not None and whole - mine:
            lacking.append(found.dataset)
    return lacking


def _unequal(results: StudyResults, item: PooledComparison) -> list[str]:
    """Return the number of folds, or of seeds without folds, of each data set; nothing if all have the same."""
    found = {
        each.dataset: counted(max(map(each.replicates, each.arms), default=0), each.unit)
        for each in results.comparisons
        if each.architecture == item.architecture
    }
    return [f"{counts} of {name}" for name, counts in found.items()] if len({*found.values()}) > 1 else []


def _few(results: StudyResults, item: PooledComparison) -> list[str]:
    """Return the data sets whose replicates are too few for intervals over data sets that hold as often as they say."""
    return [
        found.dataset
        for found in results.comparisons
        if found.architecture == item.architecture
        and len(item.datasets) > 1
        and min(map(found.replicates, found.arms)) < ENOUGH_REPLICATES
    ]


def pooled_arm_sentence(
    arm: PooledArm, item: PooledComparison, baseline: str, *, interim: bool = False
) -> str:
    """Describe what an arm costs over all data sets and how sure that is, to follow its name.

    ``"differs in Dice by -0.011 [-0.020, -0.002]: not settled (margin 0.01, p = 0.6); difference: p = 0.02, adjusted
    for the number of comparisons."``
    """
    score = score_title(arm.score)
    found, bias = (interval(arm.metrics[name]) for name in (arm.score, "largest_bias"))
    if arm.arm == baseline:
        return f"is the baseline: its {BIAS} is {bias}, its {score} {found}."
    if not arm.differences:
        return f"has no run in common with {baseline}" + (
            "." if found == NOTHING else f"; its {score} is {found}."
        )
    change = f"differs in {score} by {difference(arm.differences[arm.score])}"
    if lacking := [name for name in (*item.datasets, *item.missing) if name not in arm.compared]:
        where, without = listed(list(arm.compared)), listed(lacking)
        return f"{change} on {where}; without a comparison on {without} there is no test."
    if arm.holds is None:
        few = math.isnan(arm.differences[arm.score].low)
        why = "a data set has only one replicate, too few" if few else "there are too few folds"
        return f"{change}; {why} for a test."
    text = f"{change}: {judgement(arm)} (margin {arm.margin:g}, {p_value(arm.p, interim=interim)})"
    if arm.primary:
        return f"{text}; {superiority(arm, interim=interim)}. This is the primary comparison."
    p = p_value(arm.p_adjusted, interim=interim)
    return f"{text}; difference: {p}, adjusted for the number of comparisons."


def superiority(arm: PooledArm, *, interim: bool = False) -> str:
    """Return the outcome of the test of superiority of the primary comparison."""
    if arm.superior is None:
        return "superiority not tested" if arm.primary else NOTHING
    outcome = "superior" if arm.superior else "superiority not shown"
    return f"{outcome} ({p_value(arm.p_superior, interim=interim)})"


def pooled_groups(results: StudyResults, item: PooledComparison) -> list[Group[Row]]:
    """Arrange the means over data sets in groups of rows, one column for each arm; undefined ones are left out."""
    groups = [
        _difference_group(results.baseline, item, interim=results.interim),
        *(
            Group(title, meaning, tuple(_mean_rows(item, dict(figures))))
            for title, figures, meaning in FIGURE_GROUPS
        ),
        Group(
            "What a missing slice costs",
            "Loss of Dice on a sample of the test slices when a neighbour of the middle slice, or both, are missing.",
            tuple(_mean_rows(item, _LOSSES)),
        ),
    ]
    return [group for group in groups if group.rows]


def _mean_rows(item: PooledComparison, labels: dict[str, str]) -> Iterator[Row]:
    for name, label in labels.items():
        if name not in POOLED:
            continue
        row = Row(label, tuple(interval(arm.metrics[name]) for arm in item.arms))
        if set(row.cells) != {NOTHING}:
            yield row


def _difference_group(baseline: str, item: PooledComparison, *, interim: bool) -> Group[Row]:
    def row(label: str, write: Callable[[PooledArm], str]) -> Row:
        return Row(label, tuple(write(arm) if arm.differences else NOTHING for arm in item.arms))

    shown_p = partial(p_value, interim=interim)
    score = score_title(item.arms[0].score, first=True)
    losses = {name: f"loss, {label}" for name, label in _LOSSES.items()}
    rows = [row(label, partial(difference_text, name)) for name, label in (_COMPARED | losses).items()]
    rows = [found for found in rows if set(found.cells) != {NOTHING}]
    rows += [
        row(f"{score} not inferior?", judgement),
        row("Test of non-inferiority", lambda arm: f"{shown_p(arm.p)}, margin {arm.margin:g}"),
        row("Primary: superior?", partial(superiority, interim=interim)),
        row(f"Difference in {score_title(item.arms[0].score)}", lambda arm: shown_p(arm.p_differs)),
        row("the same, adjusted", lambda arm: shown_p(arm.p_adjusted)),
    ]
    return Group(
        f"Compared with {baseline}",
        (
            f"Mean differences between runs of the same fold and seed. {score} is not inferior if the interval of its "
            f"difference lies above {MINUS} the margin. The primary comparison is tested for superiority after that, if "
            "it holds, so neither test needs an adjustment; p of all other differences is adjusted by Holm's method, for all "
            "that are planned."
        ),
        tuple(found for found in rows if set(found.cells) != {NOTHING}),
    )


def pooled_lines(results: StudyResults) -> Iterator[list[Any]]:
    """Yield the lines of ``pooled.csv``."""
    yield ["architecture", "arm", "datasets", "kind", "figure", "estimate", "low", "high"]
    for item in results.pooled:
        for arm in item.arms:
            start = [item.architecture, arm.arm]
            kinds = (("mean", arm.datasets, arm.metrics), ("difference", arm.compared, arm.differences))
            for kind, datasets, figures in kinds:
                for name, value in figures.items():
                    yield [*start, len(datasets), kind, name, value.estimate, value.low, value.high]
            tests = {
                "not_inferior": arm.p,
                "superior": arm.p_superior,
                "differs": arm.p_differs,
                "differs_adjusted": arm.p_adjusted,
            }
            for name, p in tests.items():
                if not math.isnan(p):
                    yield [*start, len(arm.compared), "p", f"{arm.score}_{name}", p, None, None]
