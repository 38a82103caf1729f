"""The page of one or more audits, as self-contained HTML."""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from markupsafe import Markup

from evenslice.report.audit.agreement import agreement_sentence
from evenslice.report.audit.charts import biases_figure, course_figure, shares_figure
from evenslice.report.audit.conclusions import by_network
from evenslice.report.audit.kernels import kernel_figures
from evenslice.report.audit.pictures import example_panels
from evenslice.report.audit.questions import three_questions
from evenslice.report.audit.subject import network_names, volume_names
from evenslice.report.audit.tables import class_rows, figure_groups, limits, run_rows
from evenslice.report.audit.wording import context_sentence, headline, verdict_sentence
from evenslice.report.base import style, wording
from evenslice.report.base.pictures import StoredPicture, data_uri, store_picture
from evenslice.report.base.rendering import inline_charts, read_template, render_template
from evenslice.report.base.stress_chart import StressItem, stress_figure

if TYPE_CHECKING:
    from collections.abc import Sequence

    from evenslice.report.audit.pictures import Panel
    from evenslice.report.audit.questions import Question
    from evenslice.report.base.drawing import Drawing
    from evenslice.results import AuditResult


MAX_COLUMNS = 3  # cards side by side on the widest page: each holds the three questions side by side


@dataclass(frozen=True)
class _Card:
    """What the page says first about an audit."""

    audit: AuditResult
    colour: str
    agreement: str
    sentence: str
    questions: tuple[Question, ...]
    context: str


@dataclass(frozen=True)
class _Slice:
    label: str
    image: StoredPicture
    overlay: str
    description: str


@dataclass(frozen=True)
class _Strip:
    audit: int
    name: str
    slices: tuple[_Slice, ...]


@dataclass(frozen=True)
class _Example:
    title: str
    strips: tuple[_Strip, ...]


def draw_charts(audits: Sequence[AuditResult]) -> list[Drawing]:
    """Draw the charts of the page; call it inside ``style.settings()``."""
    charts = [shares_figure(audits)]
    if any(audit.pairs for audit in audits):
        charts += [biases_figure(audits), course_figure(audits)]
    stressed = _stressed(audits)
    return charts + ([stress_figure(stressed)] if stressed else []) + kernel_figures(audits)


def _stressed(audits: Sequence[AuditResult]) -> list[StressItem]:
    """Return what lost slices cost each network, once, though several methods may have audited it."""
    items = []
    for network, indices in by_network(audits):
        for index in indices:
            stress = audits[index].stress
            if stress is not None and stress.losses:
                items.append(StressItem(network or audits[index].name, index, (stress,)))
                break
    return items


def render(audits: Sequence[AuditResult]) -> str:
    """Return the report of one or more audits as HTML."""
    script = read_template("audit.js")
    with style.settings():
        charts = inline_charts(draw_charts(audits), "The numbers are in the table below.")
    pictures: dict[str, StoredPicture] = {}
    return render_template(
        "audit.html",
        "base.css",
        "audit.css",
        audits=audits,
        networks=network_names(audits),
        volumes=volume_names(audits),
        headline=headline(audits),
        columns=_cards_in_a_row(len(audits)),
        cards=[_card(audit, index, alone=len(audits) == 1) for index, audit in enumerate(audits)],
        colours=[style.colour_variable(index) for index in range(len(audits))],
        charts=charts,
        classes=class_rows(audits),
        examples=[_example(panel, pictures) for panel in example_panels(audits)],
        pictures=list(pictures.values()),
        groups=figure_groups(audits),
        limits=limits,
        run=run_rows(audits),
        script=Markup(script),  # noqa: S704 - the package's own text
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii"),
    )


def _card(audit: AuditResult, index: int, *, alone: bool) -> _Card:
    return _Card(
        audit=audit,
        colour=style.colour_variable(index),
        agreement="" if alone else agreement_sentence(audit),  # alone, it is the headline
        sentence=verdict_sentence(audit),
        questions=three_questions(audit),
        context=f"{context_sentence(audit)} {wording.counted(len(audit.measurements.volume), 'window')}.",
    )


def _cards_in_a_row(cards: int) -> int:
    """Return the largest number of cards in a row, so that the rows are as even as possible."""
    rows = -(-cards // MAX_COLUMNS)
    return -(-cards // rows)


def _example(panel: Panel, pictures: dict[str, StoredPicture]) -> _Example:
    """Prepare an example for the page; an image shared by several audits is added to ``pictures`` once."""
    strips = []
    for row in panel.rows:
        slices = []
        for k, image, overlay, share in zip(row.offsets, row.images, row.overlays, row.shares, strict=True):
            label = f"{wording.signed(k)}: {wording.percent(share)}"
            slices.append(
                _Slice(
                    label=label,
                    image=store_picture(pictures, image),
                    overlay=data_uri(overlay),
                    description=f"Slice {label} of the window's attention, {row.name}",
                )
            )
        strips.append(_Strip(row.audit, row.name, tuple(slices)))
    return _Example(panel.title, tuple(strips))
