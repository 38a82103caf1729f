"""Volumes that claim or hide more than they should, or whose files are no files of theirs: one error, in bounds."""

import os
import struct

import h5py
import mrcfile
import numpy as np
import pytest
import tifffile
import zarr
from commands import run_command

from evenslice import VolumeError, open_volume

pytestmark = pytest.mark.attack

DEEP = 2**40
MEMORY, SECONDS = 2**30, 30
RANDOM = ("--model", "smp:Unet/tu-test_resnet", "--weights", "none", "--intensity", "0", "9")


def ended(command, path, *more):
    """Run a command on a volume within bounds of memory and time, and return what it says of an error."""
    volume = [path] if command == "info" else ["--volume", path]
    done = run_command(command, *volume, *more, cwd=path.parent)
    said = "".join(line for line in done.stderr.splitlines() if not line.startswith("note: "))
    assert done.returncode == (2 if said else 0), done.stderr
    assert (done.seconds <= SECONDS, done.memory <= MEMORY) == (True, True), done
    return said


# Claims


def empty_zarr(path, shape=(DEEP, 64, 64), **options):
    zarr.create_array(path, shape=shape, dtype=np.uint8, **({"chunks": (1, *shape[1:])} | options))
    return path


def empty_hdf5(path):
    with h5py.File(path, "w") as file:
        file.create_dataset("volume", shape=(DEEP, 64, 64), dtype=np.uint8, chunks=(1, 64, 64))
    return path


def sparse_npy(path):
    shape = (2**32, 32, 32)
    with path.open("wb") as file:
        header = {"descr": "|u1", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        file.truncate(file.tell() + int(np.prod(shape, dtype=object)))
    return path


EMPTY = {
    "zarr of one-voxel chunks": lambda path: empty_zarr(path / "a.zarr", chunks=(1, 1, 1)),
    "zarr of shards": lambda path: empty_zarr(path / "a.zarr", chunks=(1, 64, 64), shards=(64, 64, 64)),
    "hdf5": lambda path: empty_hdf5(path / "a.h5"),
    "npy": lambda path: sparse_npy(path / "a.npy"),
}


@pytest.mark.parametrize("kind", EMPTY)
def test_empty_slices_without_end(tmp_path, kind):
    path = EMPTY[kind](tmp_path)
    assert ended("info", path) == ""
    assert ended("audit", path, *RANDOM).startswith(f"error: {path}: constant, ")
    assert f"error: {path}: claims " in ended("segment", path, *RANDOM, "--out", "out.tif")


def endless_mrc(path):
    mrcfile.write(path, np.zeros((2, 16, 16), np.int8))
    content = bytearray(path.read_bytes())
    struct.pack_into("<i", content, 92, 2**31 - 1)
    path.write_bytes(content)


def endless_ome(path):
    xml = (
        '<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06"><Image ID="Image:0"><Pixels ID="Pixels:0" '
        'DimensionOrder="XYZCT" Type="uint8" SizeX="16" SizeY="16" SizeZ="2000000000" SizeC="1" SizeT="1">'
        '<TiffData IFD="0" PlaneCount="4"/></Pixels></Image></OME>'
    )
    options = {"photometric": "minisblack", "description": xml, "metadata": None}
    tifffile.imwrite(path, np.ones((4, 16, 16), np.uint8), **options)


CLAIMING = {
    "a.mrc": (endless_mrc, f"is truncated, its voxels end at byte {2**31 + 1023:,}"),
    "deep.ome.tif": (endless_ome, "its OME-XML claims more planes than"),
    "chunk.zarr": (lambda path: empty_zarr(path, (4, 2**21, 2**21)), "take 4,398,046,511,104 bytes each"),
}


@pytest.mark.parametrize("name", CLAIMING)
def test_headers_that_claim_more_than_there_is(tmp_path, name):
    write, message = CLAIMING[name]
    path = tmp_path / name
    write(path)
    found = ended("info", path)
    assert found.startswith(f"error: {path}: ")
    assert message in found


# Files of a Zarr folder that are none


SECRET = b"the words of somebody else, which are no voxels at all; " * 80


def small_zarr(path):
    """A volume of one chunk; return its folder and the file of the chunk."""
    data = np.ones((1, 64, 64), np.uint8)
    zarr.create_array(path, data=data, chunks=(1, 64, 64), compressors=None)
    return path, path / "c/0/0/0"


def put_link(chunk, elsewhere):
    (elsewhere / "secret").write_bytes(SECRET[:4096])
    chunk.unlink()
    chunk.symlink_to(elsewhere / "secret")


def put_link_to_folder(chunk, elsewhere):
    (elsewhere / "0").write_bytes(SECRET[:4096])
    chunk.unlink()
    chunk.parent.rmdir()
    chunk.parent.symlink_to(elsewhere, target_is_directory=True)


def put_pipe(chunk, _):
    chunk.unlink()
    os.mkfifo(chunk)


def put_device(chunk, _):
    """A link to a link inside the folder, which leads out."""
    chunk.unlink()
    chunk.with_name("zero").symlink_to("/dev/zero")
    chunk.symlink_to("zero")


REPLACED = {
    "link": (put_link, "is outside its folder"),
    "folder": (put_link_to_folder, "is outside its folder"),
    "pipe": (put_pipe, "not a regular file"),
    "device": (put_device, "is outside its folder"),
    "sparse": (lambda chunk, _: os.truncate(chunk, 2**33), "bytes that can be right"),
}


@pytest.mark.parametrize("kind", REPLACED)
def test_chunks_that_are_no_files_of_the_folder(tmp_path, kind):
    replace, message = REPLACED[kind]
    path, chunk = small_zarr(tmp_path / "a.zarr")
    (tmp_path / "elsewhere").mkdir()
    replace(chunk, tmp_path / "elsewhere")
    found = ended("info", path)
    assert found.startswith(f"error: {path}: its file 'c/0/0/0' ")
    assert message in found


def test_links_to_and_inside_a_folder_are_followed(tmp_path):
    path, chunk = small_zarr(tmp_path / "a.zarr")
    chunk.rename(path / "kept")
    chunk.symlink_to(path / "kept")
    (tmp_path / "b.zarr").symlink_to(path, target_is_directory=True)
    assert open_volume(tmp_path / "b.zarr")[0].all()


@pytest.mark.parametrize("suffix", ["tif", "nii", "dcm", "mha", "nrrd", "h5", "mrc", "npy"])
def test_pipes_as_volumes(tmp_path, suffix):
    os.mkfifo(tmp_path / f"a.{suffix}")
    with pytest.raises(VolumeError, match="a pipe, a socket or a device"):
        open_volume(tmp_path / f"a.{suffix}")
