"""N5 and Neuroglancer precomputed: written by TensorStore or from the specification, and read back."""

import bz2
import gzip
import json
import lzma
import pickle
import struct
import subprocess
import sys

import imagecodecs
import numcodecs
import numpy as np
import pytest
import tifffile
from hypothesis import given, strategies as st
from piece_files import IMAGE, LABELS, PLAIN_SHARDS, SHARDS, change_json, write_n5, write_precomputed
from volume_checks import fails, same

from evenslice._core import errors
from evenslice.volumes import LabelValues
from evenslice.volumes.info import describe_volume, fingerprint
from evenslice.volumes.opening import open_volume
from evenslice.volumes.read.chunk_files import ChunkFiles, assemble

SHARDINGS = {"files": None, "hashed": SHARDS, "one shard": PLAIN_SHARDS}


@pytest.mark.parametrize("sharding", SHARDINGS.values(), ids=SHARDINGS)
@pytest.mark.parametrize(
    ("encoding", "array"),
    [
        ("raw", IMAGE),
        ("raw", LABELS),
        ("raw", IMAGE.astype(np.float32) / 3),
        ("jpeg", IMAGE),
        ("png", IMAGE),
        ("png", IMAGE.astype(np.uint16) * 200),
        ("compressed_segmentation", LABELS),
        ("compressed_segmentation", LABELS.astype(np.uint32)),
    ],
    ids=lambda item: item if isinstance(item, str) else item.dtype.name,
)
def test_precomputed(tmp_path, encoding, array, sharding):
    written = write_precomputed(tmp_path / "volume", array, encoding, sharding)
    if encoding != "jpeg":
        assert np.array_equal(written, array)
    volume = open_volume(tmp_path / "volume")
    assert same(volume, written)
    assert (volume.spacing, volume.unit, volume.chunks) == ((40, 4, 4), "nm", (4, 16, 16))
    assert volume.format == "Neuroglancer precomputed"
    assert np.array_equal(volume[2:12:5, ::-3, 7], written[2:12:5, ::-3, 7])
    again = pickle.loads(pickle.dumps(volume))  # noqa: S301  # our own
    assert np.array_equal(again[3], written[3])
    assert fingerprint(again) == fingerprint(volume)


@pytest.mark.parametrize("compression", ["raw", "gzip", "bzip2", "xz", "blosc", "zstd"])
@pytest.mark.parametrize(
    "array", [IMAGE, LABELS, -IMAGE.astype(np.float64)], ids=["uint8", "uint64", "float64"]
)
def test_n5(tmp_path, compression, array):
    path = tmp_path / "file.n5" / "volumes" / "raw"
    write_n5(path, array, compression, resolution=[4, 4, 40], units=["nm"] * 3)
    volume = open_volume(path)
    assert same(volume, array)
    assert (volume.spacing, volume.unit, volume.format) == ((40, 4, 4), "nm", "N5")
    assert np.array_equal(volume[2:12:5, ::-3, 7], array[2:12:5, ::-3, 7])
    fails(str(tmp_path / "file.n5"), r"name one inside, as .*/file\.n5/volumes/raw \(it holds volumes/raw\)")


# From the specifications, without TensorStore


def test_a_precomputed_volume_by_hand(tmp_path):
    array = np.arange(3 * 4 * 5, dtype=np.uint16).reshape(3, 4, 5)
    scale = {
        "key": "40_4_4", "size": [5, 4, 3], "resolution": [4, 4, 40], "chunk_sizes": [[3, 4, 2]],
        "encoding": "raw", "voxel_offset": [10, 20, 30],
    }  # fmt: skip
    info = {
        "@type": "neuroglancer_multiscale_volume",
        "type": "image",
        "data_type": "uint16",
        "num_channels": 1,
    }
    (tmp_path / "40_4_4").mkdir()
    (tmp_path / "info").write_text(json.dumps(info | {"scales": [scale]}))
    for x, z in ((0, 0), (3, 0), (0, 2), (3, 2)):
        part = array[z : z + 2, :, x : x + 3]
        name = f"{10 + x}-{10 + x + part.shape[2]}_20-24_{30 + z}-{30 + z + part.shape[0]}"
        content = part.astype("<u2").tobytes()
        if x:  # as cloud-volume writes it
            (tmp_path / "40_4_4" / f"{name}.gz").write_bytes(gzip.compress(content))
        else:
            (tmp_path / "40_4_4" / name).write_bytes(content)
    assert same(open_volume(tmp_path), array)
    (tmp_path / "40_4_4" / "10-13_20-24_30-32").unlink()
    assert not open_volume(tmp_path)[:2, :, :3].any()


