"""DICOM folders and files: order, place in the patient, values, several series, and what is refused."""

import io
import shutil
import sys

import numpy as np
import pydicom
import pytest
import SimpleITK
from dicom_files import AXIAL, dataset, enhanced, save, write_series
from pydicom.data import get_testdata_file
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    RLELossless,
    RTDoseStorage,
    SurfaceSegmentationStorage,
    generate_uid,
)
from volume_checks import fails, same

from evenslice._core import errors
from evenslice.volumes.info import describe_volume, fingerprint
from evenslice.volumes.opening import open_volume

STACK = (np.arange(6 * 40 * 32) % 1021).reshape(6, 40, 32).astype(np.uint16)


def test_a_series_in_a_folder(tmp_path):
    write_series(tmp_path, STACK)
    volume = open_volume(tmp_path)
    assert same(volume, STACK)
    assert volume.spacing == pytest.approx((3.0, 0.7, 0.5))
    assert (volume.unit, volume.format, volume.chunks) == ("mm", "DICOM", (1, 40, 32))
    assert describe_volume(volume).orientation == "LPS"
    assert same(open_volume(str(tmp_path) + "/"), STACK)


def tilted():
    """The directions of rows and columns of an oblique series."""
    a = 0.4
    return (np.cos(a), np.sin(a), 0, 0, 0, -1)


@pytest.mark.parametrize("orientation", [AXIAL, (0, 1, 0, 0, 0, -1), tilted(), (-1, 0, 0, 0, 1, 0)])
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
    paths = write_series(tmp_path, STACK)
    for z, path in enumerate(paths):
        file = pydicom.dcmread(path)
        file.ImagePositionPatient = [0, 0.4 * z, 3.0 * z]
        save(file, path)
    volume = open_volume(tmp_path)
    np.testing.assert_allclose((volume.affine @ [0, 0, 5, 1])[:3], [0, -2, 15], atol=1e-9)


def test_rescaling(tmp_path):
    write_series(tmp_path, STACK.astype(np.int16), RescaleSlope=2, RescaleIntercept=-1024)
    volume = open_volume(tmp_path)
    assert volume.dtype == np.float32
    np.testing.assert_array_equal(volume[...], STACK.astype(np.float32) * 2 - 1024)
    np.testing.assert_array_equal(volume[2, 3:5], STACK[2, 3:5].astype(np.float32) * 2 - 1024)
    unchanged = tmp_path / "unchanged"
    write_series(unchanged, STACK.astype(np.int16), RescaleSlope=1, RescaleIntercept=0)
    assert same(open_volume(unchanged), STACK.astype(np.int16))


def test_a_slope_of_its_own_for_each_slice(tmp_path):
    for z, path in enumerate(write_series(tmp_path, STACK)):
        file = pydicom.dcmread(path)
        file.RescaleSlope, file.RescaleIntercept = z + 1, 0
        save(file, path)
    expected = STACK * np.arange(1, 7, dtype=np.float32)[:, None, None]
    np.testing.assert_array_equal(open_volume(tmp_path)[...], expected)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"RescaleSlope": 0, "RescaleIntercept": -1024}, r"IM0001: RescaleSlope \(0028,1053\) is 0; "),
        ({"DoseGridScaling": 0}, r"IM0001: DoseGridScaling \(3004,000E\) is 0; .* other than 0, mostly 1"),
    ],
)
def test_a_scaling_that_cannot_be_meant_is_named(tmp_path, fields, message):
    """To the letter all voxels are alike, as in pydicom; GDCM takes 0 for 1."""
    file = pydicom.dcmread(write_series(tmp_path, STACK)[-1])
    for name, value in fields.items():
        setattr(file, name, value)
    save(file, file.filename)
    fails(tmp_path, message)


def test_several_series_are_named(tmp_path):
    write_series(tmp_path / "a", STACK, SeriesNumber=3, SeriesDescription="T1 AX")
    write_series(tmp_path / "b", STACK[:4] + 1, SeriesNumber=2, SeriesDescription="scout")
    for name in ("a", "b"):
        for path in (tmp_path / name).iterdir():
            shutil.copy(path, tmp_path / f"{name}{path.name}.dcm")
    fails(
        str(tmp_path),
        r"holds 2 series \(0: CT scout \(4 images, UID …[\d.]{12}\); 1: CT T1 AX \(6 images, .*\)\); pick "
        r"one with select=\{'series': 0\}",
    )
    volume = open_volume(tmp_path, select={"series": 1})
    assert same(volume, STACK)
    assert len(volume.files) == 6
    assert fingerprint(volume) != fingerprint(open_volume(tmp_path, select={"series": 0}))
    fails(str(tmp_path), "holds series 0 to 1", errors.ConfigError, select={"series": 2})
    fails(str(tmp_path), "names no axis of the file", errors.ConfigError, select={"series": 0, "t": 0})
    fails(STACK, "have no names to select by", errors.ConfigError, select={"series": 0})


