"""Each format, written by its own library: values, order of axes, spacing, unit, metadata."""

import gzip
import re

import nibabel as nib
import numpy as np
import pytest
import tifffile
import zarr
from volume_checks import same

from evenslice._core import errors
from evenslice.volumes import mni152_path
from evenslice.volumes.geometry import UNITS, common_unit, normal_unit
from evenslice.volumes.opening import open_volume
from evenslice.volumes.read.formats import READ_FORMATS
from evenslice.volumes.volume import Volume

STACK = (np.arange(6 * 40 * 32) % 1021).reshape(6, 40, 32).astype(np.uint16)


# TIFF


TIFF_OPTIONS = {
    "plain": {},
    "big-endian": {"byteorder": ">"},
    "without metadata": {"metadata": None},
    "BigTIFF": {"bigtiff": True},
    "zlib": {"compression": "zlib"},
    "lzw, predictor": {"compression": "lzw", "predictor": True},
    "zstd": {"compression": "zstd"},
    "strips": {"rowsperstrip": 7},
    "compressed strips": {"rowsperstrip": 7, "compression": "zlib"},
    "tiles": {"tile": (16, 16)},
    "compressed tiles that overhang": {"tile": (32, 16), "compression": "zlib"},
    "compressed BigTIFF, big-endian": {"bigtiff": True, "compression": "zlib", "byteorder": ">"},
}


@pytest.mark.parametrize("options", TIFF_OPTIONS.values(), ids=TIFF_OPTIONS)
def test_tiff_round_trip(tmp_path, options):
    path = tmp_path / "stack.tif"
    tifffile.imwrite(path, STACK, **options)
    volume = open_volume(path)
    assert same(volume, STACK)
    assert volume.spacing is None
    assert volume.unit is None


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint32", "float16", "float32", "float64"])
@pytest.mark.parametrize("compression", [None, "zlib"])
def test_tiff_data_types(tmp_path, dtype, compression):
    path = tmp_path / "stack.tiff"
    tifffile.imwrite(path, STACK.astype(dtype), compression=compression)
    assert same(open_volume(path), STACK.astype(dtype))


def test_tiff_of_single_bits(tmp_path):
    path = tmp_path / "mask.tif"
    tifffile.imwrite(path, STACK % 2 == 0)
    assert same(open_volume(path), STACK % 2 == 0)


def test_tiff_written_page_by_page(tmp_path):
    path = tmp_path / "pages.tif"
    with tifffile.TiffWriter(path) as writer:
        for number, page in enumerate(STACK):
            writer.write(page, contiguous=False, metadata=None, compression="zlib" if number else None)
    # The first page is uncompressed and the others not: they are two images to a TIFF reader.
    with pytest.raises(errors.VolumeError, match="holds 2 images"):
        open_volume(path)
    with tifffile.TiffWriter(path) as writer:
        for page in STACK:
            writer.write(page, contiguous=False, metadata=None, compression="zlib")
    assert same(open_volume(path), STACK)


def test_images_of_one_shape_are_not_said_to_differ_in_it(tmp_path):
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        for compression in (None, "zlib"):
            file.write(np.zeros((8, 8), np.uint8), compression=compression, metadata=None)
    with pytest.raises(
        errors.VolumeError, match=r"holds 2 images of shape \(8, 8\) that are compressed or stored"
    ):
        open_volume(tmp_path / "a.tif")


@pytest.mark.parametrize("compression", [None, "zlib"])
def test_imagej_spacing(tmp_path, compression):
    path = tmp_path / "stack.tif"
    tifffile.imwrite(
        path,
        STACK,
        imagej=True,
        resolution=(1 / 4, 1 / 5),
        metadata={"axes": "ZYX", "spacing": 50, "unit": "nm"},
        compression=compression,
    )
    volume = open_volume(path)
    assert same(volume, STACK)
    assert volume.spacing == pytest.approx((50, 5, 4))
    assert volume.unit == "nm"
    assert volume.format == "ImageJ TIFF"


def test_imagej_hyperstack_selects(tmp_path):
    path = tmp_path / "hyper.tif"
    array = np.stack([STACK, STACK[::-1]])
    tifffile.imwrite(path, array, imagej=True, metadata={"axes": "TZYX", "spacing": 2, "unit": "micron"})
    volume = open_volume(path, select={"t": 1})
    assert same(volume, STACK[::-1])
    assert volume.spacing == (2, 1, 1)
    assert volume.unit == "um"


