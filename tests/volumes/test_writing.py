"""Volumes written in every format, and read back by the format's own reference reader."""

import tracemalloc
from dataclasses import dataclass

import h5py
import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813  # its users' name for it
import tifffile
import zarr
from hypothesis import given, settings, strategies as st

from evenslice import ConfigError, open_volume
from evenslice.volumes import write_volume

SPACING = (50.0, 4.0, 5.5)  # z, y, x in nm
LABELS = np.random.default_rng(0).integers(0, 4, (6, 33, 40)).astype(np.uint8)
PROBABILITIES = np.random.default_rng(1).random((3, 6, 33, 40), np.float32)


@dataclass
class Found:
    """What a reference reader makes of a file: voxels (z, y, x) or (c, z, y, x), and nm along z, y, x, or None."""

    voxels: np.ndarray
    spacing: tuple[float, ...] | None


def read_tiff(path):
    with tifffile.TiffFile(path) as tif:
        voxels = tif.asarray()
        if tif.is_ome:
            pixels = tifffile.xml2dict(tif.ome_metadata)["OME"]["Image"]["Pixels"]
            assert {pixels[f"PhysicalSize{axis}Unit"] for axis in "ZYX"} == {"nm"}
            spacing = [pixels[f"PhysicalSize{axis}"] for axis in "ZYX"]
        else:
            notes = tif.imagej_metadata or tif.shaped_metadata[0]
            assert notes["unit"] == "nm"
            x, y = tif.pages[0].resolution
            spacing = [notes["spacing"], 1 / y, 1 / x]
    return Found(voxels if voxels.ndim == 3 else voxels.swapaxes(0, 1), tuple(spacing))


def read_nifti(path):
    image = nib.load(path)
    assert image.header.get_xyzt_units()[0] == "micron"
    return Found(np.asarray(image.dataobj).T, tuple(1e3 * zoom for zoom in image.header.get_zooms()[2::-1]))


def read_zarr(path):
    group = zarr.open_group(path, mode="r")
    multiscale = group.attrs["ome"]["multiscales"][0]
    assert {axis["unit"] for axis in multiscale["axes"] if axis["type"] == "space"} == {"nanometer"}
    scale = multiscale["datasets"][0]["coordinateTransformations"][0]["scale"]
    return Found(group[multiscale["datasets"][0]["path"]][...], tuple(scale[-3:]))


def read_hdf5(path):
    with h5py.File(path, "r") as file:
        names = [name for name in ("labels", "volume") if name in file]
        array = file[names[0]]
        return Found(array[...], tuple(1e3 * array.attrs["element_size_um"]))


def read_itk(path):
    image = sitk.ReadImage(path)
    voxels = sitk.GetArrayFromImage(image)
    spacing = tuple(1e6 * size for size in image.GetSpacing()[::-1])
    return Found(voxels if voxels.ndim == 3 else np.moveaxis(voxels, -1, 0), spacing)


READERS = {
    "a.tif": read_tiff,
    "a.ome.tif": read_tiff,
    "a.btf": read_tiff,
    "a.nii": read_nifti,
    "a.nii.gz": read_nifti,
    "a.ome.zarr": read_zarr,
    "a.h5": read_hdf5,
    "a.mha": read_itk,
    "a.nrrd": read_itk,
    "a.npy": lambda path: Found(np.load(path), None),
}
every_format = pytest.mark.parametrize("name", READERS)


def volume_of(array, **options):
    return open_volume(array, **({"spacing": SPACING, "unit": "nm"} | options))


def channels_of(array):
    return [volume_of(channel) for channel in array]


@pytest.mark.slow
@every_format
@pytest.mark.parametrize(
    "dtype", ["bool", "uint8", "int16", "uint32", "int64", "uint64", "float16", "float64"]
)
def test_every_format_keeps_every_value_and_the_spacing(name, dtype, tmp_path):
    array = (LABELS > 1) if dtype == "bool" else LABELS.astype(dtype) * np.dtype(dtype).type(63)
    if dtype in {"int64", "uint64"}:
        array[0, 0, :2] = np.iinfo(dtype).min, np.iinfo(dtype).max
    write_volume(volume_of(array), tmp_path / name)
    found = READERS[name](str(tmp_path / name))
    np.testing.assert_array_equal(found.voxels, array)
    again = open_volume(tmp_path / name)
    np.testing.assert_array_equal(again[:], array)
    if found.spacing is not None:
        assert found.spacing == pytest.approx(SPACING, rel=1e-6)
        factor = {"nm": 1, "um": 1e3, "mm": 1e6}[again.unit]
        assert [size * factor for size in again.spacing] == pytest.approx(SPACING, rel=1e-6)