def test_files_that_are_no_images_or_no_dicom_are_left_out(tmp_path):
    write_series(tmp_path, STACK)
    (tmp_path / "notes.txt").write_text("seen")
    (tmp_path / "preview.jpg").write_bytes(b"\xff\xd8\xff")
    shutil.copy(next(tmp_path.glob("IM*")), tmp_path / "._IM0001")
    shutil.copy(get_testdata_file("test-SR.dcm"), tmp_path / "report.dcm")
    assert same(open_volume(tmp_path), STACK)


def test_meshes_and_dose_histograms_are_no_images(tmp_path):
    write_series(tmp_path, STACK)
    for name, storage in (("mesh", SurfaceSegmentationStorage), ("dose", RTDoseStorage)):
        file = dataset(STACK[0], storage=storage)
        del file.Rows, file.Columns, file.PixelData
        if name == "dose":
            save(file, tmp_path / name)
            fails(str(tmp_path), "dose: is truncated, it is of the kind RT Dose Storage but has no image")
            file.DVHSequence = [pydicom.Dataset()]
        save(file, tmp_path / name)
    assert same(open_volume(tmp_path), STACK)


def test_several_volumes_at_the_same_positions(tmp_path):
    uid = generate_uid()
    write_series(tmp_path / "a", STACK, SeriesInstanceUID=uid, AcquisitionNumber=1)
    write_series(tmp_path / "b", STACK + 1, SeriesInstanceUID=uid, AcquisitionNumber=2)
    for path in (tmp_path / "b").iterdir():
        shutil.copy(path, tmp_path / "a" / f"b{path.name}")
    fails(str(tmp_path / "a"), r"has 4 axes TZYX \(2, 6, 40, 32\); pick one of axis T with select=\{'t': 0\}")
    volume = open_volume(tmp_path / "a", select={"t": 1})
    assert same(volume, STACK + 1)
    assert volume.spacing == pytest.approx((3.0, 0.7, 0.5))
    assert volume.affine is not None
    next((tmp_path / "a").glob("bIM*")).unlink()
    fails(
        str(tmp_path / "a"),
        "2 images are at some positions and 1 at that of .*; images are missing, or several",
    )


def test_missing_slices(tmp_path):
    write_series(tmp_path, STACK)[2].unlink()
    fails(
        str(tmp_path),
        r"slices are 3 mm apart, but IM0005 and IM0003 are 6 mm apart; slices are missing or unevenly spaced",
    )


@pytest.mark.parametrize(
    ("field", "value", "pattern"),
    [
        ("ImageOrientationPatient", [0, 1, 0, 0, 0, -1], "differ in orientation"),
        ("PixelSpacing", [1, 1], "pixels of one series differ in size"),
    ],
)
def test_mixed_geometry(tmp_path, field, value, pattern):
    path = write_series(tmp_path, STACK)[3]
    file = pydicom.dcmread(path)
    setattr(file, field, value)
    save(file, path)
    fails(str(tmp_path), pattern)


def test_mixed_sizes_and_types(tmp_path):
    uid = generate_uid()
    write_series(tmp_path, STACK, SeriesInstanceUID=uid)
    save(dataset(STACK[0, :, :30], SeriesInstanceUID=uid), tmp_path / "z.dcm")
    fails(
        str(tmp_path), r"images of one series differ, IM0001 is \(40, 32\) uint16 and z.dcm \(40, 30\) uint16"
    )
    save(dataset(STACK[0].astype(np.int16), SeriesInstanceUID=uid), tmp_path / "z.dcm")
    fails(
        str(tmp_path), r"images of one series differ, IM0001 is \(40, 32\) uint16 and z.dcm \(40, 32\) int16"
    )


def change(path, **fields):
    """Change elements of a file; None removes one."""
    file = pydicom.dcmread(path)
    for name, value in fields.items():
        if value is None:
            delattr(file, name)
        else:
            setattr(file, name, value)
    save(file, path)


NO_PLACE = {"ImagePositionPatient": None, "ImageOrientationPatient": None}


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


