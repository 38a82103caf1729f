"""The statistics, classes, volumes, windows and settings of audits as tables for the page and for CSV files."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from evenslice.report.audit_answers import answers_of_part, short_path, tolerance_of
from evenslice.report.formatting import MINUS, interval, percent, signed
from evenslice.report.tables import Group, Row, Table, csv_text, flatten, plain_table, run_table
from evenslice.results import Figure

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from evenslice.report.audit_answers import Answer
    from evenslice.results import AuditResult, Interval, Measurements

TABLE_FILES = ("figures.csv", "windows.csv", "run.csv")
"""Names of the CSV files."""


@dataclass(frozen=True)
class Statistic:
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


SHARES = (
    "Shares of the saliency",
    "Mean part of the absolute attribution that falls on each slice; they sum to 1.",
)
"""Title and meaning of a group."""

EFFECT = (
    "Effect on the result",
    {
        "answer_change": "C, answer change",
        "mirror_mismatch": "E, mirror mismatch",
        "mirror_error": "Mirror error",
        "mirror_disagreement": "Mirror disagreement",
    },
    (
        "What reversing a window changes. C: of a class, the pixels that one of the two answers alone puts into it, over "
        "those that either does; of scores, the size of the change, 1 for unrelated outputs. E: the part of the attribution of "
        "the outer slices that is not used in the same way, place by place. Error: largest change of the output, relative to "
        "the largest output. Disagreement: the share of pixels whose class changes."
    ),
)
"""Title, statistics with their labels, and meaning of a group."""

GROUPS: tuple[tuple[str, dict[str, str], str], ...] = (
    (SHARES[0], {"shares": "slice"}, SHARES[1]),
    (
        "Saliency: pair bias B, model part",
        {"pairs": "k ="},
        f"How the network itself divides the saliency of the slices at {MINUS}k and +k: {MINUS}1 all to the one before, 0 fair.",
    ),
    (
        "Reliance: pair bias B",
        {"reliance": "k ="},
        "The same for what changes when a slice is replaced by the middle one.",
    ),
    (
        "Saliency: pair bias B, data part",
        {"data_pairs": "k ="},
        "What the content of the slices adds. It changes sign when a window is reversed, and is not due to the network.",
    ),
    (
        "Distance between saliency distributions",
        {"wasserstein": "k ="},
        f"Wasserstein-1 distance between the saliency of the slices at {MINUS}k and +k, in units of the mean saliency.",
    ),
    (
        "Saliency: over all pairs",
        {
            "directional_bias": "D_m, directional bias, model part",
            "data_direction": "D_d, directional bias, data part",
            "asymmetry": "A, asymmetry",
            "imbalance": "U, imbalance",
        },
        "D: as B, over all pairs. A: distance of the mean shares from their mirror. U: their distance from an even split.",
    ),
    EFFECT,
)
"""Title, statistics with their labels, and meaning."""

JUDGED = {"pairs": "saliency", "reliance": "reliance", "answer_change": "answer", "mirror_mismatch": "use"}
"""The question that a statistic answers."""

TOLERANCES = ("tolerance", "answer_tolerance", "mismatch_tolerance", "judged_share", "judged_class")


QUESTIONS = ("Saliency, B", "Reliance, B", "Answer, C", "Use, E")


def statistics_table(audits: Sequence[AuditResult]) -> Table:
    """Return all statistics in groups of rows, one column for each audit."""
    groups = [
        Group("", "", tuple(_settled(audits))),
        *(
            Group(title, meaning, tuple(_figure_row(audits, item) for item in found))
            for title, meaning, found in _groups(audits)
        ),
    ]
    return Table(
        "All statistics",
        ("Statistic", *(audit.name for audit in audits)),
        tuple(groups),
        "Estimates with their 95 % intervals.",
        tuple(range(len(audits))),
    )


def _settled(audits: Sequence[AuditResult]) -> Iterator[Row]:
    yield Row("Verdict", tuple(audit.verdict for audit in audits))
    found = [audit.statistics for audit in audits]
    limits = [f"±{one.tolerance:g}, {one.answer_tolerance:g}, {one.mismatch_tolerance:g}" for one in found]
    yield Row("Tolerances of B, C, E", tuple(limits))
    yield Row("Windows", tuple(str(audit.windows) for audit in audits))


def _figure_row(audits: Sequence[AuditResult], item: Statistic) -> Row:
    """Format the values of a statistic so that it is seen on which side of the audit's tolerance they lie."""
    cells = []
    for audit, value in zip(audits, item.values, strict=True):
        edge = tolerance_of(audit, JUDGED[item.key]) if item.key in JUDGED else None
        cell = interval(value, *([] if edge is None else [-edge, edge]))
        cells.append(cell if getattr(value, "judged", True) else f"{cell}\nnot judged")
    return Row(item.label, tuple(cells))


