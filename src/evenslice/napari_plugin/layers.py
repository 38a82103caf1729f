"""Between layers of napari and volumes: an image layer to read, and where the layers made from it belong."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

import numpy as np

from evenslice._core import ConfigError, VolumeError
from evenslice.volumes import open_volume

if TYPE_CHECKING:
    from collections.abc import Sequence

    from napari.layers import Image, Layer
    from napari.viewer import Viewer
    from numpy.typing import NDArray

    from evenslice.volumes import Volume

__all__ = ["images", "mark", "placement", "position", "volume_of"]

_MADE_HERE = "evenslice"


def images(viewer: Viewer) -> list[Image]:
    """Return the image layers of a viewer that this plugin has not made."""
    from napari.layers import Image

    return [
        layer
        for layer in viewer.layers
        if isinstance(layer, Image) and not getattr(layer, "metadata", {}).get(_MADE_HERE)
    ]


def mark(**more: Any) -> dict[str, Any]:
    """Return the metadata of a layer that this plugin makes."""
    return {_MADE_HERE: more or True}


def volume_of(layer: Image | None) -> Volume:
    """Return an image layer (z, y, x) as a volume with its spacing; of a multiscale layer, the finest level.

    Voxels of Dask and Zarr arrays are read when they are needed.

    Raises:
        VolumeError: there is no layer, it is in colour, or it does not have three dimensions.
    """
    if layer is None:
        raise VolumeError("no image layer is open; open a volume (z, y, x) first")
    if layer.rgb:
        raise VolumeError(
            f"{layer.name}: is in colour; slices are gray: right-click the layer, choose Split RGB, then one of the channels"
        )
    if layer.ndim != 3:
        advice = (
            "Split Stack makes one layer of each channel or time"
            if layer.ndim > 3
            else "open the whole stack"
        )
        raise VolumeError(f"{layer.name}: has {layer.ndim} dimensions; a volume has z, y and x: {advice}")
    data = layer.data[0] if layer.multiscale else layer.data
    if not isinstance(data.dtype, np.dtype):  # such as a tensor, which napari shows, too
        data = np.asarray(data)
    if data.dtype.kind not in "biuf":
        raise VolumeError(f"{layer.name}: its voxels are {data.dtype}; a volume needs real numbers")
    spacing = tuple(abs(float(size)) for size in layer.scale)
    units = {str(unit) for unit in layer.units}
    with suppress(ConfigError):  # a unit that is no length
        return open_volume(data, spacing=spacing, unit=units.pop() if len(units) == 1 else None)
    return open_volume(data, spacing=spacing)


def placement(layer: Layer, offset: Sequence[float] = (0, 0, 0)) -> dict[str, Any]:
    """Return the options that put a layer on a part of another one.

    Args:
        layer: the other layer (z, y, x).
        offset: the voxel (z, y, x) of that layer where the part begins.
    """
    from napari.utils.transforms import Affine

    turned: NDArray[np.float64] = Affine(
        scale=layer.scale, rotate=layer.rotate, shear=layer.shear
    ).linear_matrix
    return {
        "scale": layer.scale,
        "rotate": layer.rotate,
        "shear": layer.shear,
        "translate": np.asarray(layer.translate) + turned @ np.asarray(offset, dtype=float),
        "affine": layer.affine,
        "units": layer.units,
    }


def position(viewer: Viewer, layer: Layer) -> tuple[int, int, int]:
    """Return the voxel (z, y, x) of a layer in the middle of what the viewer shows, on its current slice."""
    point = list(viewer.dims.point)
    shown = viewer.dims.displayed
    for axis, value in zip(shown, viewer.scene.camera.center[-len(shown) :], strict=True):
        point[axis] = value
    found = np.round(layer.world_to_data(point)[-3:]).astype(int)
    shape = layer.data[0].shape if layer.multiscale else layer.data.shape
    z, y, x = (int(value) for value in np.clip(found, 0, np.array(shape) - 1))
    return z, y, x
