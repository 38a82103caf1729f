"""Figures: their style, a figure with its title and caption, and its SVG in files and pages."""

from __future__ import annotations

import io
import math
import re
import warnings
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from markupsafe import Markup, escape
from matplotlib.style import context

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from evenslice.results import Interval

WIDTH: Final = 6.2
"""Width of figures in inches: their text is legible where a screen is 420 pixels wide, and two fit beside each other."""

TALLEST: Final = 150.0
"""Largest height of a figure in inches."""

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
    "axes.titlelocation": "left",
    "axes.titlesize": 10,
    "grid.color": GRID,
    "legend.frameon": False,
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


def look(index: int) -> dict[str, Any]:
    """Return the colour, the line style and the marker of the audit at ``index``; the latter differ for the same colour."""
    round_ = index // len(AUDIT_COLOURS)
    return {
        "color": audit_colour(index),
        "linestyle": LINE_STYLES[round_ % len(LINE_STYLES)],
        "marker": MARKERS[(index + round_) % len(MARKERS)],
    }


def draw_interval(
    axes: Axes, y: float, value: Interval | None, index: int, reach: float, alpha: float = 1.0
) -> None:
    """Draw a figure and its 95 % interval at the height ``y``, in the look of an audit; cut off at ``reach`` on either side."""
    if value is None or math.isnan(value.estimate):
        return
    ends = np.clip([value.low, value.high, value.estimate], -reach, reach)
    axes.plot(ends[:2], [y, y], color=audit_colour(index), alpha=alpha, linewidth=2.5, solid_capstyle="butt")
    axes.plot(ends[2], y, alpha=alpha, markersize=5.5, **look(index))


def name_rows(axes: Axes, places: Sequence[float], labels: Sequence[str], bottom: float) -> None:
    """Name rows from the top of a chart to ``bottom``, and mark 0."""
    axes.set_yticks(places, labels)
    axes.set_ylim(bottom, -0.6)
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", length=0)
    axes.axvline(0, color=QUIET, linewidth=1)


def theme_sheet() -> str:
    """Return the colours of the figures as variables of a page, for light and dark backgrounds."""
    light, dark = (
        "".join(f"--{name}:{colours[ground]};" for name, colours in THEME.items()) for ground in (0, 1)
    )
    return f":root{{{light}}}\n@media screen and (prefers-color-scheme: dark){{:root{{{dark}}}}}\n"


@contextmanager
def settings() -> Iterator[None]:
    """Draw and save in the project's style, regardless of the user's Matplotlib configuration."""
    with context(SETTINGS, after_reset=True), warnings.catch_warnings():
        # A name in a script that Matplotlib's own font lacks is drawn by the browser's fonts in the page.
        warnings.filterwarnings("ignore", message=r"Glyph .* missing from font")
        yield


@dataclass(frozen=True)
class Drawing:
    """A figure with its title and caption.

    Attributes:
        name: of its file, and its identifier in the page.
        title: its title.
        reading: the caption, which says how to read it.
        figure: the figure, ``WIDTH`` wide, drawn for a light background.
    """

    name: str
    title: str
    reading: str
    figure: Figure

    def __post_init__(self) -> None:
        """Lay the figure out, once: saving it would do so anew, and draw it twice, for each file and each page."""
        self.figure.draw_without_rendering()
        self.figure.set_layout_engine(None)


def svg_text(figure: Figure, *, transparent: bool = False) -> str:
    """Return a figure as SVG, without indents and to hundredths of a point; two runs give the same text."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=transparent, metadata=NO_METADATA)
    text = re.sub(r">\n +<", ">\n<", buffer.getvalue())
    return _in_tags(lambda tag: re.sub(r"(\d\.\d\d)\d+", r"\1", tag), text)


def _in_tags(change: Callable[[str], str], text: str) -> str:
    """Change the tags alone: the text between them may hold names of the user's, of any form."""
    return re.sub(r"<[^>]+>", lambda tag: change(tag[0]), text)


def inline_svg(drawing: Drawing) -> Markup:
    """Return a figure as an SVG element that takes its colours and fonts from the page; call it inside ``settings()``.

    Args:
        drawing: the figure; its name starts every identifier in the SVG, so that figures on one page cannot clash.
    """
    text = svg_text(drawing.figure, transparent=True)
    text = text[text.index("<svg") :]
    # The figure's own style sheet would apply to the whole page; the page has the same rule for figures alone.
    text = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", text, count=1, flags=re.DOTALL)
    text = _in_tags(partial(_restyled, name=drawing.name), text)
    width, height = drawing.figure.get_size_inches() * 72
    tall = ' class="tall"' if height > TALL else ""
    label = escape(f"{drawing.title}. The numbers are in the tables below.")
    opening = f'<svg role="img" aria-label="{label}"{tall} viewBox="0 0 {width:g} {height:g}"'
    opening += ' xmlns:xlink="http://www.w3.org/1999/xlink">'
    text = re.sub(r"<svg .*?>", lambda _: opening, text, count=1, flags=re.DOTALL)
    return Markup(text)  # noqa: S704 - Matplotlib escapes what it is given to write, and the description is escaped here


def _restyled(tag: str, name: str) -> str:
    """Return a tag of a figure with identifiers of its own, and the colours and fonts of the page."""
    tag = re.sub(r'( id="|url\(#|href="#)', rf"\g<1>{name}-", tag)
    tag = re.sub(r"font: ([\d.]+px) [^;\"]+", r"font-size: \1", tag)
    for variable, (light, _) in THEME.items():
        tag = tag.replace(light, f"var(--{variable})")
    return tag
