"""Names and scales of the dimensions of an HDF5 dataset; the steps of the scales are the voxel size.

These attributes are stored in a heap. If it is damaged, the HDF5 library can loop forever, which Python cannot
interrupt. They are therefore read in a separate process with a time limit, which is started only for files that have
them.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from evenslice._core import VolumeError
from evenslice.volumes.geometry import common_unit, normal_unit

if TYPE_CHECKING:
    from pathlib import Path

    from evenslice.volumes.geometry import Unit

__all__ = ["Labels", "has_labels", "read_labels"]

SECONDS = 20

_ATTRIBUTES = ("DIMENSION_LABELS", "DIMENSION_LIST", "axistags")
_MOST_VALUES = 32  # HDF5 allows no more dimensions


class Labels(NamedTuple):
    """Names and voxel size of the dimensions of a dataset.

    Attributes:
        names: one letter per dimension, or None.
        spacing: voxel size along each dimension, NaN for those that are not spatial, or None.
        unit: unit of the spacing, or None.
    """

    names: str | None
    spacing: tuple[float, ...] | None
    unit: Unit | None


def has_labels(dataset: Any) -> bool:
    """Return whether an ``h5py.Dataset`` has names or scales of its dimensions."""
    return any(name in dataset.attrs for name in _ATTRIBUTES)


def read_labels(path: Path, part: str, label: str) -> Labels:
    """Read the names and scales of the dimensions of a dataset, in a separate process.

    Args:
        path: the file.
        part: the path of the dataset, which must not leave the file.
        label: the file, as the user wrote it.

    Raises:
        VolumeError: they cannot be read, or not within ``SECONDS``.
    """
    # -P: do not import from the working directory.
    command = [sys.executable, "-P", "-m", __name__, str(path), part]
    try:
        done = subprocess.run(command, capture_output=True, timeout=SECONDS, check=True)  # noqa: S603  # our own module
        names, spacing, unit = json.loads(done.stdout)
    except subprocess.TimeoutExpired as error:
        raise VolumeError(
            f"{label}: reading the names or scales of its dimensions took more than {SECONDS:g} s; try again when the machine "
            "is less busy, and if that does not help, write the file again, it is damaged"
        ) from error
    except (subprocess.SubprocessError, ValueError) as error:
        raise VolumeError(
            f"{label}: the names or scales of its dimensions cannot be read, the file is damaged; write it again"
        ) from error
    return Labels(names, None if spacing is None else tuple(spacing), unit)


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
    if name not in node.attrs or math.prod(node.attrs.get_id(name).shape) > _MOST_VALUES:
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


def _main(path: str, part: str) -> None:
    import h5py

    with h5py.File(path, "r", locking="best-effort") as file:
        dataset = file[part]
        names = _names(dataset)
        print(json.dumps([names, *_scale_steps(dataset, names)]))  # noqa: T201  # the answer to the parent process


if __name__ == "__main__":
    _main(*sys.argv[1:])
