"""Slices that are stored together, read together: each read would decode all of them.

classes = SliceRuns(labels)
classes[7]      # reads slices 7 to 9 if 0 to 9 share their chunks; the next two are then at hand
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from evenslice.volumes import run_end

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from evenslice.volumes import Volume

__all__ = ["READ_VOXELS", "SliceRuns", "run_end"]

READ_VOXELS = 2**25
"""Voxels that are read at once if slices are stored together."""

CLASS_VOXELS = READ_VOXELS // 4
"""The same for classes, which take 8 bytes a voxel, and four times as much while they are looked up."""


class SliceRuns:
    """The slices (y, x) of a volume of classes, which are asked for in ascending order.

    Args:
        volume: the volume.
    """

    def __init__(self, volume: Volume) -> None:
        self._volume = volume
        self._first = 0
        self._run: NDArray[Any] = volume[:0]

    def __getitem__(self, z: int) -> NDArray[Any]:
        """Return a slice.

        Raises:
            VolumeError: it cannot be read.
        """
        if not self._first <= z < self._first + len(self._run):
            _, height, width = self._volume.shape
            stop = run_end(self._volume, z, height * width, CLASS_VOXELS)
            self._first, self._run = z, self._volume[z:stop]
        found: NDArray[Any] = self._run[z - self._first]
        return found
