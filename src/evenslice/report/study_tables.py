"""The results of a study as tables and sentences: for its page, the terminal, notebooks, the documentation, CSV files."""

from __future__ import annotations

import math
from dataclasses import astuple
from typing import TYPE_CHECKING, Any, Final

from evenslice.report.audit_tables import EFFECT, SHARES
from evenslice.report.tables import (
    MINUS,
    NOTHING,
    Group,
    Row,
    Table,
    counted,
    csv_text,
    difference,
    flatten,
    interval,
    listed,
    number,
    p_value,
    plain_table,
    run_table,
    signed,
)
from evenslice.results import Comparison, PooledComparison, StudySummary, Tolerances, score_title

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from evenslice.results import Interval, StudyResults

    Arm = Any  # of a comparison on one data set, or over all

POOLED_READING: Final = (
    "Means for these data sets, not for others; 95 % intervals from the variances within them (Welch and Satterthwaite){}. "
    "The p of a difference is two-sided and adjusted by Holm's method."
)
CORRECTED: Final = ", corrected for the overlap of folds (Nadeau and Bengio)"
HETEROGENEITY_READING: Final = (
    "Mean differences on each data set. I²: the part of their scatter that chance does not explain; where it is large, the mean "
    "over data sets stands for none of them."
)
PRIMARY_READING: Final = (
    "* Primary comparison, with a margin of {:g}: tested for superiority if it is non-inferior, not adjusted."
)
INTERIM_READING: Final = (
    " Runs are missing, so every p is interim: 5 % holds for one look at the finished study."
)
DIFFERENCE_READING: Final = (
    "Means over runs of the same fold and seed. If an arm has other folds or seeds than the baseline, they may differ from the "
    "difference of the means."
)

MOST_FINDINGS: Final = 3

FIGURE_GROUPS: Final = (
    (
        "On the test volumes",
        {
            "dice": "Dice",
            "iou": "IoU",
            "surface_dice": "Surface Dice",
            "hd95": "HD95",
            "adapted_rand_error": "Adapted Rand error",
            "variation_of_information": "Variation of information",
        },
        "Means over classes and volumes. HD95 is in the unit of the voxel spacing; it and the figures of objects are best at 0.",
    ),
    (
        "On a lattice of test centres",
        {"balanced_accuracy": "Balanced accuracy", "accuracy": "Accuracy", "macro_f1": "Macro F1"},
        "Balanced accuracy: mean recall of the classes. Macro F1: mean F1 score of the classes. 1 is perfect.",
    ),
    (
        "Bias of the network",
        {
            "directional_bias": "D_m, directional bias",
            "absolute_bias": "|D_m|, its size",
            "largest_bias": "largest |B|",
            "asymmetry": "A, asymmetry",
            "imbalance": "U, imbalance",
        },
        f"D_m: {MINUS}1 if all attention goes to the slices before, 0 if fair, +1 if after. Largest |B|: of a pair of slices.",
    ),
    EFFECT,
)
LOSS_LABELS: Final = {
    "loss_before": f"missing, at {MINUS}1",
    "loss_after": "missing, at +1",
    "loss_both": "missing, both at ±1",
}
SIDES: Final = {
    "before": f"at {MINUS}{{}}",
    "after": "at +{}",
    "both": "both at ±{}",
    "asymmetry": "asymmetry at ±{}",
}
"""Where a slice is disturbed."""

COMPARED: Final = {
    **FIGURE_GROUPS[0][1],
    **FIGURE_GROUPS[1][1],
    "largest_bias": "largest |B|",
    **{name: f"loss, {label}" for name, label in LOSS_LABELS.items()},
}
"""What arms are compared with the baseline in."""


