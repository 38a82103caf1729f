"""The tables that commands print for people."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.filesize import decimal
from rich.table import Table as RichTable
from rich.text import Text

from evenslice._core import printable
from evenslice.report import (
    advice_sentence,
    answer_table,
    counted,
    extent_sentence,
    failed_networks,
    setting_lines,
    survey_table,
    tone,
    verdict_sentence,
)
from evenslice.results import MAIN_SCORES, score_title
from evenslice.volumes import describe_missing_numbers

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from evenslice.auditing import Audit, Survey
    from evenslice.inference import Exported
    from evenslice.neutralizing import Record
    from evenslice.report import Table

__all__ = [
    "audit_table",
    "export_table",
    "info_table",
    "new_table",
    "record_table",
    "rich_table",
    "run_table",
    "survey_tables",
    "verdict_lines",
    "without_zero",
]

LONGEST_WORD = 14  # that is not broken in a cell
TONE_STYLES = {"good": "green", "bad": "red", "open": "yellow", "": ""}


def audit_table(audit: Audit, title: str) -> RichTable:
    """Return a row for each question of an audit: the figure that decided or matters most, and its state."""
    table = rich_table(answer_table(audit, title), breaks=False)
    table.columns[2].no_wrap = True
    return table


def rich_table(table: Table, *, breaks: bool = True) -> RichTable:
    """Return a table for the terminal, coloured by the verdicts in it.

    Args:
        table: as on pages.
        breaks: whether intervals stand below their figures.
    """
    shown = new_table(table.title, *table.columns)
    for row in table.rows:
        cells = [cell.replace(" [", "\n[") if breaks else cell for cell in row.cells]
        shown.add_row(
            row.label, *(Text.assemble(*map(_line, cell.splitlines(keepends=True))) for cell in cells)
        )
    for column in shown.columns:
        words = " ".join(str(cell) for cell in (column.header, *column.cells)).split()
        column.min_width = min(max(map(len, words), default=0), LONGEST_WORD)
    shown.caption, shown.caption_justify = table.note or None, "left"
    return shown


def _line(line: str) -> tuple[str, str]:
    """Return a line of a cell and its style; figures lose their zeros."""
    shown = without_zero(line) if re.match(r"[-+\[\d\N{MINUS SIGN}]", line) else line
    return printable(shown), TONE_STYLES[tone(line)]


def verdict_lines(audits: Sequence[Audit]) -> Iterator[Text | str]:
    """Yield how audits were made, then for each its verdict with what decided it, its extent, and what to do."""
    yield from setting_lines(audits)
    for audit in audits:
        word, rest = verdict_sentence(audit).split(maxsplit=1)
        style = TONE_STYLES[tone(audit.verdict)]
        name = f"{audit.name}: " if len(audits) > 1 else ""
        yield Text.assemble(printable(name), (word, f"bold {style}"), f" {rest} {extent_sentence(audit)}")
    advised = audits if len(audits) == 1 else [audit for audit in audits if audit.verdict != "symmetric"]
    yield from dict.fromkeys(filter(None, map(advice_sentence, advised)))


def info_table(info: Mapping[str, Any]) -> RichTable:
    """Return the properties of a volume, one in each row."""
    table = _facts(info["path"])
    if info["part"] is not None:
        table.add_row("data set", info["part"])
    table.add_row("format", info["format"])
    table.add_row("shape", f"{_by_axis(info['shape'])} voxels (z, y, x)")
    if info["region"] is not None:
        bounds = ", ".join(f"{start}:{stop}" for start, stop in info["region"])
        table.add_row("region", f"{bounds} of the file (z, y, x)")
    if info["missing_numbers"]:
        table.add_row("missing slices", describe_missing_numbers(info["missing_numbers"]))
    table.add_row("type", info["dtype"])
    table.add_row("spacing", _spacing(info))
    table.add_row("chunks", "not stated" if info["chunks"] is None else _by_axis(info["chunks"]))
    if info["orientation"] is not None:
        table.add_row("orientation", f"{info['orientation']} (directions of x, y, z)")
    table.add_row(
        "size on disk", "unknown" if info["bytes_on_disk"] is None else decimal(info["bytes_on_disk"])
    )
    table.add_row("size in memory", decimal(info["bytes_in_memory"]))
    table.add_row(
        "intensities",
        f"{_plain(info['minimum'])} to {_plain(info['maximum'])} in a sample of {info['sampled']} voxels",
    )
    table.add_row(
        "percentiles", ", ".join(f"{percent:g} %: {value:g}" for percent, value in info["percentiles"])
    )
    if info["nonfinite"]:
        table.add_row("NaN or infinite", f"{info['nonfinite']} voxels in the sample")
    if info["classes"] is not None:
        table.add_row("classes", ", ".join(f"{value}: {share:.2%}" for value, share in info["classes"]))
    return table


def _spacing(info: Mapping[str, Any]) -> str:
    if info["spacing"] is None:
        return "not stated"
    sizes = _by_axis(info["spacing"])
    return (
        f"{sizes} (z, y, x), unit not stated" if info["unit"] is None else f"{sizes} {info['unit']} (z, y, x)"
    )


def record_table(record: Record, out: Path) -> RichTable:
    """Return the record of a neutralized network, one entry in each row."""
    table = _facts(str(out))
    table.add_row("strategy", record.strategy + (f", tied: {record.tie}" if record.tie else ""))
    table.add_row("slices", str(record.slices))
    if record.stems:
        # Those of a trained network that is only symmetrized keep their kernels.
        name = "first layers" if record.strategy == "pretrained" else "layers rewritten"
        table.add_row(name, ", ".join(map(repr, record.stems)))
    if record.symmetrized:
        table.add_row("averaged at", ", ".join(name or "the output" for name in record.symmetrized))
    table.add_row("scaling of a slice", f"(slice - {record.mean:g}) / {record.std:g}")
    table.add_row("mirror error", f"{record.mirror_error:.2g}")
    table.add_row("permutation error", f"{record.permutation_error:.2g}")
    table.add_row("gray error", f"{record.gray_error:.2g}")
    return table


def symmetrized_onnx_table(mirror_error: float, out: Path) -> RichTable:
    """Return what was done to a network in an ONNX file, one entry in each row."""
    table = _facts(str(out))
    table.add_row("averaged at", "the output")
    table.add_row("mirror error", f"{mirror_error:.2g}")
    return table


def export_table(written: Exported) -> RichTable:
    """Return what was exported, one entry in each row."""
    table = _facts(str(written.folder))
    table.add_row("files", ", ".join(written.files))
    table.add_row("slices", str(written.slices))
    mean, std = (", ".join(f"{value:g}" for value in values) for values in (written.mean, written.std))
    table.add_row("scaling of a slice", f"(slice - {mean}) / {std}")
    if written.difference is None:
        table.add_row("weights", "bit-identical")
        return table
    size = (
        f"multiples of {written.multiple}" if written.tile is None else "only {} x {}".format(*written.tile)
    )
    table.add_row("windows", f"{size} pixels")
    table.add_row("largest difference", f"{written.difference:.1e} of the largest output, in onnxruntime")
    return table


TEST_SCORES = {"balanced_accuracy": "balanced accuracy", "macro_f1": "macro F1", "dice": "Dice", "iou": "IoU"}
"""Scores of the test that have a value for each class."""


def run_table(result: Mapping[str, Any], out: Path) -> RichTable:
    """Return the result of a training run, one entry in each row."""
    table = _facts(str(out))
    table.add_row("steps", f"{result['steps']} in {result['seconds']:.0f} s")
    if result["validation"] is not None:
        found = result["validation"]
        score = next(name for name in MAIN_SCORES.values() if name in found)
        table.add_row(
            "checkpoint", f"step {found['step']}, validation {score_title(score)} {found[score]:.3f}"
        )
    if result.get("accuracy") is not None:
        table.add_row("test accuracy", f"{result['accuracy']:.3f}")
    for name, title in TEST_SCORES.items():
        if result.get(name) is not None:
            per_class = ", ".join(
                "none" if value is None else f"{value:.3f}" for value in result[name]["per_class"]
            )
            mean = result[name]["mean"]
            table.add_row(
                f"test {title}", f"{'none' if mean is None else f'{mean:.3f}'} (classes: {per_class})"
            )
    for name, dice in _stress_rows(result.get("stress")):
        table.add_row(name, dice)
    if result["bias"] is not None and result["bias"]["directional_bias"] is not None:
        table.add_row("directional bias D_m", f"{result['bias']['directional_bias']:+z.3f}")
    table.add_row("network", str(out / "network.safetensors"))
    return table


def _stress_rows(stress: Mapping[str, Any] | None) -> Iterator[tuple[str, str]]:
    """Yield what lost slices, and a reversed stack, leave of the Dice."""
    if stress is None or stress["intact"] is None:
        return
    yield f"Dice of {counted(stress['slices'], 'test slice')}", f"{stress['intact']:.3f}"
    for loss in stress["losses"]:
        if loss["kind"] == "missing" and loss["before"] is not None:
            sides = ", ".join(f"{name} {loss[name]:z.3f}" for name in ("before", "after", "both"))
            yield f"  slice ±{loss['offset']} missing", sides
    yield "  stack reversed", f"{stress['reversed']:z.3f}"


def survey_tables(survey: Survey) -> Iterator[RichTable]:
    """Yield a table of the networks of a survey, one in each row, and one of those that failed."""
    for table in (survey_table(survey), failed_networks(survey)):
        if table.rows:
            yield rich_table(table)


def without_zero(text: str) -> str:
    """Remove the zeros before decimal points."""
    return re.sub(r"\b0\.", ".", text)


def new_table(title: str, *columns: str) -> RichTable:
    """Return a table without rows."""
    table = RichTable(
        title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False
    )
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _facts(title: str) -> RichTable:
    table = RichTable(title=title, title_justify="left", show_header=False)
    table.add_column(style="bold")
    table.add_column()
    return table


def _plain(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:g}"


def _by_axis(values: Sequence[float]) -> str:
    return " x ".join(f"{value:g}" for value in values)
