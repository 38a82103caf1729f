"""Parts of volumes: slices along any axis, regions, mapped and held voxels; what they hold, and where they lie."""

import json
import pickle

import nibabel
import numpy as np
import pytest
import tifffile
import torch
import zarr
from hypothesis import given, strategies as st
from torch import nn

import evenslice
from evenslice import ConfigError, Reading, SliceWindows, VolumeError, evaluate, open_volume, segment
from evenslice.volumes import open_labels, read_in_runs
from evenslice.volumes.volume import map_voxels, run_end

STACK = np.random.default_rng(0).integers(0, 200, (12, 40, 48), dtype=np.uint8)
AFFINE = np.array([[-0.5, 0, 0, 7], [0, 0.5, 0.1, 8], [0, 0, 3, 9], [0, 0, 0, 1.0]])
REGION = np.s_[2:9, 8:, 16:48]
ORDERS = {"z": (0, 1, 2), "y": (1, 0, 2), "x": (2, 0, 1)}
PLANES = pytest.mark.parametrize("plane", ORDERS)


@pytest.fixture
def file(tmp_path):
    """A NIfTI file with an oblique position in space."""
    path = tmp_path / "stack.nii"
    nibabel.save(nibabel.Nifti1Image(STACK.T, AFFINE), path)
    return path


def again(volume):
    return pickle.loads(pickle.dumps(volume))  # noqa: S301  # our own


# What is read


@given(
    starts=st.tuples(*[st.integers(0, 4)] * 3),
    lengths=st.tuples(*[st.integers(1, 6)] * 3),
    plane=st.sampled_from("zyx"),
    key=st.tuples(st.slices(5), st.slices(6), st.slices(7)),
)
def test_a_part_reads_as_the_array_does(starts, lengths, plane, key):
    array = np.arange(5 * 6 * 7).reshape(5, 6, 7)
    region = tuple(
        slice(a, min(a + n, size)) for a, n, size in zip(starts, lengths, array.shape, strict=True)
    )
    part = open_volume(array, region=region, plane=plane, spacing=(3, 2, 1))
    expected = array[region].transpose(ORDERS[plane])
    assert np.array_equal(again(part)[key], expected[key])
    assert part.region == tuple((piece.start, piece.stop) for piece in region)
    assert part.spacing == tuple([3, 2, 1][axis] for axis in ORDERS[plane])
    assert np.array_equal(open_volume(open_volume(array, plane=plane), region=region)[...], expected)


def test_parts_of_parts(file):
    part = open_volume(file, region=REGION)
    assert (part.shape, part.path) == ((7, 32, 32), f"{file}[2:9,8:40,16:48]")
    inner = open_volume(part, region=np.s_[1:3, :4, :], plane="y")
    assert inner.region == ((3, 5), (8, 12), (16, 48))
    assert np.array_equal(inner[...], STACK[3:5, 8:12, 16:48].transpose(1, 0, 2))


@pytest.mark.parametrize(
    "region", [np.s_[0:13, :, :], np.s_[:, 5:5, :], np.s_[:, :, -3:], np.s_[:, ::2, :], np.s_[:, :]]
)
def test_regions_and_planes_that_are_not_there(region):
    with pytest.raises(ConfigError, match="region .*without a step along each of z 0:12, y 0:40, x 0:48"):
        open_volume(STACK, region=region)
    with pytest.raises(ConfigError, match="plane='w': "):
        open_volume(STACK, plane="w")


@PLANES
@pytest.mark.parametrize("other", ORDERS)
def test_each_voxel_keeps_its_place_from_any_plane_to_any_other(file, plane, other):
    plain, volume, direct = (open_volume(file, plane=axis) for axis in ("z", plane, other))
    turned = open_volume(volume, plane=other)
    assert np.array_equal(turned[...], direct[...])
    assert (turned.spacing, turned.path, turned.plane) == (direct.spacing, direct.path, direct.plane)
    assert np.array_equal(turned.affine, direct.affine)
    place = (2, 3, 5)
    z, y, x = (place[axis] for axis in ORDERS[other])
    expected = plain.affine @ [*place[::-1], 1]
    assert np.allclose(turned.affine @ [x, y, z, 1], expected)
    part = open_volume(turned, region=[slice(int(axis == other), None) for axis in "zyx"])
    assert np.allclose(part.affine @ [x, y, z - 1, 1], expected)


@PLANES
def test_mapped_voxels_and_a_copy_in_memory_that_outlives_its_file(tmp_path, plane):
    tifffile.imwrite(tmp_path / "stack.tif", STACK, compression="zlib")
    part = open_volume(tmp_path / "stack.tif", plane=plane, region=REGION)
    expected = np.negative(STACK[REGION].transpose(ORDERS[plane]))
    mapped = map_voxels(part, np.negative, np.uint8)
    held = SliceWindows(part, reading=Reading(intensity=(0, 255)))
    assert np.array_equal(again(mapped)[1:3, ::-1], expected[1:3, ::-1])
    (tmp_path / "stack.tif").unlink()
    middle = np.stack([window[1] for window in again(held)])
    assert np.allclose(middle, STACK[REGION].transpose(ORDERS[plane]) / 255)