@every_format
def test_every_format_keeps_channels(name, tmp_path):
    write_volume(channels_of(PROBABILITIES), tmp_path / name)
    found = READERS[name](str(tmp_path / name))
    np.testing.assert_array_equal(found.voxels, PROBABILITIES)
    if name == "a.tif":
        with tifffile.TiffFile(tmp_path / name) as tif:
            assert (tif.imagej_metadata["channels"], tif.imagej_metadata["hyperstack"]) == (3, True)
    if found.spacing is not None:
        assert found.spacing == pytest.approx(SPACING, rel=1e-6)
    axis, axes = "t" if ".nii" in name else "c", "czyx" if name == "a.npy" else None
    np.testing.assert_array_equal(
        open_volume(tmp_path / name, axes=axes, select={axis: 1})[:], PROBABILITIES[1]
    )


@every_format
def test_a_spacing_that_is_unknown_or_has_no_unit_is_not_given_one(name, tmp_path):
    write_volume(open_volume(LABELS), tmp_path / f"none-{name}")
    write_volume(open_volume(LABELS, spacing=SPACING), tmp_path / name)
    if name.endswith((".tif", ".btf", ".h5")):
        assert open_volume(tmp_path / f"none-{name}").spacing is None
    elif name in {"a.mha", "a.nrrd"}:
        assert sitk.ReadImage(str(tmp_path / f"none-{name}")).GetSpacing() == (1, 1, 1)
    if name.endswith((".tif", ".btf", ".nii", ".gz", ".zarr")):
        again = open_volume(tmp_path / name)
        assert again.spacing == pytest.approx(SPACING)
        assert again.unit is None


@pytest.mark.parametrize(
    ("name", "dtype", "dialect"),
    [
        ("a.tif", "uint8", "imagej"),
        ("a.tif", "float32", "imagej"),
        ("a.tif", "int32", "ome"),
        ("a.tif", "float64", "ome"),
        ("a.tif", "uint64", "shaped"),
        ("a.ome.tiff", "uint8", "ome"),
    ],
)
def test_tiff_is_that_of_imagej_where_it_can_be(name, dtype, dialect, tmp_path):
    write_volume(volume_of(LABELS.astype(dtype)), tmp_path / name)
    with tifffile.TiffFile(tmp_path / name) as tif:
        assert {kind for kind in ("imagej", "ome", "shaped") if getattr(tif, f"is_{kind}")} == {dialect}
        assert not tif.is_bigtiff
        assert {page.compression.name for page in tif.pages} == {"ADOBE_DEFLATE"}
        assert [page.tags["Orientation"].value for page in tif.pages] == [1] * len(LABELS)


def test_a_tiff_that_may_grow_too_large_is_bigtiff(tmp_path, monkeypatch):
    monkeypatch.setattr("evenslice.volumes.write.files.CLASSIC_BYTES", LABELS.nbytes - 1)
    write_volume(volume_of(LABELS), tmp_path / "a.tif")
    with tifffile.TiffFile(tmp_path / "a.tif") as tif:
        assert tif.is_bigtiff
        assert tif.is_ome
    assert read_tiff(tmp_path / "a.tif").spacing == pytest.approx(SPACING)


@pytest.mark.parametrize(("dtype", "intent"), [(np.uint16, "label"), (np.float32, "none")])
def test_nifti_says_that_it_holds_labels_and_is_nifti_2_if_an_axis_is_long(dtype, intent, tmp_path):
    array = np.arange(2**15, dtype=dtype).reshape(2**15, 1, 1)
    write_volume(volume_of(array), tmp_path / "a.nii")
    image = nib.load(tmp_path / "a.nii")
    assert isinstance(image, nib.Nifti2Image)
    assert image.header.get_intent()[0] == intent
    np.testing.assert_array_equal(np.asarray(image.dataobj).T, array)


def test_hdf5_takes_the_name_of_the_dataset(tmp_path):
    write_volume(volume_of(LABELS), f"{tmp_path}/a.h5:/nuclei/labels")
    write_volume(volume_of(LABELS.astype(np.float32)), tmp_path / "b.h5")
    with h5py.File(tmp_path / "a.h5") as file:
        assert [dim.label for dim in file["nuclei/labels"].dims] == ["z", "y", "x"]
        assert file["nuclei/labels"].compression == "gzip"
    with h5py.File(tmp_path / "b.h5") as file:
        assert list(file) == ["volume"]


