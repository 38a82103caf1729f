"""Every figure of the audits, every window, and what was run, as rows for the page and for CSV files."""

from __future__ import annotations

import csv
import io
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from evenslice.report.audit.biases import split_biases
from evenslice.report.base.wording import MINUS, signed

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from evenslice.results import AuditResult, Interval


@dataclass(frozen=True)
class FigureRow:
    """One figure of all audits.

    Attributes:
        key: the figure's name in ``audit.json``.
        offset: the slice or pair it belongs to; None where it belongs to the whole window.
        label: the figure's name on the page.
        values: one interval for each audit; None where an audit has no such figure.
    """

    key: str
    offset: int | None
    label: str
    values: tuple[Interval | None, ...]


@dataclass(frozen=True)
class FigureGroup:
    """Figures that belong together, with a sentence that says what they are."""

    title: str
    meaning: str
    rows: tuple[FigureRow, ...]


@dataclass(frozen=True)
class RunRow:
    """One setting of all audits; where all have the same, it is in ``values`` once."""

    key: str
    values: tuple[str, ...]


_BY_PAIR = (
    (
        "pairs",
        "B",
        "Pair bias, model part",
        (
            "How the network itself divides its attention between the slices k before and k after the middle: "
            f"{MINUS}1 all to the one before, 0 fair, +1 all to the one after. The verdict rests on these."
        ),
    ),
    (
        "data_pairs",
        "B",
        "Pair bias, data part",
        (
            "What the slices' content adds to the pair bias; it turns its sign when a window is reversed, and is no "
            "fault of the network."
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

_WHOLE = (
    (
        "Over all pairs",
        (
            ("directional_bias", "D, model part"),
            ("data_direction", "D, data part"),
            ("asymmetry", "A, asymmetry"),
            ("imbalance", "U, imbalance"),
        ),
        (
            f"Directional bias: which way the network (model part) and the content (data part) lean, {MINUS}1 to 1. "
            "Asymmetry: distance of the mean shares from their mirror. Imbalance: their distance from an even split. "
            "Both 0 to 1."
        ),
    ),
    (
        "What it does to the result",
        (("mirror_error", "Mirror error"), ("mirror_disagreement", "Mirror disagreement")),
        (
            "Mirror error: largest change of the output when a window is reversed, relative to the largest output. "
            "Mirror disagreement: the share of pixels whose predicted class changes."
        ),
    ),
)


def figure_groups(audits: Sequence[AuditResult]) -> list[FigureGroup]:
    """Arrange every figure of all audits in groups of rows, one column an audit."""
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
    meaning = (
        "Mean part of the total absolute attribution that falls on each slice of the window; they sum to 1."
    )
    groups = [FigureGroup("Shares of the attention", meaning, tuple(shares))]
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
            groups.append(FigureGroup(title, meaning, rows))
    for title, figures, meaning in _WHOLE:
        rows = tuple(
            FigureRow(key, None, label, tuple(getattr(audit.statistics, key) for audit in audits))
            for key, label in figures
        )
        groups.append(FigureGroup(title, meaning, rows))
    return groups


def run_rows(audits: Sequence[AuditResult]) -> list[RunRow]:
    """List what was run, the command first: one row a setting, nested settings under dotted names."""
    settings = [dict(flatten(audit.run)) for audit in audits]
    keys = dict.fromkeys(key for setting in settings for key in setting)
    rows = []
    for key in sorted(keys, key=lambda key: key not in ("command", "created")):
        values = tuple(setting.get(key, "") for setting in settings)
        rows.append(RunRow(key, values[:1] if len(set(values)) == 1 else values))
    return rows


def csv_tables(audits: Sequence[AuditResult]) -> dict[str, str]:
    """Return the text of every CSV file by its name."""
    return {
        "figures.csv": csv_text(_figure_lines(audits)),
        "windows.csv": csv_text(_window_lines(audits)),
        "run.csv": csv_text(_run_lines(audits)),
    }


def _figure_lines(audits: Sequence[AuditResult]) -> Iterator[list[Any]]:
    yield ["audit", "figure", "offset", "estimate", "low", "high"]
    rows = [row for group in figure_groups(audits) for row in group.rows]
    for index, audit in enumerate(audits):
        for row in rows:
            value = row.values[index]
            if value is not None:
                yield [audit.name, row.key, row.offset, value.estimate, value.low, value.high]


def _window_lines(audits: Sequence[AuditResult]) -> Iterator[list[Any]]:
    half = max(len(audit.shares) // 2 for audit in audits)
    offsets, pairs = range(-half, half + 1), range(1, half + 1)
    yield [
        *("audit", "volume", "z", "y", "x"),
        *(f"share_{k}" for k in offsets),
        *(f"mirrored_share_{k}" for k in offsets),
        *(f"{name}_{k}" for name in ("pair_model", "pair_data", "wasserstein") for k in pairs),
        *("mirror_error", "mirror_disagreement"),
    ]
    for audit in audits:
        measured, parts = audit.measurements, split_biases(audit.measurements)
        missing = [None] * (half - len(audit.pairs))
        for i in range(len(measured.volume)):
            by_offset = [
                [*missing, *shares[i], *missing] for shares in (measured.shares, measured.mirrored_shares)
            ]
            by_pair = [[*values[i], *missing] for values in (parts.model, parts.data, measured.wasserstein)]
            yield [
                *(audit.name, measured.volume[i], *measured.position[i]),
                *(value for values in by_offset + by_pair for value in values),
                *(measured.mirror_error[i], measured.mirror_disagreement[i]),
            ]


def _run_lines(audits: Sequence[AuditResult]) -> Iterator[list[Any]]:
    yield ["setting", *(audit.name for audit in audits)]
    yield ["verdict", *(audit.verdict for audit in audits)]
    yield ["tolerance", *(audit.statistics.tolerance for audit in audits)]
    yield ["windows", *(len(audit.measurements.volume) for audit in audits)]
    for row in run_rows(audits):
        yield [row.key, *(row.values if len(row.values) == len(audits) else row.values * len(audits))]


def csv_text(lines: Iterable[Sequence[Any]]) -> str:
    """Return lines as a CSV file that a spreadsheet can open without harm."""
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows([_cell(value) for value in line] for line in lines)
    return buffer.getvalue()


def _cell(value: Any) -> Any:
    """Make a value safe and plain: what does not exist is empty, and a text cannot be taken for a formula."""
    if isinstance(value, str):
        return f"'{value}" if value.startswith(("=", "+", "-", "@", "\t", "\r")) else value
    if isinstance(value, float) and math.isnan(value):
        return None
    return value


def _at(values: Sequence[Interval], index: int) -> Interval | None:
    return values[index] if 0 <= index < len(values) else None


def flatten(value: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield the leaves of nested settings with their dotted names; a list of plain values is one leaf."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from flatten(item, f"{prefix}.{key}" if prefix else str(key))
    elif isinstance(value, list | tuple) and any(isinstance(item, dict | list | tuple) for item in value):
        for index, item in enumerate(value, start=1):
            yield from flatten(item, f"{prefix}.{index}")
    elif isinstance(value, list | tuple):
        yield prefix, ", ".join(_leaf(item) for item in value)
    else:
        yield prefix, _leaf(value)


def _leaf(value: Any) -> str:
    return "" if value is None else str(value)