def test_volumes_without_a_place_are_not_interleaved(tmp_path):
    for z, path in enumerate(write_series(tmp_path, STACK)):
        change(path, InstanceNumber=z // 2, **NO_PLACE)
    fails(
        str(tmp_path),
        "IM000[56] and IM000[56] have the same number and no position; several volumes are mixed",
    )


def test_one_slice_without_a_place_is_named(tmp_path):
    change(write_series(tmp_path, STACK)[2], ImagePositionPatient=None)
    fails(str(tmp_path), "IM0004 states no position, unlike other images of its series")


@pytest.mark.parametrize(("aside", "refused"), [(0.2, False), (5, True)])
def test_slices_that_do_not_lie_above_each_other(tmp_path, aside, refused):
    change(write_series(tmp_path, STACK)[3], ImagePositionPatient=[-10 + aside, 20, 39])
    if refused:
        fails(str(tmp_path), "IM000[23] lies 5 mm to the side of where it would follow IM000[34]")
    else:
        assert same(open_volume(tmp_path), STACK)


def test_one_slice_has_the_distance_that_it_states(tmp_path):
    (path,) = write_series(tmp_path, STACK[:1], SpacingBetweenSlices=-2, SliceThickness=4)
    assert open_volume(tmp_path).spacing == pytest.approx((2, 0.7, 0.5))
    change(path, SpacingBetweenSlices=0)
    assert open_volume(tmp_path).spacing == pytest.approx((4, 0.7, 0.5))


# Files of several frames


@pytest.mark.parametrize("slopes", [None, [1, 2, 3, 4, 5, 6]])
def test_an_enhanced_file(tmp_path, slopes):
    path = tmp_path / "scan.dcm"
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


def test_a_radiation_dose():
    volume = open_volume(get_testdata_file("rtdose.dcm"))
    file = pydicom.dcmread(get_testdata_file("rtdose.dcm"))
    assert volume.spacing == (5, 10, 10)
    np.testing.assert_allclose(volume[...], file.pixel_array * float(file.DoseGridScaling), rtol=1e-6)


@pytest.mark.parametrize("orientation", [AXIAL, (-1, 0, 0, 0, 1, 0)])
@pytest.mark.parametrize("descending", [False, True])
def test_a_radiation_dose_that_states_z_of_each_frame(tmp_path, orientation, descending):
    places = np.arange(6) * 3.0 - 100
    places = places[::-1] if descending else places
    fields = {"ImageOrientationPatient": list(orientation), "PixelSpacing": [0.7, 0.5]}
    fields |= {"ImagePositionPatient": [-10, 20, places[0]], "GridFrameOffsetVector": places.tolist()}
    save(dataset(STACK, storage=RTDoseStorage, Modality="RTDOSE", **fields), tmp_path / "dose.dcm")
    volume = open_volume(tmp_path / "dose.dcm")
    first, last = (volume.affine @ [0, 0, z, 1] for z in (0, 5))
    assert sorted([first[2], last[2]]) == [-100, -85]
    assert volume.affine[0, 3] == 10
    assert np.array_equal(volume[0 if first[2] == places[0] else 5], STACK[0])


def test_a_radiation_dose_of_one_frame(tmp_path):
    fields = {"ImageOrientationPatient": list(AXIAL), "PixelSpacing": [0.7, 0.5], "SliceThickness": 2}
    fields |= {"ImagePositionPatient": [-10, 20, 5], "GridFrameOffsetVector": 0}
    save(dataset(STACK[:1], storage=RTDoseStorage, Modality="RTDOSE", **fields), tmp_path / "dose.dcm")
    volume = open_volume(tmp_path / "dose.dcm")
    assert same(volume, STACK[:1])
    assert (volume.affine @ [0, 0, 0, 1])[2] == 5


def test_single_bits(tmp_path):
    mask = STACK % 2 == 0
    file = dataset(STACK.astype(np.uint8), PixelRepresentation=0)
    file.BitsAllocated = file.BitsStored = 1
    file.HighBit = 0
    file.PixelData = np.packbits(mask.ravel(), bitorder="little").tobytes()
    save(file, tmp_path / "mask.dcm")
    assert same(open_volume(tmp_path / "mask.dcm"), mask.astype(np.uint8))


# Compression


def test_compressed_slices(tmp_path):
    for path in write_series(tmp_path, STACK):
        file = pydicom.dcmread(path)
        file.compress(RLELossless)
        save(file, path)
    assert same(open_volume(tmp_path), STACK)


@pytest.mark.parametrize(
    "name",
    ["MR_small_jp2klossless.dcm", "MR_small_jpeg_ls_lossless.dcm", "JPEG2000.dcm", "MR_small_RLE.dcm"],
)
def test_every_compression_that_clinics_use(tmp_path, name):
    file = pydicom.dcmread(get_testdata_file(name))
    shutil.copy(get_testdata_file(name), tmp_path / "a.dcm")
    volume = open_volume(tmp_path)  # one slice
    slope, intercept = float(file.get("RescaleSlope", 1)), float(file.get("RescaleIntercept", 0))
    np.testing.assert_array_equal(volume[0], (file.pixel_array * slope + intercept).astype(volume.dtype))


def test_a_decoder_that_is_not_installed(tmp_path, monkeypatch):
    shutil.copy(get_testdata_file("MR_small_jp2klossless.dcm"), tmp_path / "a.dcm")
    monkeypatch.setattr("pydicom.pixels.decoders.base.Decoder.is_available", property(lambda _: False))
    with pytest.raises(
        errors.MissingExtraError, match=r"compressed as JPEG 2000 .*pip install 'evenslice\[medical\]'"
    ):
        open_volume(tmp_path)


# What is refused


def test_colour(tmp_path):
    shutil.copy(get_testdata_file("SC_rgb_rle_2frame.dcm"), tmp_path / "a.dcm")
    fails(str(tmp_path), r"has 4 axes ZYXS \(2, 100, 100, 3\); pick one of axis S with select=\{'s': 0\}")
    file = pydicom.dcmread(tmp_path / "a.dcm")
    np.testing.assert_array_equal(open_volume(tmp_path, select={"s": 1})[...], file.pixel_array[..., 1])


def test_a_file_without_a_suffix(tmp_path):
    save(enhanced(STACK), tmp_path / "IM0001")
    assert same(open_volume(tmp_path / "IM0001"), STACK[::-1])


def test_a_file_of_one_slice_and_other_content(tmp_path):
    save(dataset(STACK[0]), tmp_path / "a.dcm")
    assert open_volume(tmp_path / "a.dcm").shape == (1, 40, 32)
    (tmp_path / "b.dcm").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(600))
    fails(str(tmp_path / "b.dcm"), "is not a DICOM file, its content is a PNG image")
    shutil.copy(get_testdata_file("rtplan.dcm"), tmp_path / "c.dcm")
    fails(str(tmp_path / "c.dcm"), "its DICOM files contain no image")


