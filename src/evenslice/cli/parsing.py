"""How the words of a command line become values of options, or one line about what is wrong with them."""

from __future__ import annotations

import re
from typing import NamedTuple

import typer

__all__ = [
    "AxisEntry",
    "check_seed",
    "parse_numbers",
    "parse_region",
    "parse_selection",
    "parse_strategy",
    "parse_values",
]


def parse_numbers(text: str) -> list[float]:
    """Read one number, or several separated by commas."""
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise typer.BadParameter(f"{text}: numbers are needed, such as 0.485,0.456,0.406") from None


def parse_strategy(text: str) -> str | tuple[float, ...]:
    """Read the name of a strategy, or the weights of a profile separated by commas."""
    if "," not in text:
        return text
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise typer.BadParameter(
            f"{text}: give the name of one strategy, or the weights of a profile, such as 0.25,0.5,0.25"
        ) from None


def parse_values(text: str) -> list[int]:
    """Read whole numbers separated by commas."""
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise typer.BadParameter(f"{text}: whole numbers are needed, such as 0,255") from None


class AxisEntry(NamedTuple):
    """One entry of an axis; a class of its own, since Typer takes no list of tuples."""

    axis: str
    place: int


def parse_selection(text: str) -> AxisEntry:
    """Read AXIS=INDEX."""
    axis, _, index = text.partition("=")
    if not axis or not index.isdecimal():
        raise typer.BadParameter(f"{text}: an axis and a whole number are needed, such as t=0")
    return AxisEntry(axis, int(index))


def check_selection(entries: list[AxisEntry] | None) -> list[AxisEntry] | None:
    """Return the entries of axes, each of which is named once."""
    axes = [entry.axis.lower() for entry in entries or ()]
    for axis in axes:
        if axes.count(axis) > 1:
            raise typer.BadParameter(
                f"the axis {axis} is given {axes.count(axis)} times; select one entry of it"
            )
    return entries


def parse_region(text: str) -> tuple[slice, ...]:
    """Read z0:z1,y0:y1,x0:x1, in which any bound may be left out."""
    parts = re.fullmatch(r"(\d*):(\d*),(\d*):(\d*),(\d*):(\d*)", "".join(text.split()), re.ASCII)
    if parts is None:
        raise typer.BadParameter(
            f"{text}: bounds along z, y and x are needed, such as 0:16,:,100:612; a colon alone takes the whole axis"
        )
    bounds = [int(part) if part else None for part in parts.groups()]
    return tuple(slice(*bounds[axis : axis + 2]) for axis in (0, 2, 4))


def check_seed(seed: int) -> int:
    """Return a seed that every random generator takes; a range that Typer knows would fill the help."""
    if not 0 <= seed < 2**63:
        raise typer.BadParameter(f"{seed} is not between 0 and 2**63 - 1")
    return seed
