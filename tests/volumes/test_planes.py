"""Volumes sliced along another axis: what is read, where it lies, and how it is written back."""

import pickle

import numpy as np
import pytest
import torch
from torch import nn

import evenslice
from evenslice import ConfigError, Reading, open_volume, segment
from evenslice.volumes import write_volume
from evenslice.volumes.info import fingerprint
from evenslice.volumes.volume import hold_small, map_voxels, reslice, take_slices

ORDERS = {"z": (0, 1, 2), "y": (1, 0, 2), "x": (2, 0, 1)}
PLANES = pytest.mark.parametrize("plane", ORDERS)


@pytest.fixture
def stack():
    return np.random.default_rng(0).integers(0, 200, (6, 8, 10), dtype=np.uint8)


@pytest.fixture
def file(stack, tmp_path):
    """A NIfTI file with an oblique position in space."""
    path = tmp_path / "stack.nii.gz"
    write_volume(open_volume(stack, spacing=(3.0, 2.0, 1.0), unit="mm"), path)
    return path


@PLANES
def test_slices_are_those_along_the_axis(stack, file, plane):
    volume = open_volume(file, plane=plane)
    expected = stack.transpose(ORDERS[plane])
    assert volume.shape == expected.shape
    assert volume.spacing == tuple(np.array([3.0, 2.0, 1.0])[list(ORDERS[plane])])
    assert np.array_equal(volume[...], expected)
    assert np.array_equal(volume[2:4, ::-2, 3], expected[2:4, ::-2, 3])
    again = pickle.loads(pickle.dumps(volume))  # noqa: S301  # our own
    assert np.array_equal(again[1], expected[1])


@PLANES
@pytest.mark.parametrize("other", ORDERS)
def test_from_any_plane_to_any_other(file, plane, other):
    volume = open_volume(file, plane=plane)
    turned = reslice(volume, other)
    direct = open_volume(file, plane=other)
    assert np.array_equal(turned[...], direct[...])
    assert (turned.spacing, turned.path, turned.plane) == (direct.spacing, direct.path, direct.plane)
    assert np.array_equal(turned.affine, direct.affine)
    assert fingerprint(turned) == fingerprint(direct) == fingerprint(open_volume(file))


@PLANES
def test_each_voxel_keeps_its_place_in_the_patient(stack, file, plane):
    plain, volume = open_volume(file), open_volume(file, plane=plane)
    place = (2, 3, 5)
    moved = [place[axis] for axis in ORDERS[plane]]
    expected = plain.affine @ [*place[::-1], 1]
    assert np.allclose(volume.affine @ [*moved[::-1], 1], expected)
    part = take_slices(volume, 1, 5)
    assert np.allclose(part.affine @ [moved[2], moved[1], moved[0] - 1, 1], expected)


@PLANES
def test_what_is_made_of_it_stays_in_its_plane(stack, file, plane):
    volume = open_volume(file, plane=plane)
    part = map_voxels(hold_small([take_slices(volume, 1, 5)])[0], np.negative, np.uint8)
    assert np.array_equal(-part[...], volume[1:5])
    assert np.array_equal(-reslice(part, "z")[...], reslice(take_slices(volume, 1, 5), "z")[...])


def test_no_such_plane(stack):
    with pytest.raises(ConfigError, match="plane='w': "):
        open_volume(stack, plane="w")


class Bright(nn.Module):
    """Finds bright voxels in the slice before the middle."""

    def forward(self, x):
        return torch.stack([0.5 - x[:, 0], x[:, 0] - 0.5], dim=1)


@PLANES
@pytest.mark.parametrize("name", ["labels.nii.gz", "labels.npy", "labels.ome.zarr"])
def test_segment_writes_in_the_order_of_the_file(stack, file, tmp_path, plane, name):
    volume = open_volume(file, plane=plane)
    labels = segment(
        Bright(), volume, tmp_path / name, reading=Reading(intensity=(0, 200), label_values=[0, 7])
    )
    before = np.concatenate([volume[1:2], volume[:-1]]) > 100  # windows at the end are mirrored
    expected = np.transpose(before, np.argsort(ORDERS[plane])) * 7
    assert labels.plane == "z"
    assert np.array_equal(labels[...], expected)
    if labels.spacing is not None:
        assert labels.spacing == (3.0, 2.0, 1.0)
    if name.endswith("nii.gz"):
        assert np.allclose(labels.affine, open_volume(file).affine)


def test_probabilities_are_written_in_the_order_of_the_file(stack, file, tmp_path):
    out = tmp_path / "probabilities.npy"
    last = segment(
        Bright(), open_volume(file, plane="x"), out, reading=Reading(intensity=(0, 200)), probabilities=True
    )
    assert last.shape == stack.shape
    volume = open_volume(file, plane="x")
    before = np.concatenate([volume[1:2], volume[:-1]]) > 100
    assert np.array_equal(np.load(out)[1] > 0.5, np.transpose(before, (1, 2, 0)))


def test_an_interrupted_segmentation_goes_on_in_the_same_plane_alone(file, tmp_path, monkeypatch):
    cube = open_volume(np.random.default_rng(0).integers(0, 200, (6, 6, 6), dtype=np.uint8))

    def stop(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("evenslice.inference.segmentation._write", stop)
        with pytest.raises(KeyboardInterrupt):
            segment(Bright(), reslice(cube, "y"), tmp_path / "out.npy", reading=Reading(intensity=(0, 200)))
    with pytest.raises(evenslice.OutputError, match="unfinished segmentation"):
        segment(Bright(), reslice(cube, "x"), tmp_path / "out.npy", reading=Reading(intensity=(0, 200)))
    segment(Bright(), reslice(cube, "y"), tmp_path / "out.npy", reading=Reading(intensity=(0, 200)))


def test_an_audit_and_an_evaluation_along_another_axis(stack):
    class After(nn.Module):
        def __init__(self):
            super().__init__()
            self.weights = nn.Parameter(torch.tensor([0.0, 0.25, 0.75]), requires_grad=False)

        def forward(self, x):
            return torch.einsum("bnyx,n->byx", x, self.weights)[:, None]

    random = np.random.default_rng(0)
    data = random.random((32, 40, 32))
    volume = open_volume(data, plane="y")
    found = evenslice.audit(
        After(),
        volume,
        compute=evenslice.Compute(dtype="float32"),
        sampling=evenslice.Sampling(max_windows=16),
        target="sum",
    )
    assert found.run.volumes[0].path == "<array> along y"
    assert found.run.volumes[0].shape == (40, 32, 32)
    assert found.shares[2].estimate == pytest.approx(0.75)
    scores = evenslice.evaluate(
        Bright(), volume, data > 0.5, reading=evenslice.Reading(intensity=(0, 1)), surfaces=False
    )
    turned = data.transpose(1, 0, 2)
    direct = evenslice.evaluate(
        Bright(), turned, turned > 0.5, reading=evenslice.Reading(intensity=(0, 1)), surfaces=False
    )
    assert scores.dice == direct.dice
