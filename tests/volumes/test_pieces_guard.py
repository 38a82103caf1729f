"""N5 and precomputed volumes from somebody else: metadata that lies, pieces that unpack to too much, links, pipes."""

import json
import math
import os
import struct
import time
import tracemalloc

import imagecodecs
import numpy as np
import pytest
from piece_files import IMAGE, LABELS, PLAIN_SHARDS, SHARDS, change_json, write_n5, write_precomputed
from volume_checks import fails

from evenslice._core import errors
from evenslice.volumes.opening import open_volume

HEADER = struct.pack(">HHIII", 0, 3, 16, 16, 4)


def first_chunk(path):
    """Return a file that holds a piece."""
    return next(
        file
        for file in sorted(path.rglob("*"))
        if file.is_file() and file.suffix != ".json" and file.name != "info"
    )


def change_scale(path, **changes):
    info = json.loads((path / "info").read_text())
    info["scales"][0] |= changes
    (path / "info").write_text(json.dumps(info))


def refused(path, pattern):
    volume = open_volume(path)
    tracemalloc.start()
    with pytest.raises(errors.VolumeError, match=pattern) as caught:
        volume[...]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 30e6
    assert "\n" not in str(caught.value)


# Metadata


@pytest.mark.parametrize(
    ("changes", "pattern"),
    [
        ({"dimensions": [2**70, 1, 1]}, "do not belong together; its attributes.json is damaged"),
        ({"dimensions": [0, 1, 1]}, "do not belong together"),
        ({"dimensions": "many"}, "do not belong together"),
        ({"dimensions": [9, 9]}, "do not belong together"),
        ({"dimensions": [9] * 500, "blockSize": [9] * 500}, "do not belong together"),
        ({"blockSize": None}, "do not belong together"),
        ({"blockSize": [True, 1, 1]}, "do not belong together"),
        ({"blockSize": [2**40, 1, 1]}, "its blocks .* take 1,099,511,627,776 bytes each"),
        ({"dataType": "object"}, "its data type 'object' cannot be read"),
        ({"dataType": ["uint8"]}, "its data type .* cannot be read"),
        ({"compression": {"type": "pickle"}}, "its compression 'pickle' cannot be read"),
        ({"compression": {"type": {}}}, "its compression .* cannot be read"),
        ({"compression": 7}, "its compression '7' cannot be read"),
    ],
)
def test_attributes_of_n5_that_cannot_be_right(tmp_path, changes, pattern):
    write_n5(tmp_path, IMAGE)
    change_json(tmp_path / "attributes.json", **changes)
    fails(str(tmp_path), pattern)


@pytest.mark.parametrize(
    ("changes", "pattern"),
    [
        ({"size": [2**70, 1, 1]}, "its size is .*; its file 'info' is damaged"),
        ({"size": [4, 4]}, "its size is"),
        ({"chunk_sizes": []}, "its chunk_sizes is"),
        ({"chunk_sizes": [[4, 0, 4]]}, "its chunk_sizes is"),
        ({"chunk_sizes": [[2**40, 1, 1]]}, "its chunks .* take 1,099,511,627,776 bytes each"),
        ({"voxel_offset": [1.5, 0, 0]}, "its voxel_offset is"),
        ({"voxel_offset": [2**80, 0, 0]}, "its voxel_offset is"),
        ({"key": "../secret"}, "is none inside the volume's and is not read"),
        ({"key": "/etc"}, "is none inside the volume's"),
        ({"key": "a/../../b"}, "is none inside the volume's"),
        ({"key": "a\\..\\b"}, "is none inside the volume's"),
        ({"key": "https://host/x"}, "is none inside the volume's"),
        ({"key": ""}, "is none inside the volume's"),
        ({"key": 3}, "is none inside the volume's"),
        ({"encoding": "compresso"}, "its encoding 'compresso' cannot be read"),
        (
            {"encoding": "compressed_segmentation"},
            "encoding compressed_segmentation holds uint32 or uint64, not uint8",
        ),
        ({"sharding": 3}, "its sharding cannot be read"),
        ({"sharding": {}}, "its sharding cannot be read"),
        ({"sharding": SHARDS | {"minishard_bits": 60}}, "its shards have 2\\^60 parts|numbers of bits"),
        ({"sharding": SHARDS | {"hash": "md5"}}, "unknown hash"),
    ],
)
def test_an_info_that_cannot_be_right(tmp_path, changes, pattern):
    write_precomputed(tmp_path, IMAGE)
    change_scale(tmp_path, **changes)
    fails(str(tmp_path), pattern)


