"""Zarr from somebody else: chunks that unpack to more than they hold, pickles, paths that climb out."""

import asyncio
import bz2
import gzip
import json
import lzma
import pickle
import struct
import subprocess
import sys
import threading
import time
import tracemalloc
import warnings
import zlib
from contextlib import suppress

import numcodecs
import numpy as np
import pytest
import zarr
from hypothesis import given, strategies as st
from volume_checks import fails, same
from zarr.codecs import BloscCodec, GzipCodec, TransposeCodec, ZstdCodec

from evenslice._core import errors
from evenslice.volumes.opening import open_volume
from evenslice.volumes.read import zarr_guard, zarr_store, zarr_tasks
from evenslice.volumes.read.pieces import few_pieces
from evenslice.volumes.read.unpacking import unpack, zstd_size
from evenslice.volumes.write.writer import write_volume

STACK = (np.arange(6 * 40 * 32) % 1021).reshape(6, 40, 32).astype(np.uint16)
BOMB = bytes(2**25)

V3 = {
    "gzip": GzipCodec(),
    "zstd": ZstdCodec(),
    "zstd with a checksum": ZstdCodec(checksum=True),
    "blosc": BloscCodec(),
}
V2 = {
    name: numcodecs.get_codec({"id": name})
    for name in ("gzip", "zlib", "bz2", "lzma", "zstd", "blosc", "lz4")
}


@pytest.mark.parametrize("codec", V3.values(), ids=V3)
@pytest.mark.parametrize(
    "options", [{}, {"filters": [TransposeCodec(order=(2, 0, 1))]}, {"shards": (6, 48, 32)}]
)
def test_codecs_of_format_3(tmp_path, codec, options):
    zarr.create_array(tmp_path / "a.zarr", data=STACK, chunks=(2, 16, 16), compressors=[codec], **options)
    assert same(open_volume(tmp_path / "a.zarr"), STACK)


@pytest.mark.parametrize("codec", V2.values(), ids=V2)
@pytest.mark.parametrize(
    "filters", [None, [numcodecs.Delta("<u2")], [numcodecs.FixedScaleOffset(0, 1, "<u2", "<u8")]]
)
def test_codecs_of_format_2(tmp_path, codec, filters):
    zarr.create_array(
        tmp_path / "a.zarr", data=STACK, chunks=(2, 16, 16), compressors=codec, filters=filters, zarr_format=2
    )
    assert same(open_volume(tmp_path / "a.zarr"), STACK)


def small_chunk(path, zarr_format, codec):
    """A volume of one chunk of 4,096 bytes; return the chunk's file."""
    zarr.create_array(
        path,
        data=np.ones((1, 64, 64), np.uint8),
        chunks=(1, 64, 64),
        compressors=codec,
        zarr_format=zarr_format,
    )
    return path / ("c/0/0/0" if zarr_format == 3 else "0.0.0")


SKIPPABLE = b"\x57\x2a\x4d\x18" + struct.pack("<I", 4) + b"note"
BOMBS = {
    "gzip": (GzipCodec(), gzip.compress(BOMB)),
    "gzip of two members": (GzipCodec(), gzip.compress(bytes(100)) + gzip.compress(BOMB)),
    "zstd": (ZstdCodec(), numcodecs.zstd.compress(BOMB)),
    "zstd after a skippable frame": (ZstdCodec(), SKIPPABLE + numcodecs.zstd.compress(BOMB)),
}


@pytest.mark.parametrize(("codec", "content"), BOMBS.values(), ids=BOMBS)
def test_bombs_of_format_3(tmp_path, codec, content):
    small_chunk(tmp_path / "a.zarr", 3, codec).write_bytes(content)
    refused(tmp_path / "a.zarr")


@pytest.mark.parametrize(
    ("name", "pack"),
    [
        ("gzip", gzip.compress),
        ("zlib", zlib.compress),
        ("bz2", bz2.compress),
        ("lzma", lzma.compress),
        ("zstd", numcodecs.zstd.compress),
        ("blosc", lambda content: numcodecs.Blosc().encode(content)),
        ("lz4", lambda content: numcodecs.LZ4().encode(content)),
    ],
)
def test_bombs_of_format_2(tmp_path, name, pack):
    small_chunk(tmp_path / "a.zarr", 2, V2[name]).write_bytes(pack(BOMB))
    refused(tmp_path / "a.zarr")


