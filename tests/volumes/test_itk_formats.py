"""MetaImage and NRRD, written by ITK itself: values, spacing, place in the patient; and what a header may not do."""

import bz2
import gzip
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
import SimpleITK
from volume_checks import STACK, fails, same

from evenslice import open_volume

VOXELS = STACK.tobytes()
SUFFIXES = ["mha", "mhd", "nrrd", "nhdr"]
PACK = {"gzip": gzip.compress, "gz": gzip.compress, "bzip2": bz2.compress}


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


def same_place(volume, image):
    """Check that voxels are where ITK puts them; its axes are not those of NIfTI."""
    for index in ((0, 0, 0), (31, 0, 0), (0, 39, 0), (3, 20, 5)):
        x, y, z = image.TransformIndexToPhysicalPoint(index)
        np.testing.assert_allclose((volume.affine @ [*index, 1])[:3], [-x, -y, z], atol=1e-6)


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_round_trip(tmp_path, suffix, compress):
    path = tmp_path / f"{'größe' if suffix == 'mhd' else 'scan'}.{suffix}"
    image = write(path, STACK, compress=compress)
    volume = open_volume(path)
    assert same(volume, STACK)
    assert volume.spacing == pytest.approx((3.0, 0.7, 0.5))
    assert (volume.unit, volume.format) == ("mm", "MetaImage" if suffix.startswith("m") else "NRRD")
    same_place(volume, image)


@pytest.mark.parametrize("suffix", ["mha", "nrrd"])
def test_data_types(tmp_path, suffix):
    for dtype in ("int8", "uint8", "int16", "int32", "uint32", "int64", "uint64", "float32", "float64"):
        write(tmp_path / f"scan.{suffix}", (STACK % 101).astype(dtype))
        assert same(open_volume(tmp_path / f"scan.{suffix}"), (STACK % 101).astype(dtype))


@pytest.mark.parametrize("suffix", ["mha", "nrrd"])
def test_vectors_are_channels(tmp_path, suffix):
    path = tmp_path / f"scan.{suffix}"
    write(path, np.stack([STACK, STACK + 1], axis=-1), vector=True)
    fails(str(path), r"CXYZ \(2, 32, 40, 6\); pick one of axis C")
    volume = open_volume(path, select={"c": 1})
    assert same(volume, STACK + 1)
    assert volume.spacing == pytest.approx((3.0, 0.7, 0.5))
    assert volume.affine is not None


def mha(tmp_path, name="a.mha", data=VOXELS, **changes):
    """Write a MetaImage by hand."""
    header = {
        "ObjectType": "Image",
        "NDims": "3",
        "DimSize": "32 40 6",
        "ElementType": "MET_USHORT",
    } | changes
    file = header.pop("ElementDataFile", "LOCAL")
    lines = [f"{key} = {value}\n" for key, value in header.items() if value is not None]
    text = "".join([*lines, f"ElementDataFile = {file}\n"])
    (tmp_path / name).write_bytes(text.encode() + (data if file == "LOCAL" else b""))
    return str(tmp_path / name)


def nrrd(tmp_path, name="a.nrrd", data=VOXELS, **changes):
    """Write an NRRD file by hand."""
    header = {"type": "uint16", "dimension": "3", "sizes": "32 40 6", "encoding": "raw", "endian": "little"}
    header |= {key.replace("_", " "): value for key, value in changes.items()}
    text = "NRRD0004\n" + "".join(f"{key}: {value}\n" for key, value in header.items() if value is not None)
    (tmp_path / name).write_bytes(text.encode() + b"\n" + (b"" if "data file" in header else data))
    return str(tmp_path / name)


# Which axis is which


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"dimension": "4", "sizes": "32 40 6 1"}, "xyzc"),
        ({"dimension": "4", "sizes": "32 1 40 6"}, "xcyz"),
        ({"dimension": "5", "sizes": "1 1 32 40 6", "kinds": "list list domain domain domain"}, "cuxyz"),
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
        ({"kinds": "domain domain time"}, r"XYT \(32, 40, 6\) and no axis z; .* axes='xyz'"),
        ({"kinds": "domain domain list"}, r"XYC \(32, 40, 6\) and no axis z"),
        ({"space_dimension": "2", "space_directions": "none (1,0) (0,1)"}, "CXY .* and no axis z"),
        ({"dimension": "4", "sizes": "32 40 3 2"}, "pick one of axis T"),
    ],
)
def test_axes_that_an_nrrd_file_does_not_call_spatial_are_no_slices(tmp_path, changes, pattern):
    fails(nrrd(tmp_path, **changes), pattern)


