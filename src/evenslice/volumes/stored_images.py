"""Which stored image a volume was read from, whatever path, link or resolution level it was opened by."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evenslice._core import EvensliceError
from evenslice.volumes.read.checks import reporting_read_errors
from evenslice.volumes.read.hdf5 import dataset_address
from evenslice.volumes.read.n5 import group_above
from evenslice.volumes.read.zarr import image_above

if TYPE_CHECKING:
    from collections.abc import Callable

    from evenslice.volumes.volume import Volume

__all__ = ["StoredImage", "stored_image"]

_ABOVE: dict[str, Callable[[Path], tuple[Path, int] | None]] = {
    "Zarr v2": image_above,
    "Zarr v3": image_above,
    "N5": group_above,
}
"""Formats whose arrays may be levels of an image in the folder above, and what finds it."""


@dataclass(frozen=True)
class StoredImage:
    """A stored image and how it is read; two are equal if they are of one image.

    Attributes:
        image: what tells images apart: where they are, and what was selected along axes other than z, y and x.
        level: the resolution level that is read, 0 the finest.
        zyx: the stored dimensions that are read as z, y and x.
        depth: the number of slices of that level.
    """

    image: tuple[Any, ...]
    level: int = field(compare=False)
    zyx: tuple[int, ...] = field(compare=False)
    depth: int = field(compare=False)

    def slices_match(self, other: StoredImage) -> bool:
        """Return whether a slice number means the same in both, if they are of one image."""
        return (self.depth, self.zyx) == (other.depth, other.zyx)


def stored_image(volume: Volume) -> StoredImage:
    """Return the stored image that a volume was opened from.

    It is equal for all links to a file or to a dataset in it, for all levels of an image, and for a level opened by the path
    of its array. A copy of a file is another image, as is at an address an array that is opened by its own path, and every
    array in memory.

    Raises:
        VolumeError: the file cannot be read.

    Example:
        >>> import tempfile
        >>> import numpy as np
        >>> from evenslice.volumes import open_volume, write_volume
        >>> path = f"{tempfile.mkdtemp()}/image.ome.zarr"
        >>> write_volume(open_volume(np.zeros((8, 300, 300), np.uint8)), path)
        >>> whole, level = stored_image(open_volume(path)), stored_image(open_volume(f"{path}/1"))
        >>> whole == level, level.level, whole.slices_match(level)
        (True, 1, False)
    """
    where, level = _place(volume)
    reading = volume.reading
    depth = (volume.whole_shape or volume.shape)[0]
    return StoredImage((*where, *map(tuple, reading["fixed"])), level, tuple(reading["zyx"]), depth)


def _place(volume: Volume) -> tuple[tuple[Any, ...], int]:
    """Return what the stored images of one container differ in, and the resolution level."""
    if volume.location is None:
        return (id(volume),), 0
    if not isinstance(volume.location, Path):
        return (volume.location, volume.part), volume.level
    path = volume.location.resolve()
    if volume.part is not None:
        with reporting_read_errors(volume.path, volume.format):
            return (path, dataset_address(path, volume.part, volume.path)), 0
    if volume.files:  # of one series, in a folder of several
        return tuple(file.resolve() for file in volume.files), 0
    if volume.format in _ABOVE:
        # Whatever is wrong with the folder above does not concern the array.
        with suppress(EvensliceError), reporting_read_errors(volume.path, volume.format):
            if above := _ABOVE[volume.format](path):
                return (above[0],), above[1]
    return (path,), volume.level