@pytest.mark.parametrize(
    ("changes", "pattern"),
    [
        ({"scales": {}}, "describes no volume"),
        ({"scales": [3]}, "scale 0 is not an object"),
        ({"data_type": "object"}, "its data type 'object' cannot be read"),
        ({"num_channels": 0}, "num_channels is 0"),
        ({"num_channels": 2**40}, "its chunks .* bytes each"),
    ],
)
def test_an_info_of_no_volume(tmp_path, changes, pattern):
    write_precomputed(tmp_path, IMAGE)
    change_json(tmp_path / "info", **changes)
    fails(str(tmp_path), pattern)


@pytest.mark.parametrize("content", [b"{", b"[]", b"\xff", b"[" * 100_000, b'{"a": ' * 100_000])
def test_metadata_that_is_no_object(tmp_path, content):
    write_n5(tmp_path / "n", IMAGE)
    write_precomputed(tmp_path / "p", IMAGE)
    for path, name in ((tmp_path / "n", "attributes.json"), (tmp_path / "p", "info")):
        (path / name).write_bytes(content)
        fails(str(path), "is not JSON|not an object")


def test_metadata_that_is_too_large(tmp_path):
    write_precomputed(tmp_path, IMAGE)
    with (tmp_path / "info").open("ab") as file:
        file.truncate(2**24)
    fails(str(tmp_path), "has 16,777,216 bytes where at most 8,388,608 can be right")


# Pieces


@pytest.mark.parametrize(
    ("content", "pattern"),
    [
        (b"", "cannot be read as N5"),
        (HEADER + bytes(1023), "has 1,023 bytes where its shape .* needs 1,024"),
        (struct.pack(">HHIII", 0, 3, 2**31, 2**31, 4), "has the shape .*, more than"),
        (
            struct.pack(">HHIII", 0, 3, 16, 15, 4) + bytes(960),
            r"has the shape \(4, 15, 16\), less than \(4, 16, 16\)",
        ),
        (struct.pack(">HHIII", 2, 3, 16, 16, 4), "a block of mode 2"),
        (struct.pack(">HHIII", 0, 900, 16, 16, 4), "with 900 dimensions"),
    ],
)
def test_blocks_that_are_damaged(tmp_path, content, pattern):
    write_n5(tmp_path, IMAGE)
    first_chunk(tmp_path).write_bytes(content)
    refused(tmp_path, pattern)


def test_a_blosc_block_that_ends_early(tmp_path):
    write_n5(tmp_path, IMAGE, "blosc")
    file = first_chunk(tmp_path)
    file.write_bytes(file.read_bytes()[:-1])
    refused(tmp_path, "a chunk is truncated")


def words(*numbers):
    return np.array(numbers, "<u4").tobytes()


@pytest.mark.parametrize(
    ("content", "pattern"),
    [
        (b"", "is truncated, or points behind its end"),
        (b"abc", "does not consist of 32-bit words"),
        (words(2**31), "is truncated, or points behind its end"),
        (words(1) + words(*[1 << 24 | 2**24 - 1, 0] * 8), "points behind its end"),
        (words(1) + words(*[3 << 24, 0] * 8), "of a width that the format does not have"),
        (words(1) + words(*[32 << 24, 2**31] * 8), "points behind its end"),
    ],
)
def test_compressed_segmentations_that_are_damaged(tmp_path, content, pattern):
    write_precomputed(tmp_path, LABELS, "compressed_segmentation")
    first_chunk(tmp_path).write_bytes(content)
    refused(tmp_path, pattern)


