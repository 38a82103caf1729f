"""Volumes that claim, hide or send more than they should: memory within 1 GiB of what is needed, an answer in seconds."""

import gzip
import http.server
import os
import socketserver
import struct
import threading
import zlib
from contextlib import contextmanager

import h5py
import imagecodecs
import mrcfile
import numpy as np
import pytest
import tifffile
import zarr
from limited_process import answer, assert_bounded
from zarr.codecs import GzipCodec

from evenslice import open_volume
from evenslice._core import VolumeError
from evenslice.volumes import describe_volume, fingerprint

pytestmark = pytest.mark.attack

DEEP = 2**40
LOOK = (
    "(lambda volume: [describe_volume(volume)['sampled'], fingerprint(volume)[:6], "
    "[block for block, _ in zip(iterate_blocks(volume), range(3))][0][0].start, "
    "(lambda grid: [grid.read(*place).shape for place, _ in zip(grid.visits(), range(3))])"
    "(WindowGrid(volume, Scaling(0, 1), 3, (32, 32)))])(open_volume(path))"
)
"""Describe a volume, hash it, and read a few windows and blocks of it."""

READ = "open_volume(path)[0].shape"


# Empty slices


def empty_zarr(path, shape=(DEEP, 64, 64), **options):
    zarr.create_array(path, shape=shape, dtype=np.uint8, **({"chunks": (1, *shape[1:])} | options))
    return path


def empty_hdf5(path, shape=(DEEP, 64, 64), **options):
    with h5py.File(path, "w") as file:
        file.create_dataset("volume", shape=shape, dtype=np.uint8, **({"chunks": (1, *shape[1:])} | options))
    return path


