"""Where volumes may be written: never over an input, nothing lost and nothing half-written when it fails."""

import resource
from contextlib import contextmanager

import h5py
import numpy as np
import pytest
import zarr

from evenslice import ConfigError, MissingExtraError, OutputError, VolumeError, open_volume
from evenslice.volumes import write_volume

NAMES = ["a.tif", "a.ome.tif", "a.nii", "a.nii.gz", "a.ome.zarr", "a.h5", "a.mha", "a.nrrd", "a.npy"]
every_format = pytest.mark.parametrize("name", NAMES)
NOISE = np.random.default_rng(0).integers(0, 2**16, (40, 64, 64), np.uint16)  # does not compress


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@every_format
def test_an_output_is_replaced_only_by_force(name, tmp_path):
    old, new = open_volume(np.zeros((2, 3, 4), np.uint8)), open_volume(NOISE)
    write_volume(old, tmp_path / name)
    before = contents(tmp_path)
    with pytest.raises(OutputError, match="exists; choose another name, or replace it with force"):
        write_volume(new, tmp_path / name)
    assert contents(tmp_path) == before
    write_volume(new, tmp_path / name, force=True)
    assert contents(tmp_path) != before
    assert [path.name for path in tmp_path.iterdir()] == [name]


class Breaking(np.ndarray):
    """An array whose second half cannot be read."""

    def __getitem__(self, key):
        if key[0].stop > self.shape[0] // 2:
            raise VolumeError("the disk is broken")
        return super().__getitem__(key)


@pytest.mark.parametrize("force", [False, True])
@every_format
def test_a_failure_loses_nothing_and_leaves_nothing(name, force, tmp_path, monkeypatch):
    monkeypatch.setattr("evenslice.volumes.write.files.SLAB_BYTES", NOISE[:4].nbytes)
    if force:
        write_volume(open_volume(np.ones((2, 3, 4), np.uint8)), tmp_path / name)
    before = contents(tmp_path)
    with pytest.raises(VolumeError, match="the disk is broken"):
        write_volume(open_volume(NOISE.view(Breaking)), tmp_path / name, force=force)
    assert contents(tmp_path) == before
    assert len(list(tmp_path.iterdir())) == force


