"""Arrays of other libraries than NumPy are volumes, read in pieces."""

import dask.array as da
import h5py
import numpy as np
import pytest
import torch
import zarr

from evenslice import ConfigError, VolumeError, open_volume
from evenslice.volumes import reslice

VOXELS = np.arange(6 * 7 * 8, dtype=np.int16).reshape(6, 7, 8)


@pytest.fixture(params=["dask", "zarr", "h5py", "memmap"])
def array(request, tmp_path):
    if request.param == "dask":
        return da.from_array(VOXELS, chunks=(2, 7, 8))
    if request.param == "zarr":
        return zarr.array(VOXELS, chunks=(2, 7, 8))
    if request.param == "h5py":
        return h5py.File(tmp_path / "file.h5", "w").create_dataset("voxels", data=VOXELS, chunks=(2, 7, 8))
    np.save(tmp_path / "file.npy", VOXELS)
    return np.load(tmp_path / "file.npy", mmap_mode="r")


def test_voxels_are_read_when_indexed(array):
    volume = open_volume(array, spacing=(3, 1, 1), unit="um")
    assert (volume.shape, volume.dtype, volume.spacing) == ((6, 7, 8), np.int16, (3.0, 1.0, 1.0))
    assert volume.chunks == (None if isinstance(array, np.ndarray) else (2, 7, 8))
    part = volume[1:5:2, ::-1, 3]
    assert np.array_equal(part, VOXELS[1:5:2, ::-1, 3])
    assert type(part) is np.ndarray
    part[:] = 0  # the caller's own
    assert np.array_equal(reslice(volume, "x")[2], VOXELS[:, :, 2])


def test_only_what_is_indexed_is_computed():
    computed = []

    def block(block_info):
        computed.append(block_info[None]["chunk-location"][0])
        return np.zeros((1, 4, 4))

    array = da.map_blocks(block, chunks=((1,) * 5, (4,), (4,)), dtype=float, meta=np.zeros((0, 0, 0)))
    computed.clear()
    _ = open_volume(array)[3]
    assert computed == [3]


def test_a_tensor_is_refused_with_what_to_give():
    with pytest.raises(
        ConfigError, match=r"not a Tensor of torch.float32; convert a tensor by tensor.numpy\(\)"
    ):
        open_volume(torch.zeros(2, 3, 4))
    assert open_volume(torch.zeros(2, 3, 4).numpy()).shape == (2, 3, 4)


def test_an_array_of_other_than_three_axes_is_refused():
    with pytest.raises(VolumeError, match="has 4 dimensions"):
        open_volume(da.zeros((2, 3, 4, 5)))
