"""MetaImage and NRRD, written by ITK itself: values, spacing, place in the patient; and what a header may not do."""

import bz2
import gzip
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
import SimpleITK
from volume_checks import fails, same

from evenslice._core import errors
from evenslice.volumes.info import describe_volume, fingerprint
from evenslice.volumes.opening import open_volume

STACK = (np.arange(6 * 40 * 32) % 1021).reshape(6, 40, 32).astype(np.uint16)
VOXELS = STACK.tobytes()
SUFFIXES = ["mha", "mhd", "nrrd", "nhdr"]


def oblique():
    """A turned box: directions of x, y, z as columns."""
    a, b = 0.3, -0.2
    about_z = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
    about_x = np.array([[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]])
    return about_z @ about_x


def write(path, array, *, compress=False, vector=False):
    image = SimpleITK.GetImageFromArray(array, isVector=vector)
    if image.GetDimension() == 3:
        image.SetSpacing((0.5, 0.7, 3.0))
        image.SetOrigin((-10.0, 20.0, 30.5))
        image.SetDirection(oblique().ravel().tolist())
    SimpleITK.WriteImage(image, str(path), useCompression=compress)
    return image


def placed(image, index):
    """Where ITK puts a voxel, in the axes of NIfTI."""
    x, y, z = image.TransformIndexToPhysicalPoint(index)
    return [-x, -y, z]


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_round_trip(tmp_path, suffix, compress):
    path = tmp_path / f"scan.{suffix}"
    image = write(path, STACK, compress=compress)
    volume = open_volume(path)
    assert same(volume, STACK)
    assert volume.spacing == pytest.approx((3.0, 0.7, 0.5))
    assert volume.unit == "mm"
    for index in ((0, 0, 0), (31, 0, 0), (0, 39, 0), (3, 20, 5)):
        np.testing.assert_allclose((volume.affine @ [*index, 1])[:3], placed(image, index), atol=1e-6)
    assert volume.format == ("MetaImage" if suffix.startswith("m") else "NRRD")


@pytest.mark.parametrize(
    "dtype", ["int8", "uint8", "int16", "int32", "uint32", "int64", "uint64", "float32", "float64"]
)
@pytest.mark.parametrize("suffix", ["mha", "nrrd"])
def test_data_types(tmp_path, suffix, dtype):
    path = tmp_path / f"scan.{suffix}"
    write(path, (STACK % 101).astype(dtype))
    assert same(open_volume(path), (STACK % 101).astype(dtype))


@pytest.mark.parametrize("suffix", ["mha", "nrrd"])
def test_vectors_are_channels(tmp_path, suffix):
    path = tmp_path / f"scan.{suffix}"
    write(path, np.stack([STACK, STACK + 1], axis=-1), vector=True)
    with pytest.raises(errors.VolumeError, match=r"has 4 axes CXYZ \(2, 32, 40, 6\); pick one of axis C"):
        open_volume(path)
    volume = open_volume(path, select={"c": 1})
    assert same(volume, STACK + 1)
    assert volume.spacing == pytest.approx((3.0, 0.7, 0.5))
    assert volume.affine is not None


def test_time_in_a_metaimage(tmp_path):
    path = tmp_path / "scan.mha"
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(np.stack([STACK, STACK + 1]), isVector=False), str(path))
    fails(str(path), r"has 4 axes XYZT .* pick one of axis T with select=\{'t': 0\}")
    assert same(open_volume(path, select={"t": 1}), STACK + 1)


def mha(tmp_path, name="a.mha", data=VOXELS, **changes):
    """Write a MetaImage by hand."""
    header = {
        "ObjectType": "Image",
        "NDims": "3",
        "DimSize": "32 40 6",
        "ElementType": "MET_USHORT",
        "ElementDataFile": "LOCAL",
    }
    file = header.pop("ElementDataFile")
    header.update(changes)
    header["ElementDataFile"] = header.pop("ElementDataFile", file)
    text = "".join(f"{key} = {value}\n" for key, value in header.items() if value is not None)
    (tmp_path / name).write_bytes(text.encode() + (data if header["ElementDataFile"] == "LOCAL" else b""))
    return str(tmp_path / name)