def test_deflated_files(tmp_path):
    file = dataset(STACK[0])
    file.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    save(file, tmp_path / "a.dcm")
    fails(str(tmp_path / "a.dcm"), "is compressed as a whole")


@pytest.mark.parametrize("fraction", [0.05, 0.5, 0.99])
def test_truncated(tmp_path, fraction):
    path = write_series(tmp_path, STACK)[3]
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * fraction)])
    fails(str(tmp_path), "IM0003: is truncated|IM0003: cannot be read as DICOM")


@pytest.mark.parametrize(
    ("changes", "pattern"),
    [
        (
            {"Rows": 65535, "Columns": 65535, "BitsAllocated": 32},
            r"its images \(65535, 65535\) take 17,179,344,900 bytes",
        ),
        ({"Rows": 30000, "Columns": 30000}, "is truncated, its voxels end at byte 1,800,000,000"),
        (
            {"NumberOfFrames": 2_000_000_000},
            "claims 2,000,000,000 frames in .* bytes; the file is damaged",
        ),
        ({"NumberOfFrames": 2_000}, "is truncated"),
        ({"Rows": 0}, "claims an impossible image of 0 x 32 pixels"),
        ({"BitsAllocated": 12}, "12 bits; the file is damaged"),
    ],
)
def test_claims_that_nothing_stands_behind(tmp_path, changes, pattern):
    save(dataset(STACK[0], **changes), tmp_path / "a.dcm")
    fails(str(tmp_path / "a.dcm"), pattern)


def test_missing_extra(tmp_path, monkeypatch):
    write_series(tmp_path, STACK)
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(errors.MissingExtraError, match=r"pip install 'evenslice\[medical\]'"):
        open_volume(tmp_path)


def test_frames_are_decoded_as_they_are_needed(tmp_path):
    paths = write_series(tmp_path, STACK)
    volume = open_volume(tmp_path)
    paths[4].write_bytes(io.BytesIO(b"gone").getvalue())
    np.testing.assert_array_equal(volume[:4, 5], STACK[:4, 5])
    with pytest.raises(errors.VolumeError, match="IM0002: cannot be read as DICOM"):
        volume[4]
