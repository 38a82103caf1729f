"""``evenslice info``, on formats that say more, or less, than a plain TIFF; and which image a volume was read from."""

import json
import math
import subprocess
import sys

import h5py
import nibabel
import numpy as np
import pytest
import zarr
from chunked_files import write_n5
from dicom_files import write_series
from PIL import Image
from typer.testing import CliRunner
from volume_checks import STACK

from evenslice import ConfigError, open_volume
from evenslice.cli.app import app
from evenslice.volumes import describe_volume, refuse_repeated, stored_image, write_volume


def info(*arguments):
    """Run the command in this process; return what it prints, its lines joined and without the lines of tables."""
    result = CliRunner().invoke(app, ["info", *map(str, arguments)], catch_exceptions=False)
    assert result.exit_code == 0
    return " ".join(result.stdout.replace("│", " ").split())


def test_dicom(tmp_path):
    write_series(tmp_path / "scan", STACK)
    described = json.loads(info(tmp_path / "scan", "--json"))
    assert (
        described
        | {
            "format": "DICOM",
            "shape": [6, 40, 32],
            "spacing": [3.0, 0.7, 0.5],
            "unit": "mm",
            "orientation": "LPS",
            "dtype": "uint16",
            "chunks": [1, 40, 32],
            "minimum": 0,
            "maximum": 1020,
            "classes": None,
            "bytes_in_memory": STACK.nbytes,
        }
        == described
    )
    text = info(tmp_path / "scan")
    assert "LPS (directions of x, y, z)" in text
    assert "3 x 0.7 x 0.5 mm" in text


def test_labels_in_an_hdf5_file(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["labels"] = (STACK > 509).astype(np.uint8)
    text, share = info(f"{tmp_path}/a.h5"), (STACK > 509).mean()
    assert f"0: {1 - share:.2%}, 1: {share:.2%}" in text
    assert "not stated" in text  # the spacing
    assert "data set /labels" in text


def test_a_spacing_without_a_unit(tmp_path):
    nibabel.save(nibabel.Nifti1Image(STACK.T, np.diag([0.5, 0.7, 3, 1])), tmp_path / "a.nii")
    assert "spacing 3 x 0.7 x 0.5 (z, y, x), unit not stated" in info(tmp_path / "a.nii")


@pytest.mark.slow
def test_several_series(tmp_path):
    write_series(tmp_path, STACK, SeriesNumber=1, SeriesDescription="first")
    for path in tmp_path.iterdir():
        path.rename(tmp_path / f"a{path.name}")
    write_series(tmp_path, STACK[:4], SeriesNumber=2, SeriesDescription="second")
    assert json.loads(info(tmp_path, "--select", "series=1", "--json"))["shape"] == [4, 40, 32]
    command = [sys.executable, "-m", "evenslice", "info", str(tmp_path)]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stdout, ran.stderr.count("\n")) == (2, "", 1)
    assert ran.stderr.startswith(f"error: {tmp_path}: holds 2 series (0: CT first (6 images, UID …")


def test_large_integers_are_exact(tmp_path):
    np.save(tmp_path / "ids.npy", np.array([[[2**60 + 1, 2**63 + 1]]], np.uint64))
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
    assert describe_volume(open_volume(tmp_path / "many.zarr"))["bytes_on_disk"] > 0
    monkeypatch.setattr("evenslice.volumes.info.MOST_FILES", files - 1)
    assert "size on disk unknown" in info(tmp_path / "many.zarr")


def test_intensities(tmp_path):
    array = np.linspace(-1, 3, STACK.size, dtype=np.float32).reshape(STACK.shape)
    array[0, 0, 5] = np.nan
    np.save(tmp_path / "a.npy", array)
    found = describe_volume(open_volume(tmp_path / "a.npy"))
    assert (found["sampled"], found["nonfinite"]) == (STACK.size, 1)
    assert (found["minimum"], found["maximum"], found["classes"]) == (-1, 3, None)
    assert dict(found["percentiles"])[50.0] == pytest.approx(1, abs=1e-2)
    nothing = describe_volume(open_volume(np.full((2, 2, 2), np.inf, np.float16)))
    assert nothing["nonfinite"] == nothing["sampled"] == 8
    assert math.isnan(nothing["minimum"])
    assert nothing["percentiles"] == ()


def test_classes():
    labels = np.zeros((2, 3, 4), np.int64)
    labels[0, 0, :3] = 2**40, 2**40 + 1, 2**40  # float32 could not tell them apart
    found = [describe_volume(open_volume(array))["classes"] for array in (labels, labels > 0)]
    assert found[0] == ((0, 21 / 24), (2**40, 2 / 24), (2**40 + 1, 1 / 24))
    assert found[1] == ((0, 21 / 24), (1, 3 / 24))
    assert describe_volume(open_volume(np.arange(33).reshape(1, 3, 11)))["classes"] is None


# Which image a volume was read from


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shape", "spacing", "match"), [((8, 300, 300), (50, 4, 4), True), ((300,) * 3, (4,) * 3, False)]
)
def test_slice_numbers_mean_the_same_at_levels_with_as_many_slices(tmp_path, shape, spacing, match):
    """As of thick slices, whose pyramid only halves y and x."""
    path = tmp_path / "image.ome.zarr"
    write_volume(open_volume(np.zeros(shape, np.uint8), spacing=spacing, unit="nm"), path)
    fine = stored_image(open_volume(path))
    for volume in (open_volume(path, level=1), open_volume(path / "1")):
        coarse = stored_image(volume)
        assert (coarse == fine, coarse.level, fine.slices_match(coarse)) == (True, 1, match)


def test_data_sets_of_a_container_are_no_levels(tmp_path):
    for name in ("s1", "s2", "image/s0", "image/s1"):
        write_n5(tmp_path / name, STACK)
    (tmp_path / "attributes.json").write_text('{"n5": "2.5.0"}')
    one, other = (stored_image(open_volume(tmp_path / name)) for name in ("s1", "s2"))
    assert one != other
    image = tmp_path / "image"
    assert stored_image(open_volume(image / "s1")) == stored_image(open_volume(image, level=0))


def test_what_is_one_image_and_what_is_not(tmp_path):
    assert stored_image(open_volume(STACK)) != stored_image(open_volume(STACK + 1))
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["raw"] = STACK
        file["other"] = STACK
        file["link"] = h5py.SoftLink("/raw")
    raw, other, link = (open_volume(f"{tmp_path}/a.h5:/{name}") for name in ("raw", "other", "link"))
    assert stored_image(raw) == stored_image(link) != stored_image(other)
    refuse_repeated([raw, other])
    with pytest.raises(ConfigError, match="/link: is given twice"):
        refuse_repeated([raw, other, link])
