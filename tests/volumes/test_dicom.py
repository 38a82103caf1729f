"""DICOM folders and files: order, place in the patient, values, several series, and what is refused."""

import shutil

import numpy as np
import pydicom
import pytest
import SimpleITK
from dicom_files import AXIAL, change, dataset, enhanced, save, write_series
from pydicom.data import get_testdata_file
from pydicom.uid import RTDoseStorage, SurfaceSegmentationStorage, generate_uid
from volume_checks import STACK, fails, same

from evenslice import ConfigError, MissingExtraError, VolumeError, open_volume

FLIPPED = (-1, 0, 0, 0, 1, 0)
OBLIQUE = (np.cos(0.4), np.sin(0.4), 0, 0, 0, -1)
NO_PLACE = {"ImagePositionPatient": None, "ImageOrientationPatient": None}


def mixed(tmp_path, **fields):
    """A folder with two series of files, given the elements of the second; return its path."""
    write_series(tmp_path, STACK, **{"SeriesInstanceUID": "1.1", **fields.pop("first", {})})
    for path in write_series(tmp_path / "b", STACK[: fields.pop("depth", 6)] + 1, **fields):
        path.rename(tmp_path / f"b{path.name}")
    (tmp_path / "b").rmdir()
    return str(tmp_path)


def test_a_series_in_a_folder(tmp_path):
    write_series(tmp_path, STACK)
    volume = open_volume(tmp_path)
    assert same(volume, STACK)
    assert volume.spacing == pytest.approx((3.0, 0.7, 0.5))
    assert (volume.unit, volume.format, volume.chunks) == ("mm", "DICOM", (1, 40, 32))


@pytest.mark.parametrize("orientation", [AXIAL, (0, 1, 0, 0, 0, -1), OBLIQUE, FLIPPED])
def test_the_place_in_the_patient_is_that_of_itk(tmp_path, orientation):
    write_series(tmp_path, STACK, orientation=orientation)
    reader = SimpleITK.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(tmp_path)))
    image = reader.Execute()
    volume = open_volume(tmp_path)
    np.testing.assert_array_equal(volume[...], SimpleITK.GetArrayFromImage(image))
    for index in ((0, 0, 0), (31, 0, 0), (0, 39, 0), (3, 20, 5)):
        x, y, z = image.TransformIndexToPhysicalPoint(index)
        np.testing.assert_allclose((volume.affine @ [*index, 1])[:3], [-x, -y, z], atol=1e-6)


def test_a_tilted_gantry(tmp_path):
    for z, path in enumerate(write_series(tmp_path, STACK)):
        change(path, ImagePositionPatient=[0, 0.4 * z, 3.0 * z])
    np.testing.assert_allclose((open_volume(tmp_path).affine @ [0, 0, 5, 1])[:3], [0, -2, 15], atol=1e-9)


def test_rescaling(tmp_path):
    stored = STACK.astype(np.int16)
    write_series(tmp_path / "a", stored, RescaleSlope=2, RescaleIntercept=-1024)
    assert same(open_volume(tmp_path / "a"), STACK.astype(np.float32) * 2 - 1024)
    paths = write_series(tmp_path / "b", stored, RescaleSlope=1, RescaleIntercept=0)
    assert same(open_volume(tmp_path / "b"), stored)
    for z, path in enumerate(paths):
        change(path, RescaleSlope=z + 1)
    expected = STACK * np.arange(1, 7, dtype=np.float32)[:, None, None]
    np.testing.assert_array_equal(open_volume(tmp_path / "b")[...], expected)


def test_a_scaling_that_makes_all_voxels_alike_is_refused(tmp_path):
    change(write_series(tmp_path, STACK)[-1], RescaleSlope=0)
    fails(str(tmp_path), "IM0001: .* 0; correct the header")


# Which files


def test_several_series_are_named(tmp_path):
    first = {"SeriesNumber": 3, "SeriesDescription": "T1 AX"}
    path = mixed(tmp_path, first=first, depth=4, SeriesNumber=2, SeriesDescription="scout")
    fails(path, r"\(0: CT scout \(4 images, .*\); 1: CT T1 AX \(6 images, .*\)\); .* select=\{'series': 0\}")
    volume = open_volume(path, select={"series": 1})
    assert same(volume, STACK)
    assert len(volume.files) == 6
    assert len(open_volume(path, select={"series": 0}).files) == 4
    for select in ({"series": 2}, {"series": 0, "t": 0}):
        fails(path, "select", ConfigError, select=select)
    fails(STACK, "no names to select by", ConfigError, select={"series": 0})