def test_axes_of_length_one_do_not_turn_a_metaimage_round(tmp_path):
    volume = open_volume(mha(tmp_path, NDims="5", DimSize="32 40 6 1 1", ElementSpacing="2 3 4 1 1"))
    assert same(volume, STACK)
    assert volume.spacing == (4, 3, 2)
    fails(mha(tmp_path, NDims="5", DimSize="32 40 1 1 6"), r"pick one of axis U with select=\{'u': 0\}")


# Where voxels are in space


def test_bare_headers_and_microns(tmp_path):
    for path in (mha(tmp_path), nrrd(tmp_path)):
        volume = open_volume(path)
        assert same(volume, STACK)
        assert (volume.spacing, volume.affine) == (None, None)
    volume = open_volume(mha(tmp_path, ElementSpacing="2 3 4", DistanceUnits="um"))
    assert (volume.spacing, volume.unit) == ((4, 3, 2), "um")
    np.testing.assert_allclose(volume.affine, np.diag([-0.002, -0.003, 0.004, 1]))


@pytest.mark.parametrize(("sizes", "spacing"), [(None, (1, 1, 1)), ("2 -3 4", (4, 3, 2))])
def test_metaimage_sizes_that_are_missing_or_flip_an_axis(tmp_path, sizes, spacing):
    path = mha(tmp_path, ElementSpacing=sizes, Offset="5 6 7")
    volume = open_volume(path)
    assert volume.spacing == spacing
    same_place(volume, SimpleITK.ReadImage(path))


def test_nrrd_spacings_units_and_kinds(tmp_path):
    volume = open_volume(nrrd(tmp_path, spacings="4 -5 50", units='"nm" "nm" "nm"'))
    assert (volume.spacing, volume.unit) == ((50, 5, 4), "nm")
    both = {"data": np.stack([STACK, STACK + 1], axis=-1).tobytes(), "dimension": "4", "sizes": "2 32 40 6"}
    path = nrrd(tmp_path, **both, kinds="vector domain domain domain", spacings="nan 4 5 50")
    volume = open_volume(path, select={"c": 1})
    assert same(volume, STACK + 1)
    assert (volume.spacing, volume.unit) == ((50, 5, 4), None)


@pytest.mark.parametrize(
    ("space", "signs"), [("RAS", (1, 1, 1)), ("left-anterior-superior", (-1, 1, 1)), ("LPS", (-1, -1, 1))]
)
def test_nrrd_spaces(tmp_path, space, signs):
    directions = "(2,0,0) (0,3,0) (0,0,4)"
    volume = open_volume(nrrd(tmp_path, space=space, space_directions=directions, space_origin="(5,6,7)"))
    place = [[2, 0, 0, 5], [0, 3, 0, 6], [0, 0, 4, 7], [0, 0, 0, 1]]
    assert volume.affine.tolist() == (np.array(place) * [[sign] for sign in (*signs, 1)]).tolist()
    unknown = open_volume(nrrd(tmp_path, space_dimension="3", space_directions=directions))
    assert (unknown.spacing, unknown.unit, unknown.affine) == ((4, 3, 2), None, None)


# Where voxels are in files


def test_byte_order(tmp_path):
    big = STACK.astype(">u2").tobytes()
    assert same(open_volume(mha(tmp_path, data=big, BinaryDataByteOrderMSB="True")), STACK)
    assert same(open_volume(nrrd(tmp_path, data=big, endian="big")), STACK)
    single = STACK.astype(np.uint8)
    assert same(open_volume(nrrd(tmp_path, data=single.tobytes(), type="uint8", endian=None)), single)
    fails(nrrd(tmp_path, endian=None), "endian")


def test_voxels_at_the_end_of_a_file(tmp_path):
    (tmp_path / "v.raw").write_bytes(b"something before" + VOXELS)
    assert same(open_volume(mha(tmp_path, ElementDataFile="v.raw", HeaderSize=-1)), STACK)
    assert same(open_volume(mha(tmp_path, ElementDataFile="v.raw", HeaderSize=16)), STACK)
    assert same(open_volume(nrrd(tmp_path, data_file="v.raw", byte_skip=-1)), STACK)
    assert same(open_volume(nrrd(tmp_path, data_file="./v.raw", byte_skip=16)), STACK)


