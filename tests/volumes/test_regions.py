"""Regions of volumes: what they hold, where they lie, and what commands say of them."""

import json
import pickle
import sys

import nibabel
import numpy as np
import pytest
import tifffile
import torch
import zarr
from hypothesis import given, strategies as st
from torch import nn

import evenslice
from evenslice import ConfigError, Reading, open_volume, segment
from evenslice.cli import main
from evenslice.results import AuditResult
from evenslice.volumes.info import describe_volume, fingerprint
from evenslice.volumes.labels import open_labels
from evenslice.volumes.read.chunk_files import ChunkFiles
from evenslice.volumes.volume import take_region, take_slices

STACK = np.random.default_rng(0).integers(0, 200, (12, 40, 48), dtype=np.uint8)
AFFINE = np.array([[-0.5, 0, 0, 7], [0, 0.5, 0.1, 8], [0, 0, 3, 9], [0, 0, 0, 1.0]])
REGION = np.s_[2:9, 8:, 16:48]


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "stack.nii"
    nibabel.save(nibabel.Nifti1Image(STACK.T, AFFINE), path)
    return path


class Bright(nn.Module):
    """Finds bright voxels."""

    def forward(self, x):
        middle = x[:, x.shape[1] // 2]
        return torch.stack([0.5 - middle, middle - 0.5], dim=1)


def bright(classes=2, in_channels=3):
    """Return such a network as a convolution, for the command line."""
    layer = nn.Conv2d(3, 2, 1)
    with torch.no_grad():
        layer.weight[:] = torch.tensor([[0.0, -1, 0], [0, 1, 0]])[..., None, None]
        layer.bias[:] = torch.tensor([0.5, -0.5])
    return nn.Sequential(layer)


@given(
    starts=st.tuples(*[st.integers(0, 4)] * 3),
    lengths=st.tuples(*[st.integers(1, 6)] * 3),
    plane=st.sampled_from("zyx"),
)
def test_a_region_reads_as_the_array_does(starts, lengths, plane):
    array = np.arange(5 * 6 * 7).reshape(5, 6, 7)
    region = tuple(
        slice(a, min(a + n, size)) for a, n, size in zip(starts, lengths, array.shape, strict=True)
    )
    part = open_volume(array, region=region, plane=plane, spacing=(3, 2, 1))
    order = {"z": (0, 1, 2), "y": (1, 0, 2), "x": (2, 0, 1)}[plane]
    assert np.array_equal(part[...], array[region].transpose(order))
    assert part.region == tuple((piece.start, piece.stop) for piece in region)
    assert part.spacing == tuple([3, 2, 1][axis] for axis in order)
    again = pickle.loads(pickle.dumps(part))  # noqa: S301  # our own
    assert np.array_equal(again[0], part[0])
    assert np.array_equal(take_region(open_volume(array, plane=plane), region)[...], part[...])


def test_a_region_keeps_its_place(file):
    whole, part = open_volume(file), open_volume(file, region=REGION)
    assert part.shape == (7, 32, 32)
    assert part.path == f"{file}[2:9,8:40,16:48]"
    assert np.allclose(part.affine @ [1, 2, 3, 1], whole.affine @ [17, 10, 5, 1])
    inner = open_volume(part, region=np.s_[1:3, :4, :], plane="y")
    assert inner.region == ((3, 5), (8, 12), (16, 48))
    assert np.array_equal(inner[...], STACK[3:5, 8:12, 16:48].transpose(1, 0, 2))
    assert np.array_equal(take_slices(part, 1, 3)[...], STACK[3:5, 8:, 16:48])
    assert fingerprint(part) == fingerprint(whole)
    assert describe_volume(part)["region"] == ((2, 9), (8, 40), (16, 48))
    assert whole.region is None


@pytest.mark.parametrize(
    "region",
    [
        np.s_[0:13, :, :],
        np.s_[:, 5:5, :],
        np.s_[:, :, -3:],
        np.s_[: 12 / 5, :, :],
        np.s_[:, ::2, :],
        np.s_[:, :],
        np.s_[1, :, :],
    ],
)
def test_regions_that_are_not_there(region):
    with pytest.raises(
        ConfigError, match="region .*one slice without a step along each of z 0:12, y 0:40, x 0:48"
    ):
        open_volume(STACK, region=region)


def test_only_the_chunks_of_a_region_are_read(tmp_path, monkeypatch):
    zarr.create_array(tmp_path / "a.zarr", data=STACK, chunks=(4, 8, 8))
    part = open_volume(tmp_path / "a.zarr", region=np.s_[4:8, 8:16, 16:24])
    asked = []
    read = ChunkFiles.read
    monkeypatch.setattr(
        ChunkFiles, "read", lambda files, name, *more: asked.append(name) or read(files, name, *more)
    )
    assert np.array_equal(part[...], STACK[4:8, 8:16, 16:24])
    assert asked == ["c/1/1/2"]


@pytest.mark.parametrize("plane", ["z", "y"])
@pytest.mark.parametrize("stored", ["array", "file"])
def test_a_file_of_labels_of_the_whole_image_gets_its_region(file, tmp_path, stored, plane):
    np.save(tmp_path / "labels.npy", STACK)
    part = open_volume(STACK if stored == "array" else file, region=REGION, plane=plane)
    part = take_region(part, np.s_[1:, :, :])
    assert np.array_equal(open_labels(tmp_path / "labels.npy", part)[...], part[...])
    assert np.array_equal(open_labels(str(tmp_path / "labels.npy"), part)[...], part[...])
    np.save(tmp_path / "labels.npy", STACK[REGION][1:])
    assert np.array_equal(open_labels(tmp_path / "labels.npy", part)[...], part[...])
    np.save(tmp_path / "labels.npy", STACK[1:])
    for labels in (tmp_path / "labels.npy", STACK):
        with pytest.raises(evenslice.VolumeError, match="labels of shape"):
            open_labels(labels, part)


@pytest.mark.parametrize("plane", ["z", "x"])
def test_the_segmentation_of_a_region(file, tmp_path, plane):
    part = open_volume(file, region=REGION, plane=plane)
    labels = segment(Bright(), part, tmp_path / "labels.nii.gz", reading=Reading(intensity=(0, 200)))
    assert np.array_equal(labels[...], STACK[REGION] > 100)
    assert np.allclose(labels.affine, open_volume(file, region=REGION).affine)


# Commands


@pytest.fixture
def run(monkeypatch, capsys):
    """Run the command line within this process; return its status, output and errors."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["evenslice", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            main()
        captured = capsys.readouterr()
        return end.value.code or 0, captured.out, captured.err

    return run


def test_the_option(run, file):
    status, out, _ = run("info", file, "--region", "2:9,8:,16:48", "--json")
    assert status == 0
    assert json.loads(out)["region"] == [[2, 9], [8, 40], [16, 48]]
    assert "2:9, 8:40, 16:48 of the file" in run("info", file, "--region", " 2:9, 8:, 16:48")[1]
    for wrong in ("2:9", "a:b,:,:", "2,3,4"):
        status, _, said = run("info", file, f"--region={wrong}")
        assert status == 2
        assert "bounds along z, y and x are needed, such as 0:16,:,100:612" in said
    status, _, said = run("info", file, "--region", "2:13,:,:")
    assert status == 2
    assert said.startswith(f"error: {file}: --region ")


def test_commands_on_a_region(run, file, tmp_path):
    tifffile.imwrite(tmp_path / "labels.tif", (STACK > 100).astype(np.uint8))
    network = ("--model", "test_regions:bright", "--weights", "none", "--slices", 3, "--mean", 0, "--std", 1)
    volume = ("--volume", file, "--region", "2:11,8:,16:48", "--intensity", 0, 200, "--dtype", "float32")
    status, _, said = run("segment", *network, *volume, "--out", tmp_path / "out.nii.gz")
    assert status == 0, said
    assert np.array_equal(open_volume(tmp_path / "out.nii.gz")[...], STACK[2:11, 8:, 16:48] > 100)
    labels = ("--labels", tmp_path / "labels.tif", "--no-surfaces", "--out", tmp_path / "scores")
    status, _, said = run("evaluate", *network, *volume, *labels)
    assert status == 0, said
    found = json.loads((tmp_path / "scores" / "result.json").read_text())
    assert found["dice"]["mean"] == 1
    assert found["volume"]["region"] == [[2, 11], [8, 40], [16, 48]]
    own = ("--labels", tmp_path / "out.nii.gz", "--no-surfaces", "--json")  # of the region alone
    status, said, wrong = run("evaluate", *network, *volume, *own)
    assert status == 0, wrong
    assert json.loads(said)["dice"]["mean"] == 1
    status, _, said = run("audit", *network, *volume, "--max-windows", 8, "--out", tmp_path / "audit")
    assert status == 0, said
    audited = json.loads((tmp_path / "audit" / "audit.json").read_text())["volumes"][0]
    assert audited["region"] == [[2, 11], [8, 40], [16, 48]]
    assert audited["shape"] == [9, 32, 32]
    assert "stack.nii[2:11,8:40,16:48]" in (tmp_path / "audit" / "report.html").read_text()
    status, _, said = run("report", tmp_path / "audit")
    assert status == 0, said
    again = AuditResult.load(tmp_path / "audit" / "audit.json")
    assert again.run.volumes[0].region == ((2, 11), (8, 40), (16, 48))