# What is decoded


class Chunked(np.ndarray):
    """An array that passes for one in chunks, and notes what is read of it."""

    chunks = (4, 2, 3)
    asked: list = []  # noqa: RUF012  # one for all

    def __getitem__(self, key):
        if isinstance(key, tuple):
            Chunked.asked.append((key[0].start, key[0].stop))
        return super().__getitem__(key)


def in_chunks(array, start=0, plane="z"):
    return open_volume(array.view(Chunked), region=np.s_[start:, :, :], plane=plane)


def test_a_part_knows_where_its_chunks_begin():
    part = open_volume(in_chunks(np.zeros((12, 6, 9)), 3), region=np.s_[2:, 1:, 4:])
    assert part.chunk_offset == (1, 1, 1)
    assert open_volume(part, plane="x").chunk_offset == (1, 1, 1)
    assert [run_end(part, z, 4, most=64) for z in (0, 2, 3, 6)] == [3, 3, 7, 7]
    assert [run_end(part, z, 4, most=8) for z in (0, 1, 2, 3)] == [1, 3, 3, 5]


@given(
    start=st.integers(0, 7), stop=st.integers(1, 12), row=st.slices(6), column=st.slices(9),
    keys=st.lists(st.slices(12), max_size=4), most=st.integers(1, 500), plane=st.sampled_from("zyx"),
)  # fmt: skip
def test_what_is_read_in_runs_is_what_the_array_holds(start, stop, row, column, keys, most, plane):
    array = np.arange(12 * 6 * 9, dtype=np.uint16).reshape(12, 6, 9)
    part = in_chunks(array, start, plane)
    held = read_in_runs(part, min(stop, len(part)), max_bytes=most)
    for key in (*range(len(part)), *keys):
        assert np.array_equal(held[key, row, column], part[key, row, column])


def test_slices_that_share_chunks_are_read_once_as_far_as_memory_allows():
    volume = in_chunks(np.zeros((12, 6, 9), np.uint16), 3)

    def ranges(most):
        held = read_in_runs(volume, 7, max_bytes=most)
        Chunked.asked.clear()
        for z in range(7):
            held[z, :4]
        return Chunked.asked

    assert ranges(2 * 4 * 9 * 4) == [(3, 4), (4, 8), (8, 10)]
    assert ranges(2 * 4 * 9 * 2) == [(3, 4), (4, 6), (6, 8), (8, 10)]
    assert ranges(1) == [(z, z + 1) for z in range(3, 10)]
    flat = open_volume(np.zeros((3, 4, 5)))
    assert read_in_runs(flat, 3, 2**10) is flat


def test_a_volume_that_was_sent_is_opened_once_for_all_that_is_read_in_runs(tmp_path, monkeypatch):
    zarr.create_array(tmp_path / "deep.zarr", data=np.zeros((8, 4, 4), np.uint8), chunks=(4, 4, 4))
    volume = open_volume(tmp_path / "deep.zarr")
    source, opened = type(volume._source()), []
    begin = source.__init__
    monkeypatch.setattr(source, "__init__", lambda self, place: opened.append(place) or begin(self, place))
    sent = again(volume)
    for _ in range(3):
        read_in_runs(sent, 8, 2**20)[2]
    assert len(opened) == 1


def test_only_the_chunks_of_a_region_are_read(tmp_path):
    zarr.create_array(tmp_path / "a.zarr", data=STACK, chunks=(4, 8, 8))
    for file in (tmp_path / "a.zarr" / "c").rglob("*"):
        if file.is_file() and file.parts[-3:] != ("1", "1", "2"):
            file.write_bytes(b"damaged")
    part = open_volume(tmp_path / "a.zarr", region=np.s_[4:8, 8:16, 16:24])
    assert np.array_equal(part[...], STACK[4:8, 8:16, 16:24])


# Labels, segmentations, audits and commands


@pytest.mark.parametrize("plane", ["z", "y"])
@pytest.mark.parametrize("stored", ["array", "file"])
def test_a_file_of_labels_of_the_whole_image_gets_its_region(file, tmp_path, stored, plane):
    part = open_volume(STACK if stored == "array" else file, region=REGION, plane=plane)
    part = open_volume(part, region=np.s_[1:, :, :], plane=plane)
    for labels in (STACK, STACK[REGION][1:]):
        np.save(tmp_path / "labels.npy", labels)
        assert np.array_equal(open_labels(tmp_path / "labels.npy", [part])[0][...], part[...])
    np.save(tmp_path / "labels.npy", STACK[1:])
    for labels in (str(tmp_path / "labels.npy"), STACK):
        with pytest.raises(VolumeError, match="labels of shape"):
            open_labels(labels, [part])