def test_imagej_channels_taken_for_slices(tmp_path):
    path = tmp_path / "stack.tif"
    tifffile.imwrite(path, STACK, imagej=True)  # tifffile writes the first axis as channels unless told
    with pytest.raises(errors.VolumeError, match=r"no axis z; say .* axes='zyx'$"):
        open_volume(path)
    assert same(open_volume(path, axes="zyx"), STACK)


@pytest.mark.parametrize("compression", [None, "zlib"])
def test_ome_tiff_spacing_in_several_units(tmp_path, compression):
    path = tmp_path / "stack.ome.tif"
    metadata = {
        "axes": "ZYX",
        "PhysicalSizeZ": 0.05,
        "PhysicalSizeZUnit": "µm",
        "PhysicalSizeY": 5,
        "PhysicalSizeYUnit": "nm",
        "PhysicalSizeX": 4,
        "PhysicalSizeXUnit": "nm",
    }
    tifffile.imwrite(path, STACK, metadata=metadata, compression=compression)
    volume = open_volume(path)
    assert same(volume, STACK)
    assert volume.spacing == (50, 5, 4)
    assert volume.unit == "nm"
    assert volume.format == "OME-TIFF"


def test_ome_tiff_unit_defaults_to_micrometres(tmp_path):
    path = tmp_path / "stack.ome.tif"
    sizes = {f"PhysicalSize{axis}": size for axis, size in zip("ZYX", (2, 0.5, 0.5), strict=True)}
    tifffile.imwrite(path, STACK[None], metadata={"axes": "CZYX", **sizes})
    volume = open_volume(path)
    assert (volume.spacing, volume.unit) == ((2, 0.5, 0.5), "um")


def test_tiff_notes_of_tifffile(tmp_path):
    path = tmp_path / "stack.tif"
    tifffile.imwrite(path, STACK, resolution=(1 / 8, 1 / 8), metadata={"spacing": 30.0, "unit": "nm"})
    volume = open_volume(path)
    assert volume.spacing == pytest.approx((30, 8, 8))
    assert volume.unit == "nm"


def test_colour_tiff_selects_a_sample(tmp_path):
    path = tmp_path / "rgb.tif"
    array = np.stack([STACK, STACK + 1, STACK + 2], axis=-1)
    tifffile.imwrite(path, array, photometric="rgb", compression="zlib", rowsperstrip=7)
    with pytest.raises(errors.VolumeError, match=r"pick one of axis S with select=\{'s': 0\}"):
        open_volume(path)
    assert same(open_volume(path, select={"s": 2}), STACK + 2)
    tifffile.imwrite(
        path, np.moveaxis(array, -1, 1), photometric="rgb", planarconfig="separate", tile=(16, 16)
    )
    assert same(open_volume(path, select={"s": 1}), STACK + 1)


def test_tiff_chunks(tmp_path):
    path = tmp_path / "stack.tif"
    tifffile.imwrite(path, STACK, tile=(16, 32), compression="zlib")
    assert open_volume(path).chunks == (1, 16, 32)
    tifffile.imwrite(path, STACK)
    assert open_volume(path).chunks is None


# NIfTI


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("image", [nib.Nifti1Image, nib.Nifti2Image])
def test_nifti_round_trip(tmp_path, suffix, image):
    path = tmp_path / f"scan{suffix}"
    affine = np.diag([0.5, 0.7, 3.0, 1.0])
    file = image(STACK.T, affine, dtype=np.uint16)
    file.header.set_xyzt_units("mm")
    nib.save(file, path)
    volume = open_volume(path)
    assert same(volume, STACK)
    assert volume.spacing == pytest.approx((3.0, 0.7, 0.5))
    assert volume.unit == "mm"
    np.testing.assert_allclose(volume.affine, affine)


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_nifti_scaling(tmp_path, suffix):
    path = tmp_path / f"scan{suffix}"
    file = nib.Nifti1Image(STACK.T.astype(np.int16), np.eye(4))
    file.header.set_slope_inter(0.5, -3)
    nib.save(file, path)
    stored = nib.load(path)
    volume = open_volume(path)
    assert volume.dtype == np.float32
    np.testing.assert_array_equal(volume[...], np.asarray(stored.dataobj, np.float32).T)
    np.testing.assert_array_equal(volume[2, 3:5], np.asarray(stored.dataobj, np.float32).T[2, 3:5])