# An OME-TIFF has an identifier of its own.
@pytest.mark.parametrize("name", sorted(set(READERS) - {"a.ome.tif", "a.btf", "a.ome.zarr"}))
def test_the_same_volume_makes_the_same_file(name, tmp_path):
    contents = []
    for folder in ("one", "two"):
        write_volume(volume_of(LABELS), tmp_path / folder / name)
        contents.append((tmp_path / folder / name).read_bytes())
    assert contents[0] == contents[1]


@every_format
def test_progress_goes_from_nothing_to_all(name, tmp_path, monkeypatch):
    monkeypatch.setattr("evenslice.volumes.write.files.SLAB_BYTES", 2 * LABELS[0].size)
    told = []
    write_volume(volume_of(LABELS), tmp_path / name, progress=lambda done, total: told.append((done, total)))
    done, totals = zip(*told, strict=True)
    assert len(done) >= 3
    assert list(done) == sorted(set(done))
    assert set(totals) == {done[-1]}


@pytest.mark.slow
@every_format
def test_memory_is_bounded(name, tmp_path, monkeypatch):
    # tifffile's compression runs in threads that hold a few strips of 256 KB each.
    monkeypatch.setattr("evenslice.volumes.write.files.SLAB_BYTES", 2**20)
    shape = (64, 512, 768)
    volume = open_volume(np.broadcast_to(np.uint8(3), shape))
    small = open_volume(np.zeros((2, 8, 8), np.uint8))
    write_volume(small, tmp_path / f"first-{name}")  # imports take memory
    tracemalloc.start()
    write_volume(volume, tmp_path / name)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert volume.nbytes == 24 * 2**20
    assert peak < 9 * 2**20


@pytest.mark.slow
@given(data=st.data())
@settings(max_examples=40)
def test_slabs_cover_each_voxel_once(data, tmp_path_factory):
    draw = data.draw
    shape = tuple(draw(st.integers(1, 12)) for _ in range(3))
    chunks = tuple(draw(st.integers(1, length)) for length in shape)
    count = draw(st.integers(1, 3))
    name = draw(st.sampled_from(["a.npy", "a.mha", "a.ome.zarr", "a.h5"]))
    folder = tmp_path_factory.mktemp("slabs")
    array = np.arange(count * np.prod(shape), dtype=np.uint16).reshape(count, *shape)
    zarr.create_array(folder / "in.zarr", data=array, chunks=(1, *chunks))
    options = {"axes": "czyx", "spacing": SPACING, "unit": "nm"}
    channels = [open_volume(folder / "in.zarr", select={"c": c}, **options) for c in range(count)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("evenslice.volumes.write.files.SLAB_BYTES", draw(st.integers(1, 3000)))
        patch.setattr("evenslice.volumes.write.files.CHUNK_BYTES", draw(st.integers(1, 300)))
        write_volume(channels, folder / name)
    found = READERS[name](str(folder / name)).voxels
    np.testing.assert_array_equal(found.reshape(array.shape), array)


def test_a_model_of_another_shape_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"\(6, 33, 40\).*\(5, 33, 40\)"):
        write_volume(open_volume(LABELS), tmp_path / "a.tif", like=open_volume(LABELS[1:]))
    for wrong in (LABELS[1:], LABELS.astype(np.float64)):
        with pytest.raises(
            ConfigError, match=r"alike, and are float64.* and uint|alike, and are uint.*\(5.* and uint"
        ):
            write_volume(channels_of([LABELS, wrong]), tmp_path / "a.tif")
    with pytest.raises(ConfigError, match="an opened volume"):
        write_volume([], tmp_path / "a.tif")
    assert not list(tmp_path.iterdir())


ORIENTED = np.array(
    [[-0.9, 0.12, 0.1, 40.0], [0.1, 1.1, -0.2, -30.0], [0.05, 0.15, 2.0, 12.5], [0, 0, 0, 1]], np.float32
).astype(float)
ORTHOGONAL = np.array([[0, -2.0, 0, 9], [-0.5, 0, 0, -7], [0, 0, 3.0, 5], [0, 0, 0, 1]])


def nifti_volume(folder, affine, unit="mm"):
    image = nib.Nifti1Image(LABELS.T, affine)
    image.header.set_xyzt_units(unit)
    nib.save(image, folder / "like.nii")
    return open_volume(folder / "like.nii")


