"""The page of one or more audits, as self-contained HTML."""

from __future__ import annotations

import base64
import hashlib
from typing import TYPE_CHECKING

from markupsafe import Markup

from evenslice.report.audit import sentences
from evenslice.report.audit.answers import four_answers
from evenslice.report.audit.charts import biases_figure, shares_figure
from evenslice.report.audit.kernels import kernel_figures
from evenslice.report.audit.pictures import example_panels
from evenslice.report.audit.tables import class_rows, figure_groups, limits, run_rows, volume_rows
from evenslice.report.base import style, wording
from evenslice.report.base.pictures import StoredPicture, data_uri, store_picture
from evenslice.report.base.rendering import inline_charts, read_template, render_template
from evenslice.report.base.stress_chart import StressItem, stress_figure

if TYPE_CHECKING:
    from collections.abc import Sequence

    from evenslice.report.audit.pictures import Row
    from evenslice.report.base.drawing import Drawing
    from evenslice.results import AuditResult

MAX_COLUMNS = 3  # cards side by side on the widest page


def draw_charts(audits: Sequence[AuditResult]) -> list[Drawing]:
    """Draw the charts of the page; call it inside ``style.settings()``."""
    charts = [shares_figure(audits)]
    if any(audit.pairs for audit in audits):
        charts.append(biases_figure(audits))
    stressed = _stressed(audits)
    return charts + ([stress_figure(stressed)] if stressed else []) + kernel_figures(audits)


def _stressed(audits: Sequence[AuditResult]) -> list[StressItem]:
    """Return what lost slices cost each network, once, though it may have been audited by several methods."""
    items: dict[str, StressItem] = {}
    for index, audit in enumerate(audits):
        if audit.stress is not None and audit.stress.losses:
            items.setdefault(repr(audit.stress), StressItem(audit.name, index, (audit.stress,)))
    return list(items.values())


def render(audits: Sequence[AuditResult]) -> str:
    """Return the report of one or more audits as HTML."""
    script, rows = read_template("audit.js"), -(-len(audits) // MAX_COLUMNS)
    with style.settings():
        charts = inline_charts(draw_charts(audits), "The numbers are in the table below.")
    pictures: dict[str, StoredPicture] = {}
    parts = (("classes", "Class", class_rows(audits)), ("volumes", "Volume", volume_rows(audits)))
    return render_template(
        "audit.html",
        "base.css",
        "audit.css",
        audits=audits,
        networks=sentences.network_names(audits),
        volumes=sentences.volume_names(audits),
        settings=sentences.setting_lines(audits),
        columns=-(-len(audits) // rows),  # so that the rows are as even as possible
        verdict_sentence=sentences.verdict_sentence,
        four_answers=four_answers,
        extent_sentence=sentences.extent_sentence,
        advice_sentence=sentences.advice_sentence,
        colours=[style.colour_variable(index) for index in range(len(audits))],
        charts=charts,
        parts=[part for part in parts if part[2]],
        examples=[
            (panel.title, panel.caption, [(row, _slices(row, pictures)) for row in panel.rows])
            for panel in example_panels(audits)
        ],
        pictures=pictures.values(),
        groups=figure_groups(audits),
        limits=limits,
        run=run_rows(audits),
        script=Markup(script),  # noqa: S704 - the package's own text
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii"),
    )


def _slices(row: Row, pictures: dict[str, StoredPicture]) -> list[tuple[str, StoredPicture, str]]:
    """Return label, image and overlay of each slice; an image shared by several audits is added to ``pictures`` once."""
    return [
        (f"{wording.signed(k)}: {wording.percent(share)}", store_picture(pictures, image), data_uri(overlay))
        for k, image, overlay, share in zip(row.offsets, row.images, row.overlays, row.shares, strict=True)
    ]
