"""Replacing an existing output never removes anything but that output."""

import numpy as np
import pytest
import zarr
from torch import nn

from evenslice import Compute, segment
from evenslice._core import OutputError
from evenslice.volumes import open_volume, write_volume

pytestmark = pytest.mark.attack

IMAGE = (np.random.default_rng(0).random((6, 40, 40)) * 250).astype(np.uint8)


def label(out):
    model = nn.Conv2d(3, 2, 1).requires_grad_(False)
    return segment(model, IMAGE, out, slices=3, compute=Compute(dtype="float32", device="cpu"), force=True)


def image_and(path, add):
    write_volume(open_volume(IMAGE), path)
    add(path)


def plain_group(path):
    zarr.open_group(path, mode="w").create_array("raw", data=IMAGE)


HOLDING = {
    "raw": plain_group,
    "nuclei": lambda path: image_and(path, lambda path: zarr.create_array(path / "nuclei", data=IMAGE)),
    "labels": lambda path: image_and(path, lambda path: zarr.create_group(path / "labels")),
    "thesis.tex": lambda path: image_and(path, lambda path: (path / "thesis.tex").touch()),
    "0/notes": lambda path: image_and(path, lambda path: (path / "0" / "notes").mkdir()),
}


@pytest.mark.parametrize("name", HOLDING)
def test_a_zarr_group_that_holds_other_things_is_not_replaced(name, tmp_path):
    path = tmp_path / "cells.zarr"
    HOLDING[name](path)
    with pytest.raises(OutputError, match=f"also contains {name}, which would be lost"):
        label(path)
    assert (path / name).exists()


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_a_single_volume_is_replaced(zarr_format, tmp_path):
    zarr.create_array(tmp_path / "array.zarr", data=IMAGE, chunks=(1, 40, 40), zarr_format=zarr_format)
    write_volume(open_volume(IMAGE), tmp_path / "image.zarr")
    for name in ("array.zarr", "image.zarr"):
        assert label(tmp_path / name)[...].max() <= 1