def nrrd(tmp_path, name="a.nrrd", data=VOXELS, **changes):
    """Write an NRRD file by hand."""
    header = {"type": "uint16", "dimension": "3", "sizes": "32 40 6", "encoding": "raw", "endian": "little"}
    header |= {key.replace("_", " "): value for key, value in changes.items()}
    text = "NRRD0004\n" + "".join(f"{key}: {value}\n" for key, value in header.items() if value is not None)
    (tmp_path / name).write_bytes(text.encode() + b"\n" + (b"" if "data file" in header else data))
    return str(tmp_path / name)


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"dimension": "4", "sizes": "32 40 6 1"}, "xyzc"),
        ({"dimension": "4", "sizes": "32 1 40 6"}, "xcyz"),
        ({"dimension": "5", "sizes": "1 1 32 40 6", "kinds": "list list domain domain domain"}, "cuxyz"),
        ({"dimension": "4", "sizes": "32 40 6 1", "kinds": "domain domain domain domain"}, "xyzc"),
        ({"kinds": "domain domain ???"}, "xyz"),
    ],
)
def test_axes_of_length_one_do_not_turn_an_nrrd_file_round(tmp_path, changes, names):
    path = nrrd(tmp_path, **changes, spacings=" ".join(str("xyz".find(name) + 2) for name in names))
    volume = open_volume(path)
    assert same(volume, STACK)
    assert volume.spacing == (4, 3, 2)
    assert open_volume(path, axes=names).reading == volume.reading


@pytest.mark.parametrize(
    ("changes", "pattern"),
    [
        ({"kinds": "domain domain time"}, r"axes XYT \(32, 40, 6\) and no axis z; .* axes='xyz'"),
        ({"kinds": "domain domain list"}, r"axes XYC \(32, 40, 6\) and no axis z; .* axes='xyz'"),
        ({"space_dimension": "2", "space_directions": "none (1,0) (0,1)"}, "axes CXY .* and no axis z"),
        ({"dimension": "4", "sizes": "32 40 3 2", "kinds": "??? ??? ??? time"}, "has 4 axes XYZT"),
        (
            {"dimension": "4", "sizes": "32 40 3 2"},
            r"pick one of axis T .* or name the axes by axes if they are others",
        ),
        ({"sizes": "6 32 40", "kinds": "??? domain domain"}, "axes CXY .* and no axis z"),
    ],
)
def test_axes_that_an_nrrd_file_does_not_call_spatial_are_no_slices(tmp_path, changes, pattern):
    fails(nrrd(tmp_path, **changes), pattern)


def test_axes_of_length_one_do_not_turn_a_metaimage_round(tmp_path):
    volume = open_volume(mha(tmp_path, NDims="5", DimSize="32 40 6 1 1", ElementSpacing="2 3 4 1 1"))
    assert same(volume, STACK)
    assert volume.spacing == (4, 3, 2)
    path = mha(tmp_path, NDims="5", DimSize="32 40 1 1 6")
    fails(path, r"has 5 axes XYZTU \(32, 40, 1, 1, 6\); pick one of axis U with select=\{'u': 0\}")


def test_what_itk_knows_from_other_formats_may_stand_in_a_metaimage(tmp_path):
    image = SimpleITK.GetImageFromArray(STACK)
    image.SetMetaData("NRRD_kinds[0]", "domain")
    image.SetMetaData("0008|0060", "CT")
    SimpleITK.WriteImage(image, str(tmp_path / "scan.mha"))
    assert b"NRRD_kinds[0] = domain" in (tmp_path / "scan.mha").read_bytes()
    assert same(open_volume(tmp_path / "scan.mha"), STACK)


def test_bare_headers(tmp_path):
    for path in (mha(tmp_path), nrrd(tmp_path)):
        volume = open_volume(path)
        assert same(volume, STACK)
        assert (volume.spacing, volume.affine) == (None, None)


def test_metaimage_in_microns(tmp_path):
    volume = open_volume(mha(tmp_path, ElementSpacing="2 3 4", DistanceUnits="um"))
    assert (volume.spacing, volume.unit) == ((4, 3, 2), "um")
    np.testing.assert_allclose(volume.affine, np.diag([-0.002, -0.003, 0.004, 1]))


