"""The metrics of a study as rows for its page and for CSV files."""

from __future__ import annotations

from collections import Counter
from dataclasses import astuple, dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from evenslice.report.base.tables import EFFECT, SHARES, Group, flatten
from evenslice.report.base.wording import MINUS, NOTHING, interval, listed, signed
from evenslice.report.study.wording import (
    difference_text,
    judgement,
    metric_text,
    p_value,
    removed_part,
    verdicts,
)
from evenslice.results import SALIENCY_PERCENTILES, score_title

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from evenslice.results import ArmSummary, Comparison, PooledArm, StudyResults, StudyRun

TABLE_FILES: Final = ("arms.csv", "curves.csv", "saliency.csv", "pooled.csv")
"""Names of the CSV files."""


@dataclass(frozen=True)
class Row:
    """One metric of all arms, as text."""

    label: str
    cells: tuple[str, ...]


FIGURE_GROUPS: Final = (
    (
        "On the test volumes",
        (
            ("dice", "Dice"),
            ("iou", "IoU"),
            ("surface_dice", "Surface Dice"),
            ("hd95", "HD95"),
            ("adapted_rand_error", "Adapted Rand error"),
            ("variation_of_information", "Variation of information"),
        ),
        (
            "Means over classes and volumes. Dice, IoU and surface Dice: 1 is perfect. HD95 (95th percentile of the "
            "distances between surfaces, in the unit of the voxel spacing), adapted Rand error and variation of "
            "information (of objects separated by boundaries): 0 is perfect."
        ),
    ),
    (
        "On a lattice of test centres",
        (
            ("balanced_accuracy", "Balanced accuracy"),
            ("accuracy", "Accuracy"),
            ("macro_f1", "Macro F1"),
        ),
        "Balanced accuracy: mean recall of the classes. Macro F1: mean F1 score of the classes. 1 is perfect.",
    ),
    (
        "Bias of the network",
        (
            ("directional_bias", "D_m, directional bias"),
            ("absolute_bias", "|D_m|, its size"),
            ("largest_bias", "largest |B|"),
            ("asymmetry", "A, asymmetry"),
            ("imbalance", "U, imbalance"),
        ),
        (
            f"Directional bias D_m: {MINUS}1 if all attention goes to the slices before, 0 if fair, +1 if all "
            "goes to those after; its size does not cancel over runs. Largest |B|: the same for the pair of opposite "
            "slices where its size is largest; pairs of opposite sign cancel in D_m, not in it. Asymmetry: distance of "
            "the mean shares from their mirror. Imbalance: their distance from an even split. Both 0 to 1."
        ),
    ),
    EFFECT,
)

_LABELS: Final = {name: label for _, figures, _ in FIGURE_GROUPS for name, label in figures}
SCORE_LABELS: Final = {name: label for _, figures, _ in FIGURE_GROUPS[:2] for name, label in figures}
"""The scores of all tasks, and how tables call them."""

_COMPARED: Final = (*SCORE_LABELS, "largest_bias")


def extents(results: StudyResults, comparisons: Sequence[Comparison], arms: Sequence[str]) -> Row | None:
    """Return how many folds and seeds each arm has, as ``"4 x 2"``, or ``"4 x 2 (5 runs)"``; without folds, how many seeds.

    None if all arms have the same.
    """
    found = [sorted({_extent(results, item, arm) for item in comparisons}) for arm in arms]
    if all(own == found[0] for own in found):
        return None
    folded = any(item.unit == "fold" for item in comparisons)
    return Row("folds x seeds" if folded else "seeds", tuple(map(listed, found)))


def _extent(results: StudyResults, comparison: Comparison, arm: str) -> str:
    runs = results.runs_of(comparison, arm)
    folds, seeds = (len({getattr(run, name) for run in runs}) for name in ("fold", "seed"))
    if comparison.unit == "seed":
        return str(seeds)
    return f"{folds} x {seeds}" + (f" ({len(runs)} runs)" if len(runs) != folds * seeds else "")


