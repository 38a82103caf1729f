"""Arrays of other libraries than NumPy are volumes, read in pieces."""

import dask.array as da
import h5py
import numpy as np
import pytest
import torch
import zarr

import evenslice
from evenslice import ConfigError, SliceWindows, VolumeError, open_volume

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
    assert np.array_equal(open_volume(volume, plane="x")[2], VOXELS[:, :, 2])


def test_only_what_is_indexed_is_computed():
    computed = []

    def block(block_info):
        computed.append(block_info[None]["chunk-location"][0])
        return np.zeros((1, 4, 4))

    array = da.map_blocks(block, chunks=((1,) * 5, (4,), (4,)), dtype=float, meta=np.zeros((0, 0, 0)))
    computed.clear()
    _ = open_volume(array)[3]
    assert computed == [3]


@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize("order", ["zyx", "xyz", "zxy"])
def test_the_axes_of_xarray_have_names(order, lazy):
    xarray = pytest.importorskip("xarray")
    stored = VOXELS.transpose(["zyx".index(axis) for axis in order])
    chunks = tuple({"z": 4, "y": 7, "x": 8}[axis] for axis in order)
    named = xarray.DataArray(da.from_array(stored, chunks=chunks) if lazy else stored, dims=tuple(order))
    volume = open_volume(named)
    assert np.array_equal(volume[...], VOXELS)
    assert volume.chunks == ((4, 7, 8) if lazy else None)
    assert np.array_equal(open_volume(named, axes="zyx")[...], stored)  # what the user says counts
    other = xarray.DataArray(VOXELS, dims=("depth", "row", "column"))
    assert np.array_equal(open_volume(other)[...], VOXELS)


def test_a_tensor_is_an_array():
    volume = open_volume(torch.from_numpy(VOXELS.astype(np.float32)).requires_grad_())
    assert volume.dtype == np.float32
    assert np.array_equal(volume[...], VOXELS)


def test_what_is_no_volume_is_refused_with_what_to_give():
    array = da.from_array(np.arange(24.0), chunks=6)
    some = array[array > 3][:, None, None]
    with pytest.raises(ConfigError, match=r"is not known yet; call its compute_chunk_sizes\(\) first"):
        open_volume(some)
    assert open_volume(some.compute_chunk_sizes()).shape == (20, 1, 1)
    with pytest.raises(ConfigError, match=r"numbers that NumPy knows, not a Tensor of torch.bfloat16"):
        open_volume(torch.zeros(2, 3, 4, dtype=torch.bfloat16))
    with pytest.raises(VolumeError, match="has 4 dimensions"):
        open_volume(da.zeros((2, 3, 4, 5)))


MASKED = np.ma.masked_greater(VOXELS, 300)


@pytest.mark.parametrize(
    "array", [MASKED, da.ma.masked_greater(da.from_array(VOXELS, chunks=(2, 7, 8)), 300)]
)
def test_masked_voxels_need_a_value(array):
    with pytest.raises(VolumeError, match="<array>: is masked; give fill"):
        open_volume(array)
    with pytest.raises(VolumeError, match="<array>: labels are masked"):
        SliceWindows(VOXELS, array, slices=3)
    with pytest.raises(ConfigError, match=r"fill=0.5: int16 has no such value"):
        open_volume(array, fill=0.5)
    filled = open_volume(array, fill=-7, plane="y", region=np.s_[1:, :, :])
    assert np.array_equal(filled[...], MASKED.filled(-7)[1:].transpose(1, 0, 2))
    assert type(filled[0]) is np.ndarray


def test_a_file_has_no_masked_voxels_to_fill(tmp_path):
    assert np.array_equal(open_volume(np.ma.masked_array(VOXELS))[...], VOXELS)  # of which none is masked
    np.save(tmp_path / "a.npy", VOXELS)
    for given in (tmp_path / "a.npy", open_volume(VOXELS)):
        with pytest.raises(ConfigError, match=r"^fill=5: omit it for .*(a.npy|<array>)"):
            open_volume(given, fill=5)


@pytest.mark.slow
def test_every_function_fills_masked_voxels(tmp_path):
    voxels = np.random.default_rng(0).random((8, 32, 32)).astype(np.float32)
    masked = np.ma.masked_greater(voxels, 0.5)
    masked.data[masked.mask] = 1e6  # what must not be read
    network, sampling = torch.nn.Conv2d(3, 1, 1).requires_grad_(False), evenslice.Sampling(max_windows=2)
    calls = (
        lambda **how: evenslice.evaluate(network, masked, voxels > 0.5, **how),
        lambda **how: evenslice.audit(network, masked, sampling=sampling, **how),
        lambda **how: evenslice.segment(network, masked, tmp_path / "a.npy", **how),
        lambda **how: SliceWindows(masked, slices=3, crop=(8, 8), **how).scalings,
    )
    for call in calls:
        with pytest.raises(VolumeError, match="is masked; give fill"):
            call()
        assert call(reading=evenslice.Reading(fill=0.25)) is not None
