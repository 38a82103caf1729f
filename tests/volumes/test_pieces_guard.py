"""N5 and precomputed volumes from somebody else: metadata that lies, pieces that unpack to too much, links, pipes."""

import bz2
import gzip
import json
import lzma
import math
import os
import struct
import time
import tracemalloc

import imagecodecs
import numcodecs
import numpy as np
import pytest
from limited_process import answer, assert_bounded
from piece_files import IMAGE, LABELS, PLAIN_SHARDS, SHARDS, change_json, write_n5, write_precomputed
from volume_checks import fails

from evenslice._core import errors
from evenslice.volumes.opening import open_volume
from evenslice.volumes.read.precomputed_chunks import decode_segmentation

BOMB = bytes(2**25)
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
    ("compression", "content"),
    [
        ("gzip", gzip.compress(BOMB)),
        ("gzip", gzip.compress(bytes(9)) + gzip.compress(BOMB)),
        ("bzip2", bz2.compress(BOMB)),
        ("xz", lzma.compress(BOMB)),
        ("zstd", numcodecs.zstd.compress(BOMB)),
        ("zstd", struct.pack("<II", 0x184D2A50, 4) + b"note" + numcodecs.zstd.compress(BOMB)),
        ("blosc", numcodecs.Blosc().encode(BOMB)),
    ],
)
def test_blocks_that_unpack_to_too_much(tmp_path, compression, content):
    write_n5(tmp_path, IMAGE, compression)
    first_chunk(tmp_path).write_bytes(HEADER + bytes(content))
    refused(tmp_path, "a chunk decompresses to more than the 1,024 bytes")


@pytest.mark.parametrize(
    ("suffix", "pack"),
    [("gz", gzip.compress), ("zstd", numcodecs.zstd.compress), ("xz", lzma.compress), ("bz2", bz2.compress)],
)
def test_chunks_of_precomputed_that_unpack_to_too_much(tmp_path, suffix, pack):
    write_precomputed(tmp_path, IMAGE)
    file = first_chunk(tmp_path)
    file.with_name(f"{file.name}.{suffix}").write_bytes(pack(BOMB))
    file.unlink()
    refused(tmp_path, "a chunk decompresses to more than the 1,050,624 bytes")


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


def test_blocks_of_a_segmentation_that_are_far_larger_than_its_chunks(tmp_path):
    write_precomputed(tmp_path, np.repeat(LABELS, 8, 0), "compressed_segmentation")
    change_scale(
        tmp_path,
        compressed_segmentation_block_size=[2**18, 1, 1],
        size=[64, 256, 64],
        chunk_sizes=[[64, 256, 64]],
    )
    name = json.loads((tmp_path / "info").read_text())["scales"][0]["key"]
    (tmp_path / name / "100-164_-20-236_7-71").write_bytes(words(1) + words(*[0, 0] * 2**14))
    refused(tmp_path, "do not suit a chunk")


def test_images_of_another_size(tmp_path):
    write_precomputed(tmp_path / "j", IMAGE, "jpeg")
    first_chunk(tmp_path / "j").write_bytes(imagecodecs.jpeg8_encode(np.zeros((8, 8), np.uint8)))
    refused(tmp_path / "j", "a chunk is an image of 64 values of uint8 where its shape")
    content = bytearray(imagecodecs.jpeg8_encode(np.zeros((8, 8), np.uint8)))
    place = content.index(b"\xff\xc0") + 5
    content[place : place + 4] = b"\xff\xff\xff\xff"
    first_chunk(tmp_path / "j").write_bytes(content)
    refused(tmp_path / "j", "states 4,294,836,225 values where 1,024 belong")
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


def test_a_chunk_in_a_shard_that_unpacks_to_too_much(tmp_path):
    sharding = PLAIN_SHARDS | {"data_encoding": "gzip", "minishard_bits": 0}
    write_precomputed(tmp_path, IMAGE[:4, :16, :16], "raw", sharding)
    packed = gzip.compress(BOMB)
    index = struct.pack("<QQQ", 0, 0, len(packed))
    file = next(tmp_path.rglob("*.shard"))
    file.write_bytes(struct.pack("<QQ", len(packed), len(packed) + 24) + packed + index)
    refused(tmp_path, "a chunk decompresses to more than")


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


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["n5", "precomputed", "segmentation"])
def test_memory_and_time_are_bounded(tmp_path, kind):
    """A volume of 2^60 empty voxels is described, and one whose piece is a bomb of 1 GiB is refused."""
    if kind == "n5":
        write_n5(tmp_path, IMAGE, "blosc")
        change_json(tmp_path / "attributes.json", dimensions=[2**20] * 3, blockSize=[512] * 3)
        file, content = tmp_path / "0/0/0", HEADER + bytes(numcodecs.Blosc().encode(bytes(2**30)))
    else:
        encoding = "raw" if kind == "precomputed" else "compressed_segmentation"
        write_precomputed(tmp_path, IMAGE if kind == "precomputed" else LABELS, encoding)
        change_scale(tmp_path, size=[2**20] * 3, chunk_sizes=[[256] * 3])
        name = json.loads((tmp_path / "info").read_text())["scales"][0]["key"]
        file = tmp_path / name / "100-356_-20-236_7-263.gz"
        content = gzip.compress(bytes(2**30), 1)
        for chunk in (tmp_path / name).iterdir():
            chunk.unlink()
    assert_bounded(answer("list(open_volume(path)[-1, -9:, -9:].shape)", tmp_path), "gave [9, 9]")
    assert_bounded(answer("describe_volume(open_volume(path)).sampled", tmp_path), "gave 1")
    file.write_bytes(content)
    found = answer("open_volume(path)[0, :9, :9].shape", tmp_path)
    assert_bounded(found, "refused: ")


@pytest.mark.parametrize("shape", [(1, 1024, 4096), (1024, 1, 4096), (4096, 1024, 1)])
def test_flat_chunks_of_segmentations_take_little_more_than_their_voxels(shape):
    """Seven of the eight layers of their blocks are beyond the chunk."""
    blocks = np.prod([-(-length // 8) for length in shape])
    headers = np.zeros((blocks, 2), "<u4")
    headers[:, 0] = 2 * blocks  # of a table whose one label all voxels have
    content = b"".join([struct.pack("<I", 1), headers.tobytes(), struct.pack("<Q", 2**40 + 7)])
    tracemalloc.start()
    found = decode_segmentation(content, (1, *shape), np.dtype(np.uint64), (8, 8, 8))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (found == 2**40 + 7).all()
    assert peak < 4 * found.nbytes
