"""The style of figures, in files and inside a page."""

from __future__ import annotations

import io
import re
import warnings
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from markupsafe import Markup, escape
from matplotlib.style import context

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from matplotlib.figure import Figure

INK, QUIET, GRID, BAND = "#1b1f24", "#59636e", "#d8dee4", "#e4e9ee"
"""Text and axes, secondary text and lines, grid lines, tolerance band; on a light background."""

AUDIT_COLOURS: Final = (
    ("#0072b2", "#4fb3f0"),
    ("#c24e00", "#ff8a3d"),
    ("#00815d", "#2fc79a"),
    ("#b15097", "#e08cc6"),
    ("#7a6a00", "#e0cf4a"),
    ("#5b5bd6", "#a3a3ff"),
    ("#0f7d93", "#62d0e6"),
    ("#8a5a3c", "#cf9b78"),
)
"""One colour for each audit, on light and dark backgrounds; after Okabe and Ito's colour-blind-safe palette."""

MARKERS: Final = "osD^vPX*"
"""Markers distinguish audits in addition to colour."""

LINE_STYLES: Final = ("-", "--", ":", "-.")

TALL: Final = 1300.0
"""Height in points beyond which a figure is printed on several pages, as it could not be read if it had to fit on one."""

HATCHES: Final = ("", "////", "....", "xxxx")

THEME: Final = {
    "ink": (INK, "#e6edf3"),
    "quiet": (QUIET, "#9aa7b4"),
    "grid": (GRID, "#303840"),
    "band": (BAND, "#2a323b"),
    **{f"audit-{index}": colours for index, colours in enumerate(AUDIT_COLOURS)},
}
"""Name of the page's colour variable: its colour on light and dark backgrounds."""

NO_METADATA: Final[dict[str, Any]] = {"Date": None, "Creator": None, "Format": None, "Type": None}
"""Metadata to leave out of an SVG, so that two runs write the same file."""

SETTINGS: Final[dict[str, Any]] = {
    "axes.edgecolor": QUIET,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.labelcolor": INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlecolor": INK,
    "axes.titlelocation": "left",
    "axes.titlesize": 10,
    "figure.facecolor": "white",
    "font.size": 10,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "legend.frameon": False,
    "legend.labelcolor": INK,
    "svg.fonttype": "none",
    "svg.hashsalt": "evenslice",
    "text.color": INK,
    "text.parse_math": False,
    "xtick.color": QUIET,
    "xtick.labelcolor": INK,
    "ytick.color": QUIET,
    "ytick.labelcolor": INK,
}


def audit_colour(index: int) -> str:
    """Return the colour of the audit at ``index``, on a light background."""
    return AUDIT_COLOURS[index % len(AUDIT_COLOURS)][0]


def colour_variable(index: int) -> str:
    """Return the same colour for a style sheet, where it follows the background."""
    return f"var(--audit-{index % len(AUDIT_COLOURS)})"


def line_style(index: int) -> str:
    """Return the line style of the audit at ``index``; it differs for audits of the same colour."""
    return LINE_STYLES[index // len(AUDIT_COLOURS) % len(LINE_STYLES)]


def hatch(index: int) -> str:
    """Return the hatching of the bars of the audit at ``index``; it differs for audits of the same colour."""
    return HATCHES[index // len(AUDIT_COLOURS) % len(HATCHES)]


def audit_marker(index: int) -> str:
    """Return the marker of the audit at ``index``; it differs for audits of the same colour."""
    return MARKERS[(index + index // len(AUDIT_COLOURS)) % len(MARKERS)]


@contextmanager
def settings() -> Iterator[None]:
    """Draw and save in the project's style, regardless of the user's Matplotlib configuration."""
    with context(SETTINGS, after_reset=True), warnings.catch_warnings():
        # A name in a script that Matplotlib's own font lacks is drawn by the browser's fonts in the page.
        warnings.filterwarnings("ignore", message=r"Glyph .* missing from font")
        yield


def compact_svg(text: str) -> str:
    r"""Shorten an SVG without visible change: round to hundredths of a point, drop indents and names of fallback fonts.

    Example:
        >>> compact_svg('<path d="M 39.904146 225.198979 L 7 8"/>\n   <text x="1.23456">1.23456</text>')
        '<path d="M 39.9 225.2 L 7 8"/>\n<text x="1.23">1.23456</text>'
    """
    return _in_tags(_compact, re.sub(r">\n +<", ">\n<", text))


def _in_tags(change: Callable[[str], str], text: str) -> str:
    """Change the tags alone: the text between them may hold names of the user's, of any form."""
    return re.sub(r"<[^>]+>", lambda tag: change(tag[0]), text)


def _compact(tag: str) -> str:
    tag = re.sub(r' (?:d|x|y)="[^"]*"', lambda places: re.sub(r"\d+\.\d{3,}", _hundredths, places[0]), tag)
    return re.sub(r"(font-family: '[^']*'), [^;\"]*sans-serif", r"\1, sans-serif", tag)


def _hundredths(number: re.Match[str]) -> str:
    return f"{float(number[0]):.2f}".rstrip("0").rstrip(".")


def inline_svg(figure: Figure, name: str, description: str, kind: str = "") -> Markup:
    """Return a figure as an SVG element that takes its colours and fonts from the page.

    Args:
        figure: the figure.
        name: prefix of every identifier in the SVG, so that figures on one page cannot clash; identifiers that
            nothing refers to are left out.
        description: what the figure shows, for readers who cannot see it.
        kind: the element's class in the style sheet.
    """
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata=NO_METADATA)
    text = compact_svg(buffer.getvalue())
    text = text[text.index("<svg") :]
    # The figure's own style sheet would apply to the whole page; the page has the same rule for figures alone.
    text = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", text, count=1, flags=re.DOTALL)
    used = set(re.findall(r'(?:url\(#|href="#)([^")]+)', text))
    text = _in_tags(partial(_restyled, name=name, used=used), text)
    width, height = figure.get_size_inches() * 72
    classes = [*kind.split(), *(["tall"] if height > TALL else [])]
    chosen = f' class="{" ".join(classes)}"' if classes else ""
    opening = f'<svg role="img" aria-label="{escape(description)}"{chosen} viewBox="0 0 {width:g} {height:g}"'
    opening += ' xmlns:xlink="http://www.w3.org/1999/xlink">'
    text = re.sub(r"<svg .*?>", lambda _: opening, text, count=1, flags=re.DOTALL)
    return Markup(text)  # noqa: S704 - Matplotlib escapes what it is given to write, and the description is escaped here


def _restyled(tag: str, name: str, used: set[str]) -> str:
    """Return a tag of a figure with identifiers of its own, and the colours and fonts of the page."""
    tag = re.sub(r' id="([^"]*)"', lambda match: match[0] if match[1] in used else "", tag)
    tag = re.sub(r'( id="|url\(#|href="#)', rf"\g<1>{name}-", tag)
    tag = re.sub(r"font: ([\d.]+px) [^;\"]+", r"font-size: \1", tag)
    for variable, (light, _) in THEME.items():
        tag = tag.replace(light, f"var(--{variable})")
    return tag
