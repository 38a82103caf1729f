"""Reading parts: indexing as in NumPy, laziness, pickles, threads; blocks, samples, fingerprints."""

import hashlib
import json
import math
import pickle
import re
import shutil
import sys
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import h5py
import mrcfile
import nibabel as nib
import numpy as np
import psutil
import pytest
import SimpleITK
import tifffile
import zarr
from chunked_files import write_precomputed
from commands import wait_until
from dicom_files import write_series
from hypothesis import given, settings, strategies as st
from PIL import Image

from evenslice import ConfigError, Reading, SliceWindows, VolumeError, open_volume
from evenslice.volumes import fingerprint
from evenslice.volumes.volume import iterate_blocks, sample_voxels

STACK = np.random.default_rng(0).integers(0, 1000, (7, 33, 30), np.uint16)


def write_slices(path):
    path.mkdir()
    for z, pixels in enumerate(STACK):
        Image.fromarray(pixels).save(path / f"{z}.png")


def write_hdf5(path):
    with h5py.File(path, "w") as file:
        file.create_dataset("raw", data=STACK, chunks=(3, 16, 16), compression="gzip")


def write_itk(path):
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(STACK), str(path), useCompression=path.suffix == ".mha")


def write_nifti(path):
    nib.save(nib.Nifti1Image(STACK.T, np.eye(4), dtype=np.uint16), path)


def write_zarr(path):
    zarr.create_array(path, data=STACK, chunks=(3, 16, 16))


LITTLE_READ = {
    "compressed.tif": lambda path: tifffile.imwrite(path, STACK, compression="zlib", tile=(16, 16)),
    "a.zarr": write_zarr,
    "slices": write_slices,
    "dicom": lambda path: write_series(path, STACK),
    "a.h5": write_hdf5,
    "a.nhdr": write_itk,
    "a.mrc": lambda path: mrcfile.write(path, STACK),
    "a.nii": write_nifti,
    "precomputed": lambda path: write_precomputed(path, STACK),
}
"""Writers of files of which a slice can be read without the rest."""

WRITERS = {
    **LITTLE_READ,
    "a.npy": lambda path: np.save(path, STACK),
    "a.tif": lambda path: tifffile.imwrite(path, STACK),
    "a.nii.gz": write_nifti,
    "a.mha": write_itk,
}


def written(folder, name):
    WRITERS[name](folder / name)
    return folder / name


@pytest.fixture(scope="module", params=WRITERS)
def stored(request, tmp_path_factory):
    """The path of STACK in one format after the other."""
    return written(tmp_path_factory.mktemp("volumes"), request.param)


def test_no_file_stays_open_between_reads(stored):
    volume = open_volume(stored)
    volume[2]
    folder = str(volume.location.parent)
    process = psutil.Process()
    # tensorstore closes a file a moment after it has been read.
    wait_until(lambda: not any(file.path.startswith(folder) for file in process.open_files()), seconds=10)


def index_of(length):
    """One index of an axis: an integer in range, or any slice."""
    bound = st.none() | st.integers(-length - 2, length + 2)
    step = st.none() | st.integers(-4, 4).filter(bool)
    return st.integers(-length, length - 1) | st.builds(slice, bound, bound, step)


@st.composite
def keys(draw):
    """An index as NumPy takes it: up to three parts, perhaps with an ellipsis."""
    a, b, c = (draw(index_of(length)) for length in STACK.shape)
    return draw(st.sampled_from([(a, b, c), a, (a, b), (..., c), (a, ..., c)]))


@pytest.mark.slow
@settings(max_examples=40)
@given(key=keys())
def test_indexing_is_that_of_numpy(stored, key):
    part = open_volume(stored)[key]
    assert part.dtype == STACK.dtype
    assert part.flags.c_contiguous
    assert part.flags.writeable
    np.testing.assert_array_equal(part, STACK[key])


@pytest.mark.slow
@given(key=keys(), order=st.permutations("zyxt"), pick=st.integers(0, 1))
def test_indexing_through_any_order_of_axes(key, order, pick):
    pair = np.stack([STACK, STACK[::-1]])
    array = pair.transpose(["tzyx".index(name) for name in order])
    volume = open_volume(array, axes="".join(order), select={"t": pick})
    np.testing.assert_array_equal(volume[key], pair[pick][key])


def test_a_volume_is_a_sequence_of_slices(stored):
    volume = open_volume(stored)
    assert len(volume) == sum(1 for _ in volume) == 7
    assert (volume.ndim, volume.size, volume.nbytes) == (3, STACK.size, STACK.nbytes)
    np.testing.assert_array_equal(np.asarray(volume), STACK)
    assert np.asarray(volume, np.float32).dtype == np.float32
    with pytest.raises(ValueError, match="without a copy"):
        np.array(volume, copy=False)
    for key in (7, (0, -34), (0, 0, 30), (0, 0, 0, 0), (..., ...)):
        with pytest.raises(IndexError):
            volume[key]
    for key in ("z", 1.0, None, [0, 1]):
        with pytest.raises(TypeError):
            volume[key]


