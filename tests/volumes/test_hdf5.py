"""HDF5 datasets: which one, voxel size, names of axes, and files that name others."""

import json

import h5py
import numpy as np
import pytest
from volume_checks import fails, same

from evenslice._core import errors
from evenslice.volumes.info import describe_volume, fingerprint
from evenslice.volumes.opening import open_volume

STACK = (np.arange(6 * 40 * 32) % 1021).reshape(6, 40, 32).astype(np.uint16)


def write(path, **datasets):
    with h5py.File(path, "w") as file:
        for name, array in datasets.items():
            file.create_dataset(name.replace("__", "/"), data=array)
    return str(path)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"chunks": (2, 16, 16)},
        {"chunks": (2, 16, 16), "compression": "gzip", "shuffle": True},
        {"chunks": (4, 40, 32), "compression": "lzf", "fletcher32": True},
    ],
    ids=["contiguous", "chunks", "gzip", "lzf"],
)
def test_round_trip(tmp_path, options):
    path = tmp_path / "cells.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("volume/raw", data=STACK, **options)
    for name in (f"{path}:/volume/raw", f"{path}:volume/raw", str(path), f"{path}:/"):
        volume = open_volume(name)
        assert same(volume, STACK)
        assert (volume.location, volume.part) == (path, "/volume/raw")
    assert volume.chunks == options.get("chunks")
    assert volume.format == "HDF5"
    assert describe_volume(volume).bytes_on_disk == path.stat().st_size
    assert fingerprint(volume).startswith("sha256:")


@pytest.mark.parametrize("dtype", ["bool", ">i4", "float16", "float64", "uint64"])
def test_data_types(tmp_path, dtype):
    assert same(open_volume(write(tmp_path / "a.hdf5", x=STACK.astype(dtype))), STACK.astype(dtype))


def test_a_colon_in_the_name_of_a_file(tmp_path):
    path = write(tmp_path / "a.h5:b.h5", x=STACK)
    assert same(open_volume(path), STACK)
    assert same(open_volume(f"{path}:x"), STACK)


def test_the_voxel_size_of_fiji_and_ilastik(tmp_path):
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("raw", data=np.stack([STACK.T, STACK.T + 1])).attrs["element_size_um"] = (
            0.05,
            0.005,
            0.004,
        )
    volume = open_volume(path, axes="cxyz", select={"c": 1})
    assert same(volume, STACK + 1)
    assert (volume.spacing, volume.unit) == ((0.05, 0.005, 0.004), "um")


def test_axis_tags(tmp_path):
    path = tmp_path / "a.h5"
    tags = {"axes": [{"key": key, "typeFlags": 2} for key in "zyxc"]}
    with h5py.File(path, "w") as file:
        data = file.create_dataset("exported_data", data=np.stack([STACK, STACK + 1], axis=-1))
        data.attrs["axistags"] = json.dumps(tags)
    fails(str(path), r"has 4 axes ZYXC \(6, 40, 32, 2\); pick one of axis C with select=\{'c': 0\}")
    assert same(open_volume(path, select={"c": 1}), STACK + 1)


@pytest.mark.parametrize("tags", ["junk", "[]", '{"axes": 3}', '{"axes": [{"name": "z"}]}'])
def test_axis_tags_of_another_kind_are_no_names(tmp_path, tags):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["raw"] = STACK
        file["raw"].attrs["axistags"] = tags
    assert same(open_volume(tmp_path / "a.h5"), STACK)
    assert same(open_volume(tmp_path / "a.h5", axes="zyx"), STACK)


def test_dimension_scales(tmp_path):
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        data = file.create_dataset("raw", data=STACK.T)
        for number, (name, step, unit) in enumerate((("x", 4, "nm"), ("y", 5, "nm"), ("z", 0.05, "um"))):
            scale = file.create_dataset(name, data=7 + step * np.arange(STACK.T.shape[number]))
            scale.attrs["units"] = unit
            scale.make_scale(name)
            data.dims[number].label = name
            data.dims[number].attach_scale(scale)
    volume = open_volume(path)
    assert same(volume, STACK)
    assert volume.spacing == pytest.approx((0.05, 0.005, 0.004))
    assert volume.unit == "um"
    with h5py.File(path, "r+") as file:
        file["z"][3] = 99  # no longer even
    assert open_volume(path).spacing is None


# Which dataset


def test_what_a_file_holds_is_listed(tmp_path):
    path = write(tmp_path / "a.h5", raw=STACK, labels__cells=STACK > 5, table=np.zeros((5, 5)), name="text")
    fails(
        path,
        r"holds 2 volumes \(/labels/cells \(6, 40, 32\) bool, /raw \(6, 40, 32\) uint16\); name one, as "
        r"\S+a.h5:/labels/cells$",
    )
    fails(f"{path}:/", r"name one, as \S+a.h5:/labels/cells$")
    assert same(open_volume(f"{path}:/labels/cells"), STACK > 5)
    fails(f"{path}:/labels", r"/labels is a group; name what is inside \(/labels/cells\)")
    fails(f"{path}:/labels/cell", "has no /labels/cell; did you mean 'cells'")
    fails(f"{path}:/raw/x", "has no /raw/x")
    fails(f"{path}:/name", "is object; a volume needs|cannot be read|is not a dataset")
    fails(f"{path}:/table", "is 2-D")