def refused(path):
    volume = open_volume(path)
    tracemalloc.start()
    with pytest.raises(
        errors.VolumeError, match=r"a chunk decompresses to more than the [\d,]+ bytes that its shape allows"
    ):
        volume[...]
    assert tracemalloc.get_traced_memory()[1] < 20e6
    tracemalloc.stop()


def test_a_chunk_file_larger_than_anything(tmp_path):
    file = small_chunk(tmp_path / "a.zarr", 3, None)
    assert open_volume(tmp_path / "a.zarr")[...].all()
    with file.open("ab") as stream:
        stream.truncate(10_000_001)
    with pytest.raises(errors.VolumeError, match="its file 'c/0/0/0' has 10,000,001 bytes where at most"):
        open_volume(tmp_path / "a.zarr")[...]


# The decoder of blosc reads beyond the end of a chunk that is cut: other memory, or the end of the process.


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("left", [0, 15, 16, 0.3, -1])
def test_a_blosc_chunk_that_ends_early(tmp_path, version, left):
    noise = np.random.default_rng(0).integers(0, 256, (1, 64, 64), np.uint8)
    codec = numcodecs.Blosc() if version == 2 else BloscCodec()
    path = tmp_path / "a.zarr"
    zarr.create_array(path, data=noise, chunks=noise.shape, compressors=codec, zarr_format=version)
    file = path / ("0.0.0" if version == 2 else "c/0/0/0")
    content = file.read_bytes()
    file.write_bytes(content[: left if isinstance(left, int) else int(left * len(content))])
    with pytest.raises(errors.VolumeError, match="a chunk is truncated"):
        open_volume(path)[...]


def test_a_chunk_of_our_own_that_ends_early(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (16, 64, 64), np.uint8)
    path = tmp_path / "own.ome.zarr"
    write_volume(open_volume(noise), path)
    file = next(file for file in (path / "0" / "c").rglob("*") if file.is_file())
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 3])
    with pytest.raises(errors.VolumeError, match="a chunk is truncated"):
        open_volume(path)[...]


@given(
    parts=st.lists(st.binary(max_size=400) | st.integers(0, 300_000).map(bytes), min_size=1, max_size=3),
    checksum=st.booleans(),
)
def test_the_size_that_zstandard_frames_claim(parts, checksum):
    codec = numcodecs.Zstd(checksum=checksum)
    assert zstd_size(b"".join(bytes(codec.encode(part)) for part in parts)) == sum(map(len, parts))


def test_zstandard_frames_between_others_are_skipped_and_nothing_else_is():
    frame = bytes(numcodecs.zstd.compress(b"abc"))
    assert zstd_size(SKIPPABLE + frame + SKIPPABLE + frame) == 6
    for rest in (b"\0", b"\0" * 9, b"\x27\xb5\x2f\xfd" + frame[4:], frame[:4]):
        with pytest.raises(ValueError, match="a chunk holds no Zstandard frame at byte"):
            zstd_size(frame + rest)


def test_a_zstandard_frame_without_a_size():
    # Magic, a descriptor without size, a window of 1 MiB, then three blocks that repeat one byte, the last marked so.
    blocks = b"".join(((2**17 << 3) | 2 | last).to_bytes(3, "little") + b"x" for last in (0, 0, 1))
    assert zstd_size(b"\x28\xb5\x2f\xfd\x00\x50" + blocks) == 3 * 2**17


@given(
    st.sampled_from(["gzip", "zlib", "bz2", "lzma", "blosc", "lz4", "zstd", "shuffle"]),
    st.binary(max_size=60),
)
def test_rubbish_is_refused_or_left_to_the_decoder(name, packed):
    with suppress(ValueError, OSError, zlib.error, lzma.LZMAError):
        assert unpack(name, packed, 100) is None or len(unpack(name, packed, 100)) <= 100


# Chunks in memory at once