def test_pickled_volumes_read_again_and_in_threads(stored, monkeypatch, tmp_path):
    monkeypatch.chdir(stored.parent)
    pickled = pickle.dumps(open_volume(stored.name))
    assert len(pickled) < 3000  # a path and options, no voxels
    monkeypatch.chdir(tmp_path)  # a relative path stays what it was
    volume = pickle.loads(pickled)  # noqa: S301  # ours
    assert volume.path == stored.name
    with ThreadPoolExecutor(8) as pool:
        parts = list(pool.map(lambda z: volume[z % 7, 3:20], range(60)))
    for z, part in enumerate(parts):
        np.testing.assert_array_equal(part, STACK[z % 7, 3:20])


# Laziness


def peak_of(read):
    tracemalloc.start()
    part = read()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak, part.shape


def test_a_window_of_a_large_mapped_file(tmp_path):
    shape = (2048, 1024, 1024)  # 2 GiB that take no space
    np.lib.format.open_memmap(tmp_path / "a.npy", "w+", np.uint8, shape)
    tifffile.memmap(tmp_path / "a.tif", shape=shape, dtype=np.uint8)
    header = nib.Nifti1Header()
    header.set_data_shape(shape[::-1])
    header.set_data_dtype(np.uint8)
    with (tmp_path / "a.nii").open("wb") as file:
        file.write(header.binaryblock + bytes(4))
        file.truncate(352 + math.prod(shape))
    for name in ("a.npy", "a.tif", "a.nii"):
        path = tmp_path / name
        peak, read = peak_of(lambda path=path: open_volume(path)[1000:1005, 300:400, 300:400])
        assert read == (5, 100, 100)
        assert peak < 5e6, name


def test_crops_of_slices_hold_no_whole_slices(tmp_path):
    for z in range(12):
        Image.fromarray(np.zeros((1000, 1000), np.uint8)).save(tmp_path / f"{z:02}.png")
    volume = open_volume(tmp_path)
    assert peak_of(lambda: volume[:, :8, :8])[0] < 6e6  # some slices at once, and not all


def test_only_the_pages_under_a_window_are_decoded(tmp_path):
    path = written(tmp_path, "compressed.tif")
    with tifffile.TiffFile(path) as tif:
        spoilt = [tif.pages[5].dataoffsets[0], tif.pages[2].dataoffsets[3]]
    content = bytearray(path.read_bytes())
    for offset in spoilt:
        content[offset : offset + 8] = bytes(8)
    path.write_bytes(content)
    volume = open_volume(path)
    np.testing.assert_array_equal(volume[2, :16], STACK[2, :16])
    np.testing.assert_array_equal(volume[5, 16:], STACK[5, 16:])
    with pytest.raises(VolumeError, match="cannot be read as TIFF"):
        volume[5]


def bytes_read():
    """How many bytes this process has read so far."""
    return int(Path("/proc/self/io").read_text().split()[1])


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="only Linux counts what a process reads")
@pytest.mark.parametrize("name", LITTLE_READ)
def test_opening_and_reading_a_slice_reads_little_else(tmp_path, monkeypatch, name):
    stack = np.random.default_rng(1).integers(0, 2**16, (48, 128, 128), np.uint16)
    monkeypatch.setattr(sys.modules[__name__], "STACK", stack)
    path = written(tmp_path, name)
    open_volume(path)[0]  # so that no module is read later
    start = bytes_read()
    volume = open_volume(path)
    opened = bytes_read()
    part = volume[30]
    np.testing.assert_array_equal(part, stack[30])
    # Sixteen kilobytes a file for its header, and the slices that share chunks with the one that was asked for.
    assert opened - start < 2**14 * 49 + 2**17
    assert bytes_read() - opened < 6 * part.nbytes


@pytest.mark.parametrize("name", WRITERS)
def test_the_user_may_name_a_link(tmp_path, name):
    (tmp_path / "real").mkdir()
    path = written(tmp_path / "real", name)
    (tmp_path / "folder").symlink_to(tmp_path / "real")
    links = [tmp_path / "folder" / name]
    if name != "a.nhdr":  # whose voxels lie beside it
        (tmp_path / name).symlink_to(path)
        links.append(tmp_path / name)
    for link in links:
        np.testing.assert_array_equal(open_volume(link)[2], STACK[2])


# Blocks and samples


def chunked(array, chunks):
    """An array in memory that claims to be stored in chunks."""
    return replace(open_volume(array), chunks=chunks)


