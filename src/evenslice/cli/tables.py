"""The tables that commands print for people."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.filesize import decimal
from rich.table import Table
from rich.text import Text

from evenslice._core import printable
from evenslice.report import (
    advice_sentence,
    counted,
    decimals,
    extent_sentence,
    four_answers,
    setting_lines,
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
    from evenslice.results import Interval
    from evenslice.volumes import VolumeInfo

__all__ = [
    "audit_table",
    "export_table",
    "failed_table",
    "info_table",
    "new_table",
    "record_table",
    "run_table",
    "survey_tables",
    "verdict_lines",
    "without_zero",
]

HALF_A_DIGIT = 0.0005

VERDICT_STYLES = {
    "symmetric": "green",
    "balanced": "green",
    "biased": "red",
    "inconclusive": "yellow",
    "not applicable": "dim",
}
STATE_STYLES = {"within": "green", "beyond": "red", "open": "yellow"}


def audit_table(audit: Audit, title: str) -> Table:
    """Return a row for each question of an audit: the figure that decided or matters most, and its state."""
    table = new_table(title, "question", "", "figure [95 %]", "of", "found")
    table.columns[2].no_wrap = True
    for item in four_answers(audit):
        found = Text(item.verdict, STATE_STYLES.get(item.state, "dim"))
        question = item.question + " *" * item.decided
        table.add_row(question, item.symbol, without_zero(item.value), item.about, found)
    if audit.statistics.decided_by:
        table.caption, table.caption_justify = "* Decided the verdict, or left it open.", "left"
    return table


def verdict_lines(audits: Sequence[Audit]) -> Iterator[Text | str]:
    """Yield how audits were made, then for each its verdict with what decided it, its extent, and what to do."""
    yield from setting_lines(audits)
    for audit in audits:
        word, rest = verdict_sentence(audit).split(maxsplit=1)
        style = VERDICT_STYLES[audit.verdict]
        name = f"{audit.name}: " if len(audits) > 1 else ""
        yield Text.assemble(printable(name), (word, f"bold {style}"), f" {rest} {extent_sentence(audit)}")
    advised = audits if len(audits) == 1 else [audit for audit in audits if audit.verdict != "symmetric"]
    yield from dict.fromkeys(filter(None, map(advice_sentence, advised)))


def _with_half_width(value: Interval, between: str = " ", limits: Sequence[float] = ()) -> str:
    """Return a value and the half-width of its interval, or both ends if that is cut off at the end of the range.

    They show on which side of limits the ends lie.
    """
    if math.isnan(value.estimate):
        return "none"
    ends = value.low, value.high
    places = decimals(ends, limits)
    estimate = f"{value.estimate:+z.{places}f}"
    if float(estimate) == 0:
        estimate = f" {estimate[1:]}"
    half = (value.high - value.low) / 2
    if abs(value.high - value.estimate - half) > HALF_A_DIGIT:
        low, high = (f"{end:z.{decimals(ends, limits, least=2)}f}" for end in ends)
        return f"{estimate}\n[{low}, {high}]"
    return f"{estimate}{between}± {_short(half, places)}"


def info_table(info: VolumeInfo) -> Table:
    """Return the properties of a volume, one in each row."""
    table = _facts(info.path)
    if info.part is not None:
        table.add_row("data set", info.part)
    table.add_row("format", info.format)
    table.add_row("shape", f"{_by_axis(info.shape)} voxels (z, y, x)")
    if info.region is not None:
        bounds = ", ".join(f"{start}:{stop}" for start, stop in info.region)
        table.add_row("region", f"{bounds} of the file (z, y, x)")
    if info.missing_numbers:
        table.add_row("missing slices", describe_missing_numbers(info.missing_numbers))
    table.add_row("type", info.dtype)
    table.add_row("spacing", _spacing(info))
    table.add_row("chunks", "not stated" if info.chunks is None else _by_axis(info.chunks))
    if info.orientation is not None:
        table.add_row("orientation", f"{info.orientation} (directions of x, y, z)")
    table.add_row("size on disk", "unknown" if info.bytes_on_disk is None else decimal(info.bytes_on_disk))
    table.add_row("size in memory", decimal(info.bytes_in_memory))
    table.add_row(
        "intensities",
        f"{_plain(info.minimum)} to {_plain(info.maximum)} in a sample of {info.sampled} voxels",
    )
    table.add_row(
        "percentiles", ", ".join(f"{percent:g} %: {value:g}" for percent, value in info.percentiles)
    )
    if info.nonfinite:
        table.add_row("NaN or infinite", f"{info.nonfinite} voxels in the sample")
    if info.classes is not None:
        table.add_row("classes", ", ".join(f"{value}: {share:.2%}" for value, share in info.classes))
    return table


def _spacing(info: VolumeInfo) -> str:
    if info.spacing is None:
        return "not stated"
    sizes = _by_axis(info.spacing)
    return f"{sizes} (z, y, x), unit not stated" if info.unit is None else f"{sizes} {info.unit} (z, y, x)"


def record_table(record: Record, out: Path) -> Table:
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


def symmetrized_onnx_table(mirror_error: float, out: Path) -> Table:
    """Return what was done to a network in an ONNX file, one entry in each row."""
    table = _facts(str(out))
    table.add_row("averaged at", "the output")
    table.add_row("mirror error", f"{mirror_error:.2g}")
    return table


def export_table(written: Exported) -> Table:
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


def run_table(result: Mapping[str, Any], out: Path) -> Table:
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


def survey_tables(survey: Survey) -> Iterator[Table]:
    """Yield a table of the networks of a survey, one in each row, and one of those that failed; the first fits 80 columns.

    Energy is that of each channel of the stem; "chromatic" is the part of it to which a gray image does not contribute.
    """
    columns = ("network", "energy\nR G B", "chro-\nmatic", "shares", "D_m", "mirror\nerror")
    table = new_table("colour balance and slice bias", *columns)
    for column in table.columns:
        column.no_wrap = column.header not in {"network", "shares"}
    for item in survey.measured:
        table.add_row(
            item.spec,
            "\n".join(
                " ".join(map(_short, item.energy[start : start + 3]))
                for start in range(0, len(item.energy), 3)
            ),
            _short(item.chromatic),
            " ".join(_short(share.estimate) for share in item.shares),
            _with_half_width(item.directional_bias, "\n"),
            "none" if math.isnan(item.mirror_error.estimate) else f"{item.mirror_error.estimate:.1g}",
        )
    draws = {item.draws for item in survey.measured if item.draws > 1}
    if draws:
        table.caption, table.caption_justify = (
            f"Networks with random parts: means over {max(draws)} draws.",
            "left",
        )
    yield table
    if survey.failed:
        yield failed_table("failed", "network", [(item.spec, item.error) for item in survey.failed])


def failed_table(title: str, what: str, failed: Sequence[tuple[str, str]]) -> Table:
    """Return a name and an error in each row."""
    table = new_table(title, what, "error")
    for name, error in failed:
        table.add_row(name, error)
    return table


def _short(value: float, places: int = 3) -> str:
    """Format a number between 0 and 1 without its zero."""
    return "none" if math.isnan(value) else f"{value:.{places}f}".removeprefix("0")


def without_zero(text: str) -> str:
    """Remove the zeros before decimal points."""
    return re.sub(r"\b0\.", ".", text)


def new_table(title: str, *columns: str) -> Table:
    """Return a table without rows."""
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD)
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _facts(title: str) -> Table:
    table = Table(title=title, title_justify="left", show_header=False)
    table.add_column(style="bold")
    table.add_column()
    return table


def _plain(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:g}"


def _by_axis(values: Sequence[float]) -> str:
    return " x ".join(f"{value:g}" for value in values)
