"""The manifest, and where layers belong: on rotated and sheared volumes, and in a viewer that looks along any axis."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import evenslice
from evenslice.napari_plugin.layers import placement, position, volume_of

# napari draws only slices along the axes of a layer, and warns where it is turned out of the plane.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:Non-orthogonal slicing:UserWarning")]

TURNED = {
    "upright": {},
    "rotated": {"rotate": (20, 30, 40)},
    "sheared": {"shear": (0.1, -0.2, 0.3)},
    "behind an affine transform": {
        "rotate": (5, 0, 60),
        "affine": [[1, 0.2, 0, 9], [0, 1, 0, 8], [0.1, 0, 1, 7], [0, 0, 0, 1]],
    },
}


def image(voxels, **options):
    layers = pytest.importorskip("napari.layers", reason="napari is not installed", exc_type=Exception)
    return layers.Image(voxels, **options)


def layer_of(shape=(6, 20, 30), **options):
    places = {"scale": (4, 0.5, 2), "translate": (1, 2, 3), "name": "stack"}
    return image(np.zeros(shape, np.float32), **places, **options)


@pytest.mark.parametrize("turned", TURNED.values(), ids=TURNED)
def test_a_part_of_a_layer_lies_on_the_voxels_that_it_shows(turned):
    whole, first = layer_of(**turned), (2, 7, 11)
    part = image(np.zeros((1, 5, 6), np.float32), **placement(whole, first))
    for voxel in ((0, 0, 0), (0, 4, 5), (0, 2, 0)):
        expected = whole.data_to_world(np.add(voxel, first))
        np.testing.assert_allclose(part.data_to_world(voxel), expected, atol=1e-6)


@pytest.mark.parametrize("turned", [{}, TURNED["behind an affine transform"]], ids=["upright", "turned"])
@pytest.mark.parametrize("order", [(0, 1, 2), (1, 0, 2), (2, 0, 1)], ids=["along z", "along y", "along x"])
def test_the_voxel_in_view_is_found_whatever_the_viewer_looks_along(order, turned):
    viewer = pytest.importorskip("napari.components").ViewerModel()
    layer = viewer.add_layer(layer_of(**turned))
    viewer.dims.order = order
    voxel = (3, 8, 13)
    point = layer.data_to_world(voxel)
    viewer.dims.set_point(order[0], point[order[0]])
    viewer.scene.camera.center = tuple(point[axis] for axis in (order[0], *order[1:]))
    # A viewer's slider stops at whole steps; the voxel is found to within one, where the layer is turned.
    assert np.abs(np.subtract(position(viewer, layer), voxel)).max() <= (1 if turned else 0)


def test_npe2_validates_the_manifest():
    pytest.importorskip("npe2")
    manifest = Path(evenslice.__file__).parent / "napari_plugin" / "napari.yaml"
    command = [sys.executable, "-m", "npe2", "validate", "--imports", str(manifest)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "valid" in done.stdout
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_layer_of_a_tensor_is_a_volume():
    voxels = torch.arange(24, dtype=torch.int16).reshape(2, 3, 4)
    volume = volume_of(image(voxels, scale=(4, 1, 1)))
    assert (volume.dtype, volume.spacing) == (np.int16, (4, 1, 1))
    assert np.array_equal(volume[...], voxels)
