"""Which image a volume was read from: levels, paths and links of one image; and what is none."""

import json

import numpy as np

from evenslice.volumes import open_volume, write_volume
from evenslice.volumes.info import stored_image

STACK = np.arange(24 * 64 * 64, dtype=np.uint16).reshape(24, 64, 64)


def n5(folder, array, **attributes):
    folder.mkdir(parents=True)
    stated = {
        "dimensions": array.shape[::-1],
        "blockSize": array.shape[::-1],
        "dataType": str(array.dtype),
        "compression": {"type": "raw"},
    }
    (folder / "attributes.json").write_text(json.dumps(stated | attributes))


def test_slice_numbers_mean_the_same_at_levels_with_as_many_slices(tmp_path):
    """As of thick slices, whose pyramid only halves y and x."""
    thick = open_volume(np.zeros((24, 600, 600), np.uint8), spacing=(50, 4, 4), unit="nm")
    write_volume(thick, tmp_path / "thick.ome.zarr")
    fine, coarse = (stored_image(open_volume(tmp_path / "thick.ome.zarr", level=level)) for level in (0, 1))
    assert fine == coarse
    assert fine.slices_match(coarse)
    cubes = open_volume(np.zeros((300, 300, 300), np.uint8), spacing=(4, 4, 4), unit="nm")
    write_volume(cubes, tmp_path / "cubes.ome.zarr")
    fine, coarse = (stored_image(open_volume(tmp_path / "cubes.ome.zarr", level=level)) for level in (0, 1))
    assert fine == coarse
    assert not fine.slices_match(coarse)


def test_data_sets_of_a_container_are_no_levels(tmp_path):
    (tmp_path / "sections.n5").mkdir()
    (tmp_path / "sections.n5" / "attributes.json").write_text('{"n5": "2.5.0"}')
    for name in ("s1", "s2"):
        n5(tmp_path / "sections.n5" / name, STACK)
    one, other = (stored_image(open_volume(tmp_path / "sections.n5" / name)) for name in ("s1", "s2"))
    assert one != other
    n5(tmp_path / "sections.n5" / "image" / "s0", STACK)
    n5(tmp_path / "sections.n5" / "image" / "s1", STACK[::2, ::2, ::2])
    image = tmp_path / "sections.n5" / "image"
    assert stored_image(open_volume(image / "s1")) == stored_image(open_volume(image, level=0))


def test_no_two_arrays_are_one_image():
    assert stored_image(open_volume(STACK)) != stored_image(open_volume(STACK + 1))