def test_nrrd_spacings_units_and_kinds(tmp_path):
    volume = open_volume(nrrd(tmp_path, spacings="4 5 50", units='"nm" "nm" "nm"'))
    assert (volume.spacing, volume.unit) == ((50, 5, 4), "nm")
    both = np.stack([STACK, STACK + 1], axis=-1)
    path = nrrd(
        tmp_path, dimension="4", sizes="2 32 40 6", kinds="vector domain domain domain", data=both.tobytes(),
        spacings="nan 4 5 50",
    )  # fmt: skip
    volume = open_volume(path, select={"c": 1})
    assert same(volume, STACK + 1)
    assert (volume.spacing, volume.unit) == ((50, 5, 4), None)


@pytest.mark.parametrize(
    ("space", "signs"), [("RAS", (1, 1, 1)), ("left-anterior-superior", (-1, 1, 1)), ("LPS", (-1, -1, 1))]
)
def test_nrrd_spaces(tmp_path, space, signs):
    directions = "(2,0,0) (0,3,0) (0,0,4)"
    volume = open_volume(nrrd(tmp_path, space=space, space_directions=directions, space_origin="(5,6,7)"))
    x, y, z = signs
    assert volume.affine.tolist() == [
        [2 * x, 0, 0, 5 * x],
        [0, 3 * y, 0, 6 * y],
        [0, 0, 4 * z, 7 * z],
        [0, 0, 0, 1],
    ]
    assert describe_volume(volume).orientation == {1: "R", -1: "L"}[x] + {1: "A", -1: "P"}[y] + "S"
    unknown = open_volume(nrrd(tmp_path, space_dimension="3", space_directions=directions))
    assert (unknown.spacing, unknown.unit, unknown.affine) == ((4, 3, 2), None, None)


def test_byte_order(tmp_path):
    big = STACK.astype(">u2").tobytes()
    assert same(open_volume(mha(tmp_path, data=big, BinaryDataByteOrderMSB="True")), STACK)
    assert same(open_volume(nrrd(tmp_path, data=big, endian="big")), STACK)


@pytest.mark.parametrize("endian", [None, "", "middle"])
def test_nrrd_voxels_of_two_bytes_in_no_order(tmp_path, endian):
    with pytest.raises(errors.VolumeError, match="its field 'endian' is .*; let it say 'little' or 'big'"):
        open_volume(nrrd(tmp_path, endian=endian))
    single = STACK.astype(np.uint8)
    path = nrrd(tmp_path, data=single.tobytes(), type="uint8", endian=None)
    assert np.array_equal(open_volume(path)[...], single)


def test_voxels_at_the_end_of_a_file(tmp_path):
    (tmp_path / "v.raw").write_bytes(b"something before" + STACK.tobytes())
    assert same(open_volume(mha(tmp_path, ElementDataFile="v.raw", HeaderSize=-1)), STACK)
    assert same(open_volume(mha(tmp_path, ElementDataFile="v.raw", HeaderSize=16)), STACK)
    assert same(open_volume(nrrd(tmp_path, data_file="v.raw", byte_skip=-1)), STACK)
    assert same(open_volume(nrrd(tmp_path, data_file="./v.raw", byte_skip=16)), STACK)


@pytest.mark.parametrize("skipped", [-1, 400])
def test_voxels_that_do_not_follow_their_own_header_at_once(tmp_path, skipped):
    path = Path(mha(tmp_path, HeaderSize=skipped))
    head = path.read_bytes()[: -len(VOXELS)]
    path.write_bytes(head + bytes(400 - len(head)) + VOXELS)
    assert np.array_equal(SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(path)), STACK)
    assert same(open_volume(path), STACK)


def test_a_data_file_named_in_other_letters(tmp_path):
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(STACK), tmp_path / "größe.mhd")
    assert "größe".encode() in (tmp_path / "größe.mhd").read_bytes()
    assert same(open_volume(tmp_path / "größe.mhd"), STACK)


def test_a_place_without_voxel_sizes(tmp_path):
    path = mha(tmp_path, Offset="5 6 7")
    volume, image = open_volume(path), SimpleITK.ReadImage(path)
    assert (volume.spacing, image.GetSpacing()) == ((1, 1, 1), (1, 1, 1))
    np.testing.assert_allclose((volume.affine @ [1, 2, 3, 1])[:3], placed(image, (1, 2, 3)))


