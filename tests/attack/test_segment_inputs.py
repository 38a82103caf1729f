"""Volumes that change, shrink or disappear while they are read: an error, never wrong voxels or a dead process."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import nibabel
import numpy as np
import pytest
import tifffile
import zarr
from meddling import label

from evenslice import EvensliceError

pytestmark = [pytest.mark.attack, pytest.mark.usefixtures("small_blocks")]

RANGE = (50, 250)
NOISE = 50 + (np.random.default_rng(0).random((20, 70, 90)) * 200).astype(np.uint8)


def in_place(path, part=slice(12, None)):
    np.load(path, mmap_mode="r+")[part] = 0


def without_a_trace(path):
    before = path.stat()
    in_place(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def replace_folder(path):
    zarr.create_array(path.with_name("other.zarr"), data=NOISE[::-1], chunks=(1, 70, 90))
    path.rename(path.with_name("old.zarr"))
    path.with_name("other.zarr").rename(path)


CHANGED = {
    "in place": ("image.npy", in_place, "has changed since its segmentation began"),
    "without a trace": ("image.npy", without_a_trace, "has changed since its segmentation began"),
    "in a part without fingerprint": (
        "large.npy",
        lambda path: in_place(path, slice(12, 14)),
        "has changed since",
    ),
    "disappears": ("image.npy", Path.unlink, "cannot be read as NumPy array"),
    "folder disappears": ("image.zarr", shutil.rmtree, "its folder has disappeared"),
    "chunk disappears": (
        "image.zarr",
        lambda path: shutil.rmtree(path / "c" / "15"),
        "has changed since its segmentation began",
    ),
    "folder is replaced": ("image.zarr", replace_folder, "has changed since its segmentation began"),
}


@pytest.mark.parametrize("way", CHANGED)
def test_a_volume_that_changes_meanwhile_ends_with_one_line(tmp_path, monkeypatch, way):
    name, harm, message = CHANGED[way]
    path, kept, out = tmp_path / name, tmp_path / "kept", tmp_path / "labels.npy"
    if name == "large.npy":
        monkeypatch.setattr("evenslice.volumes.info.WHOLE_BYTES", 1000)
        monkeypatch.setattr("evenslice.volumes.info.END_BYTES", 100)
    if name == "image.zarr":
        zarr.create_array(path, data=NOISE, chunks=(1, 70, 90))
        shutil.copytree(path, kept)
        time.sleep(0.05)  # the clock of a file system is coarse
    else:
        np.save(path, NOISE)
        shutil.copy2(path, kept)
    with pytest.raises(EvensliceError, match=message) as caught:
        label(path, out, lambda number: harm(path) if number == 2 else None, intensity=RANGE)
    assert "\n" not in str(caught.value)
    assert not out.exists()
    if path.is_dir():
        shutil.rmtree(path)
    kept.replace(path)
    np.testing.assert_array_equal(label(path, out, intensity=RANGE)[...], NOISE > 150)


WRITERS = {
    "a.npy": lambda path: np.save(path, NOISE),
    "a.tif": lambda path: tifffile.imwrite(path, NOISE),
    "a.nii": lambda path: nibabel.Nifti1Image(NOISE, np.eye(4)).to_filename(path),
    "a.nrrd": lambda path: path.write_bytes(
        b"NRRD0004\ntype: uchar\ndimension: 3\nsizes: 90 70 20\nencoding: raw\n\n" + NOISE.tobytes()
    ),
}

SHORTENED = """
import os, sys
from evenslice import VolumeError, open_volume
for path in sys.argv[1:]:
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


@pytest.mark.slow
def test_a_file_that_is_shortened_is_an_error(tmp_path):
    for name, write in WRITERS.items():
        write(tmp_path / name)
    paths = [str(tmp_path / name) for name in WRITERS]
    command = [sys.executable, "-c", SHORTENED, *paths]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, (done.returncode, done.stderr)
    assert [done.stdout.count(f"{path}: ") for path in paths] == [3] * len(paths)
