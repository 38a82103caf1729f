"""The statistics, windows and settings of audits as rows for the page and for CSV files."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from evenslice.report.audit.answers import answers_of_part, tolerance_of
from evenslice.report.audit.sentences import short_path
from evenslice.report.base.tables import EFFECT, SHARES, Group, csv_text, flatten
from evenslice.report.base.wording import MINUS, percent, signed
from evenslice.results import Figure, model_part, pair_bias

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from evenslice.report.audit.answers import Answer
    from evenslice.results import AuditResult, Interval, Measurements


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
class PartRow:
    """The answers about a class or a volume of one audit.

    Attributes:
        audit: the index of the audit.
        name: of the class or the volume, with that of the audit if there are several.
        extent: the part of the pixels, or the number of windows.
        answers: one for each question.
    """

    audit: int
    name: str
    extent: str
    answers: tuple[Answer, ...]


GROUPS: tuple[tuple[str, tuple[tuple[str, str], ...], str], ...] = (
    (SHARES[0], (("shares", "slice"),), SHARES[1]),
    (
        "Saliency: pair bias B, model part",
        (("pairs", "k ="),),
        (
            "How the network itself divides the saliency between the slices k before and k after the middle: "
            f"{MINUS}1 all to the one before, 0 fair, +1 all to the one after."
        ),
    ),
    (
        "Reliance: pair bias B",
        (("reliance", "k ="),),
        "The same for what changes when a slice is replaced by the middle one.",
    ),
    (
        "Saliency: pair bias B, data part",
        (("data_pairs", "k ="),),
        "What the content of the slices adds. It changes sign when a window is reversed, and is not due to the network.",
    ),
    (
        "Distance between saliency distributions",
        (("wasserstein", "k ="),),
        "Wasserstein-1 distance between the saliency of the slices k before and k after, in units of the mean saliency.",
    ),
    (
        "Saliency: over all pairs",
        (
            ("directional_bias", "D_m, directional bias, model part"),
            ("data_direction", "D_d, directional bias, data part"),
            ("asymmetry", "A, asymmetry"),
            ("imbalance", "U, imbalance"),
        ),
        (
            f"Directional bias of the network (model part) and of the content (data part): {MINUS}1 to 1, as for pairs. "
            "Asymmetry: distance of the mean shares from their mirror. Imbalance: their distance from an even split."
        ),
    ),
    EFFECT,
)
"""Title, statistics with their labels, and meaning."""

JUDGED = {"pairs": "saliency", "reliance": "reliance", "answer_change": "answer", "mirror_mismatch": "use"}
"""The question that a statistic answers."""

TOLERANCES = ("tolerance", "answer_tolerance", "mismatch_tolerance", "judged_share", "judged_class")


def figure_groups(audits: Sequence[AuditResult]) -> list[Group[FigureRow]]:
    """Arrange the statistics of all audits in groups of rows, one column for each audit."""
    half = max(len(audit.shares) // 2 for audit in audits)
    groups = [
        Group(title, meaning, tuple(row for key, label in rows for row in _rows(audits, key, label, half)))
        for title, rows, meaning in GROUPS
    ]
    meaning = (
        f"Dice lost with the slice at {MINUS}k missing (the middle slice in its place), blank, noisy or shifted, less "
        "that lost with the slice at +k: 0 if both are worth the same."
    )
    groups.append(Group("What a disturbed slice costs", meaning, tuple(_lost_slices(audits))))
    return [group for group in groups if group.rows]


def _rows(audits: Sequence[AuditResult], key: str, label: str, half: int) -> Iterator[FigureRow]:
    """Yield a row for a statistic, or one for each slice or pair that it is about."""
    found = [getattr(audit.statistics, key) for audit in audits]
    if not isinstance(found[0], tuple):
        yield FigureRow(key, None, label, tuple(found))
        return
    for k in range(-half, half + 1) if key == "shares" else range(1, half + 1):
        at = [k + len(values) // 2 if key == "shares" else k - 1 for values in found]
        row = [values[i] if 0 <= i < len(values) else None for values, i in zip(found, at, strict=True)]
        yield FigureRow(key, k, f"{label} {signed(k) if key == 'shares' else k}", tuple(row))


def _lost_slices(audits: Sequence[AuditResult]) -> Iterator[FigureRow]:
    """Yield how unequally the loss of a slice on either side costs, for each kind of loss."""
    found = [
        {(loss.kind, loss.offset): loss.asymmetry for loss in audit.stress.losses} if audit.stress else {}
        for audit in audits
    ]
    for kind, k in dict.fromkeys(key for one in found for key in one):
        values = tuple(one.get((kind, k)) for one in found)
        yield FigureRow(f"stress_asymmetry_{kind}", k, f"{kind}, k = {k}", values)


def limits(audit: AuditResult, key: str) -> tuple[float, ...]:
    """Return where the verdict of an audit draws the line for a statistic; nowhere for those that it does not use."""
    return (-tolerance_of(audit, JUDGED[key]), tolerance_of(audit, JUDGED[key])) if key in JUDGED else ()


def class_rows(audits: Sequence[AuditResult]) -> list[PartRow]:
    """List the answers about each judged class of each audit."""
    return [
        _part_row(audits, index, f"class\N{NO-BREAK SPACE}{item.class_number}", percent(item.pixels), item)
        for index, audit in enumerate(audits)
        for item in audit.statistics.classes
    ]


def volume_rows(audits: Sequence[AuditResult]) -> list[PartRow]:
    """List the answers about each volume of each audit that has several."""
    return [
        _part_row(audits, index, f"{item.volume + 1}: {names.get(item.volume, '')}", str(item.windows), item)
        for index, audit in enumerate(audits)
        for names in [dict(enumerate(short_path(volume.path) for volume in audit.run.volumes))]
        for item in audit.statistics.by_volume
    ]


def _part_row(audits: Sequence[AuditResult], index: int, name: str, extent: str, part: Any) -> PartRow:
    label = name if len(audits) == 1 else f"{audits[index].name}, {name}"
    return PartRow(index, label, extent, answers_of_part(audits[index], part))


def run_rows(audits: Sequence[AuditResult]) -> list[tuple[str, tuple[str, ...]]]:
    """List known settings, the command first, nested ones under dotted names; a value that all audits share is there once."""
    settings = [dict(flatten(asdict(audit.run))) for audit in audits]
    keys = dict.fromkeys(key for setting in settings for key in setting)
    rows = []
    for key in sorted(keys, key=lambda key: key not in ("command", "created")):
        values = tuple(setting.get(key, "") for setting in settings)
        if any(values):
            rows.append((key, values[:1] if len(set(values)) == 1 else values))
    return rows


def csv_tables(audits: Sequence[AuditResult]) -> dict[str, str]:
    """Return the text of each CSV file by name."""
    return {
        "figures.csv": csv_text(_figure_lines(audits)),
        "windows.csv": csv_text(_window_lines(audits)),
        "run.csv": csv_text(_run_lines(audits)),
    }


def _figure_lines(audits: Sequence[AuditResult]) -> Iterator[list[Any]]:
    yield ["audit", "figure", "offset", "estimate", "low", "high", "judged", "state", "class", "volume"]
    rows = [row for group in figure_groups(audits) for row in group.rows]
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
        chosen = [columns.get(name) for name in names]
        for i in range(len(columns["volume"])):
            yield [audit, *(None if column is None else column[i] for column in chosen)]


def _columns(measured: Measurements) -> dict[str, Any]:
    """Return what was measured on each window for all pixels, by name and offset."""
    half, (given, mirrored) = measured.slices // 2, measured.shares.swapaxes(0, 1)
    reliance, biases = measured.reliance[:, :, 0].mean(axis=1), (pair_bias(given), pair_bias(mirrored))
    by_offset = {"share": given, "mirrored_share": mirrored, "reliance": reliance}
    by_pair = {
        "pair_model": model_part(*biases),
        "pair_data": (biases[0] - biases[1]) / 2,
        "wasserstein": measured.wasserstein,
        "mismatch": measured.mismatch[:, 0],
        "outer": measured.outer[:, 0],
    }
    whole = ("mirror_error", "mirror_disagreement", "change", "power", "clamped", "own_mirror")
    return {
        "volume": measured.volume,
        **dict(zip("zyx", measured.position.T, strict=True)),
        **{
            f"{name}_{k}": found[:, k + half]
            for name, found in by_offset.items()
            for k in range(-half, half + 1)
        },
        **{f"{name}_{k}": found[:, k - 1] for name, found in by_pair.items() for k in range(1, half + 1)},
        **{name: getattr(measured, name) for name in whole},
    }


def _run_lines(audits: Sequence[AuditResult]) -> Iterator[list[Any]]:
    yield ["setting", *(audit.name for audit in audits)]
    for name in ("verdict", "definitions", "windows"):
        yield [name, *(getattr(audit, name) for audit in audits)]
    for name in (*TOLERANCES, "different", "needed"):
        yield [name, *(getattr(audit.statistics, name) for audit in audits)]
    for key, values in run_rows(audits):
        yield [key, *(values if len(values) == len(audits) else values * len(audits))]