@contextmanager
def full_disk(size):
    """Let no file grow beyond a number of bytes, as a disk does that has no more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("size", [0, 20_000])
@every_format
def test_a_full_disk_is_one_clear_error(name, size, tmp_path):
    old = open_volume(np.ones((2, 3, 4), np.uint8))
    write_volume(old, tmp_path / name)
    before = contents(tmp_path)
    with (
        full_disk(size),
        pytest.raises(OutputError, match=r"a\..*: cannot be written \(.*File too large.*room"),
    ):
        write_volume(open_volume(NOISE), tmp_path / name, force=True)
    assert contents(tmp_path) == before
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_what_appears_meanwhile_is_not_replaced(tmp_path):
    def appear(done, total):
        (tmp_path / "a.zarr").mkdir(exist_ok=True)

    with pytest.raises(OutputError, match="exists; choose another name"):
        write_volume(open_volume(NOISE), tmp_path / "a.zarr", progress=appear)
    assert list((tmp_path / "a.zarr").iterdir()) == []
    assert len(list(tmp_path.iterdir())) == 1


@every_format
def test_an_input_is_never_replaced_by_any_of_its_names(name, tmp_path, monkeypatch):
    path = tmp_path / "new" / "folder" / name  # folders are made
    write_volume(open_volume(NOISE), path)
    (tmp_path / f"b{name}").symlink_to(path)
    (tmp_path / "c").symlink_to(path.parent)
    before = contents(tmp_path)
    volume = open_volume(path)
    monkeypatch.chdir(path.parent)
    for other in (path, name, tmp_path / f"b{name}", tmp_path / "c" / name, f"../folder/{name}"):
        with pytest.raises(OutputError, match="which is read; choose another name"):
            write_volume(open_volume(NOISE), other, like=volume, force=True)
    assert contents(tmp_path) == before


def test_a_file_that_an_input_refers_to_is_never_replaced(tmp_path):
    """A header names any file that holds its voxels."""
    lines = ["NDims = 3", "DimSize = 4 3 2", "ElementType = MET_UCHAR", "ElementDataFile = voxels.npy"]
    (tmp_path / "image.mhd").write_text("".join(f"{line}\n" for line in lines))
    (tmp_path / "voxels.npy").write_bytes(bytes(range(24)))
    before = contents(tmp_path)
    volume = open_volume(tmp_path / "image.mhd")
    with pytest.raises(OutputError, match="voxels.npy, which is read; choose another name"):
        write_volume(volume, tmp_path / "voxels.npy", force=True)
    assert contents(tmp_path) == before


def test_an_output_neither_holds_an_input_nor_lies_inside_it(tmp_path):
    write_volume(open_volume(NOISE), tmp_path / "a.zarr")
    inside = open_volume(tmp_path / "a.zarr" / "0")
    with pytest.raises(OutputError, match=r"a.zarr/0, which is read"):
        write_volume(inside, tmp_path / "a.zarr", force=True)
    whole = open_volume(tmp_path / "a.zarr")
    with pytest.raises(OutputError, match=r"a.zarr, which is read"):
        write_volume(whole, tmp_path / "a.zarr" / "labels.zarr")
    write_volume(whole, tmp_path / "a.zarr.tif")  # begins with the same letters, and is another file


@pytest.mark.parametrize(
    ("held", "add"),
    [
        ("/notes", lambda file: file.create_group("notes")),
        ("/group/raw", lambda file: file.__setitem__("group/raw", NOISE)),
        ("/group/raw", lambda file: file.__setitem__("group/raw", h5py.ExternalLink("other.h5", "/raw"))),
        ("/group/raw", lambda file: file.__setitem__("group/raw", h5py.SoftLink("/group/labels"))),
        ("attributes of /", lambda file: file.attrs.create("author", "me")),
        ("attributes of /group/labels", lambda file: file["group/labels"].attrs.create("author", "me")),
    ],
)
def test_what_lies_beside_the_dataset_of_a_file_is_not_lost(held, add, tmp_path):
    path, volume = tmp_path / "a.h5", open_volume(NOISE, spacing=(2, 1, 1), unit="um")
    for force in (False, True):
        write_volume(volume, f"{path}:/group/labels", force=force)
    with h5py.File(path, "a") as file:
        add(file)
    before = contents(tmp_path)
    for name in (path, f"{path}:/group/labels"):
        with pytest.raises(OutputError, match=f"also contains {held}, which would be lost"):
            write_volume(volume, name, force=True)
    with pytest.raises(OutputError, match="also contains /group"):
        write_volume(volume, f"{path}:/other", force=True)
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    ("name", "make", "reason"),
    [
        ("a.zarr", lambda path: (path.mkdir(), (path / "thesis.tex").touch()), "not a Zarr volume"),
        ("a.zarr", lambda path: (path.mkdir(), (path / "zarr.json").write_text("5")), "not a Zarr volume"),
        ("a.tif", lambda path: path.mkdir(), "is a folder; name a file"),
        ("a.zarr", lambda path: path.touch(), "is a file, but an OME-Zarr volume is a folder"),
        ("a.h5", lambda path: path.write_text("no HDF5"), "is not an HDF5 file"),
    ],
)
def test_what_is_not_one_volume_is_not_replaced(name, make, reason, tmp_path):
    make(tmp_path / name)
    before = contents(tmp_path)
    with pytest.raises(OutputError, match=reason):
        write_volume(open_volume(NOISE), tmp_path / name, force=True)
    assert contents(tmp_path) == before


def add_omero(path):
    attributes = zarr.open(path).attrs
    attributes["ome"] = {**attributes["ome"], "omero": {}}


@pytest.mark.parametrize(
    ("held", "add"),
    [
        ("labels", lambda path: zarr.create_group(path / "labels")),
        ("0/notes.txt", lambda path: (path / "0" / "notes.txt").touch()),
        ("the attribute author", lambda path: zarr.open(path).attrs.update({"author": "me"})),
        ("the attribute author", lambda path: zarr.open(path / "0").attrs.update({"author": "me"})),
        ("the attribute omero", add_omero),
    ],
)
def test_a_folder_that_holds_more_than_an_image_is_not_replaced(held, add, tmp_path):
    volume = open_volume(NOISE)
    write_volume(volume, tmp_path / "a.zarr")
    write_volume(volume, tmp_path / "a.zarr", force=True)
    add(tmp_path / "a.zarr")
    before = contents(tmp_path)
    with pytest.raises(OutputError, match=f"also contains {held}"):
        write_volume(volume, tmp_path / "a.zarr", force=True)
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("labels.jpg", "has no suffix of a format; use one of .tif, .tiff, .*, .npy"),
        ("labels", "has no suffix of a format; use one of "),
        ("", "the path is empty"),
        ("s3://bucket/a.zarr", "is an address, which is not supported here"),
        ("a.h5:", "names no dataset; name one, such as a.h5:/labels"),
        ("a.h5:/../b", "names no dataset"),
    ],
)
def test_what_is_no_output(name, reason):
    with pytest.raises(OutputError, match=reason):
        write_volume(open_volume(NOISE), name)
    with pytest.raises(ConfigError, match="not as int"):
        write_volume(open_volume(NOISE), 3)


def test_a_package_that_is_missing_is_named_before_the_work(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "nibabel", None)
    with pytest.raises(
        MissingExtraError, match=r"writing NIfTI needs the package 'nibabel'; .*evenslice\[volumes\]"
    ):
        write_volume(open_volume(NOISE), tmp_path / "a.nii")
    write_volume(open_volume(NOISE), tmp_path / "a.mha")


def test_a_file_is_no_place_for_another(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="file is not a writable folder"):
        write_volume(open_volume(NOISE), tmp_path / "file" / "a.tif")
