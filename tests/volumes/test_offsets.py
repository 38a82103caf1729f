"""Where the first voxel lies in the coordinates of its file, and that what is written lies there too."""

import numpy as np
import pytest
import zarr
from chunked_files import write_precomputed
from hypothesis import given, settings, strategies as st

from evenslice import open_volume
from evenslice.volumes import write_volume
from evenslice.volumes.volume import reslice, take_region

STACK = np.random.default_rng(0).integers(0, 200, (6, 20, 24), dtype=np.uint8)


def write_image(path, datasets, image=(), axes="zyx", units=("nanometer",) * 3):
    """Write an OME-Zarr image of one level by hand, with these transformations of its dataset and of itself."""
    group = zarr.open_group(path, mode="w")
    lead = len(axes) - 3
    group.create_array("0", data=STACK.reshape(*(1,) * lead, *STACK.shape))
    named = [{"name": axis, "type": "channel"} for axis in axes[:lead]] + [
        {"name": axis, "type": "space", "unit": unit} for axis, unit in zip(axes[lead:], units, strict=True)
    ]
    multiscale = {
        "axes": named,
        "datasets": [{"path": "0", "coordinateTransformations": list(datasets)}],
        "coordinateTransformations": list(image),
    }
    group.attrs["ome"] = {"version": "0.5", "multiscales": [multiscale]}
    return path


def scale(*values):
    return {"type": "scale", "scale": list(values)}


def translation(*values):
    return {"type": "translation", "translation": list(values)}


def origin_of(path, level=0):
    """Return where an OME-Zarr image says that the first voxel of a level lies, by its metadata alone."""
    dataset = zarr.open_group(path, mode="r").attrs["ome"]["multiscales"][0]["datasets"][level]
    found = [
        entry["translation"]
        for entry in dataset["coordinateTransformations"]
        if entry["type"] == "translation"
    ]
    return found[0] if found else [0.0] * 3


@pytest.mark.parametrize(
    ("datasets", "image", "offset"),
    [
        ([scale(40, 8, 8), translation(400, 82, 122)], [], (10, 10.25, 15.25)),
        # Those of the image come after: (400 * .5 + 20) / (40 * .5) voxels.
        (
            [scale(40, 8, 8), translation(400, 80, 120)],
            [scale(0.5, 1, 1), translation(20, 8, 0)],
            (11, 11, 15),
        ),
        ([scale(40, 8, 8)], [], (0, 0, 0)),
        ([translation(3, 4, 5)], [], (3, 4, 5)),  # without a scale, in voxels
    ],
)
def test_the_translation_of_an_ome_zarr_image(tmp_path, datasets, image, offset):
    assert open_volume(write_image(tmp_path / "a.zarr", datasets, image)).offset == offset


def test_each_axis_has_a_unit_of_its_own_and_channels_have_no_place(tmp_path):
    transformations = [scale(1, 0.04, 8, 8), translation(9, 0.4, 16, 24)]
    path = write_image(
        tmp_path / "a.zarr", transformations, axes="czyx", units=("micrometer", "nanometer", "nanometer")
    )
    volume = open_volume(path)
    assert volume.spacing == pytest.approx((40, 8, 8))
    assert volume.offset == pytest.approx((10, 2, 3))


@pytest.mark.slow
@settings(max_examples=20)
@given(
    starts=st.tuples(*[st.integers(0, 4)] * 3),
    first=st.tuples(*[st.integers(-3, 50)] * 3),
    plane=st.sampled_from("zyx"),
)
def test_a_part_written_as_ome_zarr_lies_where_it_does_in_its_file(starts, first, plane, tmp_path_factory):
    folder = tmp_path_factory.mktemp("offsets")
    sizes = np.array([40.0, 8, 8])
    path = write_image(folder / "a.zarr", [scale(*sizes), translation(*(sizes * first))])
    region = tuple(slice(start, None) for start in starts)
    part = take_region(open_volume(path, plane=plane), region)
    write_volume(reslice(part, "z"), folder / "part.ome.zarr")
    assert origin_of(folder / "part.ome.zarr") == pytest.approx(list(sizes * (np.add(starts, first))))
    again = open_volume(folder / "part.ome.zarr", plane=plane)
    assert np.array_equal(again[...], part[...])
    assert again.offset == pytest.approx(part.offset)


def test_coarser_levels_are_centred_on_the_voxels_that_they_cover(tmp_path):
    image = open_volume(np.zeros((4, 700, 530), np.uint8), spacing=(30, 8, 8), unit="nm")
    write_volume(take_region(image, np.s_[1:, 10:, 20:]), tmp_path / "a.ome.zarr")
    assert origin_of(tmp_path / "a.ome.zarr") == [30, 80, 160]
    assert origin_of(tmp_path / "a.ome.zarr", level=1) == [30, 84, 164]
    level = open_volume(tmp_path / "a.ome.zarr", level=1)
    write_volume(level, tmp_path / "level.ome.zarr")
    assert origin_of(tmp_path / "level.ome.zarr") == [30, 84, 164]


def test_a_spacing_of_the_user_keeps_the_numbers_of_voxels(tmp_path):
    path = write_image(tmp_path / "a.zarr", [scale(40, 8, 8), translation(400, 80, 120)])
    volume = open_volume(path, spacing=(2, 1, 1), unit="um", region=np.s_[1:3, :, :])
    assert volume.offset == (11, 10, 15)
    write_volume(volume, tmp_path / "b.ome.zarr")
    assert origin_of(tmp_path / "b.ome.zarr") == [22, 10, 15]


def test_a_precomputed_volume_written_as_ome_zarr(tmp_path):
    """Neuroglancer moves OME-Zarr by half a voxel, to the corner, where precomputed volumes count from."""
    write_precomputed(tmp_path / "image", STACK)
    write_volume(open_volume(tmp_path / "image"), tmp_path / "labels.ome.zarr")
    assert origin_of(tmp_path / "labels.ome.zarr") == pytest.approx([7.5 * 40, -19.5 * 4, 100.5 * 4])
