"""What the commands print: tables for people."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.filesize import decimal
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from evenslice.auditing import Audit, Survey
    from evenslice.neutralizing import Record
    from evenslice.results import StudyRun
    from evenslice.volumes import VolumeInfo

__all__ = [
    "audit_table",
    "course_table",
    "info_table",
    "record_table",
    "run_line",
    "run_table",
    "study_tables",
    "survey_tables",
]

VERDICT_STYLES = {"symmetric": "green", "biased": "red", "inconclusive": "yellow", "not applicable": "dim"}


def audit_table(audits: Sequence[Audit]) -> Table:
    """Return one row for each audit: verdict, share of each slice, biases, what they do to the output.

    It fits 80 columns at N = 3; biases stand with the half-width of their 95 % interval.
    """
    table = Table(title="slice bias", title_justify="left", box=SIMPLE_HEAD)
    table.add_column("network")
    table.add_column("verdict", no_wrap=True)
    table.add_column("shares")
    for title in ("pair bias", "D_m", "mirror\nerror"):
        table.add_column(title, no_wrap=True)
    for audit in audits:
        table.add_row(
            escape(audit.name),
            f"[{VERDICT_STYLES[audit.verdict]}]{audit.verdict}[/]\n{_extent(audit)}",
            " ".join(_short(share.estimate) for share in audit.shares),
            "\n".join(f"{pair.estimate:+.3f} ± {_short((pair.high - pair.low) / 2)}" for pair in audit.pairs)
            or "none",
            f"{audit.directional_bias.estimate:+.3f}",
            f"{audit.statistics.mirror_error.estimate:.1g}",
        )
    if any("*" in _extent(audit) for audit in audits):
        table.caption = (
            "* before the intervals were as narrow as asked: all windows were used, or as many as allowed"
        )
        table.caption_justify = "left"
    return table


def info_table(info: VolumeInfo) -> Table:
    """Return a volume's figures, one a row."""
    table = _facts(info.path)
    if info.part is not None:
        table.add_row("data set", escape(info.part))
    table.add_row("format", info.format)
    table.add_row("shape", f"{_by_axis(info.shape)} voxels (z, y, x)")
    table.add_row("type", info.dtype)
    spacing = (
        "not stated" if info.spacing is None else f"{_by_axis(info.spacing)} {info.unit or ''} (z, y, x)"
    )
    table.add_row("spacing", spacing)
    table.add_row("read in chunks of", "not stated" if info.chunks is None else _by_axis(info.chunks))
    if info.orientation is not None:
        table.add_row("orientation", f"{info.orientation} (to where x, y, z run)")
    table.add_row("size on disk", "not known" if info.bytes_on_disk is None else decimal(info.bytes_on_disk))
    table.add_row("size in memory", decimal(info.bytes_in_memory))
    table.add_row("intensities", f"{info.minimum:g} to {info.maximum:g} in a sample of {info.sampled} voxels")
    table.add_row(
        "percentiles", ", ".join(f"{percent:g} %: {value:g}" for percent, value in info.percentiles)
    )
    if info.nonfinite:
        table.add_row("NaN or infinite", f"{info.nonfinite} voxels of the sample")
    if info.classes is not None:
        table.add_row("classes", ", ".join(f"{value}: {share:.2%}" for value, share in info.classes))
    return table


def record_table(record: Record, out: Path) -> Table:
    """Return what was done to a network, one fact a row."""
    table = _facts(str(out))
    table.add_row("strategy", record.strategy + (f", tied: {record.tie}" if record.tie else ""))
    table.add_row("slices", str(record.slices))
    table.add_row("layers rewritten", ", ".join(repr(name) for name in record.stems))
    table.add_row("scale every slice by", f"(slice - {record.mean:g}) / {record.std:g}")
    table.add_row("mirror error", f"{record.mirror_error:.2g}")
    table.add_row("permutation error", f"{record.permutation_error:.2g}")
    table.add_row("gray error", f"{record.gray_error:.2g}")
    return table


def run_table(result: Mapping[str, Any], out: Path) -> Table:
    """Return what a training run came to, one fact a row; the result is that of ``RunFolder``."""
    table = _facts(str(out))
    table.add_row("steps", f"{result['steps']} in {result['seconds']:.0f} s")
    if result["validation"] is not None:
        found = result["validation"]
        table.add_row("kept", f"of step {found['step']}, with Dice {found['dice']:.3f} in validation")
    for name, title in (("dice", "Dice"), ("iou", "IoU")):
        if result[name] is not None:
            per_class = ", ".join(
                "none" if value is None else f"{value:.3f}" for value in result[name]["per_class"]
            )
            mean = result[name]["mean"]
            table.add_row(
                f"test {title}", f"{'none' if mean is None else f'{mean:.3f}'} (classes: {per_class})"
            )
    if result["bias"] is not None:
        table.add_row("directional bias D_m", f"{result['bias']['directional_bias']:+.3f}")
    table.add_row("network", str(out / "network.safetensors"))
    return table


def run_line(record: Mapping[str, Any], count: int, total: int) -> str:
    """Say in one line what a run of a study came to; the record is that of ``studying.perform``."""
    place = f"{count}/{total} {record['dataset']}, {record['architecture']}, {record['arm']}, seed {record['seed']}"
    if record["status"] == "failed":
        return f"{place}: failed: {record['error']}"
    figures = " ".join(
        f"{title} {record[name]:{form}}"
        for name, title, form in (("dice", "Dice", ".3f"), ("directional_bias", "D_m", "+.4f"))
        if record[name] is not None
    )
    return f"{place}: {figures} in {record['seconds']:.0f} s"