def test_axes_that_are_flipped_by_negative_sizes(tmp_path):
    path = mha(tmp_path, ElementSpacing="2 -3 4", Offset="5 6 7")
    volume, image = open_volume(path), SimpleITK.ReadImage(path)
    assert volume.spacing == (4, 3, 2)
    np.testing.assert_allclose((volume.affine @ [1, 2, 3, 1])[:3], placed(image, (1, 2, 3)))
    assert open_volume(nrrd(tmp_path, spacings="2 -3 4")).spacing == (4, 3, 2)


@pytest.mark.parametrize("encoding", ["gzip", "gz", "bzip2"])
def test_nrrd_encodings(tmp_path, encoding):
    pack = bz2.compress if encoding == "bzip2" else gzip.compress
    assert same(open_volume(nrrd(tmp_path, encoding=encoding, data=pack(STACK.tobytes()))), STACK)


@pytest.mark.parametrize("encoding", ["gzip", "bzip2"])
def test_a_byte_skip_counts_decompressed_bytes(tmp_path, encoding):
    pack = bz2.compress if encoding == "bzip2" else gzip.compress
    data = pack(b"something before" + VOXELS)
    assert same(open_volume(nrrd(tmp_path, encoding=encoding, data=data, byte_skip=16)), STACK)
    (tmp_path / "v.raw").write_bytes(data)
    assert same(open_volume(nrrd(tmp_path, encoding=encoding, data_file="v.raw", byte_skip=16)), STACK)
    fails(nrrd(tmp_path, encoding=encoding, data=data, byte_skip=17), "is truncated")
    fails(nrrd(tmp_path, encoding=encoding, data=data, byte_skip=2**40), "is truncated|up to 134,217,728")


def test_a_data_file_whose_name_begins_like_a_list(tmp_path):
    write(tmp_path / "listeria.mhd", STACK)
    assert same(open_volume(tmp_path / "listeria.mhd"), STACK)


def test_detached_files_belong_to_the_volume(tmp_path):
    write(tmp_path / "scan.mhd", STACK)
    volume = open_volume(tmp_path / "scan.mhd")
    assert [file.name for file in volume.files] == ["scan.mhd", "scan.raw"]
    assert describe_volume(volume).bytes_on_disk > STACK.nbytes
    first = fingerprint(volume)
    raw = bytearray((tmp_path / "scan.raw").read_bytes())
    raw[5] ^= 1
    (tmp_path / "scan.raw").write_bytes(raw)
    assert fingerprint(open_volume(tmp_path / "scan.mhd")) != first


# What a header may not do


@pytest.mark.parametrize(
    "name", ["../secret.raw", "/etc/passwd", "sub/../../secret.raw", "C:\\a.raw", "\\\\host\\a", "link.raw"]
)
def test_headers_that_lead_out_of_their_folder(tmp_path, name):
    (tmp_path / "secret.raw").write_bytes(STACK.tobytes())
    folder = tmp_path / "folder"
    (folder / "sub").mkdir(parents=True)
    (folder / "link.raw").symlink_to(tmp_path / "secret.raw")
    fails(mha(folder, "a.mhd", ElementDataFile=name), "is outside its folder and is not read")
    fails(nrrd(folder, "a.nhdr", data_file=name), "is outside its folder and is not read")


def test_data_files_that_are_missing_or_many(tmp_path):
    for path, file in (
        (mha(tmp_path, "a.mhd", ElementDataFile="none.raw"), "none.raw"),
        (nrrd(tmp_path, "a.nhdr", data_file="none.raw"), "none.raw"),
    ):
        fails(path, f"its data file '{file}' is missing; copy it too")
    for name in ("LIST", "LIST 2", "slice%03d.raw 1 6 1"):
        fails(mha(tmp_path, "a.mhd", ElementDataFile=name), "spread over several files")
        fails(nrrd(tmp_path, "a.nhdr", data_file=name), "spread over several files")


