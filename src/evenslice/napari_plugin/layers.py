"""Between layers of napari and volumes: image layers to read, the layers made from them, and the sample."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

import numpy as np

from evenslice import ConfigError, VolumeError, open_volume
from evenslice.volumes import mni152

if TYPE_CHECKING:
    from collections.abc import Sequence

    from napari.layers import Image, Layer
    from napari.viewer import Viewer
    from numpy.typing import NDArray

    from evenslice import Explanation, Volume

MADE_HERE = {"evenslice": True}
"""The metadata of a layer that this plugin makes."""

COLOURS = {"adds": "red", "takes": "blue"}
"""Of what adds to the answer and what takes from it, as in the report."""
BRIGHTEST = 99.5  # percentile of the absolute maps of all offsets that is shown at full brightness
CHANGED = "#ffd400"
SHADE = 0.75
"""How much a layer behind the maps darkens the slice, on which bright tissue would leave no colour to be seen."""


def images(viewer: Viewer) -> list[Image]:
    """Return the image layers of a viewer that this plugin has not made."""
    from napari.layers import Image

    layers = (layer for layer in viewer.layers if isinstance(layer, Image))
    return [layer for layer in layers if not MADE_HERE.items() <= layer.metadata.items()]


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
        raise VolumeError(
            f"{layer.name}: has {layer.ndim} dimensions; a volume has z, y and x (Split Stack parts channels and times)"
        )
    data = layer.data[0] if layer.multiscale else layer.data
    if not isinstance(data.dtype, np.dtype):  # such as a tensor, which napari shows, too
        data = np.asarray(data)
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


def add_maps(viewer: Viewer, maps: Explanation, layer: Image, axis: int) -> list[Layer]:
    """Add layers that explain a slice: what each offset adds to the answer or takes from it, and what reversing changes.

    Args:
        viewer: where they are shown.
        maps: of a slice of the layer's volume.
        layer: the layer (z, y, x).
        axis: of the layer, along which slices follow one another.
    """
    first = list(maps.origin)
    first.insert(axis, maps.z)
    where: dict[str, Any] = placement(layer, first) | {"metadata": MADE_HERE}
    active = viewer.layers.selection.active
    shade = viewer.add_image(
        np.zeros_like(np.expand_dims(maps.maps[0], axis)),
        name="shade",
        contrast_limits=(0, 1),
        blending="translucent_no_depth",
        opacity=SHADE,
        **where,
    )
    added: list[Layer] = [shade]
    brightest = max(float(np.percentile(np.abs(maps.maps), BRIGHTEST)), float(np.finfo(np.float32).tiny))
    for offset, found in zip(maps.offsets, maps.maps, strict=True):
        if not found.any():
            continue  # as for the middle slice, if neighbours are compared with it
        for sign, (name, colour) in zip((1, -1), COLOURS.items(), strict=True):
            shown = viewer.add_image(
                np.expand_dims(np.maximum(sign * found, 0), axis),
                name=f"{offset:+d} {name}" if offset else f"0 {name}",
                colormap=colour,
                contrast_limits=(0, brightest),
                blending="additive",
                **where,
            )
            added.append(shown)
    if maps.change is not None:
        changed = viewer.add_labels(
            np.expand_dims(maps.change.astype(np.uint8), axis),
            name="changed by reversing",
            colormap={1: CHANGED, None: "transparent"},
            opacity=0.6,
            visible=False,
            **where,
        )
        added.append(changed)
    viewer.layers.selection.active = active
    return added


def open_mni152() -> list[tuple[NDArray[Any], dict[str, Any], str]]:
    """Return the MNI152 T1 template as data of an image layer (z, y, x).

    Raises:
        MissingExtraError: nilearn, which ships it, is not installed.
    """
    volume = mni152()
    # The file does not say its unit; the template's voxels are of 1 mm.
    options = {"name": "MNI152 T1", "scale": volume.spacing, "units": (volume.unit or "mm",) * 3}
    return [(volume[...], options, "image")]
