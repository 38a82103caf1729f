"""The report as one page of HTML that stands alone."""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from markupsafe import Markup

from evenslice.report.audit.figures import draw_charts
from evenslice.report.audit.pictures import data_uri, example_panels
from evenslice.report.audit.tables import figure_groups, run_rows
from evenslice.report.base import style, wording
from evenslice.report.base.rendering import inline_charts, read_template, render_template

if TYPE_CHECKING:
    from collections.abc import Sequence

    from evenslice.report.audit.pictures import Panel
    from evenslice.results import AuditResult


MOST_CARDS = 4  # side by side on the widest page


@dataclass(frozen=True)
class _Picture:
    """An image that is in the page once; ``height`` in units of which its width has 100."""

    name: str
    uri: str
    height: float


@dataclass(frozen=True)
class _Slice:
    label: str
    image: _Picture
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


def render(audits: Sequence[AuditResult]) -> str:
    """Return the report of one audit or more as HTML."""
    script = read_template("report.js")
    with style.settings():
        charts = inline_charts(draw_charts(audits), "The numbers are in the table below.")
    pictures: dict[str, _Picture] = {}
    return render_template(
        "report.html",
        "report.css",
        audits=audits,
        headline=wording.headline(audits),
        columns=_cards_in_a_row(len(audits)),
        verdicts=[wording.verdict_sentence(audit) for audit in audits],
        contexts=[wording.context_sentence(audit) for audit in audits],
        colours=[style.colour_variable(index) for index in range(len(audits))],
        charts=charts,
        examples=[_example(panel, pictures) for panel in example_panels(audits)],
        pictures=list(pictures.values()),
        groups=figure_groups(audits),
        run=run_rows(audits),
        script=Markup(script),  # noqa: S704 - the package's own text
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii"),
    )


def _cards_in_a_row(cards: int) -> int:
    """Return how many of the verdicts' cards stand side by side at most: as few in the last row as can be avoided."""
    rows = -(-cards // MOST_CARDS)
    return -(-cards // rows)


def _example(panel: Panel, pictures: dict[str, _Picture]) -> _Example:
    """Prepare an example for the page; an image that several audits share goes into ``pictures`` once."""
    strips = []
    for row in panel.rows:
        slices = []
        for k, image, overlay, share in zip(row.offsets, row.images, row.overlays, row.shares, strict=True):
            picture = _Picture(
                f"picture-{len(pictures) + 1}", data_uri(image), 100 * image.shape[0] / image.shape[1]
            )
            label = f"{wording.signed(k)}: {wording.percent(share)}"
            slices.append(
                _Slice(
                    label=label,
                    image=pictures.setdefault(picture.uri, picture),
                    overlay=data_uri(overlay),
                    description=f"Slice {label} of the window's attention, {row.name}",
                )
            )
        strips.append(_Strip(row.audit, row.name, tuple(slices)))
    return _Example(panel.title, tuple(strips))
