"""N5 and Neuroglancer precomputed, by TensorStore or from the specification: values, metadata, and what is damaged."""

import bz2
import gzip
import json
import lzma
import pickle
import struct

import imagecodecs
import numcodecs
import numpy as np
import pytest
import tifffile
from chunked_files import (
    IMAGE,
    LABELS,
    PLAIN_SHARDS,
    SHARDS,
    change_json,
    first_chunk,
    write_n5,
    write_precomputed,
)
from volume_checks import fails, same

from evenslice import ConfigError, open_volume

SHARDINGS = {"files": None, "hashed": SHARDS, "one shard": PLAIN_SHARDS}
HEADER = struct.pack(">HHIII", 0, 3, 16, 16, 4)
SEGMENTATION = "compressed_segmentation"


@pytest.mark.parametrize("sharding", SHARDINGS.values(), ids=SHARDINGS)
@pytest.mark.parametrize(
    ("encoding", "array"),
    [
        ("raw", IMAGE),
        ("raw", IMAGE.astype(np.float32) / 3),
        ("jpeg", IMAGE),
        ("png", IMAGE.astype(np.uint16) * 200),
        (SEGMENTATION, LABELS),
        (SEGMENTATION, LABELS.astype(np.uint32)),
    ],
    ids=lambda item: item if isinstance(item, str) else item.dtype.name,
)
def test_precomputed(tmp_path, encoding, array, sharding):
    written = write_precomputed(tmp_path, array, encoding, sharding)
    assert encoding == "jpeg" or np.array_equal(written, array)
    volume = open_volume(tmp_path)
    assert same(volume, written)
    assert (volume.spacing, volume.unit, volume.chunks) == ((40, 4, 4), "nm", (4, 16, 16))
    assert volume.format == "Neuroglancer precomputed"
    again = pickle.loads(pickle.dumps(volume))  # noqa: S301  # our own
    assert np.array_equal(again[3], written[3])


@pytest.mark.parametrize("compression", ["raw", "gzip", "bzip2", "xz", "blosc", "zstd"])
def test_n5(tmp_path, compression):
    for array in (IMAGE, LABELS, -IMAGE.astype(np.float64)):
        path = tmp_path / "file.n5" / "volumes" / array.dtype.name
        write_n5(path, array, compression, resolution=[4, 4, 40], units=["nm"] * 3)
        volume = open_volume(path)
        assert same(volume, array)
        assert (volume.spacing, volume.unit, volume.format) == ((40, 4, 4), "nm", "N5")
    fails(str(tmp_path / "file.n5"), r"name one inside \(.*volumes/float64")


# From the specifications, without TensorStore


def test_a_precomputed_volume_by_hand(tmp_path):
    array = np.arange(3 * 4 * 5, dtype=np.uint16).reshape(3, 4, 5)
    scale = {
        "key": "40_4_4", "size": [5, 4, 3], "resolution": [4, 4, 40], "chunk_sizes": [[3, 4, 2]],
        "encoding": "raw", "voxel_offset": [10, 20, 30],
    }  # fmt: skip
    info = {"data_type": "uint16", "num_channels": 1, "scales": [scale]}
    (tmp_path / "40_4_4").mkdir()
    (tmp_path / "info").write_text(json.dumps(info))
    for x, z in ((0, 0), (3, 0), (0, 2), (3, 2)):
        part = array[z : z + 2, :, x : x + 3]
        name = f"{10 + x}-{10 + x + part.shape[2]}_20-24_{30 + z}-{30 + z + part.shape[0]}"
        content = part.astype("<u2").tobytes()
        if x:  # as cloud-volume writes it
            (tmp_path / "40_4_4" / f"{name}.gz").write_bytes(gzip.compress(content))
        else:
            (tmp_path / "40_4_4" / name).write_bytes(content)
    volume = open_volume(tmp_path)
    assert same(volume, array)
    # Counted from the corner of a voxel, where the offset of a volume is that of its centre.
    assert volume.offset == (30.5, 20.5, 10.5)
    (tmp_path / "40_4_4" / "10-13_20-24_30-32").unlink()
    assert not open_volume(tmp_path)[:2, :, :3].any()


def test_chunks_that_cloud_volume_compressed_otherwise(tmp_path):
    write_precomputed(tmp_path, IMAGE)
    packs = {
        "gz": gzip.compress, "zstd": numcodecs.zstd.compress, "xz": lzma.compress, "bz2": bz2.compress,
        "br": imagecodecs.brotli_encode,
    }  # fmt: skip
    for number, file in enumerate(list(next(tmp_path.glob("*/")).iterdir())):
        suffix, pack = list(packs.items())[number % len(packs)]
        file.with_name(f"{file.name}.{suffix}").write_bytes(pack(file.read_bytes()))
        file.unlink()
    assert same(open_volume(tmp_path), IMAGE)


