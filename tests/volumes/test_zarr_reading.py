"""Zarr: codecs and filters of both formats, chunks that end early, pickles, paths that climb out."""

import asyncio
import json
import pickle
import struct
import subprocess
import sys
import threading
import time
import warnings

import numcodecs
import numpy as np
import pytest
import zarr
from volume_checks import fails, same
from zarr.codecs import BloscCodec, GzipCodec, TransposeCodec, ZstdCodec

from evenslice._core import errors
from evenslice.volumes.opening import open_volume
from evenslice.volumes.read.zarr import _all_others
from evenslice.volumes.write.writer import write_volume

STACK = (np.arange(6 * 40 * 32) % 1021).reshape(6, 40, 32).astype(np.uint16)

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


# Chunks in memory at once


# Codecs that make much of little


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


def test_bits_that_a_filter_packs_are_read(tmp_path):
    bits = STACK % 3 == 0
    zarr.create_array(
        tmp_path / "a.zarr", data=bits, chunks=(2, 15, 13), filters=[numcodecs.PackBits()], zarr_format=2
    )
    assert same(open_volume(tmp_path / "a.zarr"), bits)


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
        waiting.extend(loop.create_task(_all_others(10)) for _ in range(3))
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
