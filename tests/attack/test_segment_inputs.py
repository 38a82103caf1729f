"""Volumes that change, shrink or disappear while they are read: an error, never wrong voxels or a dead process."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import mrcfile
import nibabel
import numpy as np
import pytest
import tifffile
import torch
import zarr
from torch import nn

from evenslice import Compute, Reading, segment
from evenslice._core import EvensliceError, VolumeError
from evenslice.inference import segmentation_blocks
from evenslice.volumes import fingerprint, info, open_volume, write_volume

pytestmark = pytest.mark.attack

NOISE = 50 + (np.random.default_rng(0).random((20, 70, 90)) * 200).astype(np.uint8)


class Meddling(nn.Module):
    """Labels bright voxels, and does something to the volume the second time that it is run on voxels."""

    def __init__(self, harm=None):
        super().__init__()
        self.layer = nn.Conv2d(3, 1, 1)
        self.layer.weight.data[:] = torch.tensor([0.0, 1.0, 0.0]).view(1, 3, 1, 1)
        self.layer.bias.data[:] = -0.5
        self._harm, self._runs = harm, 0

    def forward(self, x):
        self._runs += len(x) > 1
        if self._harm and self._runs == 2:
            self._harm, harm = None, self._harm
            harm()
        return self.layer(x)

    def __deepcopy__(self, memo):
        return self


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(segmentation_blocks, "BLOCK_VOXELS", 2 * 70 * 90)


def label(path, out, harm=None):
    model = Meddling(harm)
    return segment(
        model,
        path,
        out,
        slices=3,
        reading=Reading(intensity=(50, 250)),
        compute=Compute(batch=2, dtype="float32", device="cpu"),
    )


def refused(path, out, harm, message):
    """Check that a segmentation with a meddler ends with one line, and the next one with the right labels."""
    shutil.copytree(path, f"{path}.kept") if path.is_dir() else shutil.copy2(path, f"{path}.kept")
    with pytest.raises(EvensliceError, match=message) as caught:
        label(path, out, harm)
    assert "\n" not in str(caught.value)
    assert not out.exists()
    shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
    Path(f"{path}.kept").rename(path)
    np.testing.assert_array_equal(label(path, out)[...], NOISE > 150)


@pytest.fixture
def array(tmp_path):
    path = tmp_path / "image.npy"
    np.save(path, NOISE)
    return path


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "image.zarr"
    zarr.create_array(path, data=NOISE, chunks=(1, 70, 90))
    time.sleep(0.05)  # the clock of a file system is coarse
    return path


def test_an_array_that_is_changed_in_place(array, tmp_path):
    def harm():
        np.load(array, mmap_mode="r+")[12:] = 0

    refused(array, tmp_path / "labels.npy", harm, "has changed while it was segmented")


def test_an_array_that_is_changed_in_place_without_a_trace(array, tmp_path):
    before = array.stat()

    def harm():
        np.load(array, mmap_mode="r+")[12:] = 0
        os.utime(array, ns=(before.st_atime_ns, before.st_mtime_ns))

    refused(array, tmp_path / "labels.npy", harm, "has changed since its segmentation began")


def test_an_array_that_is_written_anew(array, tmp_path):
    refused(array, tmp_path / "labels.npy", lambda: np.save(array, NOISE[::-1]), "has changed while it was")


def test_a_large_array_of_which_the_fingerprint_covers_a_part(array, tmp_path, monkeypatch):
    monkeypatch.setattr(info, "WHOLE_BYTES", 1000)
    monkeypatch.setattr(info, "END_BYTES", 100)

    def harm():
        np.load(array, mmap_mode="r+")[12:14] = 0

    refused(array, tmp_path / "labels.npy", harm, "has changed while it was segmented")


def test_a_file_that_is_only_touched_is_the_same(array, tmp_path):
    labels = label(array, tmp_path / "labels.npy", array.touch)
    np.testing.assert_array_equal(labels[...], NOISE > 150)


def test_an_array_that_disappears(array, tmp_path):
    refused(array, tmp_path / "labels.npy", array.unlink, "cannot be read as NumPy array")


def test_a_zarr_folder_that_is_removed(folder, tmp_path):
    refused(
        folder,
        tmp_path / "labels.npy",
        lambda: shutil.rmtree(folder),
        "is missing and its folder has changed",
    )


def test_a_zarr_folder_of_which_a_part_is_removed(folder, tmp_path):
    def harm():
        shutil.rmtree(folder / "c" / "15")

    refused(folder, tmp_path / "labels.npy", harm, r"c/15/0/0' is missing and its folder has changed")


def test_a_zarr_folder_that_is_written_anew(folder, tmp_path):
    def harm():
        zarr.create_array(folder, data=NOISE[::-1], chunks=(1, 70, 90), overwrite=True)

    refused(folder, tmp_path / "labels.npy", harm, "has changed since its segmentation began")


def test_a_zarr_folder_that_is_replaced_by_another(folder, tmp_path):
    other = tmp_path / "other.zarr"
    zarr.create_array(other, data=NOISE[::-1], chunks=(1, 70, 90))

    def harm():
        folder.rename(tmp_path / "old.zarr")
        other.rename(folder)

    refused(folder, tmp_path / "labels.npy", harm, "has changed since its segmentation began")


def test_chunks_that_were_never_written_are_fill_values(tmp_path):
    path = tmp_path / "sparse.zarr"
    array = zarr.create_array(path, shape=(8, 70, 90), chunks=(1, 70, 90), dtype="u1", fill_value=7)
    array[3] = NOISE[3]
    time.sleep(0.05)
    volume = open_volume(path)
    assert volume[2:5].min(axis=(1, 2)).tolist() == [7, NOISE[3].min(), 7]
    write_volume(volume, tmp_path / "copy.npy")
    (path / "c" / "3" / "0" / "0").unlink()
    assert volume[2].max() == 7
    with pytest.raises(
        VolumeError, match="c/3/0/0' is missing and its folder has changed since it was opened"
    ):
        volume[3]
    assert fingerprint(open_volume(path)).startswith("sha256:")


def write_mrc(path):
    with mrcfile.new(path) as file:
        file.set_data(NOISE)


WRITERS = {
    "a.npy": lambda path: np.save(path, NOISE),
    "f.npy": lambda path: np.save(path, np.asfortranarray(NOISE)),
    "a.mrc": write_mrc,
    "a.tif": lambda path: tifffile.imwrite(path, NOISE),
    "a.nii": lambda path: nibabel.Nifti1Image(NOISE, np.eye(4)).to_filename(path),
    "a.mha": lambda path: path.write_bytes(
        b"NDims = 3\nDimSize = 90 70 20\nElementType = MET_UCHAR\nElementDataFile = LOCAL\n" + NOISE.tobytes()
    ),
    "a.nrrd": lambda path: path.write_bytes(
        b"NRRD0004\ntype: uchar\ndimension: 3\nsizes: 90 70 20\nencoding: raw\n\n" + NOISE.tobytes()
    ),
}

SHORTENED = """
import os, sys
from evenslice import VolumeError, open_volume
path, = sys.argv[1:]
volume = open_volume(path)
assert volume[0].shape
os.truncate(path, 1024)
for part in (slice(10, 12), ..., (slice(None), 1, slice(None, None, 3))):
    try:
        volume[part]
    except VolumeError as error:
        assert chr(10) not in str(error)
        print(error)
    else:
        sys.exit("read voxels that are not there")