@pytest.mark.parametrize("skipped", [-1, 400])
@pytest.mark.parametrize("compress", [False, True])
def test_voxels_that_do_not_follow_their_own_header_at_once(tmp_path, skipped, compress):
    data = zlib.compress(VOXELS) if compress else VOXELS
    path = Path(mha(tmp_path, HeaderSize=skipped, CompressedData=compress, data=b""))
    head = path.read_bytes()
    path.write_bytes((head if compress and skipped < 0 else head.ljust(400, b"\0")) + data)
    assert same(open_volume(path), STACK)


@pytest.mark.parametrize("encoding", PACK)
def test_nrrd_encodings(tmp_path, encoding):
    data = PACK[encoding](b"something before" + VOXELS)
    assert same(open_volume(nrrd(tmp_path, encoding=encoding, data=PACK[encoding](VOXELS))), STACK)
    # The skip counts decompressed bytes.
    assert same(open_volume(nrrd(tmp_path, encoding=encoding, data=data, byte_skip=16)), STACK)
    (tmp_path / "v.raw").write_bytes(data)
    assert same(open_volume(nrrd(tmp_path, encoding=encoding, data_file="v.raw", byte_skip=16)), STACK)
    fails(nrrd(tmp_path, encoding=encoding, data=data, byte_skip=17), "is truncated")


def test_detached_files_belong_to_the_volume(tmp_path):
    write(tmp_path / "scan.mhd", STACK)
    assert [file.name for file in open_volume(tmp_path / "scan.mhd").files] == ["scan.mhd", "scan.raw"]


def test_nrrd_headers_may_be_long(tmp_path):
    """As those of segmentations of many structures are."""
    path = Path(nrrd(tmp_path, data=b"VOXELS"))
    head = path.read_bytes().removesuffix(b"\nVOXELS")
    tags = b"".join(b"Segment%d_Tags:=%s\n" % (number, b"x" * 500) for number in range(140))
    path.write_bytes(head + tags + b"\n" + VOXELS)
    assert same(open_volume(path), STACK)


# What a header may not do


@pytest.mark.parametrize(
    ("name", "pattern"),
    [
        *(
            (name, "is outside its folder and is not read")
            for name in (
                "../secret.raw",
                "/etc/passwd",
                "sub/../../secret.raw",
                "C:\\a.raw",
                "\\\\host\\a",
                "link.raw",
            )
        ),
        ("none.raw", "none.raw"),
        ("LIST", "LIST"),
        ("slice%03d.raw 1 6 1", "slice%03d"),
    ],
)
def test_data_files_outside_of_their_folder_missing_or_many(tmp_path, name, pattern):
    (tmp_path / "secret.raw").write_bytes(VOXELS)
    folder = tmp_path / "folder"
    (folder / "sub").mkdir(parents=True)
    (folder / "link.raw").symlink_to(tmp_path / "secret.raw")
    fails(mha(folder, "a.mhd", ElementDataFile=name), pattern)
    fails(nrrd(folder, "a.nhdr", data_file=name), pattern)


@pytest.mark.parametrize("compressed", [False, True])
def test_claims_that_nothing_stands_behind(tmp_path, compressed):
    size = "1048576 1048576 1"  # 2 TiB
    packed = zlib.compress(bytes(2**20))
    tracemalloc.start()
    pattern = "2,199,023,255,552 bytes" if compressed else "is truncated"
    fails(mha(tmp_path, DimSize=size, data=packed, CompressedData=compressed), pattern)
    fails(nrrd(tmp_path, sizes=size, data=packed, encoding="gzip" if compressed else "raw"), pattern)
    # As large as the bytes could unpack to, and not what they unpack to.
    fails(mha(tmp_path, DimSize="700 700 1", data=packed[:-500], CompressedData=True))
    assert tracemalloc.get_traced_memory()[1] < 20e6
    tracemalloc.stop()


@pytest.mark.parametrize(
    ("writer", "changes", "pattern"),
    [
        (mha, {"DimSize": "32 40 -6"}, "impossible shape"),
        (mha, {"ElementType": "MET_OTHER"}, "'other'"),
        (mha, {"BinaryData": "False"}, "stored as text"),
        (mha, {"NDims": "2", "DimSize": "32 40"}, "is 2-D"),
        (nrrd, {"type": "block"}, "'block'"),
        (nrrd, {"encoding": "hex"}, "'hex'"),
        (nrrd, {"line_skip": "3"}, "lines of text"),
        (nrrd, {"byte_skip": "-1", "encoding": "gzip"}, "byte -1"),
        (nrrd, {"sizes": "0 40 6"}, "has an empty axis"),
    ],
)
def test_headers_that_make_no_sense(tmp_path, writer, changes, pattern):
    fails(writer(tmp_path, **changes), pattern)
