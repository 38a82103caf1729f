"""MRC maps, written by mrcfile: values, voxel size, order of axes, stacks."""

import struct
from itertools import permutations

import mrcfile
import numpy as np
import pytest
from volume_checks import STACK, fails, same

from evenslice import open_volume


def write(path, array, voxel=(4, 5, 50), **header):
    with mrcfile.new(path, overwrite=True) as file:
        file.set_data(array)
        file.voxel_size = voxel
        for name, value in header.items():
            file.header[name] = value
    return str(path)


def swapped(content):
    """The header of a file in the other order of bytes; what is text stays."""
    head = bytearray(struct.pack(">256I", *struct.unpack("<256I", content[:1024])))
    head[104:108], head[208:216] = content[104:108], b"MAP \x11\x11\x00\x00"
    return head


def test_round_trip(tmp_path):
    for dtype in ("int8", "int16", "uint16", "float16", "float32"):
        array = (STACK % 101).astype(dtype)
        volume = open_volume(write(tmp_path / "a.mrc", array))
        assert same(volume, array)
        assert volume.spacing == pytest.approx((50, 5, 4))
        assert (volume.unit, volume.format, volume.chunks) == ("angstrom", "MRC", None)


def test_big_endian_with_an_extended_header(tmp_path):
    path = write(tmp_path / "a.map", STACK)
    head = swapped((tmp_path / "a.map").read_bytes())
    head[92:96] = struct.pack(">i", 32)
    (tmp_path / "a.map").write_bytes(bytes(head) + bytes(32) + STACK.astype(">u2").tobytes())
    assert same(open_volume(path), STACK)


def test_a_stack_of_volumes(tmp_path):
    path = write(tmp_path / "a.mrcs", np.stack([STACK, STACK + 1]))
    fails(path, r"TZYX \(2, 6, 40, 32\); pick one of axis T with select=\{'t': 0\}")
    volume = open_volume(path, select={"t": 1})
    assert same(volume, STACK + 1)
    assert volume.spacing == pytest.approx((50, 5, 4))


def test_what_states_no_voxel_size(tmp_path):
    assert open_volume(write(tmp_path / "a.mrc", STACK, voxel=(0, 0, 0))).spacing is None
    with mrcfile.new(tmp_path / "images.mrc") as file:
        file.set_data(STACK)
        file.set_image_stack()
        file.voxel_size = (4, 5, 50)
    volume = open_volume(tmp_path / "images.mrc")
    assert same(volume, STACK)
    assert volume.spacing is None


@pytest.mark.parametrize("order", ["".join(order) for order in permutations("zyx")])
def test_axes_in_any_order(tmp_path, order):
    array = STACK.transpose(["zyx".index(axis) for axis in order])
    header = {name: "_xyz".index(axis) for name, axis in zip(("maps", "mapr", "mapc"), order, strict=True)}
    path = write(tmp_path / "a.mrc", array, mx=32, my=40, mz=6, cella=(4 * 32, 5 * 40, 50 * 6), **header)
    volume = open_volume(path)
    assert same(volume, STACK)
    assert volume.spacing == pytest.approx((50, 5, 4))


@pytest.mark.parametrize(
    "header",
    [{"nz": 2**30}, {"nz": -3}, {"nsymbt": 2**30}, {"nsymbt": -1}, {"mode": 77}, {"ispg": 401, "mz": 4}],
)
def test_headers_that_make_no_sense(tmp_path, header):
    path = write(tmp_path / "a.mrc", STACK)
    offsets = {"nz": 8, "mode": 12, "mz": 36, "ispg": 88, "nsymbt": 92}
    with (tmp_path / "a.mrc").open("r+b") as file:
        for name, value in header.items():
            file.seek(offsets[name])
            file.write(struct.pack("<i", value))
    fails(path, "is truncated|cannot be read as MRC")


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize(
    ("stamp", "flags", "largest", "signed"),
    [(True, 0, 255, False), (True, 1, 127, True), (False, 0, 255, False), (False, 0, 120, True)],
)
def test_bytes_are_signed_or_not_as_imod_says(tmp_path, order, stamp, flags, largest, signed):
    array = (STACK % 256).astype(np.uint8)
    write(tmp_path / "a.mrc", array.view(np.int8))
    content = bytearray((tmp_path / "a.mrc").read_bytes())
    if order == ">":
        content[:1024] = swapped(content)
    content[76:84] = struct.pack(f"{order}2f", 0 if largest > 127 else -128, largest)
    content[152:160] = struct.pack(f"{order}2i", 1146047817 if stamp else 0, flags)
    (tmp_path / "a.mrc").write_bytes(content)
    assert same(open_volume(tmp_path / "a.mrc"), array.view(np.int8) if signed else array)