def headline(document: Mapping[str, Any]) -> str:
    """Say how much of a study is done, and what was compared, by its ``summary.json``."""
    summary = StudySummary.read(document)
    compared = summary.comparisons
    counts = {
        "data set": {item.dataset for item in compared},
        "network": {item.architecture for item in compared},
        "arm": summary.arms,
        "fold": {fold for item in compared for arm in item.arms for fold in arm.folds},
        "seed": {seed for item in compared for arm in item.arms for seed in arm.seeds},
    }
    known = [counted(len(found), name) for name, found in counts.items() if found]
    failed = f", {len(summary.failed)} failed" if summary.failed else ""
    done = f"{summary.finished} of {counted(summary.planned, 'run')} done{failed}"
    return f"{done}: {listed(known)}." if known else f"{done}."


def findings(results: StudyResults) -> list[str]:
    """Say in a sentence each what came of the primary comparison, else of the first arms that can be compared."""
    found = []
    for item in shown(results)[:1]:
        several = len(getattr(item, "datasets", ()))
        where = f" on these {several} data sets" if several > 1 else ""
        arms: list[Arm] = [arm for arm in item.arms if arm.differences]
        for arm in [arm for arm in arms if getattr(arm, "primary", False)] or arms[:MOST_FINDINGS]:
            runs = [
                run for run in results.runs if (run.architecture, run.arm) == (item.architecture, arm.arm)
            ]
            audits = verdicts([run.verdict for run in runs if run.verdict])
            tested = "too few runs to test it" if arm.outcome == "no test" else arm.outcome
            found.append(
                f"{arm.arm}: largest pair bias {metric_text('largest_bias', arm)}, audits {audits}; {score_title(results.score)} "
                f"{difference_text(results.score, arm, results.score)} beside {results.baseline}{where}, {tested}."
            )
    return found


def arm_tables(summary: StudySummary) -> list[Table]:
    """Return a table of the arms over all data sets, where that says more, and one for each comparison."""
    interim = INTERIM_READING if summary.finished < summary.planned else ""
    tables = []
    for item in shown(summary):
        arms: Sequence[Arm] = item.arms
        sets = [found for found in summary.comparisons if found.architecture == item.architecture]
        sets = [item] if isinstance(item, Comparison) else sets
        columns = _arm_columns(item, sets, summary)
        lines = zip(*columns.values(), strict=True)
        rows = [
            Row(
                arm.arm + (" *" if getattr(arm, "primary", False) else ""), cells, summary.arms.index(arm.arm)
            )
            for arm, cells in zip(arms, lines, strict=True)
        ]
        note = _note(item, sets, summary.baseline) + interim
        tables.append(plain_table(item.title, ("arm", *columns), rows, note))
        if isinstance(item, PooledComparison) and len(sets) > 1:
            tables.append(_dataset_table(item, sets, summary))
    return [table for table in tables if table.rows]


def _dataset_table(item: PooledComparison, sets: Sequence[Comparison], summary: StudySummary) -> Table:
    """Return the differences of the main score on each data set beside their heterogeneity."""
    rows = []
    for pooled in item.arms:
        alone: list[Arm] = [arm for found in sets for arm in found.arms if arm.arm == pooled.arm]
        if len(alone) == len(sets) and pooled.differences:
            cells = [difference_text(summary.score, arm, summary.score) for arm in alone]
            spread = number(pooled.heterogeneity.get(summary.score, math.nan), 2)
            rows.append(Row(pooled.arm, (spread, *cells), summary.arms.index(pooled.arm)))
    title = f"{score_title(summary.score).capitalize()} minus {summary.baseline}, {item.architecture}"
    return plain_table(title, ("arm", "I²", *(found.dataset for found in sets)), rows, HETEROGENEITY_READING)


def tables_of_study(document: Mapping[str, Any]) -> list[Table]:
    """Return the tables of the arms in a ``summary.json``, and one of the runs that failed if there are any."""
    summary = StudySummary.read(document)
    failed = failed_table(summary)
    return arm_tables(summary) + ([failed] if failed.rows else [])