@pytest.mark.parametrize("stored", [False, True])
def test_n5_blocks_compressed_as_lz4(tmp_path, stored):
    """In pieces, as LZ4BlockOutputStream of lz4-java writes them."""
    write_n5(tmp_path, IMAGE)
    change_json(tmp_path / "attributes.json", compression={"type": "lz4", "blockSize": 512})
    for file in (file for file in tmp_path.rglob("*") if file.is_file() and file.suffix != ".json"):
        content, found = file.read_bytes(), []
        for start in range(16, len(content), 512):
            plain = content[start : start + 512]
            packed = plain if stored else bytes(numcodecs.lz4.compress(plain))[4:]
            token = 0x10 if stored else 0x20
            found.append(struct.pack("<8sBIII", b"LZ4Block", token, len(packed), len(plain), 0) + packed)
        end = struct.pack("<8sBIII", b"LZ4Block", 0x10, 0, 0, 0)
        file.write_bytes(content[:16] + b"".join(found) + end)
    assert same(open_volume(tmp_path), IMAGE)
    file.write_bytes(file.read_bytes()[:99])
    fails(str(tmp_path), "cannot be read as N5")


def test_an_n5_data_set_by_hand(tmp_path):
    array = np.arange(2 * 3 * 5, dtype=np.int16).reshape(2, 3, 5)
    stated = {"dimensions": [5, 3, 2], "blockSize": [3, 3, 2], "dataType": "int16", "compressionType": "gzip"}
    (tmp_path / "attributes.json").write_text(json.dumps(stated))
    for x, head in ((0, (0, 3, 3, 3, 2)), (1, (1, 3, 2, 3, 2, 12))):
        (tmp_path / f"{x}/0").mkdir(parents=True)
        content = array[..., 3 * x : 3 * x + 3].astype(">i2").tobytes()
        packed = struct.pack(f">HH{len(head) - 2}I", *head) + gzip.compress(content)
        (tmp_path / f"{x}/0/0").write_bytes(packed)
    assert same(open_volume(tmp_path), array)


# Metadata


def test_levels_and_channels_of_precomputed(tmp_path):
    write_precomputed(tmp_path, IMAGE)
    write_precomputed(tmp_path, IMAGE[:, ::2, ::2], scale=2)
    coarse = open_volume(tmp_path, level=1)
    assert same(coarse, IMAGE[:, ::2, ::2])
    assert coarse.spacing == (40, 8, 8)
    fails(str(tmp_path), "coarsest level is 1", ConfigError, level=2)
    write_precomputed(tmp_path / "both", np.stack([IMAGE, IMAGE[::-1]]))
    fails(str(tmp_path / "both"), "pick one of axis C with select={'c': 0}")
    assert same(open_volume(tmp_path / "both", select={"c": 1}), IMAGE[::-1])


def cosem(**changes):
    """Return attributes that place a data set as COSEM's do."""
    return {"transform": {"axes": ["z", "y", "x"], "scale": [3, 2, 1], "units": ["um"] * 3} | changes}


VIEWER = {"pixelResolution": {"unit": "um", "dimensions": [1, 1, 2]}}
NEUROGLANCER = {"resolution": [1, 1, 2], "units": ["um"] * 3}
FACTORS = [[1] * 3, [2, 2, 1]]


@pytest.mark.parametrize(
    ("group", "own", "spacing", "offset"),
    [
        (VIEWER, {"downsamplingFactors": [2, 2, 1]}, (2, 2, 2), (0, 0.25, 0.25)),
        (NEUROGLANCER | {"downsamplingFactors": FACTORS}, {}, (2, 2, 2), (0, 0.25, 0.25)),
        (VIEWER | {"scales": [[1] * 3, [4, 4, 2]]}, {}, (4, 4, 4), (0.25, 0.375, 0.375)),
        ({}, cosem(translate=[30, 4, 10]), (3, 2, 1), (10, 2, 10)),
        ({}, cosem(translate=[30, 4]), (3, 2, 1), (0, 0, 0)),
        ({}, cosem(), (3, 2, 1), (0, 0, 0)),
        ({"resolution": "large"}, {}, None, (0, 0, 0)),
        ({"resolution": [1, {}, 2]}, {}, None, (0, 0, 0)),
    ],
)
def test_levels_and_places_of_n5(tmp_path, group, own, spacing, offset):
    write_n5(tmp_path / "s0", IMAGE)
    write_n5(tmp_path / "s1", IMAGE[:, ::2, ::2], **own)
    if group:
        (tmp_path / "attributes.json").write_text(json.dumps(group))
    assert same(open_volume(tmp_path), IMAGE)
    coarse = open_volume(tmp_path, level=1)
    assert same(coarse, IMAGE[:, ::2, ::2])
    assert (coarse.spacing, coarse.unit, coarse.offset) == (spacing, spacing and "um", offset)
    fails(str(tmp_path), "level=7", ConfigError, level=7)
    fails(str(tmp_path / "s0"), "level=1", ConfigError, level=1)