@pytest.mark.parametrize("region", [None, np.s_[1:, :, 2:]])
def test_a_nifti_file_without_a_stated_place_is_written_without_one(region, tmp_path):
    header = nib.Nifti1Header()
    header.set_data_shape(LABELS.T.shape)
    header.set_zooms((2, 3, 4))
    nib.save(nib.Nifti1Image(LABELS.T, None, header), tmp_path / "like.nii")
    like = open_volume(tmp_path / "like.nii", region=region)
    assert (like.affine, like.spacing) == (None, (4, 3, 2))
    write_volume(open_volume(LABELS, region=region), tmp_path / "a.nii", like=like)
    written = nib.load(tmp_path / "a.nii").header
    assert (written["sform_code"], written["qform_code"]) == (0, 0)
    assert open_volume(tmp_path / "a.nii").spacing == (4, 3, 2)
    if region is None:
        np.testing.assert_array_equal(written.get_best_affine(), nib.load(tmp_path / "like.nii").affine)


@pytest.mark.parametrize(
    ("name", "lines"),
    [
        ("a.mha", [b"TransformMatrix = 1 0 0 0 1 0 0 0 1", b"Offset = 0 0 0", b"ElementSpacing = 4 3 2"]),
        ("a.nrrd", [b"space directions: (4,0,0) (0,3,0) (0,0,2)", b"space origin: (0,0,0)"]),
    ],
)
def test_an_image_without_a_place_is_aligned_with_the_axes_of_itk(tmp_path, name, lines):
    write_volume(open_volume(LABELS, spacing=(2, 3, 4), unit="mm"), tmp_path / "a.nii")
    unplaced = open_volume(tmp_path / "a.nii")  # readers assume an orientation
    assert unplaced.affine is None
    write_volume(unplaced, tmp_path / name)
    content = (tmp_path / name).read_bytes()
    assert all(line in content.replace(b".0", b"") for line in lines), content[:600]


@pytest.mark.parametrize("name", ["a.nii", "a.mha", "a.nrrd"])
@pytest.mark.parametrize("spacing", [None, (6.0, 4.0, 1.0)])
def test_every_format_of_medicine_takes_the_affine_of_the_input_with_the_spacing_of_the_user(
    name, spacing, tmp_path
):
    nifti_volume(tmp_path, ORTHOGONAL)
    like = open_volume(tmp_path / "like.nii", spacing=spacing)
    write_volume(open_volume(LABELS), tmp_path / name, like=like)
    image = sitk.ReadImage(str(tmp_path / name))
    assert image.GetSpacing() == pytest.approx((spacing or (3.0, 2.0, 0.5))[::-1])
    assert image.GetOrigin() == pytest.approx((-9, 7, 5))
    assert image.GetDirection() == pytest.approx((0, 1, 0, 1, 0, 0, 0, 0, 1), abs=1e-6)
    if spacing is None:
        np.testing.assert_allclose(open_volume(tmp_path / name).affine, ORTHOGONAL, atol=1e-6)


@pytest.mark.parametrize("unit", ["mm", "micron", "unknown"])
def test_a_sheared_affine_goes_into_nifti_and_before_the_sizes_beside_it(unit, tmp_path):
    nifti_volume(tmp_path, ORIENTED, unit)
    content = bytearray((tmp_path / "like.nii").read_bytes())
    content[80:92] = np.ones(3, "<f4").tobytes()  # pixdim
    (tmp_path / "like.nii").write_bytes(content)
    volume = open_volume(tmp_path / "like.nii")
    assert volume.spacing == pytest.approx(np.linalg.norm(ORIENTED[:3, :3], axis=0)[::-1])
    write_volume(volume, tmp_path / "a.nii", labels=True)
    image = nib.load(tmp_path / "a.nii")
    np.testing.assert_allclose(image.affine, ORIENTED, rtol=1e-6)
    assert image.header["qform_code"] == 0


def test_an_affine_that_cannot_be_inverted_is_left_out(tmp_path):
    flat = open_volume(LABELS, spacing=SPACING, unit="mm")
    object.__setattr__(flat, "affine", np.diag([1.0, 0.0, 1.0, 1.0]))
    write_volume(flat, tmp_path / "a.mha")
    assert sitk.ReadImage(str(tmp_path / "a.mha")).GetSpacing() == pytest.approx(SPACING[::-1])


@pytest.mark.parametrize("shape", [(1, 40, 30), (3, 40, 1), (1, 1, 1), (2, 1, 5)])
@pytest.mark.parametrize("suffix", [".tif", ".ome.tif", ".btf"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint32])
def test_tiff_of_one_slice_or_column(tmp_path, shape, suffix, dtype):
    voxels = np.arange(np.prod(shape)).reshape(shape).astype(dtype)
    path = tmp_path / f"a{suffix}"
    write_volume(open_volume(voxels, spacing=(50, 4, 4.5)), path)
    volume = open_volume(path)
    assert volume.shape == shape
    assert np.array_equal(volume[:], voxels)
    assert volume.spacing == pytest.approx((50, 4, 4.5))
