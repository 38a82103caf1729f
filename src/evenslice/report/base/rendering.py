"""What the pages of the report share: the template engine, their colours, and charts that lie inside them."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import files
from typing import TYPE_CHECKING, Any

import jinja2
from markupsafe import Markup

from evenslice.report.base import style, wording

if TYPE_CHECKING:
    from collections.abc import Iterable

    from evenslice.report.base.drawing import Drawing


@dataclass(frozen=True)
class Chart:
    """A drawing as a page holds it."""

    name: str
    title: str
    reading: str
    svg: Markup


def render_template(name: str, *sheets: str, **values: Any) -> str:
    """Fill a template of the package; every text that is put in is escaped.

    Args:
        name: of the template.
        sheets: names of the style sheets that the page has, beside the colours of the figures.
        values: what the template shows.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("evenslice.report.base"),
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
    sheet = _themes() + "".join(read_template(sheet) for sheet in sheets)
    return environment.get_template(name).render(
        sheet=Markup(sheet),  # noqa: S704 - the package's own text
        **values,
    )


def read_template(name: str) -> str:
    """Return the text of a file of the package's templates."""
    return (files("evenslice.report.base") / "templates" / name).read_text(encoding="utf-8")


def inline_charts(drawings: Iterable[Drawing], numbers: str) -> list[Chart]:
    """Return drawings as elements of a page; call it inside ``style.settings()``.

    Args:
        drawings: what to show.
        numbers: a sentence that says where those who do not see a figure find what it shows.
    """
    return [
        Chart(
            drawing.name,
            drawing.title,
            drawing.reading,
            style.inline_svg(drawing.figure, drawing.name, f"{drawing.title}. {numbers}"),
        )
        for drawing in drawings
    ]


def _themes() -> str:
    """Return the colours of the figures as variables of the page, for light and for dark ground."""
    light, dark = (
        "".join(f"--{name}:{colours[ground]};" for name, colours in style.THEME.items()) for ground in (0, 1)
    )
    return f":root{{{light}}}\n@media screen and (prefers-color-scheme: dark){{:root{{{dark}}}}}\n"
