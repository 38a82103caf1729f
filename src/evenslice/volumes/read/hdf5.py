"""HDF5 datasets, as ``file.h5:/path``.

A file can refer to others by external links, virtual datasets and external storage. None of these is followed.
"""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

import numpy as np

from evenslice._core import VolumeError, did_you_mean, needs_extra
from evenslice.volumes.geometry import common_unit, normal_unit
from evenslice.volumes.read.checks import require_piece, require_signature
from evenslice.volumes.read.source import VoxelSource

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from evenslice.volumes.geometry import Unit

__all__ = ["Hdf5Source", "dataset_address"]

MOST_OBJECTS = 10_000
"""Number of groups and datasets that are searched for the volume."""

_MOST_DIMENSIONS = 32  # of HDF5


class Hdf5Source(VoxelSource):
    """One dataset of an HDF5 file, which is opened for each read."""

    format = "HDF5"

    def __init__(self, path: Path, label: str, part: str | None) -> None:
        require_signature(path, label, "an HDF5 file")
        self._path, self._label = path, label
        with _opened(path) as file:
            self.part = _only_volume(file, label) if part in (None, "/") else str(part)
            dataset = _dataset(file, self.part, label)
            self.shape = tuple(int(length) for length in dataset.shape or ())
            self.dtype = np.dtype(dataset.dtype)
            self.chunks = dataset.chunks
            if self.chunks:
                require_piece(label, "its chunks", self.chunks, self.dtype)
            self.names = _names(dataset)
            self.voxel_size, self.unit = _element_size(dataset)
            if self.voxel_size is None:
                self.spacing, self.unit = _scale_steps(dataset, self.names)

    def read(self, key: tuple[slice, ...]) -> NDArray[Any]:
        """Decode the chunks under ``key``."""
        with _opened(self._path) as file:
            return np.asarray(_dataset(file, self.part or "/", self._label)[key])


def dataset_address(path: Path, part: str, label: str) -> int:
    """Return where in its file a dataset is: all links to it have the same address.

    Args:
        path: the file.
        part: the path of the dataset in it.
        label: the file, as the user wrote it.
    """
    with _opened(path) as file:
        import h5py

        return int(h5py.h5o.get_info(_dataset(file, part, label).id).addr)


def _opened(path: Path) -> Any:
    with needs_extra("volumes", "reading an HDF5 volume"):
        import h5py
    # Allows to read files that another program has open, and file systems without locks.
    return h5py.File(path, "r", locking="best-effort")


def _dataset(file: Any, part: str, label: str) -> Any:
    """Return a dataset, following its path step by step so that no step leaves the file.

    Raises:
        VolumeError: there is none, or it or its voxels are in another file.
    """
    import h5py

    node = _walk(file, [name for name in part.split("/") if name], label)
    if isinstance(node, h5py.Group):
        inside = [f"{part.rstrip('/')}/{name}" for name in list(node)[:6]]
        raise VolumeError(
            f"{label}: {part} is a group; name what is inside ({', '.join(inside) or 'nothing'})"
        )
    if not isinstance(node, h5py.Dataset):
        raise VolumeError(f"{label}: {part} is not a dataset; name one, as file.h5:/path")
    if node.external or node.is_virtual:
        how = "stored in" if node.external else "assembled from"
        raise VolumeError(
            f"{label}: the voxels of {part} are {how} other files, which are not opened; copy it into one dataset"
        )
    return node


def _walk(file: Any, names: list[str], label: str) -> Any:
    """Follow names and soft links from the root; refuse external links."""
    import h5py

    node, todo, steps = file, list(names), 0
    while todo:
        name, steps = todo.pop(0), steps + 1
        link = node.get(name, getlink=True) if isinstance(node, h5py.Group) and name in node.keys() else None  # noqa: SIM118  # `in node` follows links
        if link is None:
            known = list(node)[:100] if isinstance(node, h5py.Group) else []
            raise VolumeError(f"{label}: has no /{'/'.join(names)}; {did_you_mean(name, known)}")
        if isinstance(link, h5py.ExternalLink):
            raise VolumeError(
                f"{label}: {name} links to another file ({str(link.filename)[:80]!r}), which is not opened; "
                "name that file"
            )
        if isinstance(link, h5py.SoftLink):
            if steps > 100:
                raise VolumeError(f"{label}: the links to /{'/'.join(names)} form a cycle; name the dataset")
            target = [part for part in link.path.split("/") if part not in ("", ".")]
            if link.path.startswith("/"):
                node = file
            todo = target + todo
            continue
        node = node[name]
    return node


