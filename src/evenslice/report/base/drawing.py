"""A figure of the report with its title and caption."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WIDTH: Final = 10.0
"""Width of figures for broad screens in inches."""

MEDIUM: Final = 6.2
"""Width in inches of figures for screens of any width: their text is legible from 360 to 700 pixels."""

NARROW: Final = 5.2
"""Width in inches of figures for narrow screens: their text is legible where they are 380 pixels wide."""


@dataclass(frozen=True)
class Drawing:
    """A figure with its title and caption.

    Attributes:
        name: of its files, and its identifier in the page.
        title: its title.
        reading: the caption, which says how to read it.
        figure: the figure, drawn for a light background.
        narrow: the same for narrow screens, ``NARROW`` wide; None if ``figure`` is for all.
    """

    name: str
    title: str
    reading: str
    figure: Figure
    narrow: Figure | None = None

    def __post_init__(self) -> None:
        """Lay the figures out, once: saving one would do so anew, and draw it twice, for each file and each page."""
        for figure in (self.figure, self.narrow):
            if figure is not None:
                figure.draw_without_rendering()
                figure.set_layout_engine(None)
