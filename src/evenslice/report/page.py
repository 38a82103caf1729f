"""The report as one page of HTML that stands alone."""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass
from importlib.resources import files
from typing import TYPE_CHECKING

import jinja2
from markupsafe import Markup

from evenslice.report import style, wording
from evenslice.report.figures import draw_charts
from evenslice.report.pictures import data_uri, example_panels
from evenslice.report.tables import figure_groups, run_rows

if TYPE_CHECKING:
    from collections.abc import Sequence

    from evenslice.report.pictures import Panel
    from evenslice.results import Audit


@dataclass(frozen=True)
class _Chart:
    name: str
    title: str
    reading: str
    svg: Markup


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


def render(audits: Sequence[Audit]) -> str:
    """Return the report of one audit or more as HTML."""
    templates = files("evenslice.report") / "templates"
    sheet, script = ((templates / name).read_text(encoding="utf-8") for name in ("report.css", "report.js"))
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("evenslice.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "interval": wording.interval,
        "number": wording.number,
        "percent": wording.percent,
        "signed": wording.signed,
    }
    pictures: dict[str, _Picture] = {}
    return environment.get_template("report.html").render(
        audits=audits,
        headline=wording.headline(audits),
        verdicts=[wording.verdict_sentence(audit) for audit in audits],
        contexts=[wording.context_sentence(audit) for audit in audits],
        colours=[f"var(--audit-{index % len(style.AUDIT_COLOURS)})" for index in range(len(audits))],
        charts=_charts(audits),
        examples=[_example(panel, pictures) for panel in example_panels(audits)],
        pictures=list(pictures.values()),
        groups=figure_groups(audits),
        run=run_rows(audits),
        sheet=Markup(_themes() + sheet),  # noqa: S704 - the package's own text
        script=Markup(script),  # noqa: S704 - the package's own text
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii"),
    )


def _charts(audits: Sequence[Audit]) -> list[_Chart]:
    with style.settings():
        return [
            _Chart(
                drawing.name,
                drawing.title,
                drawing.reading,
                style.inline_svg(
                    drawing.figure, drawing.name, f"{drawing.title}. The numbers are in the table below."
                ),
            )
            for drawing in draw_charts(audits)
        ]


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


def _themes() -> str:
    """Return the colours of the figures as variables of the page, for light and for dark ground."""
    light, dark = (
        "".join(f"--{name}:{colours[ground]};" for name, colours in style.THEME.items()) for ground in (0, 1)
    )
    return f":root{{{light}}}\n@media screen and (prefers-color-scheme: dark){{:root{{{dark}}}}}\n"