def study_tables(summary: Mapping[str, Any]) -> Iterator[Table]:
    """Yield a table of the arms for each data set and architecture; the summary is that of ``studying.study``.

    "no worse" says that the loss of Dice against the baseline is below the margin; "not shown" that it may not be.
    """
    baseline = summary["baseline"]
    for comparison in summary["comparisons"]:
        title = f"{comparison['dataset']}, {comparison['architecture']}: means over seeds with 95 % intervals"
        table = Table(title=escape(title), title_justify="left", box=SIMPLE_HEAD, show_lines=True)
        for column in ("arm", "n", "Dice", f"Dice less\n{baseline}", "D_m", "bias\nremoved"):
            table.add_column(escape(column))
        for arm in comparison["arms"]:
            table.add_row(*_arm_cells(arm))
        yield table
    if summary["failed"]:
        yield _failed_table(summary["failed"])


def survey_tables(survey: Survey) -> Iterator[Table]:
    """Yield a table of the networks of a survey, one a row, and one of those that failed; the first fits 80 columns.

    Energy is that of each channel of the stem; "chromatic" is the part of it that a gray image never meets.
    """
    table = Table(title="colour balance and slice bias", title_justify="left", box=SIMPLE_HEAD)
    for column in ("network", "energy\nR G B", "chro-\nmatic", "shares", "D_m", "mirror\nerror"):
        table.add_column(column, no_wrap=column not in {"network", "shares"})
        table.columns[-1].overflow = "fold"
    for item in survey.measured:
        bias = item.directional_bias
        table.add_row(
            escape(item.spec),
            "\n".join(
                " ".join(map(_short, item.energy[start : start + 3]))
                for start in range(0, len(item.energy), 3)
            ),
            _short(item.chromatic),
            " ".join(_short(share.estimate) for share in item.shares),
            "none"
            if math.isnan(bias.estimate)
            else f"{bias.estimate:+.3f}\n± {_short((bias.high - bias.low) / 2)}",
            f"{item.mirror_error.estimate:.1g}",
        )
    yield table
    if survey.failed:
        failed = Table(title="failed", title_justify="left", box=SIMPLE_HEAD)
        for column in ("network", "error"):
            failed.add_column(column, overflow="fold")
        for item in survey.failed:
            failed.add_row(escape(item.spec), escape(item.error))
        yield failed


def course_table(runs: Sequence[StudyRun]) -> Table:
    """Return one row for each run of a study: Dice and bias before and after training."""
    table = Table(title="training", title_justify="left", box=SIMPLE_HEAD)
    for column in ("start", "validation Dice", "test Dice", "D_m"):
        table.add_column(column, no_wrap=True)
    for run in runs:
        table.add_row(
            escape(run.arm),
            _course(run.curves.get("validation_dice"), ".3f"),
            re.sub(r"\b0\.", ".", f"{run.figures['dice']:.3f}"),
            _course(run.curves.get("directional_bias"), "+.3f"),
        )
    return table


def _course(values: NDArray[np.float64] | None, form: str) -> str:
    """Write the first and the last of what was logged."""
    known = [] if values is None else [value for value in values.tolist() if not math.isnan(value)]
    text = f"{known[0]:{form}} \N{RIGHTWARDS ARROW} {known[-1]:{form}}" if known else "none"
    return re.sub(r"\b0\.", ".", text)


def _arm_cells(arm: Mapping[str, Any]) -> Iterator[str]:
    yield escape(arm["arm"])
    yield str(len(arm["seeds"]))
    yield _estimate(arm["figures"]["dice"], ".3f")
    test = arm.get("non_inferiority", {"holds": None})
    found = "" if test["holds"] is None else "no worse" if test["holds"] else "not shown"
    difference = _estimate(arm["differences"]["dice"], "+.3f") if "differences" in arm else ""
    yield difference + (f"\n{found}, p = {test['p']:.2g}" if found else "")
    yield _estimate(arm["figures"]["directional_bias"], "+.3f")
    removed = arm.get("bias_removed")
    yield "" if removed is None else f"{removed:.0%}"


def _failed_table(failed: Sequence[Mapping[str, Any]]) -> Table:
    table = Table(title="failed; the next call tries again", title_justify="left", box=SIMPLE_HEAD)
    for column in ("run", "error"):
        table.add_column(column)
    for run in failed:
        name = f"{run['dataset']}, {run['architecture']}, {run['arm']}, seed {run['seed']}"
        table.add_row(escape(name), escape(run["error"]))
    return table


def _estimate(interval: Mapping[str, float | None], form: str) -> str:
    """Write an estimate and, below it, its interval, where they exist; without the zeros before the points."""
    estimate, low, high = (interval[name] for name in ("estimate", "low", "high"))
    if estimate is None:
        return "none"
    text = f"{estimate:{form}}" + ("" if low is None else f"\n[{low:{form}}, {high:{form}}]")
    return re.sub(r"\b0\.", ".", text)


def _extent(audit: Audit) -> str:
    """Say how many windows were used, and where that was not enough for the precision asked for."""
    windows = f"{len(audit.measurements.volume)} windows"
    return windows if audit.run.get("stopped") in (None, "precision reached") else f"{windows} *"


def _short(value: float) -> str:
    """Write a number between 0 and 1 without its zero."""
    return f"{value:.3f}".removeprefix("0")


def _facts(title: str) -> Table:
    table = Table(title=escape(title), title_justify="left", show_header=False)
    table.add_column(style="bold")
    table.add_column()
    return table


def _by_axis(values: Sequence[float]) -> str:
    return " x ".join(f"{value:g}" for value in values)