def test_nifti_big_endian(tmp_path):
    path = tmp_path / "scan.nii"
    header = nib.Nifti1Header(endianness=">")
    header.set_data_dtype(np.uint16)
    nib.save(nib.Nifti1Image(STACK.T, np.eye(4), header), path)
    assert same(open_volume(path), STACK)


def test_nifti_with_time(tmp_path):
    path = tmp_path / "scan.nii.gz"
    nib.save(nib.Nifti1Image(np.stack([STACK.T, STACK.T + 1], axis=-1), np.eye(4), dtype=np.uint16), path)
    with pytest.raises(errors.VolumeError, match=r"has 4 axes XYZT \(32, 40, 6, 2\); pick one of axis T"):
        open_volume(path)
    assert same(open_volume(path, select={"T": 1}), STACK + 1)
    nib.save(nib.Nifti1Image(STACK.T[..., None], np.eye(4), dtype=np.uint16), path)
    assert same(open_volume(path), STACK)


def test_axes_of_length_one_do_not_turn_a_nifti_file_round(tmp_path):
    path = tmp_path / "scan.nii"
    affine = np.diag([0.5, 0.7, 3.0, 1.0])
    nib.save(nib.Nifti1Image(STACK.T[..., None, None, None], affine, dtype=np.uint16), path)
    volume = open_volume(path)
    assert same(volume, STACK)
    assert volume.spacing == pytest.approx((3.0, 0.7, 0.5))
    np.testing.assert_allclose(volume.affine, affine)


@pytest.mark.parametrize("image", [nib.Nifti1Image, nib.Nifti2Image])
def test_a_nifti_offset_within_the_header_is_that_of_the_first_voxel(tmp_path, image):
    path = tmp_path / "scan.nii"
    nib.save(image(STACK.T, np.eye(4), dtype=np.uint16), path)
    content = bytearray(path.read_bytes())
    if image is nib.Nifti1Image:
        content[108:112] = np.float32(348).tobytes()
    else:
        content[168:176] = np.int64(352).tobytes()
    path.write_bytes(content)
    assert same(open_volume(path), STACK)


def test_large_compressed_nifti_is_read_through_the_index(tmp_path, monkeypatch):
    monkeypatch.setattr("evenslice.volumes.read.nifti.IN_MEMORY", 0)
    path = tmp_path / "scan.nii.gz"
    nib.save(nib.Nifti1Image(STACK.T, np.eye(4), dtype=np.uint16), path)
    volume = open_volume(path)
    for z in (5, 0, 3):
        np.testing.assert_array_equal(volume[z], STACK[z])
    assert same(volume, STACK)


def test_gzip_of_several_members(tmp_path):
    path = tmp_path / "scan.nii"
    nib.save(nib.Nifti1Image(STACK.T, np.eye(4), dtype=np.uint16), path)
    content = path.read_bytes()
    members = [gzip.compress(content[start : start + 5000]) for start in range(0, len(content), 5000)]
    packed = tmp_path / "packed.nii.gz"
    packed.write_bytes(b"".join(members))
    assert same(open_volume(packed), STACK)


def test_nifti_axes_can_be_overridden(tmp_path):
    path = tmp_path / "scan.nii"
    nib.save(nib.Nifti1Image(STACK, np.diag([3.0, 2.0, 1.0, 1.0]), dtype=np.uint16), path)
    volume = open_volume(path, axes="zyx")
    assert same(volume, STACK)
    assert volume.spacing == (3, 2, 1)
    assert volume.affine is None  # it speaks of x, y, z in stored order


# NumPy


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", ["bool", ">i4", "float16", "float64", "uint64"])
def test_npy_round_trip(tmp_path, order, dtype):
    path = tmp_path / "stack.npy"
    array = np.asarray(STACK.astype(dtype), order=order)
    np.save(path, array)
    assert same(open_volume(str(path)), array)


def test_npy_axes_and_selection(tmp_path):
    path = tmp_path / "stack.npy"
    np.save(path, np.stack([STACK.T, STACK.T + 1], axis=1))
    volume = open_volume(path, axes="xcyz", select={"c": 1})
    assert same(volume, STACK + 1)


def test_singletons_need_no_selection(tmp_path):
    path = tmp_path / "stack.npy"
    np.save(path, STACK[None, :, :, :, None])
    assert same(open_volume(path), STACK)
    assert same(open_volume(STACK[None], axes="czyx"), STACK)