def extent_groups(
    results: StudyResults, comparisons: Sequence[Comparison], arms: Sequence[ArmSummary | PooledArm]
) -> list[Group[Row]]:
    """Return a group that says how many folds and seeds each arm has; none if all have the same."""
    row = extents(results, comparisons, [arm.arm for arm in arms])
    meaning = (
        "Means are over all runs of an arm, differences over those that have the fold and seed of a run of "
        f"{results.baseline}: a difference need not be that of the means."
    )
    return [] if row is None else [Group("Runs", meaning, (row,))]


def figure_groups(results: StudyResults, comparison: Comparison) -> list[Group[Row]]:
    """Arrange the metrics of a comparison in groups of rows, one column for each arm; undefined ones are left out."""
    arms = comparison.arms
    runs = [results.runs_of(comparison, arm.arm) for arm in arms]
    answers = tuple(answer_kinds(items) for items in runs)
    segmented, classified, bias, effect = (
        Group(title, meaning, tuple(_figure_rows(arms, dict(figures), answers)))
        for title, figures, meaning in FIGURE_GROUPS
    )
    found = Row("Verdict of the audits", tuple(verdicts([run.verdict for run in items]) for items in runs))
    groups = [
        segmented,
        classified,
        Group(bias.title, bias.meaning, (found, *bias.rows)),
        Group(*SHARES, tuple(_share_rows(arms))),
        effect,
        _difference_group(results.baseline, comparison, interim=results.interim),
    ]
    return [group for group in groups if group.rows]


def _figure_rows(
    arms: tuple[ArmSummary, ...], labels: dict[str, str], answers: tuple[str, ...]
) -> Iterator[Row]:
    for name, label in labels.items():
        row = Row(label, tuple(metric_text(name, arm) for arm in arms))
        if set(row.cells) == {NOTHING}:
            continue
        yield row
        if name == "answer_change" and any(answers):
            yield Row("C compares", tuple(answer or NOTHING for answer in answers))


def answer_kinds(runs: Sequence[StudyRun]) -> str:
    """Say what the answer changes of runs compare; nothing if that is not known.

    Example:
        >>> from types import SimpleNamespace
        >>> answer_kinds([SimpleNamespace(answer_of=kind) for kind in ("scores", "classes", "scores", "unknown")])
        'classes (1 run), scores (2 runs)'
        >>> answer_kinds([SimpleNamespace(answer_of="classes")])
        'classes'
    """
    counts = Counter(run.answer_of for run in runs if run.answer_of != "unknown")
    if len(counts) < 2:
        return "".join(counts)
    return ", ".join(f"{kind} ({count} run{'s' * (count > 1)})" for kind, count in sorted(counts.items()))


def _share_rows(arms: tuple[ArmSummary, ...]) -> Iterator[Row]:
    slices = max(len(arm.shares) for arm in arms)
    for index in range(slices):
        cells = tuple(interval(arm.shares[index]) if index < len(arm.shares) else NOTHING for arm in arms)
        yield Row(f"slice {signed(index - slices // 2)}", cells)


def _difference_group(baseline: str, comparison: Comparison, *, interim: bool) -> Group[Row]:
    """Return the paired differences and the tests; without rows if nothing was compared."""
    arms, by_fold = comparison.arms, comparison.unit == "fold"
    score = score_title(arms[0].score, first=True)

    def row(label: str, write: Callable[[ArmSummary], str]) -> Row:
        return Row(label, tuple(write(arm) if arm.differences else NOTHING for arm in arms))

    rows = [row(_LABELS[name], partial(difference_text, name)) for name in _COMPARED]
    rows = [item for item in rows if set(item.cells) != {NOTHING}]
    if rows:
        rows += [
            row("Part of largest |B| removed", lambda arm: removed_part(arm.bias_removed)),
            row(f"{score} not inferior?", judgement),
            row("Test of non-inferiority", lambda arm: p_value(arm.p, interim=interim)),
        ]
    margins = [arm.margin for arm in arms if arm.differences]
    return Group(
        f"Compared with {baseline}, {'fold by fold' if by_fold else 'seed by seed'}",
        (
            f"Mean paired differences: runs with the same {'fold and seed' if by_fold else 'seed'} see the same crops. "
            f"{score} is not inferior if the interval of its difference lies above "
            f"{MINUS}{min(margins, default=0):g}, which is "
            "tested one-sidedly; it is inferior if the interval lies below. The part of the bias that is removed has "
            f"Fieller's interval, and is stated only where the largest |B| of {baseline} is beyond the tolerance of "
            "0.05 with its whole interval. Intervals are not adjusted for "
            "the number of arms."
        ),
        tuple(rows),
    )