@pytest.mark.parametrize(
    ("suffix", "pack"),
    [
        ("zstd", numcodecs.zstd.compress),
        ("xz", lzma.compress),
        ("bz2", bz2.compress),
        ("br", imagecodecs.brotli_encode),
    ],
)
def test_chunks_that_cloud_volume_compressed_otherwise(tmp_path, suffix, pack):
    write_precomputed(tmp_path, IMAGE)
    for file in list(next(tmp_path.glob("*/")).iterdir()):
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
    (tmp_path / "0" / "0").mkdir(parents=True)
    (tmp_path / "1" / "0").mkdir(parents=True)
    attributes = {
        "dimensions": [5, 3, 2],
        "blockSize": [3, 3, 2],
        "dataType": "int16",
        "compressionType": "gzip",
    }
    (tmp_path / "attributes.json").write_text(json.dumps(attributes))
    (tmp_path / "0/0/0").write_bytes(
        struct.pack(">HHIII", 0, 3, 3, 3, 2) + gzip.compress(array[..., :3].astype(">i2").tobytes())
    )
    (tmp_path / "1/0/0").write_bytes(
        struct.pack(">HHIIII", 1, 3, 2, 3, 2, 12) + gzip.compress(array[..., 3:].astype(">i2").tobytes())
    )
    assert same(open_volume(tmp_path), array)


# Metadata


def test_levels_and_channels_of_precomputed(tmp_path):
    write_precomputed(tmp_path, IMAGE)
    write_precomputed(tmp_path, IMAGE[:, ::2, ::2], scale=2)
    coarse = open_volume(tmp_path, level=1)
    assert same(coarse, IMAGE[:, ::2, ::2])
    assert coarse.spacing == (40, 8, 8)
    fails(str(tmp_path), "has no level 2; it has levels 0 to 1", errors.ConfigError, level=2)
    both = np.stack([IMAGE, IMAGE[::-1]])
    write_precomputed(tmp_path / "both", both)
    fails(str(tmp_path / "both"), "pick one of axis C with select={'c': 0}")
    assert same(open_volume(tmp_path / "both", select={"c": 1}), IMAGE[::-1])


@pytest.mark.parametrize(
    ("group", "own", "expected"),
    [
        (
            {"pixelResolution": {"unit": "um", "dimensions": [1, 1, 2]}},
            {"downsamplingFactors": [2, 2, 1]},
            (2, 2, 2),
        ),
        (
            {"resolution": [1, 1, 2], "units": ["um"] * 3, "downsamplingFactors": [[1] * 3, [2, 2, 1]]},
            {},
            (2, 2, 2),
        ),
        (
            {"scales": [[1] * 3, [4, 4, 2]], "pixelResolution": {"unit": "um", "dimensions": [1, 2, 3]}},
            {},
            (6, 8, 4),
        ),
        (
            {},
            {
                "transform": {
                    "axes": ["z", "y", "x"],
                    "scale": [3, 2, 1],
                    "units": ["um"] * 3,
                    "translate": [0] * 3,
                }
            },
            (3, 2, 1),
        ),
        ({"resolution": "large"}, {}, None),
        ({"resolution": [1, {}, 2]}, {}, None),
    ],
)
def test_levels_and_voxel_sizes_of_n5(tmp_path, group, own, expected):
    write_n5(tmp_path / "s0", IMAGE)
    write_n5(tmp_path / "s1", IMAGE[:, ::2, ::2], **own)
    if group:
        (tmp_path / "attributes.json").write_text(json.dumps(group))
    assert same(open_volume(tmp_path), IMAGE)
    coarse = open_volume(tmp_path, level=1)
    assert same(coarse, IMAGE[:, ::2, ::2])
    assert coarse.spacing == expected
    assert coarse.unit == (expected and "um")
    fails(str(tmp_path), "has no level 7", errors.ConfigError, level=7)
    fails(str(tmp_path / "s0"), "has only one resolution level; omit level=1", errors.ConfigError, level=1)