def _only_volume(file: Any, label: str) -> str:
    """Return the path of the only dataset of three dimensions, else of the only one of more.

    Raises:
        VolumeError: there are none or several; the message lists the datasets.
    """
    found = _datasets(file)
    for wanted in (
        [item for item in found if len(item[1]) == 3],
        [item for item in found if len(item[1]) > 3],
    ):
        if len(wanted) == 1:
            return wanted[0][0]
        if wanted:
            file_label = label.removesuffix(":/")  # of which the root was named
            listing = ", ".join(f"{path} {shape} {dtype}" for path, shape, dtype in wanted[:8])
            raise VolumeError(
                f"{label}: holds {len(wanted)} volumes ({listing}{', …' if len(wanted) > 8 else ''}); name "
                f"one, as {file_label}:{wanted[0][0]}"
            )
    listing = ", ".join(f"{path} {shape}" for path, shape, _ in found[:8]) or "none"
    raise VolumeError(
        f"{label}: has no dataset of three dimensions (datasets: {listing}); name a volume file"
    )


def _datasets(file: Any) -> list[tuple[str, tuple[int, ...], str]]:
    """Return path, shape and type of the datasets of a file, following hard links only."""
    import h5py

    found: list[tuple[str, tuple[int, ...], str]] = []
    seen = 0

    def look(name: str, node: Any) -> bool | None:
        nonlocal seen
        seen += 1
        if isinstance(node, h5py.Dataset) and node.shape is not None and node.dtype.kind in "biuf":
            found.append((f"/{name}", tuple(node.shape), str(node.dtype)))
        return True if seen >= MOST_OBJECTS else None

    file.visititems(look)
    return found


def _element_size(dataset: Any) -> tuple[tuple[float, float, float] | None, Unit | None]:
    """Read the voxel size along z, y, x in micrometres, as written by Fiji, ilastik and PlantSeg."""
    stated = np.asarray(_attribute(dataset, "element_size_um"))
    if stated.dtype.kind not in "iuf" or stated.size != 3:
        return None, None
    z, y, x = stated.astype(float).ravel().tolist()
    return (z, y, x), "um"


def _names(dataset: Any) -> str | None:
    """Read the names of the dimensions from their labels or from ilastik's (vigra's) axis tags."""
    labels = [_text(label) for label in _dimensions(dataset, "DIMENSION_LABELS")]
    tags = _attribute(dataset, "axistags")
    if not all(labels) and isinstance(tags, str | bytes):
        labels = _tagged(tags)
    joined = "".join(labels).lower()
    whole = len(labels) == len(joined) == len(set(joined)) == len(dataset.shape)
    return joined if whole and joined.isalpha() else None


def _tagged(tags: str | bytes) -> list[str]:
    """Return the names in axis tags; none if these are not as vigra writes them, which any program may call so."""
    try:
        return [_text(axis["key"]) for axis in json.loads(tags)["axes"]]
    except (ValueError, TypeError, LookupError):
        return []


def _dimensions(dataset: Any, name: str) -> list[Any]:
    """Return an attribute with one entry per dimension; a list of None if there is none.

    The functions of HDF5 for labels and scales (``dataset.dims``) read these attributes too, but crash on damaged ones.
    """
    stated = _attribute(dataset, name)
    count = len(dataset.shape)
    return list(stated) if np.shape(stated)[:1] == (count,) else [None] * count


def _attribute(node: Any, name: str) -> Any:
    """Return an attribute, or None if it is missing or has more values than a dataset can have dimensions."""
    if name not in node.attrs or math.prod(node.attrs.get_id(name).shape) > _MOST_DIMENSIONS:
        return None
    return node.attrs[name]


def _text(value: Any) -> str:
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return value if isinstance(value, str) else ""


def _scale_steps(dataset: Any, names: str | None) -> tuple[tuple[float, ...] | None, Unit | None]:
    """Read the voxel size from dimension scales with evenly spaced coordinates."""
    steps: list[float] = []
    units: list[Unit | None] = []
    for number, references in enumerate(_dimensions(dataset, "DIMENSION_LIST")):
        if names is not None and names[number] not in "zyx":
            steps.append(math.nan)
            continue
        scale = dataset.file[references[0]] if np.size(references) and references is not None else None
        if scale is None or scale.shape != (dataset.shape[number],) or not 2 <= scale.shape[0] <= 2**20:
            return None, None
        if scale.external or scale.is_virtual or scale.dtype.kind not in "iuf":
            return None, None
        distances = np.diff(np.asarray(scale[...], float))
        if not np.allclose(distances, distances[0], rtol=1e-3, atol=0):
            return None, None
        steps.append(abs(float(distances[0])))
        units.append(normal_unit(_text(_attribute(scale, "units"))))
    spatial = [step for step in steps if not math.isnan(step)]
    if not spatial:
        return None, None
    sizes, unit = common_unit(spatial, units)
    if sizes is None:
        return None, None
    rest = iter(sizes)
    return tuple(step if math.isnan(step) else next(rest) for step in steps), unit
