"""Each format, written by its own library: values, order of axes, spacing, unit, metadata."""

import gzip

import h5py
import nibabel as nib
import numpy as np
import pytest
import tifffile
import zarr
from chunked_files import space, write_ome_zarr
from volume_checks import STACK, fails, same

from evenslice import ConfigError, open_volume

PAIR = np.stack([STACK, STACK + 1])

# TIFF

TIFF_OPTIONS = {
    "plain": {},
    "big-endian": {"byteorder": ">"},
    "without metadata": {"metadata": None},
    "BigTIFF": {"bigtiff": True},
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
    tifffile.imwrite(tmp_path / "STACK.TIF", STACK, **options)
    volume = open_volume(tmp_path / "STACK.TIF")
    assert same(volume, STACK)
    assert (volume.spacing, volume.unit) == (None, None)


@pytest.mark.parametrize(
    "dtype", ["bool", "uint8", "int16", "uint32", "float16", "float32", "float64", ">i4"]
)
def test_data_types(tmp_path, dtype):
    array = STACK.astype(dtype)
    for compression in (None, "zlib"):
        tifffile.imwrite(tmp_path / "stack.tiff", array, compression=compression)
        assert same(open_volume(tmp_path / "stack.tiff"), array)
    for order in ("C", "F"):
        np.save(tmp_path / "stack.npy", np.asarray(array, order=order))
        assert same(open_volume(str(tmp_path / "stack.npy")), array)
    with h5py.File(tmp_path / "stack.h5", "w") as file:
        file["x"] = array
    assert same(open_volume(tmp_path / "stack.h5"), array)


@pytest.mark.parametrize("ways", [["zlib"], [None, "zlib"], ["zlib", "lzw", None]])
def test_tiff_written_page_by_page_is_one_stack_however_pages_are_compressed(tmp_path, ways):
    with tifffile.TiffWriter(tmp_path / "a.tif") as writer:
        for number, page in enumerate(STACK):
            rows = 7 if number % 2 and len(ways) > 1 else None
            writer.write(
                page, contiguous=False, metadata=None, compression=ways[number % len(ways)], rowsperstrip=rows
            )
    volume = open_volume(tmp_path / "a.tif")
    assert same(volume, STACK)
    assert volume.format == "TIFF"
    with tifffile.TiffWriter(tmp_path / "a.tif", append=True) as writer:
        writer.write(STACK[0, :9], metadata=None, compression="zlib")
    fails(str(tmp_path / "a.tif"), "images, which differ in shape or type")


IMAGEJ = {
    "imagej": True,
    "resolution": (1 / 4, 1 / 5),
    "metadata": {"axes": "ZYX", "spacing": 50, "unit": "nm"},
}
SIZES = {"PhysicalSizeZ": 0.05, "PhysicalSizeY": 5, "PhysicalSizeX": 4}
OME = {
    "ome": True,
    "metadata": {"axes": "ZYX", "PhysicalSizeYUnit": "nm", "PhysicalSizeXUnit": "nm", **SIZES},
}
TIFFFILE = {"resolution": (1 / 4, 1 / 5), "metadata": {"spacing": 50, "unit": "nm"}}


@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize(
    ("options", "name"), [(IMAGEJ, "ImageJ TIFF"), (OME, "OME-TIFF"), (TIFFFILE, "TIFF")]
)
def test_voxel_sizes_of_tiff(tmp_path, options, name, compression):
    tifffile.imwrite(tmp_path / "stack.tif", STACK, **options, compression=compression)
    volume = open_volume(tmp_path / "stack.tif")
    assert same(volume, STACK)
    assert volume.spacing == pytest.approx((50, 5, 4))  # in OME, the default unit is the micrometre
    assert (volume.unit, volume.format) == ("nm", name)


def test_axes_of_imagej(tmp_path):
    path = tmp_path / "hyper.tif"
    tifffile.imwrite(path, PAIR, imagej=True, metadata={"axes": "TZYX", "spacing": 2, "unit": "micron"})
    volume = open_volume(path, select={"t": 1})
    assert same(volume, STACK + 1)
    assert (volume.spacing, volume.unit) == ((2, 1, 1), "um")
    tifffile.imwrite(path, STACK, imagej=True)  # tifffile writes the first axis as channels unless told
    fails(str(path), r"no axis z; say .* axes='zyx'$")
    assert same(open_volume(path, axes="zyx"), STACK)
    tifffile.imwrite(path, STACK[:2], imagej=True, metadata={"axes": "CYX"})  # of a single slice
    assert same(open_volume(path, select={"c": 1}), STACK[1:2])


@pytest.mark.parametrize(
    ("axis", "options"),
    [(-1, {"rowsperstrip": 7, "compression": "zlib"}), (1, {"planarconfig": "separate", "tile": (16, 16)})],
)
def test_colour_tiff_selects_a_sample(tmp_path, axis, options):
    path = tmp_path / "rgb.tif"
    tifffile.imwrite(path, np.stack([STACK, STACK + 1, STACK + 2], axis=axis), photometric="rgb", **options)
    fails(str(path), r"pick one of axis S with select=\{'s': 0\}")
    assert same(open_volume(path, select={"s": 2}), STACK + 2)


# NIfTI


def save_nifti(path, array, affine=(0.5, 0.7, 3.0, 1.0), image=nib.Nifti1Image, unit="mm", scale=None):
    file = image(array, np.diag(affine), dtype=array.dtype)
    file.header.set_xyzt_units(unit)
    if scale is not None:
        file.header.set_slope_inter(*scale)
    nib.save(file, path)
    return path


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("image", [nib.Nifti1Image, nib.Nifti2Image])
def test_nifti_round_trip(tmp_path, suffix, image):
    volume = open_volume(save_nifti(tmp_path / f"scan{suffix}", STACK.T, image=image))
    assert same(volume, STACK)
    assert volume.spacing == pytest.approx((3.0, 0.7, 0.5))
    assert volume.unit == "mm"
    np.testing.assert_allclose(volume.affine, np.diag([0.5, 0.7, 3.0, 1.0]))


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_nifti_scaling(tmp_path, suffix):
    path = save_nifti(tmp_path / f"scan{suffix}", STACK.T.astype(np.int16), scale=(0.5, -3))
    assert same(open_volume(path), np.asarray(nib.load(path).dataobj, np.float32).T)


def test_nifti_with_more_axes(tmp_path):
    path = save_nifti(tmp_path / "scan.nii.gz", np.stack([STACK.T, STACK.T + 1], axis=-1))
    fails(str(path), r"XYZT \(32, 40, 6, 2\); pick one of axis T")
    assert same(open_volume(path, select={"T": 1}), STACK + 1)
    volume = open_volume(save_nifti(path, STACK.T[..., None, None, None]))  # axes of one turn nothing round
    assert same(volume, STACK)
    assert volume.spacing == pytest.approx((3.0, 0.7, 0.5))


@pytest.mark.parametrize("image", [nib.Nifti1Image, nib.Nifti2Image])
def test_a_nifti_offset_within_the_header_is_that_of_the_first_voxel(tmp_path, image):
    path = save_nifti(tmp_path / "scan.nii", STACK.T, image=image)
    content = bytearray(path.read_bytes())
    if image is nib.Nifti1Image:
        content[108:112] = np.float32(348).tobytes()
    else:
        content[168:176] = np.int64(352).tobytes()
    path.write_bytes(content)
    assert same(open_volume(path), STACK)


def test_gzip_of_several_members(tmp_path):
    content = save_nifti(tmp_path / "scan.nii", STACK.T).read_bytes()
    members = [gzip.compress(content[start : start + 5000]) for start in range(0, len(content), 5000)]
    (tmp_path / "packed.nii.gz").write_bytes(b"".join(members))
    assert same(open_volume(tmp_path / "packed.nii.gz"), STACK)


def test_a_large_stream_is_read_from_points_within_it(tmp_path, monkeypatch):
    path = save_nifti(tmp_path / "scan.nii.gz", np.stack([STACK.T, STACK.T + 1], axis=-1))
    monkeypatch.setattr("evenslice.volumes.read.flat_files.IN_MEMORY", 0)
    volume = open_volume(path, select={"t": 1})
    assert np.array_equal(volume[2:5, ::3, 4:9], STACK[2:5, ::3, 4:9] + 1)


def test_nifti_options(tmp_path):
    path = save_nifti(tmp_path / "scan.nii", STACK, (3.0, 2.0, 1.0, 1.0))
    volume = open_volume(path, axes="zyx")
    assert same(volume, STACK)
    assert volume.spacing == (3, 2, 1)
    assert volume.affine is None  # it speaks of x, y, z in stored order
    assert open_volume(path, spacing=(3, 2, 1)).unit is None
    assert open_volume(path, unit="um").unit == "um"
    volume = open_volume(save_nifti(path, STACK.T, (4.0, 4, 50, 1), unit="micron"))
    assert (volume.spacing, volume.unit) == ((50, 4, 4), "um")
    # An affine is in millimetres whatever the unit.
    np.testing.assert_allclose(np.diag(volume.affine), [0.004, 0.004, 0.05, 1], rtol=1e-6)
    nib.save(nib.Nifti1Image(STACK.T, None), path)
    assert open_volume(path).affine is None  # the file states none


# NumPy


def test_axes_and_selection(tmp_path):
    np.save(tmp_path / "stack.npy", np.stack([STACK.T, STACK.T + 1], axis=1))
    path = tmp_path / "stack.npy"
    found = open_volume(path, axes="xcyz", select={"c": np.int64(1)}, level=np.int64(0))
    assert same(found, STACK + 1)
    assert (type(found.select["c"]), type(found.level)) == (int, int)
    for options in ({"select": {"c": "0"}}, {"select": {"c": 0.0}}, {"select": {"c": 0}, "level": None}):
        for given in (path, PAIR):
            name = "level" if "level" in options else "select"
            fails(given, f"{name}: is .*, not a whole number", ConfigError, axes="czyx", **options)
    np.save(path, STACK[None, :, :, :, None])
    assert same(open_volume(path), STACK)  # singletons need no selection
    assert same(open_volume(STACK[None], axes="czyx"), STACK)


def test_array_in_memory():
    volume = open_volume(STACK, spacing=[50, 4, 4], unit="nanometre")
    assert same(volume, STACK)
    assert (volume.path, volume.location, volume.format) == ("<array>", None, "NumPy array")
    assert (volume.spacing, volume.unit) == ((50.0, 4.0, 4.0), "nm")
    volume[0][:] = 0
    assert STACK[0].any()  # what is read is a copy
    assert open_volume(volume) is volume
    fails(volume, "is already open", ConfigError, select={"t": 0})


# Zarr


def test_zarr_dimension_names(tmp_path):
    zarr.create_array(tmp_path / "stack.zarr", data=STACK.T, dimension_names=("x", "y", "z"))
    old = zarr.create_array(tmp_path / "old.zarr", data=STACK.T, zarr_format=2)
    old.attrs["_ARRAY_DIMENSIONS"] = ["x", "y", "z"]
    for name in ("stack.zarr", "old.zarr"):
        assert same(open_volume(tmp_path / name), STACK)


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_ome_zarr(tmp_path, version):
    path = tmp_path / "image.ome.zarr"
    axes = space(c=None, z="micrometer", y="nanometer", x="nanometer")
    scales = [[1, 0.025, 2, 2], [1, 0.025, 4, 4]]
    write_ome_zarr(path, version, axes, [PAIR, PAIR[:, :, ::2, ::2]], scales, [1, 2, 2, 2])
    fine = open_volume(path, select={"c": 1})
    assert same(fine, STACK + 1)
    assert (fine.spacing, fine.unit, fine.chunks) == ((50, 4, 4), "nm", (6, 16, 16))
    assert fine.format == f"OME-Zarr v{3 if version == '0.5' else 2}"
    coarse = open_volume(path, select={"c": 0}, level=1)
    assert same(coarse, STACK[:, ::2, ::2])
    assert coarse.spacing == (50, 8, 8)
    fails(path, "coarsest level is 1", ConfigError, select={"c": 0}, level=2)
    assert same(open_volume(path / "s1", axes="czyx", select={"c": 0}), STACK[:, ::2, ::2])


UNITS_OF_SPACE = {"z": "micrometer", "y": "micrometer", "x": "micrometer"}


@pytest.mark.parametrize(
    ("version", "axes", "array", "expected"),
    [
        ("0.4", space(t=None, c=None, **UNITS_OF_SPACE), STACK[None, None], ((3, 1, 1), "um")),
        ("0.1", None, STACK[None, None], ((3, 1, 1), None)),  # before axes were named
        ("0.4", space(z="furlong", y="nanometer", x="nanometer"), STACK, (None, None)),
    ],
)
def test_axes_of_ome_zarr(tmp_path, version, axes, array, expected):
    write_ome_zarr(tmp_path / "a.zarr", version, axes, [array], [[1] * (array.ndim - 3) + [3, 1, 1]])
    volume = open_volume(tmp_path / "a.zarr")
    assert same(volume, STACK)
    assert (volume.spacing, volume.unit) == expected


def test_units_in_any_spelling():
    for text in ("µm", "μm", "Microns", "\\u00B5m"):
        assert open_volume(STACK, spacing=(1, 1, 1), unit=text).unit == "um"
    for text in ("ms", "Mm", "pixels"):
        fails(STACK, "unknown unit", ConfigError, spacing=(1, 1, 1), unit=text)


# Real volumes


def test_real_em(shared_data):
    volume = open_volume(shared_data / "isbi2012/image.tif")
    whole = tifffile.imread(shared_data / "isbi2012/image.tif")
    assert volume.shape == (30, 512, 512)
    np.testing.assert_array_equal(volume[7:20:3, 100:160, 33:44], whole[7:20:3, 100:160, 33:44])


def test_real_mri(shared_data):
    path = min((shared_data / "msd_hippocampus/images").glob("*.nii.gz"))
    image, volume = nib.load(path), open_volume(path)
    np.testing.assert_array_equal(volume[...], np.asarray(image.dataobj).T)
    assert volume.spacing == (1, 1, 1)
    np.testing.assert_array_equal(volume.affine, image.affine)