def test_files_that_are_no_images_or_no_dicom_are_left_out(tmp_path):
    write_series(tmp_path, STACK)
    (tmp_path / "notes.txt").write_text("seen")
    (tmp_path / "preview.jpg").write_bytes(b"\xff\xd8\xff")
    shutil.copy(next(tmp_path.glob("IM*")), tmp_path / "._IM0001")
    shutil.copy(get_testdata_file("test-SR.dcm"), tmp_path / "report.dcm")
    mesh = dataset(STACK[0], storage=SurfaceSegmentationStorage)
    del mesh.Rows, mesh.Columns, mesh.PixelData
    save(mesh, tmp_path / "mesh")
    save(dataset(STACK, storage=RTDoseStorage, DoseGridScaling=1e-3), tmp_path / "dose")
    assert same(open_volume(tmp_path), STACK)


def test_several_volumes_at_the_same_positions(tmp_path):
    uid = generate_uid()
    first = {"SeriesInstanceUID": uid, "AcquisitionNumber": 1}
    path = mixed(tmp_path, first=first, SeriesInstanceUID=uid, AcquisitionNumber=2)
    fails(path, r"TZYX \(2, 6, 40, 32\); pick one of axis T with select=\{'t': 0\}")
    volume = open_volume(path, select={"t": 1})
    assert same(volume, STACK + 1)
    assert volume.spacing == pytest.approx((3.0, 0.7, 0.5))
    assert volume.affine is not None
    next(tmp_path.glob("bIM*")).unlink()
    fails(path, "2 images are at some positions and 1 at that of .*")


def test_missing_slices(tmp_path):
    write_series(tmp_path, STACK)[2].unlink()
    fails(str(tmp_path), "IM0005 and IM0003 are 6 mm apart")


@pytest.mark.parametrize(
    ("odd", "fields", "pattern"),
    [
        (STACK[0], {"ImageOrientationPatient": [0, 1, 0, 0, 0, -1]}, "orientation"),
        (STACK[0], {"PixelSpacing": [1, 1]}, "pixel"),
        (STACK[0, :, :30], {}, r"IM0001 has \(40, 32\) and z.dcm \(40, 30\)"),
        (STACK[0].astype(np.int16), {}, "IM0001 has uint16 and z.dcm int16"),
    ],
)
def test_images_of_one_series_that_differ(tmp_path, odd, fields, pattern):
    place = {"ImageOrientationPatient": list(AXIAL), "PixelSpacing": [0.7, 0.5]} | fields
    write_series(tmp_path, STACK, SeriesInstanceUID="1.1")
    save(dataset(odd, SeriesInstanceUID="1.1", **place), tmp_path / "z.dcm")
    fails(str(tmp_path), pattern)


