"""A figure of the report together with its words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WIDTH: Final = 10.0
"""Of every figure, in inches."""


@dataclass(frozen=True)
class Drawing:
    """A figure with its words.

    Attributes:
        name: of its files, and of its place in the page.
        title: what it shows.
        reading: one sentence that says how to read it.
        figure: the figure itself, drawn for light ground.
    """

    name: str
    title: str
    reading: str
    figure: Figure