def shown(summary: StudySummary) -> list[Comparison | PooledComparison]:
    """Return the comparisons over all data sets that say more than those of single ones, and then these."""
    pooled = [
        item
        for item in summary.pooled
        if any(arm.differences for arm in item.arms)
        and (len(item.datasets) > 1 or any(arm.primary for arm in item.arms))
    ]
    return [*pooled, *summary.comparisons]


def _arm_columns(
    item: Comparison | PooledComparison, comparisons: Sequence[Comparison], summary: StudySummary
) -> dict[str, list[str]]:
    """Return what matters most of each arm, by column, without columns of which nothing is known."""
    arms: Sequence[Arm] = item.arms
    if not arms:
        return {}
    score = score_title(summary.score).capitalize()
    unit = "folds x seeds" if any(found.unit == "fold" for found in comparisons) else "seeds"
    extents = [_extents(arm.arm, comparisons) for arm in arms]
    if isinstance(item, PooledComparison) and len(set(extents)) == 1:
        extents = [NOTHING] * len(arms)
    columns = {
        unit: extents,
        score: [metric_text(summary.score, arm) for arm in arms],
        f"{score} minus {summary.baseline}": [
            difference_text(summary.score, arm, summary.score) for arm in arms
        ],
        "test": [_test(arm) for arm in arms],
        "superior?": [superiority(arm) for arm in arms],
        "p": [p_value(getattr(arm, "p_adjusted", math.nan)) for arm in arms],
        "largest |B|": [metric_text("largest_bias", arm) for arm in arms],
        "part of it removed": [interval(getattr(arm, "bias_removed", None)) for arm in arms],
        "loss, both missing": [interval(arm.metrics.get("loss_both")) for arm in arms],
    }
    return {name: cells for name, cells in columns.items() if set(cells) != {NOTHING}}


def _extents(arm: str, comparisons: Sequence[Comparison]) -> str:
    """Return how many folds and seeds an arm has in comparisons, as ``"4 x 2"``; without folds, how many seeds."""
    found = [
        (f"{len(own.folds)} x " if item.unit == "fold" else "") + str(len(own.seeds))
        for item in comparisons
        for own in item.arms
        if own.arm == arm
    ]
    return ", ".join(dict.fromkeys(found)) or NOTHING


def _note(item: Comparison | PooledComparison, comparisons: Sequence[Comparison], baseline: str) -> str:
    arms: Sequence[Arm] = item.arms
    margins = {arm.margin for arm in arms if arm.differences and not getattr(arm, "primary", False)}
    sentence = f"Non-inferior: no more than {min(margins):g} below {baseline}." if margins else ""
    if not any(arm.differences for arm in arms):
        sentence = f"No arm can be compared with {baseline}."
    if isinstance(item, Comparison):
        corrected = CORRECTED if item.folds > 1 else ""
        return f"{sentence} Means over {item.unit}s, with 95 % intervals by Student's t{corrected}."
    if item.missing:
        sentence += f" Without results so far, so nothing is tested: {listed(item.missing)}."
    few = [found.dataset for found in comparisons if len(item.datasets) > 1 and found.few_replicates]
    if few:
        sentence += (
            f" Fewer than 3 replicates in {listed(few)}: if the data set that varies most is among them, the 95 % intervals "
            "cover in only 89 % of cases."
        )
    primary = [PRIMARY_READING.format(arm.margin) for arm in item.arms if arm.primary]
    corrected = CORRECTED if any(found.folds > 1 for found in comparisons) else ""
    return " ".join([sentence, POOLED_READING.format(corrected), *primary])


def _test(arm: Arm) -> str:
    if not arm.differences:
        return NOTHING
    return arm.outcome if arm.holds is None else f"{arm.outcome}\n{p_value(arm.p)}"


