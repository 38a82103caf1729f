"""How commands open volumes, and labels, whose axes need not be those of the image."""

# `grouped` reads the annotations here when it runs, so they are not postponed.
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from evenslice.cli.options import volume

if TYPE_CHECKING:
    from evenslice.volumes import Volume


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


@dataclass(frozen=True, kw_only=True)
class Opening:
    """How to read the axes of a volume."""

    axes: Annotated[
        str | None,
        volume(
            "Names of the file's axes as stored, such as xyz or tzyx (default: those that the file states, else z, y, x).",
            metavar="AXES",
        ),
    ] = None
    select: Annotated[
        list[AxisEntry] | None,
        volume(
            "Select one entry of an axis, such as t=0; repeat for further axes.",
            metavar="AXIS=N",
            parser=parse_selection,
            callback=check_selection,
        ),
    ] = None
    level: Annotated[
        int, volume("Resolution level of a multiscale volume; 0 is the finest.", metavar="N")
    ] = 0
    region: Annotated[
        Sequence[slice] | None,
        volume(
            "Read only this part of the file, as start:stop along z, y and x, such as 0:16,:,100:612.",
            metavar="Z:Z,Y:Y,X:X",
            parser=parse_region,
        ),
    ] = None

    def open(self, path: str, *, plane: str | None = None) -> "Volume":
        """Open a volume with these options, sliced along an axis."""
        from evenslice.volumes import open_volume

        chosen = dict(self.select or ())
        return open_volume(
            path, axes=self.axes, select=chosen, level=self.level, plane=plane, region=self.region
        )


@dataclass(frozen=True, kw_only=True)
class LabelledOpening(Opening):
    """How to read the axes of a volume and of its labels."""

    label_axes: Annotated[
        str | None,
        volume(
            "Names of the label file's axes as stored (default: those that the file states, else as --axes).",
            metavar="AXES",
        ),
    ] = None

    def refuse(self) -> None:
        """Raise ConfigError if an option for labels is given, as there are none."""
        from evenslice.volumes import refuse_without_labels

        refuse_without_labels({"label_axes": self.label_axes})

    def open_labels(self, path: str, *images: str) -> "Volume":
        """Open labels of images: by the axes given for labels, else those that their file states, else as the images.

        A file without the level of the images, or too small for their region, is read whole, as it may hold labels of just
        what is read of them; whoever takes them compares their shape with that of the images.

        Raises:
            ConfigError: the files of labels and image state the same axes, and those given for the image are others.
        """
        from evenslice._core import ConfigError, EvensliceError
        from evenslice.volumes import stated_axes

        if self.label_axes is not None or self.axes is None:
            try:
                return self._open_named(path, self.label_axes)
            except EvensliceError as error:
                raise type(error)(error.render(_spelled_for_labels)) from error
        states = partial(stated_axes, level=self.level, series=dict(self.select or ()).get("series"))
        try:
            stated = states(path)
        except ConfigError:  # it has no such level
            stated = states(path, level=0)
        if stated is None:
            return self._open_named(path, self.axes)
        try:
            opened = self._open_named(path, None)
        except EvensliceError:  # what it states makes no volume
            return self._open_named(path, self.axes)
        # Either the labels were stored like the image, and misnamed like it, or they were made from what was read.
        if stated in map(states, images) and self._reads_otherwise(path, opened):
            raise ConfigError(
                f"{path}: its file names its axes {stated.upper()}, as does that of the volume, for which --axes "
                f"{self.axes} was given; say which hold for the labels, as --label-axes {stated} or {self.axes}"
            )
        return opened

    def _reads_otherwise(self, path: str, opened: "Volume") -> bool:
        """Return whether labels can also be opened by the axes given for the image, and have others then."""
        from evenslice._core import EvensliceError

        try:
            return self._open_named(path, self.axes).reading != opened.reading
        except EvensliceError:
            return False

    def _open_named(self, path: str, axes: str | None) -> "Volume":
        """Open labels or, as they may lack the other axes of the image, those with z, y and x alone."""
        from evenslice._core import EvensliceError

        try:
            return _open_fitting(replace(self, axes=axes), path)
        except EvensliceError:
            if axes is not None and axes != self.label_axes:
                axes = "".join(axis for axis in axes if axis.lower() in "zyx")
            with suppress(EvensliceError):
                return _open_fitting(replace(self, axes=axes, select=None), path)
            raise


def _open_fitting(opening: Opening, path: str) -> "Volume":
    """Open labels at the level and in the region of the image, or whole if their file has no such level or region."""
    from evenslice._core import ConfigError

    try:
        return opening.open(path)
    except ConfigError:
        for level in (opening.level, 0):
            with suppress(ConfigError):
                return replace(opening, level=level, region=None).open(path)
        raise


def _spelled_for_labels(name: str, value: Any) -> str:
    """Spell an option of reading a volume as that for labels."""
    from evenslice._core import spelled_on_command_line

    return spelled_on_command_line("label_axes" if name == "axes" else name, value)
