"""Volumes of 100 TB: what is planned, sampled and read of them does not grow with them."""

import os
import pickle
from itertools import product

import numpy as np
import pytest
import zarr
from chunk_server import serving

from evenslice import Reading, Scaling, VolumeError, open_volume
from evenslice.volumes import WindowGrid, fingerprint, modified

HUGE = (98_304, 32_768, 32_768)
CHUNK = (16, 64, 64)


class Noise:
    """An array that is made when it is read, and counts the voxels."""

    dtype = np.dtype(np.float32)

    def __init__(self, shape=HUGE, chunks=CHUNK, bad=None):
        self.shape, self.chunks, self.bad, self.read = shape, chunks, bad, 0

    def __getitem__(self, key):
        shape = [len(range(*part.indices(length))) for part, length in zip(key, self.shape, strict=True)]
        self.read += int(np.prod(shape))
        voxels = np.random.default_rng([part.start for part in key]).random(shape, dtype=np.float32)
        if self.bad is not None:
            voxels[0, 0, 0] = self.bad
        return voxels


@pytest.fixture
def server():
    with serving(shape=HUGE, chunk=CHUNK, delay=0.005) as found:
        yield found


@pytest.mark.slow
def test_a_window_asks_for_the_chunks_under_it_once_each(server):
    volume = open_volume(server.address)
    for step, z, y, x in ((1, 1000, 256, 512), (1, 15, 100, 30_000), (2, 40_000, 64, 0), (20, 333, 7, 65)):
        grid = WindowGrid(volume, Scaling(0, 255), 5, (128, 128), step=step)
        server.asked.clear()
        window = grid.read(z, y, x)
        slices = [z + step * k for k in range(-2, 3)]
        under = [
            sorted({z // CHUNK[0] for z in slices}),
            range(y // CHUNK[1], (y + 127) // CHUNK[1] + 1),
            range(x // CHUNK[2], (x + 127) // CHUNK[2] + 1),
        ]
        assert sorted(server.asked) == sorted(product(*under))
        for place, voxels in zip(slices, window, strict=True):
            chunk = server.voxels((place // 16, (y + 5) // 64, (x + 9) // 64))
            assert voxels[5, 9] == np.float32(chunk[place % 16, (y + 5) % 64, (x + 9) % 64]) * np.float32(
                1 / 255
            )


@pytest.mark.slow
def test_the_intensity_range_of_a_huge_volume_takes_a_sample_read_several_at_a_time(server):
    volume = open_volume(server.address)
    assert 0 <= Reading().fit_scaling(volume).low <= 3
    assert len(server.asked) == len(set(server.asked)) <= 1024
    assert 1 < server.at_once <= 8
    server.asked.clear()
    first = fingerprint(volume)
    assert len(server.asked) == len(set(server.asked)) == 2 + 32
    assert fingerprint(open_volume(server.address)) == first


@pytest.mark.slow
def test_what_is_made_of_a_remote_volume_has_its_fingerprint(server):
    """A training records its parts, cut and held in memory; an audit the volume as it was opened."""
    volume = open_volume(server.address)
    parts = [open_volume(volume, region=np.s_[2:40, :, :]), open_volume(volume, plane="x")]
    parts.append(open_volume(volume, region=np.s_[0:8, 0:8, 0:8]))
    assert {fingerprint(pickle.loads(pickle.dumps(part))) for part in parts} == {fingerprint(volume)}  # noqa: S301


def test_the_fingerprint_of_a_huge_array_takes_a_sample():
    array = Noise()
    first = fingerprint(open_volume(array))
    assert first.startswith("sha256-partial:")
    assert array.read <= 256 * 2**16 + 100  # in whole chunks
    assert fingerprint(open_volume(Noise())) == first
    assert fingerprint(open_volume(Noise(bad=0.5))) != first


def test_the_fingerprint_of_a_folder_of_many_files_lists_no_more_than_agreed(tmp_path, monkeypatch):
    voxels = np.random.default_rng(0).integers(0, 255, (8, 32, 32), dtype=np.uint8)
    for name, array in (("a", voxels), ("b", voxels), ("c", voxels + 1)):
        zarr.create_array(tmp_path / f"{name}.zarr", data=array, chunks=(2, 8, 8))
    volumes = [open_volume(tmp_path / f"{name}.zarr") for name in "abc"]
    assert fingerprint(volumes[0]).startswith("sha256:")
    monkeypatch.setattr("evenslice.volumes.info.MOST_LISTED", 20)
    first, same, other = (fingerprint(volume) for volume in volumes)
    assert first.startswith("sha256-partial:")
    assert first == same != other
    assert fingerprint(open_volume(volumes[0], region=np.s_[2:4, :, :])) == first


def test_a_folder_of_many_files_is_known_to_be_unmodified_without_a_list_of_them(tmp_path):
    voxels = np.random.default_rng(0).integers(0, 255, (8, 32, 32), dtype=np.uint8)
    zarr.create_array(tmp_path / "a.zarr", data=voxels, chunks=(2, 8, 8))
    volume = open_volume(tmp_path / "a.zarr")
    found = [modified(volume), modified(volume)]
    os.utime(tmp_path / "a.zarr" / "c" / "3" / "1" / "2", ns=(0, 0))
    found.append(modified(volume))
    (tmp_path / "a.zarr" / "c" / "3" / "1" / "2").unlink()
    found.append(modified(volume))
    assert found[0] == found[1]
    assert len(set(found)) == 3


def test_nan_in_a_huge_volume_is_reported_without_reading_it_whole(monkeypatch):
    monkeypatch.delattr("evenslice.volumes.windows.check_finite")
    volume = open_volume(Noise(bad=np.nan))
    with pytest.raises(
        VolumeError, match=r"\d+ of \d+ voxels of a sample are NaN or infinite; to accept .* as fill"
    ):
        Reading().fit_scaling(volume)
    grid = WindowGrid(volume, Scaling(0, 1), 3, (64, 64))
    with pytest.raises(
        VolumeError, match=r"1 of 12288 voxels of the window at z, y, x = \(9, 64, 128\) are NaN"
    ):
        grid.read(9, 64, 128)
    assert volume._source().array.read < 20_000_000