def test_axes_of_n5(tmp_path):
    write_n5(tmp_path, IMAGE, axes=["z", "y", "x"])
    assert open_volume(tmp_path).shape == IMAGE.shape[::-1]
    change_json(tmp_path / "attributes.json", axes=["rows", 3, None])
    assert same(open_volume(tmp_path), IMAGE)


@pytest.mark.parametrize(
    ("changes", "pattern"),
    [
        ({"blockSize": [2**40, 1, 1]}, "1,099,511,627,776 bytes"),
        ({"dataType": "object"}, "object"),
        ({"compression": {"type": "pickle"}}, "'pickle'"),
        ({"compression": 7}, "'7'"),
    ],
)
def test_attributes_of_n5_that_cannot_be_right(tmp_path, changes, pattern):
    write_n5(tmp_path, IMAGE)
    change_json(tmp_path / "attributes.json", **changes)
    fails(str(tmp_path), pattern)


@pytest.mark.parametrize(
    ("changes", "pattern"),
    [
        ({"chunk_sizes": [[2**40, 1, 1]]}, "1,099,511,627,776 bytes"),
        *(
            ({"key": key}, "is not read")
            for key in ("../secret", "/etc", "a/../../b", "a\\..\\b", "https://host/x", 3)
        ),
        ({"encoding": "compresso"}, "'compresso'"),
        ({"encoding": SEGMENTATION}, "uint8"),
        ({"sharding": SHARDS | {"minishard_bits": 60}}, ""),
        ({"sharding": SHARDS | {"hash": "md5"}}, ""),
    ],
)
def test_a_scale_that_cannot_be_right(tmp_path, changes, pattern):
    write_precomputed(tmp_path, IMAGE)
    scales = json.loads((tmp_path / "info").read_text())["scales"]
    change_json(tmp_path / "info", scales=[scales[0] | changes])
    fails(str(tmp_path), pattern)


@pytest.mark.parametrize("content", [b"{", b"[]", b"\xff", b"[" * 100_000, b"{" + bytes(2**24)])
def test_metadata_that_is_no_object(tmp_path, content):
    for write, name in ((write_n5, "attributes.json"), (write_precomputed, "info")):
        write(tmp_path / name, IMAGE)
        (tmp_path / name / name).write_bytes(content)
        fails(str(tmp_path / name))


def test_a_file_named_info_among_slices(tmp_path):
    for z, pixels in enumerate(IMAGE):
        tifffile.imwrite(tmp_path / f"{z}.tif", pixels)
    (tmp_path / "info").write_text("taken on a Monday")
    assert same(open_volume(tmp_path), IMAGE)
    write_precomputed(tmp_path / "p", IMAGE)
    tifffile.imwrite(tmp_path / "p" / "preview.tif", IMAGE[0])
    assert same(open_volume(tmp_path / "p"), IMAGE)


# Damaged chunks


def words(*numbers):
    return np.array(numbers, "<u4").tobytes()


@pytest.mark.parametrize(
    ("encoding", "content"),
    [
        ("n5", HEADER + bytes(1023)),
        ("n5", struct.pack(">HHIII", 0, 3, 2**31, 2**31, 4)),
        ("n5", struct.pack(">HHIII", 0, 900, 16, 16, 4)),
        (SEGMENTATION, words(1) + words(*[1 << 24 | 2**24 - 1, 0] * 8)),
        (SEGMENTATION, words(1) + words(*[3 << 24, 0] * 8)),
        ("jpeg", imagecodecs.jpeg8_encode(np.zeros((8, 8), np.uint8))),
        ("png", imagecodecs.png_encode(np.zeros((64, 16), np.uint16))),
        ("raw", bytes(2**21)),
    ],
)
def test_chunks_that_are_damaged(tmp_path, encoding, content):
    if encoding == "n5":
        write_n5(tmp_path, IMAGE)
    else:
        write_precomputed(tmp_path, LABELS if encoding == SEGMENTATION else IMAGE, encoding)
    first_chunk(tmp_path).write_bytes(content)
    fails(str(tmp_path))


def test_shards_that_point_anywhere(tmp_path):
    write_precomputed(tmp_path, IMAGE, "raw", SHARDS)
    for entry in ((0, 2**62), (2**63, 2**64 - 1), (9, 3), (2**40, 2**40 + 24), (0, 2**25)):
        for file in tmp_path.rglob("*.shard"):
            file.write_bytes(struct.pack("<QQ", *entry) * 4 + file.read_bytes()[64:])
        fails(str(tmp_path))