"""


@pytest.mark.parametrize("name", WRITERS)
def test_a_file_that_is_shortened_is_an_error(name, tmp_path):
    path = tmp_path / name
    WRITERS[name](path)
    done = subprocess.run(
        [sys.executable, "-c", SHORTENED, str(path)],
        check=False,
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.returncode == 0, (done.returncode, done.stderr)
    assert done.stdout.count(f"{path}: ") == 3


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("shape", [(7, 30, 40), (3, 5, 400), (200, 3, 90)])
def test_parts_of_a_file_are_those_of_its_array(order, shape, tmp_path):
    random = np.random.default_rng(1)
    array = random.integers(0, 2**15, shape).astype(">i2")
    np.save(tmp_path / "a.npy", np.asarray(array, order=order))
    volume = open_volume(tmp_path / "a.npy")
    for _ in range(60):
        key = tuple(
            slice(start, int(random.integers(start + 1, length + 1)), int(random.integers(1, 4)))
            for length in shape
            for start in [int(random.integers(0, length))]
        )
        np.testing.assert_array_equal(volume[key], array[key])
    for z in range(shape[0]):
        plane = volume[z]
        np.testing.assert_array_equal(plane, array[z])
        plane[:] = 0  # it is the caller's
    np.testing.assert_array_equal(volume[...], array)