def test_axes_of_n5(tmp_path):
    write_n5(tmp_path, IMAGE, axes=["z", "y", "x"])
    assert open_volume(tmp_path).shape == IMAGE.shape[::-1]
    change_json(tmp_path / "attributes.json", axes=["rows", 3, None])
    assert same(open_volume(tmp_path), IMAGE)


def test_labels_of_64_bits(tmp_path):
    write_precomputed(tmp_path, LABELS, "compressed_segmentation")
    volume = open_volume(tmp_path)
    assert volume.dtype == np.uint64
    assert describe_volume(volume).classes[0][0] == 5
    values = np.unique(LABELS).tolist()
    classes = LabelValues(label_values=values).class_volume(volume, len(values))
    assert np.array_equal(classes[3], np.searchsorted(values, LABELS[3]))


# What is read


def test_only_the_pieces_asked_for_are_read(tmp_path, monkeypatch):
    write_precomputed(tmp_path / "p", IMAGE)
    write_precomputed(tmp_path / "s", IMAGE, "raw", PLAIN_SHARDS)
    write_n5(tmp_path / "n", IMAGE)
    read = []
    whole = ChunkFiles.read

    def counting(files, name, *more):
        content = whole(files, name, *more)
        read.append((name, len(content)))
        return content

    monkeypatch.setattr(ChunkFiles, "read", counting)
    for name, expected in (("p", 16 * 16 * 4), ("n", 16 * 16 * 4 + 16)):
        volume = open_volume(tmp_path / name)
        read.clear()
        assert np.array_equal(volume[5, 17:30, 3:9], IMAGE[5, 17:30, 3:9])
        assert [size for _, size in read] == [expected]
    volume = open_volume(tmp_path / "s")
    read.clear()
    volume[5, 17:30, 3:9]
    chunks = sum(size for _, size in read[2:])
    assert [size for _, size in read[:1]] == [16]
    assert chunks == 16 * 16 * 4
    read.clear()
    volume[5, 17:30, 3:9]  # the index is kept
    assert [size for _, size in read] == [16 * 16 * 4]


@given(shape=st.tuples(*[st.integers(1, 12)] * 2), piece=st.tuples(*[st.integers(1, 5)] * 2), data=st.data())
def test_pieces_put_together(shape, piece, data):
    array = np.arange(shape[0] * shape[1]).reshape(shape)
    key = []
    for length in shape:
        start = data.draw(st.integers(0, length - 1))
        stop = data.draw(st.integers(start + 1, length))
        key.append(slice(start, stop, data.draw(st.integers(1, 7))))
    seen = []

    def decode(index):
        seen.append(index)
        return array[tuple(slice(i * size, i * size + size) for i, size in zip(index, piece, strict=True))]

    assert np.array_equal(assemble(tuple(key), piece, array.dtype, decode, remote=True), array[tuple(key)])
    assert len(seen) == len(set(seen))


def test_a_step_across_an_endless_axis():
    def decode(index):
        return np.full(1, index[0] > 0, np.uint8)

    found = assemble((slice(0, 2**60, 2**59),), (1,), np.dtype(np.uint8), decode, remote=False)
    assert found.tolist() == [0, 1]


def test_a_file_named_info_among_slices(tmp_path):
    for z, pixels in enumerate(IMAGE):
        tifffile.imwrite(tmp_path / f"{z}.tif", pixels)
    (tmp_path / "info").write_text("taken on a Monday")
    assert same(open_volume(tmp_path), IMAGE)
    write_precomputed(tmp_path / "p", IMAGE)
    tifffile.imwrite(tmp_path / "p" / "preview.tif", IMAGE[0])
    assert same(open_volume(tmp_path / "p"), IMAGE)


def test_a_fork_that_goes_on_reading(tmp_path):
    write_precomputed(tmp_path, IMAGE)
    script = (
        "import os, sys, warnings\n"
        "warnings.simplefilter('ignore', DeprecationWarning)  # of forking with threads\n"
        "from evenslice.volumes.opening import open_volume\n"
        f"volume = open_volume({str(tmp_path)!r}); expected = int(volume[...].sum())\n"
        "child = os.fork()\n"
        "if child == 0: os._exit(0 if int(volume[...].sum()) == expected else 1)\n"
        "sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False
    )
    assert ran.returncode == 0, ran.stderr