def sparse_npy(path, shape):
    with path.open("wb") as file:
        header = {"descr": "|u1", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        file.truncate(file.tell() + int(np.prod(shape, dtype=object)))
    return path


EMPTY = {
    "zarr": lambda path: empty_zarr(path / "a.zarr"),
    "zarr of one-voxel chunks": lambda path: empty_zarr(path / "a.zarr", chunks=(1, 1, 1)),
    "zarr of shards": lambda path: empty_zarr(path / "a.zarr", chunks=(1, 64, 64), shards=(64, 64, 64)),
    "hdf5": lambda path: empty_hdf5(path / "a.h5"),
    "contiguous hdf5": lambda path: empty_hdf5(path / "a.h5", chunks=None),
    "npy": lambda path: sparse_npy(path / "a.npy", (2**32, 32, 32)),
}


@pytest.mark.parametrize("kind", EMPTY)
def test_empty_slices_without_end(tmp_path, kind):
    assert_bounded(answer(LOOK, EMPTY[kind](tmp_path)), "gave [")


def test_segmenting_slices_without_end(tmp_path):
    path = EMPTY["zarr"](tmp_path)
    network = "__import__('torch').nn.Conv2d(3, 1, 1)"
    expression = (
        f"__import__('evenslice').segment({network}, path, path + '.tif', reading=Reading(intensity=(0, 9)))"
    )
    assert_bounded(answer(expression, path), f"refused: {path}: claims ")


def test_a_hundred_thousand_chunks_of_one_voxel(tmp_path):
    path = empty_zarr(tmp_path / "a.zarr", (100_000, 1, 1), chunks=(1, 1, 1))
    assert_bounded(answer("describe_volume(open_volume(path))['sampled']", path), "gave 1024")


def test_an_npy_that_claims_a_header_without_end(tmp_path):
    path = tmp_path / "a.npy"
    with path.open("wb") as file:
        np.lib.format.write_array(file, np.zeros((2, 16, 16)), (2, 0))
        file.seek(8)
        file.write(struct.pack("<I", 2**32 - 1))
        file.truncate(2**33)
    found = answer(READ, path)
    assert_bounded(found, f"refused: {path}: cannot be read as NumPy array")
    assert found.memory < 2**26


def test_an_npy_with_a_negative_length(tmp_path):
    with (tmp_path / "a.npy").open("wb") as file:
        header = {"descr": "|u1", "fortran_order": False, "shape": (-1, -4, 4)}
        np.lib.format.write_array_header_1_0(file, header)
        file.write(bytes(16))
    with pytest.raises(VolumeError, match="a.npy: "):
        open_volume(tmp_path / "a.npy")[0]


# Files of a Zarr folder that are none


SECRET = b"the words of somebody else, which are no voxels at all; " * 80


def small_zarr(path, **options):
    """A volume of one chunk; return its folder and the file of the chunk."""
    data = np.ones((1, 64, 64), np.uint8)
    zarr.create_array(path, data=data, chunks=(1, 64, 64), **({"compressors": None} | options))
    return path, path / "c/0/0/0"


def put_link(chunk, elsewhere):
    (elsewhere / "secret").write_bytes(SECRET[:4096])
    chunk.unlink()
    chunk.symlink_to(elsewhere / "secret")


def put_link_to_folder(chunk, elsewhere):
    (elsewhere / "0").write_bytes(SECRET[:4096])
    folder = chunk.parent
    chunk.unlink()
    folder.rmdir()
    folder.symlink_to(elsewhere, target_is_directory=True)


def put_pipe(chunk, _):
    chunk.unlink()
    os.mkfifo(chunk)


def put_device(chunk, _):
    chunk.unlink()
    chunk.symlink_to("/dev/zero")


def put_device_inside(chunk, _):
    """A link to a link inside the folder, which leads out."""
    chunk.unlink()
    chunk.with_name("zero").symlink_to("/dev/zero")
    chunk.symlink_to("zero")


def put_sparse(chunk, _):
    with chunk.open("ab") as file:
        file.truncate(2**33)


REPLACED = {
    "link": (put_link, "is outside its folder"),
    "folder": (put_link_to_folder, "is outside its folder"),
    "pipe": (put_pipe, "not a regular file"),
    "device": (put_device, "is outside its folder"),
    "device behind two links": (put_device_inside, "is outside its folder"),
    "sparse": (put_sparse, "bytes that can be right"),
}


@pytest.mark.parametrize("kind", REPLACED)
def test_chunks_that_are_no_files_of_the_folder(tmp_path, kind):
    replace, message = REPLACED[kind]
    path, chunk = small_zarr(tmp_path / "a.zarr")
    (tmp_path / "elsewhere").mkdir()
    replace(chunk, tmp_path / "elsewhere")
    found = answer(READ, path)
    assert_bounded(found, f"refused: {path}: its file 'c/0/0/0' ")
    assert message in found.said


@pytest.mark.parametrize("kind", ["link", "pipe", "sparse"])
def test_metadata_that_is_no_file_of_the_folder(tmp_path, kind):
    path, _ = small_zarr(tmp_path / "a.zarr")
    metadata = path / "zarr.json"
    if kind == "link":
        (tmp_path / "elsewhere.json").write_bytes(metadata.read_bytes())
        metadata.unlink()
        metadata.symlink_to(tmp_path / "elsewhere.json")
    elif kind == "pipe":
        metadata.unlink()
        os.mkfifo(metadata)
        (path / ".zarray").write_text("{}")
    else:
        with metadata.open("ab") as file:
            file.truncate(2**33)
    assert_bounded(answer(READ, path), "refused: ")


def test_a_level_that_is_a_link_to_another_folder(tmp_path):
    small_zarr(tmp_path / "other.zarr")
    group = zarr.open_group(tmp_path / "image.zarr", mode="w")
    axes = [{"name": name, "type": "space"} for name in "zyx"]
    group.attrs["ome"] = {"version": "0.5", "multiscales": [{"axes": axes, "datasets": [{"path": "0"}]}]}
    (tmp_path / "image.zarr/0").symlink_to(tmp_path / "other.zarr", target_is_directory=True)
    with pytest.raises(VolumeError, match="is outside its folder and is not read"):
        open_volume(tmp_path / "image.zarr")


def test_a_fingerprint_follows_no_link_out_of_the_folder(tmp_path):
    path, _ = small_zarr(tmp_path / "a.zarr")
    volume = open_volume(path)
    (tmp_path / "secret").write_bytes(SECRET)
    (path / "notes").symlink_to(tmp_path / "secret")
    with pytest.raises(VolumeError, match="outside its folder"):
        fingerprint(volume)


def test_links_to_and_inside_a_folder_are_followed(tmp_path):
    path, chunk = small_zarr(tmp_path / "a.zarr")
    chunk.rename(path / "kept")
    chunk.symlink_to(path / "kept")
    (tmp_path / "b.zarr").symlink_to(path, target_is_directory=True)
    assert open_volume(tmp_path / "b.zarr")[0].all()


# Pieces that expand


def deflated_zeros(size):
    """Return a raw deflate stream of that many MiB of zeros: one piece, repeated."""
    packer = zlib.compressobj(9, wbits=-15)
    packer.compress(bytes(2**20))  # the first piece is not like the others
    packer.flush(zlib.Z_FULL_FLUSH)
    piece = packer.compress(bytes(2**20)) + packer.flush(zlib.Z_FULL_FLUSH)
    return piece * size + packer.flush()


def gzip_zeros(size):
    checksum = 0
    for _ in range(size):
        checksum = zlib.crc32(bytes(2**20), checksum)
    length = size * 2**20 % 2**32
    return gzip.compress(b"")[:10] + deflated_zeros(size) + struct.pack("<II", checksum, length)


LARGE = (20_000, 20_000)


def codestreams():
    """Images of 400 million pixels, compressed to little."""
    large = np.zeros(LARGE, np.uint8)
    yield "jpeg2000", imagecodecs.jpeg2k_encode(large, codecformat="j2k")
    yield "lerc", imagecodecs.lerc_encode(large)
    yield "jpegxl", imagecodecs.jpegxl_encode(large, effort=1)
    yield "png", imagecodecs.png_encode(large)
    yield "jpegls", imagecodecs.jpegls_encode(np.zeros((20_000, 20_000), np.uint8))


@pytest.mark.parametrize("shift", [0, 1, 2**10])
def test_an_mrc_that_claims_an_extended_header_without_end(tmp_path, shift):
    path = tmp_path / "a.mrc"
    mrcfile.write(path, np.zeros((2, 16, 16), np.int8))
    content = bytearray(path.read_bytes())
    struct.pack_into("<i", content, 92, 2**31 - 1 - shift)
    path.write_bytes(content)
    found = answer(READ, path)
    assert found.memory < 2**28
    assert_bounded(found, f"refused: {path}: is truncated, its voxels end at byte {2**31 + 1535 - shift:,}")


# TIFF


def ome(path, xml):
    tifffile.imwrite(
        path, np.ones((4, 16, 16), np.uint8), photometric="minisblack", description=xml, metadata=None
    )
    return path


OME = (
    '<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06"{}><Image ID="Image:0"><Pixels ID="Pixels:0" '
    'DimensionOrder="XYZCT" Type="uint8" SizeX="16" SizeY="16" SizeZ="{}" SizeC="1" SizeT="1">{}</Pixels></Image></OME>'
)
DATA = '<TiffData IFD="0" PlaneCount="{}"/>'


@pytest.mark.parametrize(("depth", "planes"), [(2 * 10**9, 4), (4, 2 * 10**9)])
def test_ome_tiff_that_claims_planes_without_end(tmp_path, depth, planes):
    path = ome(tmp_path / "a.ome.tif", OME.format("", depth, DATA.format(planes)))
    found = answer(READ, path)
    assert_bounded(found, f"refused: {path}: its OME-XML claims more planes than")


@pytest.mark.parametrize("suffix", ["tif", "nii", "dcm", "mha", "nrrd", "h5", "mrc", "npy"])
def test_pipes_as_volumes(tmp_path, suffix):
    os.mkfifo(tmp_path / f"a.{suffix}")
    with pytest.raises(VolumeError, match="is a pipe, a socket or a device"):
        open_volume(tmp_path / f"a.{suffix}")


# The network


class Endless(http.server.BaseHTTPRequestHandler):
    """A server of Zarr whose chunks, or metadata, never end or are compressed to nearly nothing."""

    way = ""
    metadata = b""

    def log_message(self, *_):
        pass

    def do_GET(self):
        if not self.path.endswith("zarr.json") and "/c/" not in self.path:
            self.send_error(404)
            return
        is_metadata = self.path.endswith("zarr.json")
        bomb = self.way.startswith("metadata") == is_metadata
        self.send_response(200)
        if bomb and self.way.endswith("gzip"):
            self.send_header("Content-Encoding", "gzip")
        self.end_headers()
        try:
            if not bomb:
                self.wfile.write(self.metadata)
            elif self.way.endswith("gzip"):
                self.wfile.write(BOMB)
            else:
                while True:
                    self.wfile.write(bytes(2**20))
        except OSError:
            pass


BOMB = gzip_zeros(2**11)


@contextmanager
def serving(way, metadata):
    handler = type("Handler", (Endless,), {"way": way, "metadata": metadata})
    server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/a.zarr"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.parametrize("way", ["chunk", "metadata", "chunk gzip", "metadata gzip"])
def test_bodies_without_end(tmp_path, way):
    path, _ = small_zarr(tmp_path / "a.zarr", compressors=[GzipCodec()])
    with serving(way, (path / "zarr.json").read_bytes()) as url:
        assert_bounded(answer(READ, url), f"refused: {url}: ")


def test_a_body_that_a_server_compressed_is_read(tmp_path):
    small_zarr(tmp_path / "a.zarr")

    class Compressing(Endless):
        def do_GET(self):
            file = tmp_path / self.path.lstrip("/")
            if not file.is_file():
                self.send_error(404)
                return
            self.send_response(200)
            self.send_header("Content-Encoding", "gzip")
            self.end_headers()
            self.wfile.write(gzip.compress(file.read_bytes()))

    server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Compressing)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        volume = open_volume(f"http://127.0.0.1:{server.server_address[1]}/a.zarr")
        assert volume[0].all()
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


