"""``evenslice info`` on formats that say more, or less, than a plain TIFF."""

import json
import subprocess
import sys

import h5py
import nibabel
import numpy as np
import zarr
from dicom_files import write_series
from PIL import Image
from typer.testing import CliRunner

from evenslice.cli.app import app
from evenslice.volumes.info import describe_volume
from evenslice.volumes.opening import open_volume

STACK = (np.arange(6 * 40 * 32) % 1021).reshape(6, 40, 32).astype(np.uint16)


def info(*arguments):
    """Run the command in this process; return what it prints, its lines joined and without the lines of tables."""
    result = CliRunner().invoke(app, ["info", *map(str, arguments)], catch_exceptions=False)
    assert result.exit_code == 0
    return " ".join(result.stdout.replace("│", " ").split())


def test_dicom(tmp_path):
    write_series(tmp_path / "scan", STACK)
    described = json.loads(info(tmp_path / "scan", "--json"))
    assert described["format"] == "DICOM"
    assert described["shape"] == [6, 40, 32]
    assert described["spacing"] == [3.0, 0.7, 0.5]
    assert (described["unit"], described["orientation"], described["dtype"]) == ("mm", "LPS", "uint16")
    assert described["chunks"] == [1, 40, 32]
    assert (described["minimum"], described["maximum"]) == (0, 1020)
    assert described["classes"] is None
    assert described["bytes_in_memory"] == STACK.nbytes
    text = info(tmp_path / "scan")
    assert "LPS (directions of x, y, z)" in text
    assert "3 x 0.7 x 0.5 mm" in text


def test_labels_in_an_hdf5_file(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["raw"] = STACK
        file["labels"] = (STACK > 509).astype(np.uint8)
    text = info(f"{tmp_path}/a.h5:/labels")
    assert "classes" in text
    share = (STACK > 509).mean()
    assert f"0: {1 - share:.2%}, 1: {share:.2%}" in text
    assert "not stated" in text  # the spacing
    with h5py.File(tmp_path / "a.h5", "r+") as file:
        del file["raw"]
    assert "data set /labels" in info(tmp_path / "a.h5")


def test_a_spacing_without_a_unit(tmp_path):
    image = nibabel.Nifti1Image(STACK.T, np.diag([0.5, 0.7, 3, 1]))
    nibabel.save(image, tmp_path / "a.nii")
    assert "spacing 3 x 0.7 x 0.5 (z, y, x), unit not stated" in info(tmp_path / "a.nii")


def test_slices_of_a_series_that_was_picked(tmp_path):
    write_series(tmp_path, STACK, SeriesNumber=1, SeriesDescription="first")
    for path in tmp_path.iterdir():
        path.rename(tmp_path / f"a{path.name}")
    write_series(tmp_path, STACK[:4], SeriesNumber=2, SeriesDescription="second")
    assert json.loads(info(tmp_path, "--select", "series=1", "--json"))["shape"] == [4, 40, 32]
    ran = subprocess.run(
        [sys.executable, "-m", "evenslice", "info", str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 2
    assert ran.stdout == ""
    assert ran.stderr.startswith(f"error: {tmp_path}: holds 2 series (0: CT first (6 images, UID …")
    assert ran.stderr.count("\n") == 1


def test_large_integers_are_exact(tmp_path):
    np.save(tmp_path / "ids.npy", np.array([[[2**60 + 1, 2**63 + 1]]], np.uint64))
    found = describe_volume(open_volume(tmp_path / "ids.npy"))
    assert (found.minimum, found.maximum) == (2**60 + 1, 2**63 + 1)
    assert f"{2**60 + 1} to {2**63 + 1} " in info(tmp_path / "ids.npy")


def test_what_is_missing_in_the_numbering_of_a_folder_is_told(tmp_path):
    for number in (1, 2, 4, 5, *range(10, 20)):
        Image.fromarray(STACK[0]).save(tmp_path / f"z{number}.png")
    described = json.loads(info(tmp_path, "--json"))
    assert (described["format"], described["orientation"]) == ("folder of PNG slices", None)
    assert described["bytes_on_disk"] == sum(path.stat().st_size for path in tmp_path.iterdir())
    assert described["missing_numbers"] == [3, 6, 7, 8, 9]
    assert "missing slices 3, 6, 7, 8, 9, by the file names" in info(tmp_path)


def test_the_files_of_a_volume_of_many_are_not_listed(tmp_path, monkeypatch):
    zarr.save(tmp_path / "many.zarr", STACK)
    files = sum(path.is_file() for path in (tmp_path / "many.zarr").rglob("*"))
    assert json.loads(info(tmp_path / "many.zarr", "--json"))["bytes_on_disk"] > 0
    monkeypatch.setattr("evenslice.volumes.info.MOST_FILES", files - 1)
    assert json.loads(info(tmp_path / "many.zarr", "--json"))["bytes_on_disk"] is None
    assert "size on disk unknown" in info(tmp_path / "many.zarr")