def bright(classes=2, in_channels=3, of=1):
    """Return a network, as a convolution, that finds bright voxels in a slice of a window of three."""
    layer = nn.Conv2d(3, 2, 1).requires_grad_(False)
    layer.weight.zero_()[:, of] = torch.tensor([-1.0, 1])[:, None, None]
    layer.bias[:] = torch.tensor([0.5, -0.5])
    return nn.Sequential(layer)


def bright_before(volume):
    """Return where the slice before is bright; windows at the end are mirrored."""
    return np.concatenate([volume[1:2], volume[:-1]]) > 100


@PLANES
@pytest.mark.parametrize("name", ["labels.nii.gz", "labels.ome.zarr"])
def test_segment_writes_a_region_in_the_order_of_the_file(file, tmp_path, plane, name):
    volume = open_volume(file, plane=plane, region=REGION)
    reading = Reading(intensity=(0, 200), label_values=[0, 7])
    labels = segment(bright(of=0), volume, tmp_path / name, reading=reading)
    assert labels.plane == "z"
    assert np.array_equal(labels[...], np.transpose(bright_before(volume), np.argsort(ORDERS[plane])) * 7)
    assert labels.spacing == pytest.approx((3.0, np.hypot(0.5, 0), 0.5), rel=0.05)
    if name.endswith("nii.gz"):
        assert np.allclose(labels.affine, open_volume(file, region=REGION).affine)


@pytest.mark.slow
def test_an_audit_and_an_evaluation_along_another_axis():
    after = nn.Conv2d(3, 1, 1, bias=False)
    after.weight.data = torch.tensor([0.0, 0.25, 0.75])[None, :, None, None]
    data = np.random.default_rng(0).random((32, 40, 32))
    volume, turned = open_volume(data, plane="y"), data.transpose(1, 0, 2)
    found = evenslice.audit(
        after.requires_grad_(False),
        volume,
        compute=evenslice.Compute(dtype="float32"),
        sampling=evenslice.Sampling(max_windows=16),
        target="sum",
    )
    assert (found.run.volumes[0].path, found.run.volumes[0].shape) == ("<array> along y", (40, 32, 32))
    assert found.shares[2].estimate == pytest.approx(0.75)
    reading = Reading(intensity=(0, 1))
    scores = evaluate(bright(of=0), volume, data > 0.5, reading=reading, surfaces=False)
    assert scores.dice == evaluate(bright(of=0), turned, turned > 0.5, reading=reading, surfaces=False).dice


def test_the_option(command, file):
    found = command("info", file, "--region", "2:9,8:,16:48", "--json")
    assert json.loads(found.stdout)["region"] == [[2, 9], [8, 40], [16, 48]]
    assert "2:9, 8:40, 16:48 of the file" in command("info", file, "--region", " 2:9, 8:, 16:48").stdout
    for wrong in ("2:9", "a:b,:,:", "2:13,:,:"):
        found = command("info", file, f"--region={wrong}")
        assert (found.returncode, found.stderr.count("\n")) == (2, 1)
        assert found.stderr.startswith("error: ")


@pytest.mark.slow
def test_commands_on_a_region(command, file, tmp_path):
    tifffile.imwrite(tmp_path / "labels.tif", (STACK > 100).astype(np.uint8))
    network = ("--model", "test_views:bright", "--weights", "none", "--slices", 3, "--mean", 0, "--std", 1)
    volume = ("--volume", file, "--region", "2:11,8:,16:48", "--intensity", 0, 200, "--dtype", "float32")

    def succeed(name, *arguments):
        found = command(name, *network, *volume, *arguments)
        assert found.returncode == 0, found.stderr
        return found.stdout

    succeed("segment", "--out", tmp_path / "out.nii.gz")
    assert np.array_equal(open_volume(tmp_path / "out.nii.gz")[...], STACK[2:11, 8:, 16:48] > 100)
    succeed("segment", "--spacing", 5, 1, 1, "--unit", "um", "--out", tmp_path / "out.ome.zarr")
    placed = open_volume(tmp_path / "out.ome.zarr")
    assert (placed.spacing, placed.unit) == ((5, 1, 1), "um")
    for labels in ("labels.tif", "out.nii.gz"):  # of the whole file, and of the region alone
        found = json.loads(succeed("evaluate", "--labels", tmp_path / labels, "--no-surfaces", "--json"))
        assert (found["dice"]["mean"], found["volume"]["region"]) == (1, [[2, 11], [8, 40], [16, 48]])
    succeed("audit", "--max-windows", 8, "--out", tmp_path / "audit")
    (audited,) = evenslice.load_audits(tmp_path / "audit")[0].run.volumes
    assert (audited.region, audited.shape) == (((2, 11), (8, 40), (16, 48)), (9, 32, 32))
    assert "stack.nii[2:11,8:40,16:48]" in (tmp_path / "audit" / "report.html").read_text()
