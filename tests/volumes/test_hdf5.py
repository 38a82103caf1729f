"""HDF5 datasets: which one, voxel size, names of axes, and files that name others."""

import json

import h5py
import numpy as np
import pytest
from volume_checks import STACK, fails, same

from evenslice import ConfigError, open_volume


def write(path, **datasets):
    with h5py.File(path, "w") as file:
        for name, array in datasets.items():
            file.create_dataset(name.replace("__", "/"), data=array)
    return str(path)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"chunks": (2, 16, 16), "compression": "gzip", "shuffle": True},
        {"chunks": (4, 40, 32), "compression": "lzf", "fletcher32": True},
    ],
    ids=["contiguous", "gzip", "lzf"],
)
def test_round_trip(tmp_path, options):
    path = tmp_path / "cells.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("volume/raw", data=STACK, **options)
    for name in (f"{path}:/volume/raw", f"{path}:volume/raw", str(path), f"{path}:/"):
        volume = open_volume(name)
        assert same(volume, STACK)
        assert (volume.location, volume.part) == (path, "/volume/raw")
    assert (volume.chunks, volume.format) == (options.get("chunks"), "HDF5")
    content = path.read_bytes()
    for fraction in (0.02, 0.5, 0.99):
        path.write_bytes(content[: int(len(content) * fraction)])
        fails(str(path), "cannot be read as HDF5")


def test_a_colon_in_the_name_of_a_file(tmp_path):
    path = write(tmp_path / "a.h5:b.h5", x=STACK)
    assert same(open_volume(path), STACK)
    assert same(open_volume(f"{path}:x"), STACK)


def test_the_voxel_size_of_fiji_and_ilastik(tmp_path):
    path = write(tmp_path / "a.h5", raw=np.stack([STACK.T, STACK.T + 1]))
    with h5py.File(path, "r+") as file:
        file["raw"].attrs["element_size_um"] = (0.05, 0.005, 0.004)
    volume = open_volume(path, axes="cxyz", select={"c": 1})
    assert same(volume, STACK + 1)
    assert (volume.spacing, volume.unit) == ((0.05, 0.005, 0.004), "um")


def test_axis_tags(tmp_path):
    path = write(tmp_path / "a.h5", exported_data=np.stack([STACK, STACK + 1], axis=-1))
    with h5py.File(path, "r+") as file:
        tags = {"axes": [{"key": key, "typeFlags": 2} for key in "zyxc"]}
        file["exported_data"].attrs["axistags"] = json.dumps(tags)
    fails(path, r"has 4 axes ZYXC \(6, 40, 32, 2\)")
    assert same(open_volume(path, select={"c": 1}), STACK + 1)
    path = write(tmp_path / "b.h5", raw=STACK)
    for other in ("junk", "[]", '{"axes": 3}', '{"axes": [{"name": "z"}]}'):  # are no names
        with h5py.File(path, "r+") as file:
            file["raw"].attrs["axistags"] = other
        assert same(open_volume(path), STACK)


def test_labels_of_dimensions(tmp_path):
    path = write(tmp_path / "a.h5", raw=STACK.T)
    with h5py.File(path, "r+") as file:
        for number, name in enumerate("xyz"):
            file["raw"].dims[number].label = name
    assert same(open_volume(path), STACK)


# Which dataset


def test_which_dataset(tmp_path):
    path = write(tmp_path / "a.h5", raw=STACK, labels__cells=STACK > 5, table=np.zeros((5, 5)), name="text")
    fails(path, r"holds 2 volumes \(/labels/cells \(6, 40, 32\) bool, /raw \(6, 40, 32\) uint16")
    assert same(open_volume(f"{path}:/labels/cells"), STACK > 5)
    for name, pattern in (
        ("labels", "/labels/cells"),
        ("labels/cell", "/labels/cell;"),
        ("ra", "did you mean '/raw'"),
        ("raw/x", "/raw/x"),
        ("name", ""),
        ("table", "is 2-D"),
    ):
        fails(f"{path}:/{name}", pattern)
    fails(path, "level=1", ConfigError, level=1)
    fails(f"{path}x:/raw", "no such file or folder")


def test_the_one_volume_is_taken(tmp_path):
    movie, table = np.zeros((2, 3, 4, 5)), np.zeros((5, 5))
    assert same(open_volume(write(tmp_path / "a.h5", a__b=STACK, table=table, movie=movie)), STACK)
    fails(write(tmp_path / "b.h5", movie=movie), "has 4 dimensions")
    fails(write(tmp_path / "c.h5", table=table), r"/table \(5, 5\)")
    fails(write(tmp_path / "d.h5"), "no dataset")


# Files that name others, and damaged ones


@pytest.mark.parametrize("name", ["out", "soft", "root/raw", "deep", "virtual", "outside"])
def test_voxels_in_other_files_are_not_read(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    write("secret.h5", raw=STACK)
    (tmp_path / "secret.raw").write_bytes(STACK.tobytes())
    with h5py.File("a.h5", "w") as file:
        file["out"] = h5py.ExternalLink("secret.h5", "/raw")
        file["root"] = h5py.ExternalLink("secret.h5", "/")
        file["soft"] = h5py.SoftLink("/out")
        file["deep"] = h5py.SoftLink("root/raw")
        layout = h5py.VirtualLayout(STACK.shape, STACK.dtype)
        layout[...] = h5py.VirtualSource("secret.h5", "raw", STACK.shape)
        file.create_virtual_dataset("virtual", layout)
        file.create_dataset("outside", STACK.shape, STACK.dtype, external=[("secret.raw", 0, STACK.nbytes)])
    fails(f"a.h5:/{name}", "other files?, which (is|are) not")


def test_links_inside_of_a_file(tmp_path):
    path = write(tmp_path / "a.h5", own=STACK)
    with h5py.File(path, "r+") as file:
        file["inside"] = h5py.SoftLink("/own")
        file["round"] = h5py.SoftLink("/round")
        file["dangling"] = h5py.SoftLink("/nowhere")
    assert same(open_volume(f"{path}:/inside"), STACK)
    assert open_volume(path).part == "/own"  # links are not followed when looking around
    fails(f"{path}:/round", "/round")
    fails(f"{path}:/dangling", "/dangling")


def test_chunks_that_a_filter_was_left_out_for_are_read(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        data = file.create_dataset("raw", (1, 60, 60), np.uint8, chunks=(1, 60, 60), compression="gzip")
        data.id.write_direct_chunk((0, 0, 0), b"\7" * 3600, 1)
    assert (open_volume(tmp_path / "a.h5")[0] == 7).all()


def test_enormous_claims(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("big", (2**20,) * 3, np.uint8, chunks=(64, 64, 64))
        file.create_dataset("chunky", (2**12,) * 3, np.uint8, chunks=(2**10, 2**11, 2**11 - 1))
    assert not open_volume(f"{tmp_path}/a.h5:/big")[5, 5:9, 5:9].any()
    fails(f"{tmp_path}/a.h5:/chunky", "4,292,870,144 bytes")
