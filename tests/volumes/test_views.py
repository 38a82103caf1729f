import pickle

import numpy as np
import pytest
import tifffile
import zarr
from hypothesis import given, strategies as st

from evenslice._core.errors import VolumeError
from evenslice.volumes.blocks import sample_voxels
from evenslice.volumes.info import describe_volume, fingerprint
from evenslice.volumes.opening import open_volume
from evenslice.volumes.read.zarr import ZarrSource
from evenslice.volumes.volume import (
    hold_small,
    map_voxels,
    read_in_runs,
    reslice,
    run_end,
    take_region,
    take_slices,
)


@pytest.fixture
def stack(tmp_path):
    array = np.arange(12 * 6 * 8, dtype=np.uint16).reshape(12, 6, 8)
    tifffile.imwrite(tmp_path / "stack.tif", array, compression="zlib")
    return array, open_volume(tmp_path / "stack.tif")


def negative(voxels):
    return -voxels.astype(np.int64)


@given(
    start=st.integers(0, 11), length=st.integers(1, 12), inner=st.slices(12), row=st.slices(6), column=st.slices(8)
)  # fmt: skip
def test_some_slices_read_as_the_array_does(start, length, inner, row, column):
    array = np.arange(12 * 6 * 8).reshape(12, 6, 8)
    part = take_slices(open_volume(array), start, min(start + length, 12))
    assert np.array_equal(part[inner, row, column], array[start : start + length][inner, row, column])


def test_some_slices_of_a_file(stack):
    array, volume = stack
    part = take_slices(take_slices(volume, 2, 10), 3, 6)
    assert part.shape == (3, 6, 8)
    assert part.path.endswith("stack.tif[2:10][3:6]")
    assert np.array_equal(part[...], array[5:8])
    assert np.array_equal(sample_voxels(part), array[5:8].ravel())
    assert fingerprint(part) == fingerprint(volume)
    assert describe_volume(part)["shape"] == (3, 6, 8)
    assert take_slices(volume, 0, 12) is volume


def test_slices_that_are_not_there(stack):
    for start, stop in ((-1, 3), (3, 3), (5, 13)):
        with pytest.raises(VolumeError, match="has slices 0 to 11, not"):
            take_slices(stack[1], start, stop)


def test_a_copy_in_memory_outlives_its_file(stack):
    array, volume = stack
    held = hold_small([take_slices(volume, 4, 8)])[0]
    volume.location.unlink()
    assert held.chunks is None
    assert held.path.endswith("stack.tif[4:8]")
    assert np.array_equal(pickle.loads(pickle.dumps(held))[1:, 2], array[5:8, 2])  # noqa: S301  # our own


def test_mapped_voxels(stack):
    array, volume = stack
    mapped = map_voxels(take_slices(volume, 4, 8), negative, np.int64)
    assert mapped.dtype == np.int64
    for item in (mapped, pickle.loads(pickle.dumps(mapped)), hold_small([mapped])[0]):  # noqa: S301  # our own
        assert np.array_equal(item[1:3, ::-1], negative(array[5:7, ::-1]))


class Chunked(np.ndarray):
    """An array that passes for one in chunks."""

    chunks = (4, 2, 3)


def in_chunks(array):
    return open_volume(array.view(Chunked))


def test_a_part_knows_where_its_chunks_begin():
    volume = in_chunks(np.zeros((12, 6, 9)))
    part = take_region(take_slices(volume, 3, 12), np.s_[2:, 1:, 4:])
    assert part.chunk_offset == (1, 1, 1)
    assert reslice(take_region(volume, np.s_[7:, 2:, 5:]), "x").chunk_offset == (2, 3, 0)
    assert [run_end(part, z, 4, most=64) for z in (0, 2, 3, 6)] == [3, 3, 7, 7]
    assert [run_end(part, z, 4, most=8) for z in (0, 1, 2, 3)] == [1, 3, 3, 5]


@given(
    start=st.integers(0, 7), stop=st.integers(1, 12), row=st.slices(6), column=st.slices(9),
    keys=st.lists(st.slices(12)), most=st.integers(1, 500), plane=st.sampled_from("zyx"),
)  # fmt: skip
def test_what_is_read_in_runs_is_what_the_array_holds(start, stop, row, column, keys, most, plane):
    array = np.arange(12 * 6 * 9, dtype=np.uint16).reshape(12, 6, 9)
    part = reslice(take_slices(in_chunks(array), start, 12), plane)
    held = read_in_runs(part, min(stop, len(part)), max_bytes=most)
    for key in (*range(len(part)), *keys):
        assert np.array_equal(held[key, row, column], part[key, row, column])


def test_slices_that_share_chunks_are_read_once_as_far_as_memory_allows(monkeypatch):
    reads, volume = [], take_slices(in_chunks(np.zeros((12, 6, 9), np.uint16)), 3, 12)
    source, read = type(volume._sources[0]), type(volume._sources[0]).read
    monkeypatch.setattr(source, "read", lambda self, key: reads.append(key[0]) or read(self, key))

    def ranges(most):
        reads.clear()
        held = read_in_runs(volume, 7, max_bytes=most)
        for z in range(7):
            held[z, :4]
        return [(part.start, part.stop) for part in reads]

    assert ranges(2 * 4 * 9 * 4) == [(3, 4), (4, 8), (8, 10)]
    assert ranges(2 * 4 * 9 * 2) == [(3, 4), (4, 6), (6, 8), (8, 10)]
    assert ranges(1) == [(z, z + 1) for z in range(3, 10)]
    flat = open_volume(np.zeros((3, 4, 5)))
    assert read_in_runs(flat, 3, 2**10) is flat


def test_a_volume_that_was_sent_is_opened_once_for_all_that_is_read_in_runs(tmp_path, monkeypatch):
    zarr.create_array(tmp_path / "deep.zarr", data=np.zeros((8, 4, 4), np.uint8), chunks=(4, 4, 4))
    sent = pickle.loads(pickle.dumps(open_volume(tmp_path / "deep.zarr")))  # noqa: S301  # made here
    opened, begin = [], ZarrSource.__init__
    monkeypatch.setattr(
        ZarrSource, "__init__", lambda self, place: opened.append(place) or begin(self, place)
    )
    for _ in range(3):
        read_in_runs(sent, 8, 2**20)[2]
    assert len(opened) == 1
