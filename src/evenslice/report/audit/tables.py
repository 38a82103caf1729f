"""The statistics, windows and settings of audits as rows for the page and for CSV files."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from evenslice.report.audit.questions import method_name
from evenslice.report.base.tables import EFFECT, SHARES, Group, csv_text, flatten
from evenslice.report.base.wording import MINUS, signed
from evenslice.results import OUTPUT_FIELDS, PairBias, split_biases

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from evenslice.results import AuditResult, Interval


@dataclass(frozen=True)
class FigureRow:
    """One statistic of all audits.

    Attributes:
        key: its name in ``audit.json``.
        offset: the slice or pair it belongs to; None for the whole window.
        label: its name on the page.
        values: one interval for each audit; None for an audit without it.
    """

    key: str
    offset: int | None
    label: str
    values: tuple[Interval | None, ...]


@dataclass(frozen=True)
class ClassRow:
    """The attention of one class in one audit.

    Attributes:
        audit: the index of the audit.
        name: the name of the audit.
        class_number: the class.
        pixels: part of the pixels that have it.
        pairs: a pair bias for each pair of the audit with most; None where this one has fewer.
    """

    audit: int
    name: str
    class_number: int
    pixels: float
    pairs: tuple[PairBias | None, ...]


@dataclass(frozen=True)
class RunRow:
    """One setting of all audits; a value that all share is in ``values`` once."""

    key: str
    values: tuple[str, ...]


_BY_PAIR = (
    (
        "pairs",
        "B",
        "Pair bias, model part",
        (
            "How the network itself divides its attention between the slices k before and k after the middle: "
            f"{MINUS}1 all to the one before, 0 fair, +1 all to the one after."
        ),
    ),
    (
        "data_pairs",
        "B",
        "Pair bias, data part",
        (
            "What the content of the slices adds to the pair bias. It changes sign when a window is "
            "reversed, and is not "
            "due to the network."
        ),
    ),
    (
        "wasserstein",
        "W",
        "Distance between saliency distributions",
        (
            "Wasserstein-1 distance between the saliency of the slices k before and k after, in units of the mean "
            "saliency; 0 for a network that treats them alike."
        ),
    ),
)

SECOND_OPINION = "second_opinion"
METHODICAL = ("shares", "pairs", SECOND_OPINION)
"""Figures that depend on the method of attribution; tables name it."""

_TOLERANCES = {
    "pairs": "tolerance",
    SECOND_OPINION: "tolerance",
    "answer_change": "answer_tolerance",
    "mirror_mismatch": "mismatch_tolerance",
}
"""The field of the statistics that says how large a statistic may be."""

_WHOLE = (
    (
        "Over all pairs",
        (
            ("directional_bias", "D_m, directional bias, model part"),
            ("data_direction", "D_d, directional bias, data part"),
            ("asymmetry", "A, asymmetry"),
            ("imbalance", "U, imbalance"),
        ),
        (
            f"Directional bias of the network (model part) and of the content (data part): {MINUS}1 to 1, "
            "as for pairs. "
            "Asymmetry: distance of the mean shares from their mirror. Imbalance: their distance from an even split. "
            "Both 0 to 1."
        ),
    ),
    EFFECT,
)


def figure_groups(audits: Sequence[AuditResult]) -> list[Group[FigureRow]]:
    """Arrange the statistics of all audits in groups of rows, one column for each audit."""
    half = max(len(audit.shares) // 2 for audit in audits)
    shares = [
        FigureRow(
            "shares",
            k,
            f"slice {signed(k)}",
            tuple(_at(audit.shares, k + len(audit.shares) // 2) for audit in audits),
        )
        for k in range(-half, half + 1)
    ]
    groups = [Group(*SHARES, tuple(shares))]
    for key, symbol, title, meaning in _BY_PAIR:
        rows = tuple(
            FigureRow(
                key,
                k,
                f"{symbol}, k = {k}",
                tuple(_at(getattr(audit.statistics, key), k - 1) for audit in audits),
            )
            for k in range(1, half + 1)
        )
        if rows:
            groups.append(Group(title, meaning, rows))
        if key == "pairs":
            groups += _second_opinions(audits, half)
    for title, figures, meaning in _WHOLE:
        rows = tuple(
            FigureRow(key, None, label, tuple(getattr(audit.statistics, key) for audit in audits))
            for key, label in figures
        )
        groups.append(Group(title, meaning, rows))
    lost = _lost_slices(audits)
    return [*groups, lost] if lost.rows else groups


def limits(audit: AuditResult, key: str) -> tuple[float, ...]:
    """Return where the verdict of an audit draws the line for a statistic; nowhere for those that it does not use."""
    if key not in _TOLERANCES:
        return ()
    tolerance = getattr(audit.statistics, _TOLERANCES[key])
    return -tolerance, tolerance


def _lost_slices(audits: Sequence[AuditResult]) -> Group[FigureRow]:
    """Return how unequally the loss of a slice on either side costs, for each kind of loss."""
    found = [
        {(loss.kind, loss.offset): loss.asymmetry for loss in audit.stress.losses} if audit.stress else {}
        for audit in audits
    ]
    rows = [
        FigureRow(
            f"stress_asymmetry_{kind}", k, f"{kind}, k = {k}", tuple(one.get((kind, k)) for one in found)
        )
        for kind, k in dict.fromkeys(place for one in found for place in one)
    ]
    return Group(
        "What a disturbed slice costs",
        (
            f"Dice lost with the slice at {MINUS}k missing (the middle slice in its place), blank, noisy or shifted, less "
            "that lost with the slice at +k: 0 if both are worth the same."
        ),
        tuple(rows),
    )


def _second_opinions(audits: Sequence[AuditResult], half: int) -> list[Group[FigureRow]]:
    """Return the pair biases by each method that gave a second opinion."""
    found = [audit.statistics.second_opinion for audit in audits]
    rows = [
        FigureRow(
            SECOND_OPINION,
            k,
            f"B by {method_name(method)}, k = {k}",
            tuple(_at(one.pairs, k - 1) if one and one.method == method else None for one in found),
        )
        for method in dict.fromkeys(one.method for one in found if one)
        for k in range(1, half + 1)
    ]
    meaning = "The same by another method, on part of the windows. Where methods disagree, they measure different things."
    return [Group("Second opinion", meaning, tuple(rows))] if rows else []


def class_rows(audits: Sequence[AuditResult]) -> list[ClassRow]:
    """List the pair biases of each class of each audit."""
    half = max(len(audit.pairs) for audit in audits)
    return [
        ClassRow(
            index,
            audit.name,
            item.class_number,
            item.pixels,
            (*item.pairs, *[None] * (half - len(item.pairs))),
        )
        for index, audit in enumerate(audits)
        for item in audit.statistics.classes
    ]


def run_rows(audits: Sequence[AuditResult]) -> list[RunRow]:
    """List the settings, the command first: one row for each setting, nested settings under dotted names."""
    settings = [dict(flatten(asdict(audit.run))) for audit in audits]
    keys = dict.fromkeys(key for setting in settings for key in setting)
    rows = []
    for key in sorted(keys, key=lambda key: key not in ("command", "created")):
        values = tuple(setting.get(key, "") for setting in settings)
        rows.append(RunRow(key, values[:1] if len(set(values)) == 1 else values))
    return rows


def csv_tables(audits: Sequence[AuditResult]) -> dict[str, str]:
    """Return the text of each CSV file by name."""
    return {
        "figures.csv": csv_text(_figure_lines(audits)),
        "windows.csv": csv_text(_window_lines(audits)),
        "run.csv": csv_text(_run_lines(audits)),
    }


def _figure_lines(audits: Sequence[AuditResult]) -> Iterator[list[Any]]:
    yield ["audit", "figure", "offset", "estimate", "low", "high", "judged", "method", "class"]
    rows = [row for group in figure_groups(audits) for row in group.rows]
    for index, audit in enumerate(audits):
        second = audit.statistics.second_opinion
        for row in rows:
            method = second.method if second and row.key == SECOND_OPINION else audit.run.method
            about = (method, None) if row.key in METHODICAL else (None, None)
            yield from _figure_line(audit, row.key, row.offset, row.values[index], about)
        for item in audit.statistics.classes:
            for k, pair in enumerate(item.pairs, start=1):
                yield from _figure_line(audit, "classes", k, pair, (audit.run.method, item.class_number))


def _figure_line(
    audit: AuditResult,
    key: str,
    offset: int | None,
    value: Interval | None,
    about: tuple[str | None, int | None],
) -> Iterator[list[Any]]:
    if value is not None:
        judged = value.judged if isinstance(value, PairBias) else None
        yield [audit.name, key, offset, value.estimate, value.low, value.high, judged, *about]


def _window_lines(audits: Sequence[AuditResult]) -> Iterator[list[Any]]:
    half = max(len(audit.shares) // 2 for audit in audits)
    offsets, pairs = range(-half, half + 1), range(1, half + 1)
    yield [
        *("audit", "volume", "z", "y", "x"),
        *(f"share_{k}" for k in offsets),
        *(f"mirrored_share_{k}" for k in offsets),
        *(f"{name}_{k}" for name in ("pair_model", "pair_data", "wasserstein") for k in pairs),
        *OUTPUT_FIELDS,
        *(f"{name}_{k}" for name in ("mismatch", "outer") for k in pairs),
    ]
    for audit in audits:
        measured, parts = audit.measurements, split_biases(audit.measurements)
        missing = [None] * (half - len(audit.pairs))
        for i in range(len(measured.volume)):
            by_offset = [
                [*missing, *shares[i], *missing] for shares in (measured.shares, measured.mirrored_shares)
            ]
            by_pair = [[*values[i], *missing] for values in (parts.model, parts.data, measured.wasserstein)]
            use = [[*values[i], *missing] for values in (measured.mismatch, measured.outer)]
            yield [
                *(audit.name, measured.volume[i], *measured.position[i]),
                *(value for values in by_offset + by_pair for value in values),
                *(np.mean(getattr(measured, name)[i]) for name in OUTPUT_FIELDS),
                *(value for values in use for value in values),
            ]


def _run_lines(audits: Sequence[AuditResult]) -> Iterator[list[Any]]:
    yield ["setting", *(audit.name for audit in audits)]
    yield ["verdict", *(audit.verdict for audit in audits)]
    for name in ("tolerance", "answer_tolerance", "mismatch_tolerance", "judged_share", "methods_agree"):
        yield [name, *(getattr(audit.statistics, name) for audit in audits)]
    decisions = [audit.statistics.decided_by for audit in audits]
    for name in ("question", "method", "class_number", "offset"):
        key = f"decided_by.{name.removesuffix('_number')}"
        yield [key, *(getattr(decision, name, None) for decision in decisions)]
    yield ["windows", *(len(audit.measurements.volume) for audit in audits)]
    for row in run_rows(audits):
        yield [row.key, *(row.values if len(row.values) == len(audits) else row.values * len(audits))]


def _at(values: Sequence[Interval], index: int) -> Interval | None:
    return values[index] if 0 <= index < len(values) else None