def test_slices_without_a_place_are_sorted_by_number(tmp_path):
    paths = write_series(tmp_path, STACK)
    for z, path in enumerate(paths):
        change(path, InstanceNumber=z + 1, **NO_PLACE)
    volume = open_volume(tmp_path)
    assert same(volume, STACK)
    assert (volume.spacing, volume.affine) == (None, None)
    for path in paths:
        change(path, InstanceNumber=None)
    assert same(open_volume(tmp_path), STACK[::-1])  # in the order of their names
    for z, path in enumerate(paths):
        change(path, InstanceNumber=z // 2)
    fails(str(tmp_path), "IM000[56] and another have the same number and no position")


def test_slices_that_do_not_lie_above_each_other(tmp_path):
    path = write_series(tmp_path, STACK)[3]
    change(path, ImagePositionPatient=[-9.8, 20, 39])
    assert same(open_volume(tmp_path), STACK)
    change(path, ImagePositionPatient=[-5, 20, 39])
    fails(str(tmp_path), "IM000[23] lies 5 mm to the side of where it would follow IM000[34]")
    change(path, ImagePositionPatient=None)
    fails(str(tmp_path), "IM0003 states no position")


def test_one_slice_has_the_distance_that_it_states(tmp_path):
    (path,) = write_series(tmp_path, STACK[:1], SpacingBetweenSlices=-2, SliceThickness=4)
    assert open_volume(tmp_path).spacing == pytest.approx((2, 0.7, 0.5))
    change(path, SpacingBetweenSlices=0)
    assert open_volume(tmp_path).spacing == pytest.approx((4, 0.7, 0.5))


# Files of several frames


@pytest.mark.parametrize("slopes", [None, [1, 2, 3, 4, 5, 6]])
def test_an_enhanced_file(tmp_path, slopes):
    path = tmp_path / "IM0001"  # without a suffix
    save(enhanced(STACK, slopes=slopes), path)
    volume = open_volume(path)
    scaled = STACK * np.reshape(slopes or [1] * 6, (6, 1, 1)).astype(np.float32 if slopes else np.uint16)
    assert same(volume, scaled[::-1])  # the frames are stored from head to feet
    assert volume.spacing == pytest.approx((3.0, 0.7, 0.5))
    np.testing.assert_allclose(volume.affine, [[-0.5, 0, 0, 0], [0, -0.7, 0, 0], [0, 0, 3, 0], [0, 0, 0, 1]])
    assert same(open_volume(tmp_path), scaled[::-1])


def test_frames_without_places(tmp_path):
    save(dataset(STACK, PixelSpacing=[0.7, 0.5], SpacingBetweenSlices=2), tmp_path / "scan.dcm")
    volume = open_volume(tmp_path / "scan.dcm")
    assert same(volume, STACK)
    assert (volume.spacing, volume.affine) == ((2, 0.7, 0.5), None)


# Compression and colour


@pytest.mark.parametrize(
    "name", ["MR_small_jp2klossless.dcm", "MR_small_jpeg_ls_lossless.dcm", "JPEG2000.dcm", "MR_small_RLE.dcm"]
)
def test_every_compression_that_clinics_use(tmp_path, name):
    file = pydicom.dcmread(get_testdata_file(name))
    shutil.copy(get_testdata_file(name), tmp_path / "a.dcm")
    volume = open_volume(tmp_path)  # one slice
    slope, intercept = float(file.get("RescaleSlope", 1)), float(file.get("RescaleIntercept", 0))
    np.testing.assert_array_equal(volume[0], (file.pixel_array * slope + intercept).astype(volume.dtype))


def test_a_decoder_that_is_not_installed(monkeypatch):
    monkeypatch.setattr("pydicom.pixels.decoders.base.Decoder.is_available", property(lambda _: False))
    with pytest.raises(MissingExtraError, match=r"JPEG 2000 .*evenslice\[medical\]"):
        open_volume(get_testdata_file("MR_small_jp2klossless.dcm"))


# What is refused


def test_files_without_an_image_or_cut_short(tmp_path):
    for name in ("rtplan.dcm", "rtdose.dcm"):
        fails(get_testdata_file(name), "contain no image")
    path = write_series(tmp_path, STACK)[3]
    content = path.read_bytes()
    for fraction in (0.05, 0.5, 0.99):
        path.write_bytes(content[: int(len(content) * fraction)])
        fails(str(tmp_path), "IM0003: is truncated|IM0003: cannot be read as DICOM")


@pytest.mark.parametrize(
    ("changes", "pattern"),
    [
        ({"Rows": 65535, "Columns": 65535, "BitsAllocated": 32}, "17,179,344,900 bytes"),
        ({"Rows": 30000, "Columns": 30000}, "is truncated"),
        ({"NumberOfFrames": 2_000_000_000}, "is truncated"),
        ({"Rows": 0}, "empty axis"),
    ],
)
def test_claims_that_nothing_stands_behind(tmp_path, changes, pattern):
    save(dataset(STACK[0], **changes), tmp_path / "a.dcm")
    fails(str(tmp_path / "a.dcm"), pattern)


def test_frames_are_decoded_as_they_are_needed(tmp_path):
    paths = write_series(tmp_path, STACK)
    volume = open_volume(tmp_path)
    paths[4].write_bytes(b"gone")
    np.testing.assert_array_equal(volume[:4, 5], STACK[:4, 5])
    with pytest.raises(VolumeError, match="IM0002: cannot be read as DICOM"):
        volume[4]