def superiority(arm: Any) -> str:
    """Return the outcome of the test of superiority of the primary comparison."""
    if not getattr(arm, "primary", False):
        return NOTHING
    if arm.superior is None:
        return "not tested"
    return f"{'superior' if arm.superior else 'not shown'}\n{p_value(arm.p_superior)}"


def metric_text(name: str, arm: Arm) -> str:
    """Format a metric of an arm with its interval, a pair bias so that its side of the audit's tolerance is seen."""
    return interval(arm.metrics.get(name), *([Tolerances.tolerance] if name == "largest_bias" else []))


def difference_text(name: str, arm: Arm, tested: str) -> str:
    """Format the difference of an arm from the baseline in a metric, in the tested one with regard to its margin."""
    if name not in arm.differences:
        return NOTHING
    return difference(arm.differences[name], *([-arm.margin] if name == tested else []))


def statistics_tables(results: StudyResults) -> list[Table]:
    """Return every mean and difference, one column for each arm: over all data sets, and of each comparison."""
    return [
        Table(
            f"All statistics: {item.title}",
            ("Statistic", *(arm.arm for arm in item.arms)),
            tuple(statistics_groups(results, item)),
            colours=tuple(results.arms.index(arm.arm) for arm in item.arms),
        )
        for item in shown(results)
    ]


def statistics_groups(results: StudyResults, item: Comparison | PooledComparison) -> list[Group]:
    """Arrange the means and differences of arms in groups of rows; what no arm has is left out."""
    arms: Sequence[Arm] = item.arms

    def rows(labels: Mapping[str, str], write: Callable[[str, Arm], str]) -> list[Row]:
        found = [Row(label, tuple(write(name, arm) for arm in arms)) for name, label in labels.items()]
        return [row for row in found if set(row.cells) != {NOTHING}]

    groups = [
        Group(
            f"Compared with {results.baseline}",
            DIFFERENCE_READING,
            tuple(rows(COMPARED, lambda name, arm: difference_text(name, arm, results.score))),
        ),
        *(
            Group(title, meaning, tuple(rows(figures, metric_text)))
            for title, figures, meaning in FIGURE_GROUPS
        ),
    ]
    if isinstance(item, Comparison):
        groups += [_verdict_group(results, item), _share_group(item), stress_group(results, item)]
    else:
        meaning = "Loss of Dice when a neighbour of the middle slice, or both, are missing."
        groups.append(Group("What a missing slice costs", meaning, tuple(rows(LOSS_LABELS, metric_text))))
    return [group for group in groups if group.rows]


def _verdict_group(results: StudyResults, item: Comparison) -> Group:
    found = [results.runs_of(item, arm.arm) for arm in item.arms]
    row = Row("Verdicts", tuple(verdicts([run.verdict for run in runs]) for runs in found))
    return Group("Audits", "", (row, Row("C compares", tuple(arm.answer_of for arm in item.arms))))


def verdicts(seen: Sequence[str]) -> str:
    """Count the verdicts of an arm's audits: ``"2 biased, 1 inconclusive"``."""
    return ", ".join(f"{seen.count(name)} {name}" for name in sorted(set(seen))) or NOTHING