def test_array_in_memory():
    volume = open_volume(STACK, spacing=[50, 4, 4], unit="nanometre")
    assert same(volume, STACK)
    assert (volume.path, volume.location, volume.format) == ("<array>", None, "NumPy array")
    assert (volume.spacing, volume.unit) == ((50.0, 4.0, 4.0), "nm")
    volume[0][:] = 0
    assert STACK[0].any()  # what is read is a copy


# Zarr


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_zarr_round_trip(tmp_path, zarr_format):
    path = tmp_path / "stack.zarr"
    zarr.create_array(path, data=STACK, chunks=(2, 16, 16), zarr_format=zarr_format)
    volume = open_volume(path)
    assert same(volume, STACK)
    assert volume.chunks == (2, 16, 16)
    assert volume.format == f"Zarr v{zarr_format}"


def test_zarr_shards(tmp_path):
    path = tmp_path / "stack.zarr"
    zarr.create_array(path, data=STACK, chunks=(2, 8, 8), shards=(4, 16, 16))
    volume = open_volume(path)
    assert same(volume, STACK)
    assert volume.chunks == (2, 8, 8)


def test_zarr_dimension_names(tmp_path):
    path = tmp_path / "stack.zarr"
    zarr.create_array(path, data=STACK.T, dimension_names=("x", "y", "z"))
    assert same(open_volume(path), STACK)
    old = tmp_path / "old.zarr"
    array = zarr.create_array(old, data=STACK.T, zarr_format=2)
    array.attrs["_ARRAY_DIMENSIONS"] = ["x", "y", "z"]
    assert same(open_volume(old), STACK)


def write_ome_zarr(path, version, axes, levels, scales, image_scale=None):
    """Write an OME-Zarr image with zarr alone: metadata under "ome" since 0.5, at the top before."""
    group = zarr.open_group(path, mode="w", zarr_format=3 if version == "0.5" else 2)
    datasets = []
    for number, (array, scale) in enumerate(zip(levels, scales, strict=True)):
        group.create_array(f"s{number}", data=array, chunks=tuple(min(n, 16) for n in array.shape))
        datasets.append(
            {"path": f"s{number}", "coordinateTransformations": [{"type": "scale", "scale": scale}]}
        )
    image = {"axes": axes, "datasets": datasets, "name": "image"}
    if image_scale:
        image["coordinateTransformations"] = [{"type": "scale", "scale": image_scale}]
    if version == "0.5":
        group.attrs["ome"] = {"version": "0.5", "multiscales": [image]}
    else:
        group.attrs["multiscales"] = [{**image, "version": version}]


def space(**units):
    """OME-Zarr axes: those with a unit are of space."""
    return [
        {"name": name, "type": "space", "unit": unit} if unit else {"name": name, "type": "channel"}
        for name, unit in units.items()
    ]


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_ome_zarr(tmp_path, version):
    path = tmp_path / "image.ome.zarr"
    axes = space(c=None, z="micrometer", y="nanometer", x="nanometer")
    levels = [np.stack([STACK, STACK + 1]), np.stack([STACK, STACK + 1])[:, :, ::2, ::2]]
    write_ome_zarr(path, version, axes, levels, [[1, 0.025, 2, 2], [1, 0.025, 4, 4]], [1, 2, 2, 2])
    fine = open_volume(path, select={"c": 1})
    assert same(fine, STACK + 1)
    assert (fine.spacing, fine.unit) == ((50, 4, 4), "nm")
    assert fine.chunks == (6, 16, 16)
    assert fine.format == f"OME-Zarr v{3 if version == '0.5' else 2}"
    coarse = open_volume(path, select={"c": 0}, level=1)
    assert same(coarse, STACK[:, ::2, ::2])
    assert coarse.spacing == (50, 8, 8)
    with pytest.raises(errors.ConfigError, match="has no level 2; it has levels 0 to 1"):
        open_volume(path, select={"c": 0}, level=2)
    inner = open_volume(path / "s1", axes="czyx", select={"c": 0})
    assert same(inner, STACK[:, ::2, ::2])


def test_ome_zarr_of_five_axes_of_which_two_are_single(tmp_path):
    path = tmp_path / "image.zarr"
    axes = space(t=None, c=None, z="micrometer", y="micrometer", x="micrometer")
    write_ome_zarr(path, "0.4", axes, [STACK[None, None]], [[1, 1, 3, 1, 1]])
    volume = open_volume(path)
    assert same(volume, STACK)
    assert (volume.spacing, volume.unit) == ((3, 1, 1), "um")


