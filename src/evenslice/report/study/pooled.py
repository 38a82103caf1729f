"""The arms of a study over all its data sets, in words and as rows of tables."""

from __future__ import annotations

import math
from collections import defaultdict
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from evenslice.report.base.tables import Group
from evenslice.report.base.wording import MINUS, NOTHING, counted, listed
from evenslice.report.study.tables import FIGURE_GROUPS, SCORE_LABELS, Row
from evenslice.report.study.wording import BIAS, difference_text, judgement, metric_text, p_value
from evenslice.results import ENOUGH_REPLICATES, LOSSES, POOLED, score_title, uncompared_folds

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from evenslice.results import PooledArm, PooledComparison, StudyResults, StudyRun

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
    text += "".join(f" {sentence}" for sentence in _untested_arms(results, item))
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


def _untested_arms(results: StudyResults, item: PooledComparison) -> list[str]:
    """Say which arms are not tested as runs are missing, those for the same reason together."""
    faults: defaultdict[tuple[str, ...], list[str]] = defaultdict(list)
    for arm in item.arms:
        if arm.holds is None and (why := _faults(results, item, arm)):
            faults[tuple(why)].append(arm.arm)
    return [
        f"{listed(arms)} {'is' if len(arms) == 1 else 'are'} not tested, as {', and '.join(why)}."
        for why, arms in faults.items()
    ]


def _faults(results: StudyResults, item: PooledComparison, arm: PooledArm) -> list[str]:
    """Say whose runs are missing where an arm is not compared with the baseline although both have results there.

    ``["pretrained has no run in fold 2 of Lucchi++"]``
    """
    if arm.arm == results.baseline:
        return []
    places: defaultdict[str, list[str]] = defaultdict(list)
    for found in results.comparisons:
        runs = {name: results.runs_of(found, name) for name in (arm.arm, results.baseline)}
        if found.architecture != item.architecture or not all(runs.values()):
            continue
        own, other = ([{**vars(run), **run.metrics} for run in known] for known in runs.values())
        folds: defaultdict[str, list[int]] = defaultdict(list)
        for fold in uncompared_folds(own, other, arm.score):
            in_fold = {name: [run for run in known if run.fold == fold] for name, known in runs.items()}
            folds[_fault(in_fold, arm.score)].append(fold)
        for fault, numbers in folds.items():
            which = f"in {_numbered('fold', numbers)} of" if found.unit == "fold" else "on"
            places[fault].append(f"{which} {found.dataset}")
    return [f"{fault} {listed(where)}" for fault, where in places.items()]


def _fault(runs: Mapping[str, Sequence[StudyRun]], score: str) -> str:
    """Say what the runs of an arm and of the baseline lack to be compared: runs, common seeds, or a score."""
    lacking = [name for name, known in runs.items() if not known]
    if lacking:
        return f"{listed(lacking)} {_have(lacking)} no run"
    (arm, own), (baseline, other) = (
        (name, sorted({run.seed for run in known})) for name, known in runs.items()
    )
    if not {*own} & {*other}:
        return f"{arm} has only {_numbered('seed', own)} and {baseline} only {_numbered('seed', other)}"
    unknown = [
        name for name, known in runs.items() if not all(math.isfinite(run.metrics[score]) for run in known)
    ]
    return f"{listed(unknown)} {_have(unknown)} no {score_title(score)}"


def _numbered(name: str, numbers: Sequence[int]) -> str:
    """Put a name before numbers: ``"fold 2"``, ``"folds 0 and 2"``."""
    return f"{name}{'s' * (len(numbers) > 1)} {listed([*map(str, numbers)])}"


def _unequal(results: StudyResults, item: PooledComparison) -> list[str]:
    """Return the number of folds, or of seeds without folds, of each data set; nothing if all have the same."""
    found = {
        each.dataset: counted(max(map(each.replicates, each.arms), default=0), each.unit)
        for each in results.comparisons
        if each.architecture == item.architecture
    }
    return [f"{counts} of {name}" for name, counts in found.items()] if len({*found.values()}) > 1 else []


def _few(results: StudyResults, item: PooledComparison) -> list[str]:
    """Return the data sets whose replicates are too few for intervals over data sets that hold as often as they say.

    Where only some arms have too few they are named, as in ``"Lucchi++ (twin)"``.
    """
    few = []
    for found in results.comparisons:
        arms = [arm.arm for arm in found.arms if found.replicates(arm) < ENOUGH_REPLICATES]
        if arms and found.architecture == item.architecture and len(item.datasets) > 1:
            few.append(found.dataset + (f" ({listed(arms)})" if len(arms) < len(found.arms) else ""))
    return few


def pooled_arm_sentence(results: StudyResults, item: PooledComparison, arm: PooledArm) -> str:
    """Describe what an arm costs over all data sets and how sure that is, to follow its name.

    ``"differs in Dice by -0.011 [-0.020, -0.002]: not settled (margin 0.01, p = 0.6); difference: p = 0.02, adjusted
    for the number of comparisons."``
    """
    score, interim = score_title(arm.score), results.interim
    found, bias = (metric_text(name, arm) for name in (arm.score, "largest_bias"))
    if arm.arm == results.baseline:
        return f"is the baseline: its {BIAS} is {bias}, its {score} {found}."
    if not arm.differences:
        return f"has no run in common with {results.baseline}" + (
            "." if found == NOTHING else f"; its {score} is {found}."
        )
    change = f"differs in {score} by {difference_text(arm.score, arm)}"
    if lacking := [name for name in (*item.datasets, *item.missing) if name not in arm.compared]:
        where, without = listed(list(arm.compared)), listed(lacking)
        return f"{change} on {where}; without a comparison on {without} there is no test."
    if arm.holds is None:
        return f"{change}; {_untested(results, item, arm)}."
    text = f"{change}: {judgement(arm)} (margin {arm.margin:g}, {p_value(arm.p, interim=interim)})"
    if arm.primary:
        return f"{text}; {superiority(arm, interim=interim)}. This is the primary comparison."
    p = p_value(arm.p_adjusted, interim=interim)
    return f"{text}; difference: {p}, adjusted for the number of comparisons."


def _untested(results: StudyResults, item: PooledComparison, arm: PooledArm) -> str:
    """Say why an arm that is compared on every data set has no test."""
    if faults := _faults(results, item, arm):
        return f"there is no test, as {', and '.join(faults)}"
    if math.isnan(arm.differences[arm.score].low):
        return "a data set has only one replicate, too few for a test"
    return "in each data set all differences are equal, so there is no test"


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
        row = Row(label, tuple(metric_text(name, arm) for arm in item.arms))
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