@pytest.mark.parametrize("encoding", ["raw", "compressed"])
def test_claims_that_nothing_stands_behind(tmp_path, encoding):
    size = "1048576 1048576 1"  # 2 TiB
    packed = zlib.compress(bytes(2**20))
    compressed = encoding != "raw"
    tracemalloc.start()
    pattern = "are decoded whole" if compressed else "is truncated"
    fails(mha(tmp_path, DimSize=size, data=packed, CompressedData=compressed), pattern)
    fails(nrrd(tmp_path, sizes=size, data=packed, encoding="gzip" if compressed else "raw"), pattern)
    # As large as the bytes could unpack to, and not what they unpack to.
    fails(
        mha(tmp_path, DimSize="700 700 1", data=packed[:-500], CompressedData=True),
        "is truncated|cannot be read",
    )
    assert tracemalloc.get_traced_memory()[1] < 20e6
    tracemalloc.stop()


def test_a_bomb_behind_the_voxels_is_not_unpacked(tmp_path):
    packed = zlib.compress(STACK.tobytes() + bytes(2**28))
    tracemalloc.start()
    assert same(open_volume(mha(tmp_path, data=packed, CompressedData=True)), STACK)
    assert same(open_volume(nrrd(tmp_path, data=packed, encoding="gzip")), STACK)
    assert tracemalloc.get_traced_memory()[1] < 10e6
    tracemalloc.stop()


@pytest.mark.parametrize(
    ("changes", "pattern"),
    [
        ({"NDims": "9"}, "claims 9 axes of sizes"),
        ({"DimSize": "32 40 -6"}, "impossible shape"),
        ({"DimSize": "a b c"}, "cannot be read as MetaImage"),
        ({"ElementType": "MET_OTHER"}, "its voxels are MET_OTHER, which cannot be read"),
        ({"ElementType": None}, "its header lacks ElementType"),
        ({"BinaryData": "False"}, "stored as text"),
        ({"ElementSpacing": "1 2"}, "3 numbers expected"),
        ({"DimSize": "0 40 6"}, "has an empty axis"),
        ({"NDims": "2", "DimSize": "32 40"}, "is 2-D"),
    ],
)
def test_metaimage_headers_that_make_no_sense(tmp_path, changes, pattern):
    fails(mha(tmp_path, **changes), pattern)


@pytest.mark.parametrize(
    ("changes", "pattern"),
    [
        ({"dimension": "4"}, "claims 4 axes of sizes"),
        ({"sizes": "32 40 -6"}, "impossible shape"),
        ({"sizes": "a b c"}, "cannot be read as NRRD"),
        ({"type": "block"}, "have the type 'block', which cannot be read"),
        ({"type": None}, "its header lacks type"),
        ({"encoding": "hex"}, "encoded as 'hex'; save it as raw or gzip"),
        ({"line_skip": "3"}, "lines of text precede its voxels"),
        ({"byte_skip": "-1", "encoding": "gzip"}, "from byte -1 on of a compressed stream"),
        ({"byte_skip": "99"}, "is truncated"),
        ({"sizes": "0 40 6"}, "has an empty axis"),
    ],
)
def test_nrrd_headers_that_make_no_sense(tmp_path, changes, pattern):
    fails(nrrd(tmp_path, **changes), pattern)


def test_misnamed(tmp_path):
    for suffix in SUFFIXES:
        (tmp_path / f"a.{suffix}").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(99))
        fails(str(tmp_path / f"a.{suffix}"), "its content is a PNG image")


@pytest.mark.parametrize("encoding", ["raw", "gzip"])
def test_nrrd_headers_may_be_long(tmp_path, encoding):
    """As those of segmentations of many structures are."""
    path = Path(nrrd(tmp_path, encoding=encoding, data=b"VOXELS"))
    head = path.read_bytes().removesuffix(b"\nVOXELS")
    data = VOXELS if encoding == "raw" else gzip.compress(VOXELS)
    tags = b"".join(b"Segment%d_Tags:=%s\n" % (number, b"x" * 500) for number in range(140))
    path.write_bytes(head + tags + b"\n" + data)
    assert same(open_volume(path), STACK)
    path.write_bytes(head + tags * 130 + data)
    fails(str(path), "its header has no empty line at its end in the first 8,388,608 bytes")