def _share_group(item: Comparison) -> Group:
    half = max(len(arm.shares) // 2 for arm in item.arms)
    by_arm = [
        {index - len(arm.shares) // 2: share for index, share in enumerate(arm.shares)} for arm in item.arms
    ]
    rows = [
        Row(f"slice {signed(offset)}", tuple(interval(shares.get(offset)) for shares in by_arm))
        for offset in range(-half, half + 1 if any(by_arm) else -half)
    ]
    return Group(*SHARES, tuple(rows))


def stress_group(results: StudyResults, comparison: Comparison) -> Group:
    """Return the losses of Dice of each arm, means over folds or seeds; without rows if no run measured them."""
    runs = [run for arm in comparison.arms for run in results.runs_of(comparison, arm.arm)]
    losses = [loss for run in runs if run.stress for loss in run.stress.losses]
    found = dict.fromkeys((loss.kind, loss.offset) for loss in losses)
    keys = [(kind, k, side) for kind, k in found for side in SIDES]
    keys += [("reversed", 0, "")] if losses else []
    rows = [
        Row(
            f"{key[0]}, {SIDES[key[2]].format(key[1])}" if key[2] else key[0],
            tuple(interval(results.mean_loss(comparison, arm.arm, key)) for arm in comparison.arms),
        )
        for key in keys
    ]
    return Group(
        "What a disturbed slice costs",
        (
            "Loss of Dice on a sample of the test slices when one neighbour of the middle slice, or both, are missing "
            "(the middle slice in their place), blank (0), noisy or shifted, and when the stack is reversed. "
            f"Asymmetry: the loss at {MINUS}k less that at +k, 0 if both are worth the same."
        ),
        tuple(rows),
    )


def failed_table(summary: StudySummary) -> Table:
    """Return the runs that failed, and why."""
    rows = [Row(name, (error,)) for name, error in summary.errors]
    note = "These runs are repeated when the study is started again."
    return plain_table("What failed", ("Run", "Error"), rows, note)


def settings_table(results: StudyResults) -> Table:
    """Return the circumstances of the runs: each setting with its value, or with several if runs differ."""
    settings: dict[str, dict[str, None]] = {}
    for run in results.runs:
        day = str(run.circumstances.get("created", ""))[:10]
        for key, value in flatten({**run.circumstances, "created": day}):
            settings.setdefault(key, {})[value] = None
    return run_table(["All runs"], [{key: "; ".join(found) for key, found in settings.items()}])


def csv_tables(results: StudyResults) -> dict[str, str]:
    """Return the text of each CSV file by name."""
    lines = {"arms": _arm_lines(results), "pooled": _pooled_lines(results)}
    return {f"tables/{name}.csv": csv_text(rows) for name, rows in lines.items()}


def _arm_lines(results: StudyResults) -> Iterator[list[Any]]:
    yield ["dataset", "architecture", "arm", "folds", "seeds", "kind", "figure", "estimate", "low", "high"]
    for item in results.comparisons:
        for arm in item.arms:
            start = [item.dataset, item.architecture, arm.arm, len(arm.folds), len(arm.seeds)]
            half = len(arm.shares) // 2
            shares = {f"share_{index - half}": share for index, share in enumerate(arm.shares)}
            yield from _figure_lines(start, arm.metrics | shares, arm.differences)
            if arm.differences:
                yield [*start, "part", "bias_removed", *astuple(arm.bias_removed)]
                yield [*start, "p", f"{results.score}_not_inferior", arm.p, None, None]


def _figure_lines(
    start: list[Any], means: Mapping[str, Interval], differences: Mapping[str, Interval]
) -> Iterator[list[Any]]:
    for kind, figures in (("mean", means), ("difference", differences)):
        for name, value in figures.items():
            yield [*start, kind, name, value.estimate, value.low, value.high]


def _pooled_lines(results: StudyResults) -> Iterator[list[Any]]:
    yield ["architecture", "arm", "datasets", "kind", "figure", "estimate", "low", "high"]
    for item in results.pooled:
        for arm in item.arms:
            start = [item.architecture, arm.arm]
            yield from _figure_lines([*start, len(arm.datasets)], arm.metrics, {})
            yield from _figure_lines([*start, len(arm.compared)], {}, arm.differences)
            tests = {
                "not_inferior": arm.p,
                "superior": arm.p_superior,
                "differs": arm.p_differs,
                "differs_adjusted": arm.p_adjusted,
            }
            for name, p in tests.items():
                if not math.isnan(p):
                    yield [*start, len(arm.compared), "p", f"{results.score}_{name}", p, None, None]
            for name, part in arm.heterogeneity.items():
                if not math.isnan(part):
                    yield [*start, len(arm.compared), "heterogeneity", name, part, None, None]
