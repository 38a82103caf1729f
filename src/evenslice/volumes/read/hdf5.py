"""HDF5 datasets, as ``file.h5:/path``.

A file can refer to others by external links, virtual datasets and external storage. None of these is followed.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np

from evenslice._core import VolumeError, did_you_mean
from evenslice.volumes.read.source import VoxelSource, letters, require_piece

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from evenslice.volumes.read.source import Place

_MOST_STEPS = 100  # along links, which may form a circle


class Hdf5Source(VoxelSource):
    """One dataset of an HDF5 file, which is opened for each read."""

    format = "HDF5"
    part: str

    def __init__(self, place: Place) -> None:
        self._path = place.path
        with _opened(self._path) as file:
            root = place.part in (None, "/")
            self.part = _only_volume(file) if root else str(place.part)
            dataset = _dataset(file, self.part)
            self.shape = tuple(dataset.shape or ())
            self.dtype, self.chunks = np.dtype(dataset.dtype), dataset.chunks
            if self.chunks:
                require_piece("its chunks", self.chunks, self.dtype)
            self.names = _names(dataset)
            # As Fiji, ilastik and PlantSeg write it.
            stated = np.asarray(dataset.attrs.get("element_size_um"))
            if stated.dtype.kind in "iuf" and stated.size == 3:
                sizes = stated.astype(float).ravel().tolist()
                self.voxel_size = dict(zip("zyx", sizes, strict=True)), "um"

    def read(self, key: tuple[slice, ...]) -> NDArray[Any]:
        """Decode the chunks under ``key``."""
        with _opened(self._path) as file:
            return np.asarray(_dataset(file, self.part)[key])


def _opened(path: Path) -> Any:
    # Allows to read files that another program has open, and file systems without locks.
    return h5py.File(path, "r", locking="best-effort")


def _dataset(file: Any, part: str) -> Any:
    """Return a dataset.

    Raises:
        VolumeError: there is none, or it or its voxels are in another file.
    """
    try:
        node = _node(file, part)
    except (KeyError, AttributeError, RuntimeError):  # as what lies below a dataset raises
        known = [f"/{name}" for name in list(file)[:100]]
        raise VolumeError(f"has no dataset {part}; {did_you_mean(part, known)}") from None
    if isinstance(node, h5py.Group):
        inside = [f"{part.rstrip('/')}/{name}" for name in list(node)[:6]]
        raise VolumeError(f"{part} is a group; name what is inside ({', '.join(inside) or 'nothing'})")
    if node.external or node.is_virtual:
        raise VolumeError(f"the voxels of {part} are in other files, which are not opened; copy them")
    return node


def _node(file: Any, part: str) -> Any:
    """Follow names and soft links from the root, step by step so that none leaves the file."""
    node, todo = file, part.split("/")[::-1]
    for _ in range(_MOST_STEPS):
        if not todo:
            return node
        name = todo.pop()
        if name in ("", "."):
            continue
        link = node.get(name, getlink=True)
        if isinstance(link, h5py.ExternalLink):
            raise VolumeError(f"{name} links to another file, which is not opened; name that file")
        if isinstance(link, h5py.SoftLink):
            node = file if link.path.startswith("/") else node
            todo += link.path.split("/")[::-1]
        else:
            node = node[name]
    raise KeyError(part)


def _only_volume(file: Any) -> str:
    """Return the path of the only dataset of three dimensions, else of the only one of more; only hard links are followed.

    Raises:
        VolumeError: there are none or several; the message lists the datasets.
    """
    found: dict[str, Any] = {}

    def look(name: str, node: Any) -> None:
        if isinstance(node, h5py.Dataset) and node.shape is not None and node.dtype.kind in "biuf":
            found[f"/{name}"] = node

    file.visititems(look)
    flat = [path for path, node in found.items() if node.ndim == 3]
    volumes = flat or [path for path, node in found.items() if node.ndim > 3]
    if len(volumes) == 1:
        return volumes[0]
    listing = ", ".join(f"{path} {node.shape} {node.dtype}" for path, node in list(found.items())[:8])
    if not volumes:
        raise VolumeError(f"has no dataset of three dimensions ({listing or 'no dataset'})")
    raise VolumeError(f"holds {len(volumes)} volumes ({listing}); name one, as in file.h5:{volumes[0]}")


def _names(dataset: Any) -> str | None:
    """Read the names of the dimensions from their labels or from ilastik's (vigra's) axis tags.

    The functions of HDF5 for labels (``dataset.dims``) read this attribute too, but crash on a damaged one.
    """
    stated = np.ravel(dataset.attrs.get("DIMENSION_LABELS", []))
    labels = [label.decode() if isinstance(label, bytes) else str(label) for label in stated]
    if not labels or not all(labels):
        try:
            labels = [axis["key"] for axis in json.loads(dataset.attrs["axistags"])["axes"]]
        except (ValueError, TypeError, LookupError):  # there are none, or those of another program
            return None
    return letters(labels) if len(labels) == len(dataset.shape) else None