def test_images_of_another_size(tmp_path):
    write_precomputed(tmp_path / "j", IMAGE, "jpeg")
    first_chunk(tmp_path / "j").write_bytes(imagecodecs.jpeg8_encode(np.zeros((8, 8), np.uint8)))
    refused(tmp_path / "j", "a chunk is an image of 64 values of uint8 where its shape")
    write_precomputed(tmp_path / "p", IMAGE, "png")
    first_chunk(tmp_path / "p").write_bytes(imagecodecs.png_encode(np.zeros((64, 16), np.uint16)))
    refused(tmp_path / "p", "a chunk is an image of 1,024 values of uint16")


@pytest.mark.parametrize("sharding", [SHARDS, PLAIN_SHARDS])
def test_shards_that_point_anywhere(tmp_path, sharding):
    write_precomputed(tmp_path, IMAGE, "raw", sharding)
    files = list(tmp_path.rglob("*.shard"))
    for entry in ((0, 2**62), (2**63, 2**64 - 1), (9, 3), (2**40, 2**40 + 24), (0, 2**25)):
        for file in files:
            content = file.read_bytes()
            file.write_bytes(struct.pack("<QQ", *entry) * 4 + content[64:])
        with pytest.raises(
            errors.VolumeError, match="points to bytes|at most .* can be right|truncated|is damaged|read as"
        ):
            open_volume(tmp_path)[...]


def test_a_file_larger_than_any_chunk(tmp_path):
    for path in (tmp_path / "n", tmp_path / "p"):
        (write_n5 if path.name == "n" else write_precomputed)(path, IMAGE)
        with first_chunk(path).open("ab") as file:
            file.truncate(2**40)
        refused(path, "bytes where at most")


# Links, pipes and devices


@pytest.mark.parametrize("kind", ["n", "p", "s"])
def test_nothing_but_regular_files_inside_the_folder(tmp_path, kind):
    path = tmp_path / kind
    if kind == "n":
        write_n5(path, IMAGE)
    else:
        write_precomputed(path, IMAGE, "raw", PLAIN_SHARDS if kind == "s" else None)
    file = first_chunk(path)
    secret = tmp_path / "secret"
    secret.write_bytes(file.read_bytes())
    inside = path / "moved"
    file.rename(inside)
    for target, pattern in (
        (secret, "is a link to outside its folder and is not read"),
        ("/dev/zero", "is a link to outside its folder and is not read"),
        ("../" * 20 + "dev/zero", "is a link to outside its folder and is not read"),
    ):
        file.symlink_to(target)
        fails(str(path), pattern)
        file.unlink()
    os.mkfifo(file)
    fails(str(path), "not a regular file")
    file.unlink()
    file.symlink_to(inside)
    assert np.array_equal(open_volume(path)[...], IMAGE)


def test_a_chunk_that_disappears(tmp_path):
    write_precomputed(tmp_path, IMAGE)
    volume = open_volume(tmp_path)
    volume[0]
    time.sleep(0.01)
    first_chunk(tmp_path).unlink()
    with pytest.raises(errors.VolumeError, match="is missing and its folder has changed since it was opened"):
        volume[...]


def test_a_block_as_large_as_metadata_that_disappears(tmp_path):
    sizes = [3584, 1024, 1]  # whose limit is that of a file of metadata
    header = {"dimensions": sizes, "blockSize": sizes, "dataType": "uint8", "compression": {"type": "raw"}}
    (tmp_path / "attributes.json").write_text(json.dumps(header))
    block = tmp_path / "0" / "0" / "0"
    block.parent.mkdir(parents=True)
    block.write_bytes(struct.pack(">HHIII", 0, 3, *sizes) + bytes(math.prod(sizes)))
    volume = open_volume(tmp_path)
    time.sleep(0.01)
    block.unlink()
    with pytest.raises(errors.VolumeError, match="is missing and its folder has changed since it was opened"):
        volume[...]