@pytest.mark.parametrize(
    ("options", "fitting", "at_once"),
    [
        ({"zarr_format": 2, "filters": [numcodecs.Delta("<u2")]}, 3, 3),
        ({}, 0, 1),
        ({}, 3, 3),
        ({"zarr_format": 2}, 2, 2),
        ({"shards": (6, 16, 16)}, 3, 1),
        ({"shards": (6, 16, 16)}, 4, 2),
    ],
)
def test_large_chunks_are_not_decoded_all_at_once(tmp_path, options, fitting, at_once, monkeypatch):
    path = tmp_path / "a.zarr"
    width = 4 if "filters" in options else 1  # filters may widen voxels of two bytes to eight
    zarr.create_array(path, data=STACK[:, :32], chunks=(1, 8, 8), **options)
    monkeypatch.setattr(zarr_guard, "IN_FLIGHT", 128 * width * fitting + 127)
    volume = open_volume(path)
    read, lock, reading, most = zarr_store.read_file, threading.Lock(), set(), [0]

    def watched(*arguments):
        with lock:
            reading.add(threading.get_ident())
            most[0] = max(most[0], len(reading))
        time.sleep(0.005)
        found = read(*arguments)
        with lock:
            reading.remove(threading.get_ident())
        return found

    monkeypatch.setattr(zarr_store, "read_file", watched)
    assert same(volume, STACK[:, :32])
    assert most[0] == at_once
    assert zarr.config.get("async.concurrency") == 10
    monkeypatch.setattr(zarr_guard, "IN_FLIGHT", 2**28)
    open_volume(path)[...]
    assert most[0] > at_once


def test_reads_in_several_threads_leave_the_limit_of_zarr_as_it_was():
    limits = zarr_guard._Limits()
    first, second = limits.at_most(3), limits.at_most(5)
    first.__enter__()
    second.__enter__()
    assert zarr.config.get("async.concurrency") == 3
    first.__exit__(None, None, None)
    assert zarr.config.get("async.concurrency") == 5
    second.__exit__(None, None, None)
    assert zarr.config.get("async.concurrency") == 10


def test_a_limit_that_zarr_has_already_is_not_raised():
    limits = zarr_guard._Limits()
    with zarr.config.set({"async.concurrency": 2}):
        with limits.at_most(5):
            assert zarr.config.get("async.concurrency") == 2
        with limits.at_most(1), limits.at_most(4):
            assert zarr.config.get("async.concurrency") == 1
        assert zarr.config.get("async.concurrency") == 2


