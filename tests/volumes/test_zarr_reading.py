"""Zarr: codecs and filters of both formats, chunks that end early, pickles, paths that climb out."""

import json
import pickle
import struct
import subprocess
import sys
import warnings

import numcodecs
import numpy as np
import pytest
import zarr
from volume_checks import STACK, fails, same
from zarr.codecs import BloscCodec, GzipCodec, TransposeCodec, ZstdCodec

from evenslice import open_volume

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
NOISE = np.random.default_rng(0).integers(0, 256, (16, 64, 64), np.uint8)


@pytest.mark.parametrize("codec", V3.values(), ids=V3)
def test_codecs_of_format_3(tmp_path, codec):
    ways = ({}, {"filters": [TransposeCodec(order=(2, 0, 1))]}, {"shards": (6, 48, 32)})
    for number, way in enumerate(ways):
        path = tmp_path / f"{number}.zarr"
        zarr.create_array(path, data=STACK, chunks=(2, 16, 16), compressors=[codec], **way)
        assert same(open_volume(path), STACK)


@pytest.mark.parametrize("codec", V2.values(), ids=V2)
def test_codecs_of_format_2(tmp_path, codec):
    for filters in (None, [numcodecs.Delta("<u2")], [numcodecs.FixedScaleOffset(0, 1, "<u2", "<u8")]):
        path = tmp_path / f"{filters and filters[0].codec_id}.zarr"
        options = {"chunks": (2, 16, 16), "compressors": codec, "filters": filters, "zarr_format": 2}
        zarr.create_array(path, data=STACK, **options)
        volume = open_volume(path)
        assert same(volume, STACK)
        assert (volume.chunks, volume.format) == ((2, 16, 16), "Zarr v2")


def test_filters_that_widen_or_pack_voxels(tmp_path):
    numbers = {"offset": 0, "scale": 1, "dtype": "<u2", "astype": "<u4"}
    filters = [{"name": "numcodecs.fixedscaleoffset", "configuration": numbers}]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        zarr.create_array(tmp_path / "a.zarr", data=STACK, chunks=(2, 16, 16), filters=filters)
    assert same(open_volume(tmp_path / "a.zarr"), STACK)
    options = {"chunks": (2, 15, 13), "filters": [numcodecs.PackBits()], "zarr_format": 2}
    zarr.create_array(tmp_path / "bits.zarr", data=STACK % 3 == 0, **options)
    assert same(open_volume(tmp_path / "bits.zarr"), STACK % 3 == 0)


# Damaged chunks


def one_chunk(path, zarr_format=3, codec=None):
    """A volume of one chunk; return the chunk's file."""
    options = {"chunks": NOISE.shape, "compressors": codec, "zarr_format": zarr_format}
    zarr.create_array(path, data=NOISE, **options)
    return path / ("c/0/0/0" if zarr_format == 3 else "0.0.0")


def test_a_chunk_file_larger_than_anything(tmp_path):
    file = one_chunk(tmp_path / "a.zarr")
    with file.open("ab") as stream:
        stream.truncate(10_000_001)
    fails(str(tmp_path / "a.zarr"), "'c/0/0/0' has more than")


@pytest.mark.parametrize("version", [2, 3])
def test_a_blosc_chunk_that_ends_early(tmp_path, version):
    """The decoder of blosc reads beyond the end of a chunk that is cut: other memory, or the end of the process."""
    path = tmp_path / "a.zarr"
    file = one_chunk(path, version, numcodecs.Blosc() if version == 2 else BloscCodec())
    content = file.read_bytes()
    for left in (-1, 20_000, 16, 15, 0):
        file.write_bytes(content[:left])
        fails(str(path), "a chunk is truncated")


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
        fails(str(path))


@pytest.mark.slow
def test_one_line_for_many_damaged_chunks(tmp_path):
    """The other chunks of a read fail after it has been given up."""
    path = tmp_path / "a.zarr"
    zarr.create_array(path, data=NOISE, chunks=(1, 32, 32), compressors=[V3["gzip"]])
    for file in (path / "c").rglob("*"):
        if file.is_file():
            file.write_bytes(file.read_bytes()[:-9])
    command = [sys.executable, "-m", "evenslice", "info", path]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (found.returncode, found.stderr.count("\n")) == (2, 1), found.stderr


# What metadata may not do


class Trap:
    """Leaves a trace where it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_a_filter_that_unpickles(tmp_path):
    path = tmp_path / "a.zarr"
    one_chunk(path, 2).write_bytes(pickle.dumps(Trap(tmp_path / "sprung")))
    metadata = json.loads((path / ".zarray").read_text())
    codec = {"id": "pickle", "protocol": 5}
    for changes in ({"compressor": codec}, {"filters": [codec]}, {"filters": [{"id": "shuffle"}, codec]}, {}):
        for kind in ("|u1", "|O")[not changes :]:
            found = metadata | changes | {"dtype": kind, "fill_value": 0}
            (path / ".zarray").write_text(json.dumps(found))
            fails(str(path))
    assert not (tmp_path / "sprung").exists()


def write_levels(path, inner):
    """Write the metadata of an image of one level; return its group."""
    group = zarr.open_group(path, mode="w")
    image = {"axes": list("zyx"), "datasets": [{"path": inner}]}
    group.attrs["ome"] = {"version": "0.5", "multiscales": [image]}
    return group


@pytest.mark.parametrize(
    "inner",
    [
        "../../secret.zarr",
        "a/../../../secret.zarr",
        "file:///etc/x",
        "..\\..\\secret.zarr",
        "%2e%2e/%2E%2E/secret.zarr",  # of which a server makes dots
        "0?version=1",
        "",
        3,
    ],
)
def test_levels_that_lead_out_of_the_image(tmp_path, inner):
    zarr.create_array(tmp_path / "secret.zarr", data=STACK)
    write_levels(tmp_path / "folder" / "a.zarr", inner)
    fails(f"{tmp_path}/folder/a.zarr", "level 0 is none inside of it and is not read")


@pytest.mark.parametrize("inner", ["0", "0/", "scale0/image"])
def test_levels_inside_the_image(tmp_path, inner):
    write_levels(tmp_path / "a.zarr", inner).create_array(inner.strip("/"), data=STACK)
    assert same(open_volume(tmp_path / "a.zarr"), STACK)


def test_metadata_that_makes_no_sense(tmp_path):
    path = tmp_path / "a.zarr"
    group = zarr.open_group(path, mode="w")
    fails(str(path), "is a Zarr group without OME-Zarr metadata")
    group.create_array("0", data=STACK)
    fails(str(path), r"name an array inside \(0\)")
    for image, pattern in (
        ({"datasets": [{"path": "1"}]}, ""),
        ({"axes": ["y", "x"], "datasets": [{"path": "0"}]}, "2 axes, its array has 3"),
        ({"axes": 5, "datasets": [{"path": "0"}]}, ""),
    ):
        group.attrs["multiscales"] = [image]
        fails(str(path), pattern)
    (path / "zarr.json").write_text("{")
    fails(str(path), "cannot be read as Zarr")
    zarr.create_array(tmp_path / "big.zarr", shape=(2**12,) * 3, chunks=(2**12,) * 3, dtype=np.uint8)
    fails(str(tmp_path / "big.zarr"), "68,719,476,736 bytes")
