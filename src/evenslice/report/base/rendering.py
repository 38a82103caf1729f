"""Shared by all pages: the template engine, the colours, and inline charts."""

from __future__ import annotations

from importlib.resources import files
from typing import TYPE_CHECKING, Any

import jinja2
from markupsafe import Markup

from evenslice.report.base import style, wording

if TYPE_CHECKING:
    from collections.abc import Iterable

    from evenslice.report.base.drawing import Drawing


def render_template(name: str, *sheets: str, **values: Any) -> str:
    """Fill a template of the package; all inserted text is escaped.

    Args:
        name: of the template.
        sheets: names of the page's style sheets, in addition to the colours of the figures.
        values: variables of the template.
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
    }
    sheet = _themes() + "".join(read_template(sheet) for sheet in sheets)
    return environment.get_template(name).render(
        sheet=Markup(sheet),  # noqa: S704 - the package's own text
        **values,
    )


def read_template(name: str) -> str:
    """Return the text of one of the package's template files."""
    return (files("evenslice.report.base") / "templates" / name).read_text(encoding="utf-8")


def inline_charts(drawings: Iterable[Drawing], numbers: str) -> list[tuple[Drawing, Markup]]:
    """Return drawings with their SVG elements for a page; call it inside ``style.settings()``.

    A drawing that has a figure for narrow screens gets both; the style sheet shows the one that fits.

    Args:
        drawings: the figures.
        numbers: a sentence that tells readers who cannot see a figure where to find its numbers.
    """
    return [(drawing, _inline(drawing, f"{drawing.title}. {numbers}")) for drawing in drawings]


def _inline(drawing: Drawing, description: str) -> Markup:
    if drawing.narrow is None:
        return style.inline_svg(drawing.figure, drawing.name, description)
    broad = style.inline_svg(drawing.figure, drawing.name, description, "broad")
    return broad + style.inline_svg(drawing.narrow, f"{drawing.name}-narrow", description, "narrow")


def _themes() -> str:
    """Return the colours of the figures as variables of the page, for light and dark backgrounds."""
    light, dark = (
        "".join(f"--{name}:{colours[ground]};" for name, colours in style.THEME.items()) for ground in (0, 1)
    )
    return f":root{{{light}}}\n@media screen and (prefers-color-scheme: dark){{:root{{{dark}}}}}\n"