@given(st.data())
def test_parts_of_few_pieces_make_up_the_whole(data):
    array = np.arange(9 * 10 * 11).reshape(9, 10, 11)
    pieces = tuple(data.draw(st.integers(1, length)) for length in array.shape)
    key = []
    for length in array.shape:
        start = data.draw(st.integers(0, length - 1))
        key.append(slice(start, data.draw(st.integers(start + 1, length)), data.draw(st.integers(1, 4))))
    most = data.draw(st.integers(1, 30))
    found = np.full(array[tuple(key)].shape, -1)
    for part, place in few_pieces(tuple(key), pieces, most):
        at = [np.unique(np.arange(i.start, i.stop, i.step) // n) for i, n in zip(part, pieces, strict=True)]
        assert np.prod([len(touched) for touched in at]) <= most
        assert (found[place] == -1).all()
        found[place] = array[part]
    np.testing.assert_array_equal(found, array[tuple(key)])


# Codecs that make much of little


@pytest.mark.parametrize("name", ["astype", "fixedscaleoffset", "categorize", "json2", "vlen-bytes"])
@pytest.mark.parametrize("place", ["filters", "compressor"])
def test_codecs_of_format_2_whose_result_has_no_limit(tmp_path, name, place):
    path = tmp_path / "a.zarr"
    small_chunk(path, 2, None)
    options = {
        "astype": {"encode_dtype": "|u1", "decode_dtype": "<U1000"},
        "fixedscaleoffset": {"offset": 0, "scale": 1, "dtype": "|S1000", "astype": "|u1"},
        "categorize": {"labels": ["a"], "dtype": "<U1000", "astype": "|u1"},
    }.get(name, {})
    metadata = json.loads((path / ".zarray").read_text())
    codec = {"id": name, **options}
    (path / ".zarray").write_text(json.dumps(metadata | {place: [codec] if place == "filters" else codec}))
    refusal = (
        "its (filter .* which is none of voxels|chunks are encoded with .* can make any size of few bytes)"
    )
    fails(str(path), refusal if options else f"{refusal}|cannot be read as Zarr")


def test_filters_of_format_3_whose_result_has_no_limit(tmp_path):
    path = tmp_path / "a.zarr"
    small_chunk(path, 3, None)
    metadata = json.loads((path / "zarr.json").read_text())
    options = {"encode_dtype": "uint8", "decode_dtype": "<U1000"}
    codec = {"name": "numcodecs.astype", "configuration": options}
    (path / "zarr.json").write_text(json.dumps(metadata | {"codecs": [codec, *metadata["codecs"]]}))
    fails(
        str(path),
        "its filter 'astype' has the data type '<U1000', which is none of voxels; rewrite it without",
    )


def test_filters_of_format_3_are_read(tmp_path):
    filters = [
        {
            "name": "numcodecs.fixedscaleoffset",
            "configuration": {"offset": 0, "scale": 1, "dtype": "<u2", "astype": "<u4"},
        }
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        zarr.create_array(tmp_path / "a.zarr", data=STACK, chunks=(2, 16, 16), filters=filters)
    assert same(open_volume(tmp_path / "a.zarr"), STACK)


@pytest.mark.parametrize("filters", [["packbits"], ["packbits"] * 4, ["astype"]])
def test_filters_that_are_given_more_than_a_chunk(tmp_path, filters):
    path = tmp_path / "a.zarr"
    file = small_chunk(path, 2, None)
    metadata = json.loads((path / ".zarray").read_text())
    astype = {"id": "astype", "encode_dtype": "|u1", "decode_dtype": "<u8"}
    codecs = [astype if name == "astype" else {"id": name} for name in filters]
    (path / ".zarray").write_text(json.dumps(metadata | {"filters": codecs}))
    file.write_bytes(bytes(2**20))
    tracemalloc.start()
    with pytest.raises(errors.VolumeError, match="has 1,048,576 bytes where at most [0-9,]+ can be right"):
        open_volume(path)[0]
    assert tracemalloc.get_traced_memory()[1] < 2**23
    tracemalloc.stop()


def test_bits_that_a_filter_packs_are_read(tmp_path):
    bits = STACK % 3 == 0
    zarr.create_array(
        tmp_path / "a.zarr", data=bits, chunks=(2, 15, 13), filters=[numcodecs.PackBits()], zarr_format=2
    )
    assert same(open_volume(tmp_path / "a.zarr"), bits)


def test_a_shard_whose_chunks_are_all_the_same_bytes(tmp_path):
    """Each would be read again, and all be kept until they are decoded."""
    google_crc32c = pytest.importorskip("google_crc32c", reason="Zarr before 3.1.4 uses another package")
    path = tmp_path / "a.zarr"
    zarr.create_array(path, shape=(64, 512, 512), shards=(64, 512, 512), chunks=(1, 64, 64), dtype=np.uint8)
    size = 24 * 2**20
    index = struct.pack("<QQ", 0, size) * 4096
    (path / "c/0/0").mkdir(parents=True)
    with (path / "c/0/0/0").open("wb") as file:
        file.seek(size)
        file.write(index + struct.pack("<I", google_crc32c.value(index)))
    tracemalloc.start()
    with pytest.raises(errors.VolumeError, match="the index of a shard lists 103,079,215,104 bytes"):
        open_volume(path)[0, :256, :256]
    assert tracemalloc.get_traced_memory()[1] < 2**24
    tracemalloc.stop()


@pytest.mark.parametrize("codec", ["gzip", "blosc"])
def test_one_line_for_many_damaged_chunks(tmp_path, codec):
    """The other chunks of a read fail after it has been given up."""
    path = tmp_path / "a.zarr"
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 64), np.uint8)
    zarr.create_array(path, data=noise, chunks=(1, 64, 64), compressors=[V3[codec]])
    for file in (path / "c").rglob("0"):
        if file.is_file():
            file.write_bytes(file.read_bytes()[:-9])
    for _ in range(2):
        found = subprocess.run(
            [sys.executable, "-m", "evenslice", "info", path], capture_output=True, text=True, check=False
        )
        assert found.returncode == 2
        assert found.stderr.count("\n") == 1, found.stderr


def test_those_who_wait_for_the_tasks_of_zarr_do_not_wait_for_each_other():
    """As where several reads fail at once, in several threads."""
    loop, waiting = zarr.core.sync._get_loop(), []
    slow = asyncio.run_coroutine_threadsafe(asyncio.sleep(0.3), loop)
    started = threading.Event()

    def start():
        waiting.extend(loop.create_task(zarr_tasks._all_others(10)) for _ in range(3))
        started.set()

    loop.call_soon_threadsafe(start)
    started.wait()
    slow.result()
    end = time.monotonic() + 5
    while time.monotonic() < end and not all(task.done() for task in waiting):
        time.sleep(0.01)
    assert all(task.done() for task in waiting)


# Pickles


class Trap:
    """Leaves a trace where it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_a_filter_that_unpickles(tmp_path):
    path = tmp_path / "a.zarr"
    file = small_chunk(path, 2, None)
    metadata = json.loads((path / ".zarray").read_text())
    codec = {"id": "pickle", "protocol": 5}
    file.write_bytes(pickle.dumps(Trap(tmp_path / "sprung")))
    for changes in ({"compressor": codec}, {"filters": [codec]}, {"filters": [{"id": "shuffle"}, codec]}):
        for kind in ("|u1", "|O"):
            (path / ".zarray").write_text(json.dumps(metadata | changes | {"dtype": kind}))
            fails(str(path), "cannot be read as Zarr")
    assert not (tmp_path / "sprung").exists()


def test_objects(tmp_path):
    path = tmp_path / "a.zarr"
    small_chunk(path, 2, None)
    metadata = json.loads((path / ".zarray").read_text())
    (path / ".zarray").write_text(json.dumps(metadata | {"dtype": "|O", "fill_value": 0}))
    fails(str(path), "cannot be read as Zarr|Python objects|data type is object")


# Paths that climb out


@pytest.mark.parametrize(
    "inner",
    [
        "../../secret.zarr",
        "..",
        "a/../../../secret.zarr",
        "file:///etc/x",
        "..\\..\\secret.zarr",
        "%2e%2e/%2E%2E/secret.zarr",  # of which a server makes dots
        "..%2f..%2fsecret.zarr",
        "0?version=1",
        "0#1",
        "",
        "x" * 1000,
        3,
    ],
)
def test_levels_that_lead_out_of_the_image(tmp_path, inner):
    zarr.create_array(tmp_path / "secret.zarr", data=STACK)
    write_levels(tmp_path / "folder" / "a.zarr", inner)
    fails(f"{tmp_path}/folder/a.zarr", "of level 0 is none inside the image and is not read; name the array")


@pytest.mark.parametrize("inner", ["0", "0/", "scale0/image"])
def test_levels_inside_the_image(tmp_path, inner):
    write_levels(tmp_path / "a.zarr", inner).create_array(inner.strip("/"), data=STACK)
    assert same(open_volume(tmp_path / "a.zarr"), STACK)


def write_levels(path, inner):
    """Write the metadata of an image of one level; return its group."""
    group = zarr.open_group(path, mode="w")
    group.attrs["ome"] = {
        "version": "0.5",
        "multiscales": [{"axes": list("zyx"), "datasets": [{"path": inner}]}],
    }
    return group


def test_an_index_that_no_shard_can_have(tmp_path):
    zarr.create_array(
        tmp_path / "a.zarr", shape=(2**10,) * 3, shards=(2**9,) * 3, chunks=(1, 1, 1), dtype=np.uint8
    )
    fails(str(tmp_path / "a.zarr"), "hold more chunks .* than an index can list")


def test_shard_indices_that_point_anywhere(tmp_path):
    google_crc32c = pytest.importorskip("google_crc32c", reason="Zarr before 3.1.4 uses another package")
    path = tmp_path / "a.zarr"
    zarr.create_array(path, data=STACK, shards=(6, 40, 32), chunks=(3, 40, 32), compressors=None)
    file = path / "c/0/0/0"
    content = file.read_bytes()
    for offset, length in ((0, 2**62), (2**63, 100), (2**40, 2**40)):
        index = struct.pack("<QQQQ", offset, length, 0, 10)
        crc = struct.pack("<I", google_crc32c.value(index))
        file.write_bytes(content[: -len(index) - 4] + index + crc)
        volume = open_volume(path)
        with pytest.raises(
            errors.VolumeError, match="cannot be read as Zarr|at most .* can be right|is truncated"
        ):
            volume[0]