def test_the_one_volume_is_taken(tmp_path):
    path = write(tmp_path / "a.h5", a__b=STACK, table=np.zeros((5, 5)), movie=np.zeros((2, 3, 4, 5)))
    assert same(open_volume(path), STACK)
    fails(write(tmp_path / "b.h5", movie=np.zeros((2, 3, 4, 5))), "has 4 dimensions")
    fails(
        write(tmp_path / "c.h5", table=np.zeros((5, 5))),
        r"no dataset of three dimensions \(datasets: /table \(5, 5\)\)",
    )
    fails(write(tmp_path / "d.h5"), r"\(datasets: none\)")


def test_options_that_do_not_apply(tmp_path):
    np.save(tmp_path / "a.npy", STACK)
    path = write(tmp_path / "a.h5", raw=STACK)
    fails(path, "has only one resolution level; omit level=1", errors.ConfigError, level=1)
    fails(f"{tmp_path}/a.npy:/raw", "no such file or folder")
    fails(f"{path}x:/raw", "no such file or folder")


# Files that name others


@pytest.fixture
def secret(tmp_path):
    write(tmp_path / "secret.h5", raw=STACK)
    (tmp_path / "secret.raw").write_bytes(STACK.tobytes())
    return tmp_path


def test_external_links(secret):
    with h5py.File(secret / "a.h5", "w") as file:
        file["out"] = h5py.ExternalLink("secret.h5", "/raw")
        file["root"] = h5py.ExternalLink("secret.h5", "/")
        file["soft"] = h5py.SoftLink("/out")
        file["deep"] = h5py.SoftLink("root/raw")
        file["own"] = np.zeros((3, 3, 3))
        file["inside"] = h5py.SoftLink("/own")
        file["round"] = h5py.SoftLink("/round")
        file["dangling"] = h5py.SoftLink("/nowhere")
    path = str(secret / "a.h5")
    for name in ("out", "soft", "deep", "root/raw"):
        fails(
            f"{path}:/{name}", r"links to another file \('secret.h5'\), which is not opened; name that file"
        )
    assert open_volume(f"{path}:/inside").shape == (3, 3, 3)
    assert open_volume(path).part == "/own"  # links are not followed when looking around
    fails(f"{path}:/round", "form a cycle")
    fails(f"{path}:/dangling", "has no /dangling")


def test_virtual_and_external_storage(secret, monkeypatch):
    monkeypatch.chdir(secret)
    with h5py.File(secret / "a.h5", "w") as file:
        layout = h5py.VirtualLayout(STACK.shape, STACK.dtype)
        layout[...] = h5py.VirtualSource("secret.h5", "raw", STACK.shape)
        file.create_virtual_dataset("virtual", layout)
        file.create_dataset("outside", STACK.shape, STACK.dtype, external=[("secret.raw", 0, STACK.nbytes)])
    fails(
        f"{secret}/a.h5:/virtual",
        "the voxels of /virtual are assembled from other files, which are not opened",
    )
    fails(f"{secret}/a.h5:/outside", "the voxels of /outside are stored in other files, which are not opened")


# Claims that nothing stands behind


@pytest.mark.parametrize("compression", ["gzip", "lzf"])
def test_chunks_that_a_filter_was_left_out_for_are_read(tmp_path, compression):
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        data = file.create_dataset(
            "raw", (1, 600, 600), np.uint8, chunks=(1, 600, 600), compression=compression
        )
        data.id.write_direct_chunk((0, 0, 0), b"\7" * 360_000, 1)
    assert (open_volume(path)[0] == 7).all()


def test_enormous_claims(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("big", (2**20,) * 3, np.uint8, chunks=(64, 64, 64))
        file.create_dataset("chunky", (2**12,) * 3, np.uint8, chunks=(2**10, 2**11, 2**11 - 1))
    assert open_volume(f"{tmp_path}/a.h5:/big")[5, 5:9, 5:9].tolist() == np.zeros((4, 4)).tolist()
    fails(f"{tmp_path}/a.h5:/chunky", "its chunks .* take 4,292,870,144 bytes each, .* in pieces below")


@pytest.mark.parametrize("fraction", [0.02, 0.5, 0.99])
def test_truncated(tmp_path, fraction):
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("raw", data=STACK, chunks=(2, 16, 16), compression="gzip")
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * fraction)])
    fails(str(path), "cannot be read as HDF5")


def test_misnamed(tmp_path):
    (tmp_path / "a.h5").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(99))
    fails(str(tmp_path / "a.h5"), "is not an HDF5 file, its content is a PNG image")