@given(
    shape=st.tuples(*[st.integers(1, 9)] * 3),
    chunks=st.tuples(*[st.integers(1, 5)] * 3),
    most=st.integers(1, 400),
)
def test_blocks_cover_each_voxel_once(shape, chunks, most):
    volume = chunked(np.zeros(shape, np.uint8), chunks)
    count = np.zeros(shape, int)
    for block in iterate_blocks(volume, most):
        count[block] += 1
        assert count[block].size <= max(most, math.prod(chunks))
        assert all(part.start % chunk == 0 for part, chunk in zip(block, chunks, strict=True))
    assert (count == 1).all()
    assert len(list(iterate_blocks(volume))) == 1


@given(where=st.sets(st.tuples(*[st.integers(0, n - 1) for n in (5, 6, 7)]), max_size=4))
def test_first_nonfinite_in_chunks(where):
    array = np.zeros((5, 6, 7), np.float32)
    for position, index in enumerate(sorted(where)):
        array[index] = (np.nan, np.inf, -np.inf, np.nan)[position]
    volume, reading = chunked(array, (5, 2, 2)), Reading(intensity=(0, 1))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(iterate_blocks, "__defaults__", (80,))
        if not where:
            reading.fit_scaling(volume)
            return
        told = f"{len(where)} voxels are NaN or infinite, the first at z, y, x = {min(where)};"
        with pytest.raises(VolumeError, match=re.escape(told)):
            reading.fit_scaling(volume)


def test_a_sample_depends_on_its_seed_alone(stored):
    volume = open_volume(stored)
    np.testing.assert_array_equal(sample_voxels(volume), STACK.ravel())
    first = sample_voxels(volume, 500, seed=3)
    np.testing.assert_array_equal(first, sample_voxels(open_volume(stored), 500, seed=3))
    assert not np.array_equal(first, sample_voxels(volume, 500, seed=4))
    assert 400 <= first.size <= 600


@pytest.mark.parametrize("chunks", [None, (8, 16, 16), (1, 100, 90), (20, 100, 90), (3, 7, 90)])
def test_a_sample_is_spread_over_the_volume(chunks):
    z, y, x = np.indices((40, 100, 90), np.float32)
    for axis, limit in ((z, 40), (y, 100), (x, 90)):
        volume = chunked(axis, chunks)
        means = [sample_voxels(volume, 20_000, seed).mean() for seed in range(8)]
        assert np.mean(means) == pytest.approx((limit - 1) / 2, rel=0.06)
        assert sample_voxels(volume, 20_000).size == pytest.approx(20_000, rel=0.1)


# Fingerprints


def test_the_fingerprint_of_a_file_is_its_sha256_and_that_of_an_array_that_of_its_bytes(tmp_path):
    path = written(tmp_path, "a.npy")
    for volume, content in (
        (open_volume(path), path.read_bytes()),
        (open_volume(np.asfortranarray(STACK)), STACK.tobytes()),
    ):
        assert fingerprint(volume) == "sha256:" + hashlib.sha256(content).hexdigest()


def test_the_fingerprint_of_a_folder(tmp_path):
    path, copy = written(tmp_path, "a.zarr"), tmp_path / "copy.zarr"
    shutil.copytree(path, copy)
    (tmp_path / "link").symlink_to(tmp_path)
    first = fingerprint(open_volume(path))
    assert fingerprint(open_volume(copy)) == first
    assert fingerprint(open_volume(tmp_path / "link" / "copy.zarr" / ".." / "a.zarr")) == first
    metadata = copy / "zarr.json"
    metadata.write_text(json.dumps(json.loads(metadata.read_text())))  # the same content in other bytes
    assert fingerprint(open_volume(copy)) != first


@pytest.mark.parametrize("name", ["a.npy", "a.zarr"])
def test_the_fingerprint_of_what_is_very_large(tmp_path, monkeypatch, name):
    monkeypatch.setattr("evenslice.volumes.info.WHOLE_BYTES", 2000)
    monkeypatch.setattr("evenslice.volumes.info.END_BYTES", 500)
    path = written(tmp_path, name)
    volume = open_volume(path)
    first = fingerprint(volume)
    assert first.startswith("sha256-partial:")
    assert fingerprint(volume) == first
    if name == "a.npy":
        content = path.read_bytes()
        held = f".\0{len(content)}\0".encode() + content[:500] + content[-500:]
        assert first == "sha256-partial:" + hashlib.sha256(held).hexdigest()


def test_several_readings_differ_in_intensity_and_fill_alone():
    both = SliceWindows([STACK, STACK], reading=[Reading(intensity=(0, 999)), Reading(fill=0)])
    assert [scaling.fill for scaling in both.scalings] == [None, 0]
    assert both.scalings[0].high == 999
    for wrong in ([Reading(), Reading(step=2)], [Reading()] * 3):
        with pytest.raises(ConfigError, match="reading"):
            SliceWindows([STACK, STACK], reading=wrong)