def _groups(audits: Sequence[AuditResult]) -> list[tuple[str, str, list[Statistic]]]:
    """Return title, meaning and statistics of each group that has any."""
    half = max(len(audit.shares) // 2 for audit in audits)
    groups = [
        (
            title,
            meaning,
            [row for key, label in rows.items() for row in _statistics(audits, key, label, half)],
        )
        for title, rows, meaning in GROUPS
    ]
    meaning = f"Dice lost with the slice at {MINUS}k disturbed, less that lost with the one at +k: 0 if both are worth the same."
    groups.append(("What a disturbed slice costs", meaning, [*_lost_slices(audits)]))
    return [group for group in groups if group[2]]


def _statistics(audits: Sequence[AuditResult], key: str, label: str, half: int) -> Iterator[Statistic]:
    """Yield a statistic, or one for each slice or pair that it is about."""
    found = [getattr(audit.statistics, key) for audit in audits]
    if not isinstance(found[0], tuple):
        yield Statistic(key, None, label, tuple(found))
        return
    for k in range(-half, half + 1) if key == "shares" else range(1, half + 1):
        at = [k + len(values) // 2 if key == "shares" else k - 1 for values in found]
        row = [values[i] if 0 <= i < len(values) else None for values, i in zip(found, at, strict=True)]
        yield Statistic(key, k, f"{label} {signed(k) if key == 'shares' else k}", tuple(row))


def _lost_slices(audits: Sequence[AuditResult]) -> Iterator[Statistic]:
    """Yield how unequally the loss of a slice on either side costs, for each kind of loss."""
    found = [
        {(loss.kind, loss.offset): loss.asymmetry for loss in audit.stress.losses} if audit.stress else {}
        for audit in audits
    ]
    for kind, k in dict.fromkeys(key for one in found for key in one):
        values = tuple(one.get((kind, k)) for one in found)
        yield Statistic(f"stress_asymmetry_{kind}", k, f"{kind}, k = {k}", values)


def part_tables(audits: Sequence[AuditResult]) -> list[Table]:
    """Return the four answers about each judged class, and about each volume of audits that have several."""
    classes = [
        _part_row(audits, index, f"class {item.class_number}", percent(item.pixels), item)
        for index, audit in enumerate(audits)
        for item in audit.statistics.classes
    ]
    volumes = [
        _part_row(audits, index, _volume_name(audit, item.volume), str(item.windows), item)
        for index, audit in enumerate(audits)
        for item in audit.statistics.by_volume
    ]
    tables = [
        plain_table(
            "Each judged class",
            ("Class", "Pixels", *QUESTIONS),
            classes,
            "The figures of the pixels of each class; of several pairs, the one that matters most. A bias that the whole "
            "output hides shows here.",
        ),
        plain_table(
            "Each volume",
            ("Volume", "Windows", *QUESTIONS),
            volumes,
            "The figures of all predicted pixels of each volume, which decide nothing by themselves.",
        ),
    ]
    return [table for table in tables if table.rows]


def _volume_name(audit: AuditResult, number: int) -> str:
    volumes = audit.run.volumes
    return f"{number + 1}: {short_path(volumes[number].path) if number < len(volumes) else ''}"


def _part_row(audits: Sequence[AuditResult], index: int, name: str, extent: str, part: Any) -> Row:
    label = name if len(audits) == 1 else f"{audits[index].name}, {name}"
    cells = [_answer_cell(answer) for answer in answers_of_part(audits[index], part)]
    return Row(label, (extent, *cells), index)


def _answer_cell(answer: Answer) -> str:
    remarks = [answer.state if answer.state != "unknown" else "", answer.about]
    return "\n".join(filter(None, [answer.value, ", ".join(filter(None, remarks))]))


def settings_table(audits: Sequence[AuditResult]) -> Table:
    """Return what was run, one column for each audit."""
    return run_table([audit.name for audit in audits], [dict(flatten(asdict(audit.run))) for audit in audits])


def csv_tables(audits: Sequence[AuditResult]) -> dict[str, str]:
    """Return the text of each CSV file by name."""
    lines = (_figure_lines, _window_lines, _run_lines)
    return {name: csv_text(write(audits)) for name, write in zip(TABLE_FILES, lines, strict=True)}


def _figure_lines(audits: Sequence[AuditResult]) -> Iterator[list[Any]]:
    yield ["audit", "figure", "offset", "estimate", "low", "high", "judged", "state", "class", "volume"]
    rows = [row for _, _, found in _groups(audits) for row in found]
    for index, audit in enumerate(audits):
        for row in rows:
            value = row.values[index]
            if value is not None:
                number = getattr(value, "class_number", None)
                yield [audit.name, row.key, row.offset, *_figure_cells(value), number, None]
        for part, about in (
            *((item, [item.class_number, None]) for item in audit.statistics.classes),
            *((item, [None, item.volume + 1]) for item in audit.statistics.by_volume),
        ):
            for answer in answers_of_part(audit, part):
                for found in answer.figures:
                    yield [audit.name, answer.question, found.offset, *_figure_cells(found.figure), *about]


def _figure_cells(value: Interval) -> list[Any]:
    ends = [value.estimate, value.low, value.high]
    return [*ends, value.judged, value.state] if isinstance(value, Figure) else [*ends, None, None]


def _window_lines(audits: Sequence[AuditResult]) -> Iterator[list[Any]]:
    tables = [
        (audit.name, _columns(audit.measurements)) for audit in audits if audit.measurements is not None
    ]
    names = dict.fromkeys(name for _, columns in tables for name in columns)
    yield ["audit", *names]
    for audit, columns in tables:
        for i in range(len(columns["volume"])):
            yield [audit, *(columns[name][i] if name in columns else None for name in names)]


def _columns(measured: Measurements) -> dict[str, Any]:
    """Return what was measured on each window for all pixels, by name and offset."""
    half = measured.slices // 2
    columns = {"volume": measured.volume, **dict(zip("zyx", measured.position.T, strict=True))}
    for name, found in (("share", measured.shares[:, 0]), ("mirrored_share", measured.shares[:, 1])):
        columns |= {f"{name}_{k}": found[:, k + half] for k in range(-half, half + 1)}
    reliance = measured.reliance[:, :, 0].mean(axis=1)
    columns |= {f"reliance_{k}": reliance[:, k + half] for k in range(-half, half + 1)}
    for name, pairs in (("mismatch", measured.mismatch[:, 0]), ("outer", measured.outer[:, 0])):
        columns |= {f"{name}_{k}": pairs[:, k - 1] for k in range(1, half + 1)}
    return columns | {
        name: getattr(measured, name) for name in ("mirror_error", "change", "clamped", "own_mirror")
    }


def _run_lines(audits: Sequence[AuditResult]) -> Iterator[list[Any]]:
    yield ["setting", *(audit.name for audit in audits)]
    for name in ("verdict", "definitions", "windows"):
        yield [name, *(getattr(audit, name) for audit in audits)]
    for name in (*TOLERANCES, "different", "needed"):
        yield [name, *(getattr(audit.statistics, name) for audit in audits)]
    for row in settings_table(audits).rows:
        yield [row.label, *row.cells]