# Volumes of one chunk


@pytest.mark.parametrize("kind", ["zarr", "hdf5"])
def test_info_decodes_the_chunk_of_a_volume_once(tmp_path, kind, monkeypatch):
    data = np.random.default_rng(0).integers(0, 200, (20, 300, 400), np.uint8)
    if kind == "zarr":
        path = tmp_path / "a.zarr"
        zarr.create_array(path, data=data, chunks=data.shape)
    else:
        path = tmp_path / "a.h5"
        with h5py.File(path, "w") as file:
            file.create_dataset("volume", data=data, chunks=data.shape, compression="gzip")
    volume = open_volume(path)
    source = volume._source()
    read, reads = source.read, []
    monkeypatch.setattr(source, "read", lambda key: reads.append(key) or read(key))
    info = describe_volume(volume)
    assert len(reads) == 1
    assert info["sampled"] > 500_000


def test_a_chunk_that_is_too_large_is_refused_with_what_would_be_right(tmp_path):
    path = empty_zarr(tmp_path / "a.zarr", (2000, 2000, 2000), chunks=(2000, 2000, 2000))
    with pytest.raises(
        VolumeError,
        match=r"take 8,000,000,000 bytes each, and are decoded whole; rewrite it in pieces below",
    ):
        open_volume(path)