def test_ome_zarr_before_axes_were_named(tmp_path):
    path = tmp_path / "image.zarr"
    write_ome_zarr(path, "0.1", None, [STACK[None, None]], [[1, 1, 3, 1, 1]])
    assert same(open_volume(path), STACK)


def test_ome_zarr_with_units_that_do_not_relate(tmp_path):
    path = tmp_path / "image.zarr"
    axes = space(z="furlong", y="nanometer", x="nanometer")
    write_ome_zarr(path, "0.4", axes, [STACK], [[1, 4, 4]])
    volume = open_volume(path)
    assert (volume.spacing, volume.unit) == (None, None)


# What all have in common


def test_an_open_volume_passes_through():
    volume = open_volume(STACK)
    assert open_volume(volume) is volume
    assert isinstance(volume, Volume)
    with pytest.raises(errors.ConfigError, match="is already open"):
        open_volume(volume, select={"t": 0})


def test_spacing_and_unit_replace_those_of_the_file(tmp_path):
    path = tmp_path / "scan.nii"
    file = nib.Nifti1Image(STACK.T, np.eye(4), dtype=np.uint16)
    file.header.set_xyzt_units("mm")
    nib.save(file, path)
    assert open_volume(path, spacing=(3, 2, 1)).unit is None
    assert open_volume(path, unit="um").unit == "um"
    assert open_volume(path, spacing=(3, 2, 1), unit="nm").spacing == (3, 2, 1)


def test_suffixes_are_read_in_any_case(tmp_path):
    tifffile.imwrite(tmp_path / "STACK.TIF", STACK)
    assert same(open_volume(tmp_path / "STACK.TIF"), STACK)


@pytest.mark.parametrize("other", ["ms", "s", "Mm", "ins", "pixels", 5, None])
def test_what_is_no_unit_of_length(other):
    assert normal_unit(other) is None


def test_units():
    assert normal_unit("µm") == normal_unit("μm") == normal_unit("Microns") == normal_unit("\\u00B5m") == "um"
    assert [normal_unit(unit) for unit in UNITS] == list(UNITS)
    assert normal_unit(None) is None
    assert common_unit([1, 2, 3], [None] * 3) == ((1, 2, 3), None)
    assert common_unit([1, 2, 3], ["um", None, "um"]) == (None, None)


def test_every_suffix_belongs_to_one_format():
    suffixes = [suffix for row in READ_FORMATS for suffix in row.suffixes]
    assert len(set(suffixes)) == len(suffixes)


# Real volumes


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("isbi2012/image.tif", (30, 512, 512)),
        ("isbi2012/membrane.tif", (30, 512, 512)),
        ("lucchi_pp/test_image.tif", (96, 512, 512)),
    ],
)
def test_real_em(shared_data, name, shape):
    volume = open_volume(shared_data / name)
    assert volume.shape == shape
    whole = tifffile.imread(shared_data / name)
    np.testing.assert_array_equal(volume[7:20:3, 100:160, 33:44], whole[7:20:3, 100:160, 33:44])


def test_real_mri(shared_data):
    paths = sorted((shared_data / "msd_hippocampus/images").glob("*.nii.gz"))
    for path in (paths[0], paths[-1]):
        image = nib.load(path)
        volume = open_volume(path)
        np.testing.assert_array_equal(volume[...], np.asarray(image.dataobj).T)
        assert volume.spacing == (1, 1, 1)
        np.testing.assert_array_equal(volume.affine, image.affine)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"select": {"c": "0"}}, "select: is '0', not a whole number"),
        ({"select": {"c": 0.0}}, "select: is 0.0, not a whole number"),
        ({"select": {"c": 0}, "level": "0"}, "level: is '0', not a whole number"),
        ({"select": {"c": 0}, "level": None}, "level: is None, not a whole number"),
    ],
)
def test_what_is_picked_is_a_whole_number(tmp_path, options, message):
    np.save(tmp_path / "a.npy", STACK[None])
    for given in (STACK[None], tmp_path / "a.npy"):
        with pytest.raises(errors.ConfigError, match=re.escape(message)):
            open_volume(given, axes="czyx", **options)
    found = open_volume(tmp_path / "a.npy", axes="czyx", select={"c": np.int64(0)}, level=np.int64(0))
    assert (type(found.select["c"]), type(found.level)) == (int, int)


def test_the_template_has_three_maps():
    with pytest.raises(errors.ConfigError, match="name='T1': .*known: gm, t1, wm"):
        mni152_path("T1")
