"""Folders of single images: order, agreement, what is no slice."""

import json
import struct
import zlib

import numpy as np
import pytest
import tifffile
from PIL import Image
from volume_checks import fails, same

from evenslice import ConfigError, VolumeError, open_volume

STACK = (np.arange(12 * 40 * 32) % 1021).reshape(12, 40, 32).astype(np.uint16)
BYTES = (STACK % 251).astype(np.uint8)


def write(folder, stack, suffix="png", **options):
    folder.mkdir(exist_ok=True)
    for z, pixels in enumerate(stack):
        path = folder / f"slice{z}.{suffix}"
        if suffix.startswith("tif"):
            tifffile.imwrite(path, pixels, **options)
        else:
            Image.fromarray(pixels).save(path, **options)
    return str(folder)


@pytest.mark.parametrize(
    ("suffix", "array", "options"),
    [
        ("png", BYTES, {}),
        ("png", STACK, {}),
        ("png", STACK % 2 == 0, {}),
        ("tif", STACK, {}),
        ("tiff", STACK.astype(np.float32), {"compression": "zlib"}),
        ("tif", BYTES, {"compression": "zlib", "tile": (16, 16)}),
        ("tif", STACK.astype(">i4"), {"byteorder": ">"}),
    ],
)
def test_round_trip(tmp_path, suffix, array, options):
    volume = open_volume(write(tmp_path / "stack", array, suffix, **options))
    assert same(volume, array)  # slice10 comes after slice9
    assert (volume.chunks, volume.spacing) == ((1, 40, 32), None)
    assert volume.format == f"folder of {'PNG' if suffix == 'png' else 'TIFF'} slices"
    assert len(volume.files) == 12


def test_jpeg(tmp_path):
    smooth = np.broadcast_to(np.arange(0, 128, 4, dtype=np.uint8), (3, 40, 32)).copy()
    volume = open_volume(write(tmp_path / "stack", smooth, "JPG", quality=95))
    assert np.abs(volume[...].astype(int) - smooth).max() <= 3
    assert volume.format == "folder of JPEG slices"


def test_a_palette_is_a_map_of_classes(tmp_path):
    for z in range(3):
        image = Image.fromarray((BYTES[z] % 3).astype(np.uint8), "L")
        image.putpalette([200, 0, 0, 0, 200, 0, 0, 0, 200])
        image.save(tmp_path / f"{z}.png")
    assert same(open_volume(tmp_path), (BYTES[:3] % 3).astype(np.uint8))


@pytest.mark.parametrize(("suffix", "options"), [("png", {}), ("tif", {"photometric": "rgb"})])
def test_colour(tmp_path, suffix, options):
    colour = np.stack([BYTES, BYTES + 1, BYTES + 2], axis=-1)
    path = write(tmp_path / "stack", colour, suffix, **options)
    fails(path, r"ZYXS \(12, 40, 32, 3\); pick one of axis S with select=\{'s': 0\}")
    assert same(open_volume(path, select={"s": 2}), BYTES + 2)


def test_tiff_slices_with_an_axis_of_one(tmp_path):
    path = write(tmp_path / "stack", STACK[:, None], "tif", metadata={"axes": "ZYX"})
    assert same(open_volume(path), STACK)


def named(folder, names):
    """Write images of one pixel under some names."""
    folder.mkdir()
    for name in names:
        Image.fromarray(BYTES[0, :1, :1]).save(folder / f"{name}.png")
    return folder


def test_natural_order_is_that_of_numbers(tmp_path):
    for names in (
        ["9", "9a", "10", "a", "b2a", "b2c", "b10c"],
        [f"s_{n:02d}_a" for n in (0, 7, 70, 700, 10**16)],
    ):
        files = open_volume(named(tmp_path / names[0], names)).files
        assert [file.stem for file in files] == names


@pytest.mark.slow
@pytest.mark.parametrize(
    ("names", "missing"),
    [
        (["z1", "z2", "z4", "z7"], [3, 5, 6]),
        (["z0010", "z0000", "z0030"], [20]),
        (["z5", "z6", "z7"], []),
        (["7"], []),
        (["a1b2", "a1b4", "a2b8"], []),  # two numbers vary
        (["a1", "b3", "c4"], []),  # and here a word
        (["cell", "3"], []),
        (["z1", "z2", "z20261128"], []),  # what it would be in is no numbering
        (["z1", "z01"], []),
    ],
)
def test_missing_numbers(command, tmp_path, names, missing):
    found = command("info", named(tmp_path / "stack", names), "--json")
    assert json.loads(found.stdout)["missing_numbers"] == missing


def test_what_is_no_slice_is_left_out(tmp_path):
    path = write(tmp_path / "stack", STACK)
    for name in ("notes.txt", ".hidden.png", "Thumbs.db", "._slice1.png"):
        (tmp_path / "stack" / name).write_bytes(b"x")
    (tmp_path / "stack" / "sub.png").mkdir()
    assert same(open_volume(path), STACK)


@pytest.mark.parametrize(("odd", "told"), [(STACK[0, :30], "30 x 32 uint16"), (BYTES[0], "40 x 32 uint8")])
def test_slices_that_differ(tmp_path, odd, told):
    path = write(tmp_path / "stack", STACK)
    Image.fromarray(odd).save(tmp_path / "stack" / "slice5.png")
    fails(path, f"slice0.png has 40 x 32 uint16 and slice5.png {told}")


def test_folders_that_hold_no_stack(tmp_path):
    path = write(tmp_path / "stack", STACK)
    fails(path, "level=1", ConfigError, level=1)
    write(tmp_path / "stack", STACK[:2], "tif")
    fails(path, "PNG and TIFF")
    (tmp_path / "outer" / "run1").mkdir(parents=True)
    fails(str(tmp_path / "outer"), "run1")
    write(tmp_path / "volumes", STACK.reshape(2, 6, 40, 32), "tif", photometric="minisblack")
    fails(str(tmp_path / "volumes"), "slice0.tif: holds 6 x 40 x 32 voxels")


def test_damaged_slices(tmp_path):
    path = write(tmp_path / "stack", STACK)
    victim = tmp_path / "stack" / "slice7.png"
    content = victim.read_bytes()
    victim.write_bytes(content[: len(content) // 2])
    volume = open_volume(path)
    np.testing.assert_array_equal(volume[:7], STACK[:7])  # only what is read is decoded
    with pytest.raises(VolumeError, match=r"slice7.png: cannot be read as PNG"):
        volume[7]
    Image.fromarray(STACK[0, :9]).save(victim)
    with pytest.raises(VolumeError, match=r"slice7.png: has changed since the folder was opened"):
        volume[7]
    victim.write_bytes(b"GIF89a")
    fails(path, "slice7.png: cannot be read as PNG")


def png(width, height, colour=0, depth=8, data=b""):
    """A PNG file by hand."""

    def chunk(kind, content):
        check = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + check

    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("content", "pattern"),
    [
        (png(2**16, 2**16, data=zlib.compress(bytes(2**24))), "4,294,967,296 bytes"),
        (png(8, 8, colour=2, depth=16, data=zlib.compress(bytes(8 * 49))), "16-bit colour"),
    ],
)
def test_images_that_are_too_large_or_too_deep(tmp_path, content, pattern):
    (tmp_path / "0.png").write_bytes(content)
    fails(str(tmp_path), pattern)


def test_slices_of_more_pixels_than_pillow_allows_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    assert same(open_volume(write(tmp_path / "stack", BYTES)), BYTES)