def run_rows(results: StudyResults) -> list[tuple[str, str]]:
    """List the circumstances of the runs: each setting with its value, or with several if runs differ."""
    found: dict[str, dict[str, None]] = {}
    for run in results.runs:
        settings = {name: value for name, value in run.circumstances.items() if name != "created"}
        for key, value in flatten(settings):
            found.setdefault(key, {})[value] = None
    days = sorted(
        {str(run.circumstances["created"])[:10] for run in results.runs if "created" in run.circumstances}
    )
    rows = [("finished", days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}")] if days else []
    return rows + [(key, "; ".join(values)) for key, values in found.items()]


@dataclass(frozen=True)
class Effort:
    """The extent of one comparison."""

    title: str
    cells: tuple[str, ...]


def effort_rows(results: StudyResults) -> list[Effort]:
    """List the extent of each comparison: arms, folds, seeds, training steps, audit windows, training minutes."""
    rows = []
    for item in results.comparisons:
        runs = [run for arm in item.arms for run in results.runs_of(item, arm.arm)]
        if runs:
            trained = [run for run in runs if run.steps > 0]  # others have the network of one of these
            seeds, folds = (sorted({getattr(run, name) for run in runs}) for name in ("seed", "fold"))
            cells = (
                str(len(item.arms)),
                str(len(folds)) if len(folds) > 1 else NOTHING,
                ", ".join(map(str, seeds)),
                _span([run.steps for run in trained]),
                _span([run.windows for run in runs]),
                _span([round(run.seconds / 60, 1) for run in trained if run.seconds >= 0]),
            )
            rows.append(Effort(item.title, cells))
    return rows


def _span(values: list[Any]) -> str:
    if not values:
        return NOTHING
    low, high = min(values), max(values)
    return f"{low:g}" if low == high else f"{low:g} to {high:g}"


def arm_lines(results: StudyResults) -> Iterator[list[Any]]:
    """Yield the lines of ``arms.csv``."""
    yield ["dataset", "architecture", "arm", "folds", "seeds", "kind", "figure", "estimate", "low", "high"]
    for item in results.comparisons:
        for arm in item.arms:
            start = [item.dataset, item.architecture, arm.arm, len(arm.folds), len(arm.seeds)]
            for kind, figures in (("mean", arm.metrics), ("difference", arm.differences)):
                for name, value in figures.items():
                    yield [*start, kind, name, value.estimate, value.low, value.high]
            for index, share in enumerate(arm.shares):
                name = f"share_{index - len(arm.shares) // 2}"
                yield [*start, "mean", name, share.estimate, share.low, share.high]
            if arm.differences:
                yield [*start, "part", "bias_removed", *astuple(arm.bias_removed)]
                yield [*start, "p", f"{arm.score}_not_inferior", arm.p, None, None]


def curve_lines(results: StudyResults) -> Iterator[list[Any]]:
    """Yield the lines of ``curves.csv``."""
    names = list(dict.fromkeys(name for run in results.runs for name in run.curves))
    yield ["dataset", "architecture", "arm", "fold", "seed", *names]
    for run in results.runs:
        length = len(run.curves["step"]) if run.curves else 0
        missing = np.full(length, np.nan)
        columns = [run.curves.get(name, missing).tolist() for name in names]
        for values in zip(*columns, strict=True):
            yield [run.dataset, run.architecture, run.arm, run.fold, run.seed, *values]


def saliency_lines(results: StudyResults) -> Iterator[list[Any]]:
    """Yield the lines of ``saliency.csv``."""
    yield [
        "dataset",
        "architecture",
        "arm",
        "fold",
        "seed",
        "offset",
        *(f"p{q}" for q in SALIENCY_PERCENTILES),
    ]
    for run in results.runs:
        for index, values in enumerate(() if run.saliency is None else run.saliency.tolist()):
            offset = index - len(run.shares) // 2
            yield [run.dataset, run.architecture, run.arm, run.fold, run.seed, offset, *values]
