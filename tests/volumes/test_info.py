"""``evenslice info``, on formats that say more, or less, than a plain TIFF; and volumes that are given twice."""

import json
import math

import h5py
import numpy as np
import pytest
import torch
from dicom_files import write_series
from PIL import Image
from volume_checks import STACK

from evenslice import ConfigError, audit, open_volume


@pytest.fixture
def info(command):
    """Run the command in this process; return what it prints, its lines joined and without the lines of tables."""

    def info(*arguments):
        result = command("info", *arguments)
        assert result.returncode == 0, result.stderr
        return " ".join(result.stdout.replace("│", " ").split())

    return info


@pytest.fixture
def described(info):
    return lambda *arguments: json.loads(info(*arguments, "--json"))


def test_dicom(described, info, tmp_path):
    write_series(tmp_path / "scan", STACK)
    expected = {
        "format": "DICOM", "shape": [6, 40, 32], "spacing": [3.0, 0.7, 0.5], "unit": "mm", "orientation": "LPS",
        "dtype": "uint16", "chunks": [1, 40, 32], "minimum": 0, "maximum": 1020, "classes": None,
        "bytes_in_memory": STACK.nbytes,
    }  # fmt: skip
    found = described(tmp_path / "scan")
    assert found | expected == found
    text = info(tmp_path / "scan")
    assert "LPS (directions of x, y, z)" in text
    assert "3 x 0.7 x 0.5 mm" in text


def test_labels_in_an_hdf5_file(info, tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["labels"] = (STACK > 509).astype(np.uint8)
    text, share = info(f"{tmp_path}/a.h5"), (STACK > 509).mean()
    assert f"0: {1 - share:.2%}, 1: {share:.2%}" in text
    assert "not stated" in text  # the spacing
    assert "data set /labels" in text


def test_several_series(command, described, tmp_path):
    write_series(tmp_path, STACK, SeriesNumber=1, SeriesDescription="first")
    for path in tmp_path.iterdir():
        path.rename(tmp_path / f"a{path.name}")
    write_series(tmp_path, STACK[:4], SeriesNumber=2, SeriesDescription="second")
    assert described(tmp_path, "--select", "series=1")["shape"] == [4, 40, 32]
    assert ": holds 2 series (0: CT first (6 images, UID …" in command("info", tmp_path).stderr


def test_what_is_missing_in_the_numbering_of_a_folder_is_told(described, info, tmp_path):
    for number in (1, 2, 4, 5, *range(10, 20)):
        Image.fromarray(STACK[0]).save(tmp_path / f"z{number}.png")
    found = described(tmp_path)
    assert (found["format"], found["orientation"]) == ("folder of PNG slices", None)
    assert found["bytes_on_disk"] == sum(path.stat().st_size for path in tmp_path.iterdir())
    assert found["missing_numbers"] == [3, 6, 7, 8, 9]
    assert "missing slices 3, 6, 7, 8, 9, by the file names" in info(tmp_path)


def test_intensities(described, info, tmp_path):
    array = np.linspace(-1, 3, STACK.size, dtype=np.float32).reshape(STACK.shape)
    array[0, 0, 5] = np.nan
    np.save(tmp_path / "a.npy", array)
    found = described(tmp_path / "a.npy")
    assert (found["sampled"], found["nonfinite"]) == (STACK.size, 1)
    assert (found["minimum"], found["maximum"], found["classes"]) == (-1, 3, None)
    assert dict(found["percentiles"])[50.0] == pytest.approx(1, abs=1e-2)
    np.save(tmp_path / "a.npy", np.full((2, 2, 2), np.inf, np.float16))
    nothing = described(tmp_path / "a.npy")
    assert (nothing["nonfinite"], nothing["percentiles"]) == (nothing["sampled"], [])
    assert nothing["minimum"] is None or math.isnan(nothing["minimum"])
    np.save(tmp_path / "ids.npy", np.array([[[2**60 + 1, 2**63 + 1]]], np.uint64))
    assert f"{2**60 + 1} to {2**63 + 1} " in info(tmp_path / "ids.npy")


def test_classes(described, tmp_path):
    labels = np.zeros((2, 3, 4), np.int64)
    labels[0, 0, :3] = 2**40, 2**40 + 1, 2**40  # float32 could not tell them apart
    found = []
    for array in (labels, labels > 0, np.arange(33).reshape(1, 3, 11)):
        np.save(tmp_path / "a.npy", array)
        found.append(described(tmp_path / "a.npy")["classes"])
    assert found[0] == [[0, 21 / 24], [2**40, 2 / 24], [2**40 + 1, 1 / 24]]
    assert found[1] == [[0, 21 / 24], [1, 3 / 24]]
    assert found[2] is None


def test_a_volume_that_is_given_twice(tmp_path):
    np.save(tmp_path / "a.npy", np.random.default_rng(0).random((5, 32, 32)))
    (tmp_path / "link.npy").symlink_to(tmp_path / "a.npy")
    first, again = open_volume(tmp_path / "a.npy"), open_volume(tmp_path / "link.npy")
    with pytest.raises(ConfigError, match=r"link.npy: is given twice"):
        audit(torch.nn.Conv2d(3, 1, 1), [first, again])
