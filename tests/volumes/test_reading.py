"""Reading parts: indexing as in NumPy, laziness, pickles, threads, forks; blocks, samples, descriptions, hashes."""

import hashlib
import json
import math
import multiprocessing
import pickle
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
import pytest
import SimpleITK
import tifffile
import zarr
from chunked_files import write_precomputed
from dicom_files import write_series
from hypothesis import given, settings, strategies as st
from PIL import Image

from evenslice import ConfigError, Reading, VolumeError, open_volume
from evenslice.volumes import each_reading, find_nonfinite, fingerprint
from evenslice.volumes.blocks import iterate_blocks, sample_voxels

STACK = np.random.default_rng(0).integers(0, 1000, (7, 33, 30), np.uint16)


def write_npy(folder):
    np.save(folder / "a.npy", STACK)
    return folder / "a.npy"


def write_mapped_tiff(folder, **options):
    tifffile.imwrite(folder / "a.tif", STACK, **options)
    return folder / "a.tif"


def write_compressed_tiff(folder):
    return write_mapped_tiff(folder, compression="zlib", tile=(16, 16))


def write_nifti(folder, suffix=""):
    nib.save(nib.Nifti1Image(STACK.T, np.eye(4), dtype=np.uint16), folder / f"a.nii{suffix}")
    return folder / f"a.nii{suffix}"


def write_compressed_nifti(folder):
    return write_nifti(folder, ".gz")


def write_zarr(folder):
    zarr.create_array(folder / "a.zarr", data=STACK, chunks=(3, 16, 16))
    return folder / "a.zarr"


def write_slices(folder):
    (folder / "slices").mkdir()
    for z, pixels in enumerate(STACK):
        Image.fromarray(pixels).save(folder / "slices" / f"{z}.png")
    return folder / "slices"


def write_dicom(folder):
    write_series(folder / "dicom", STACK)
    return folder / "dicom"


def write_metaimage(folder):
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(STACK), str(folder / "a.mha"), useCompression=True)
    return folder / "a.mha"


def write_nrrd(folder):
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(STACK), str(folder / "a.nhdr"))
    return folder / "a.nhdr"


def write_hdf5(folder):
    with h5py.File(folder / "a.h5", "w") as file:
        file.create_dataset("raw", data=STACK, chunks=(3, 16, 16), compression="gzip")
    return folder / "a.h5:raw"


def write_mrc(folder):
    mrcfile.write(folder / "a.mrc", STACK)
    return folder / "a.mrc"


def write_chunked(folder):
    write_precomputed(folder / "precomputed", STACK)
    return folder / "precomputed"


LITTLE_READ = [
    *(write_compressed_tiff, write_zarr, write_slices, write_dicom, write_hdf5, write_nrrd, write_mrc),
    *(write_nifti, write_chunked),
]
"""Writers of files of which a slice can be read without the rest."""

WRITERS = [*LITTLE_READ, write_npy, write_mapped_tiff, write_compressed_nifti, write_metaimage]


@pytest.fixture(scope="module", params=WRITERS, ids=lambda writer: writer.__name__.removeprefix("write_"))
def stored(request, tmp_path_factory):
    """The path of STACK in one format after the other."""
    return request.param(tmp_path_factory.mktemp("volumes"))


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="the system does not list open files")
def test_no_file_stays_open_between_reads(stored):
    volume = open_volume(stored)
    volume[2]
    opened = [str(link.readlink()) for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]
    assert not any(file.startswith(str(volume.location.parent)) for file in opened)


def index_of(length):
    """One index of an axis: an integer in range, or any slice."""
    bound = st.none() | st.integers(-length - 2, length + 2)
    step = st.none() | st.integers(-4, 4).filter(bool)
    return st.integers(-length, length - 1) | st.builds(slice, bound, bound, step)


@st.composite
def keys(draw):
    """An index as NumPy takes it: up to three parts, perhaps with an ellipsis."""
    parts = [draw(index_of(length)) for length in STACK.shape]
    shape = draw(st.sampled_from(["all", "first", "two", "dots", "dots between"]))
    return {
        "all": tuple(parts),
        "first": parts[0],
        "two": tuple(parts[:2]),
        "dots": (..., parts[2]),
        "dots between": (parts[0], ..., parts[2]),
    }[shape]


@pytest.mark.slow
@settings(max_examples=40)
@given(key=keys())
def test_indexing_is_that_of_numpy(stored, key):
    part = open_volume(stored)[key]
    expected = STACK[key]
    assert part.dtype == STACK.dtype
    assert part.shape == expected.shape
    assert part.flags.c_contiguous
    assert part.flags.writeable
    np.testing.assert_array_equal(part, expected)


@pytest.mark.slow
@given(key=keys(), order=st.permutations("zyxt"), pick=st.integers(0, 1))
def test_indexing_through_any_order_of_axes(key, order, pick):
    pair = np.stack([STACK, STACK[::-1]])
    array = pair.transpose(["tzyx".index(name) for name in order])
    volume = open_volume(array, axes="".join(order), select={"t": pick})
    np.testing.assert_array_equal(volume[key], pair[pick][key])


def test_wrong_indices(stored):
    volume = open_volume(stored)
    for key in (7, (0, -34), (0, 0, 30), (0, 0, 0, 0), (..., ...)):
        with pytest.raises(IndexError):
            volume[key]
    for key in ("z", 1.0, None, [0, 1]):
        with pytest.raises(TypeError):
            volume[key]


def test_a_volume_is_a_sequence_of_slices(stored):
    volume = open_volume(stored)
    assert len(volume) == 7
    assert (volume.ndim, volume.size, volume.nbytes) == (3, STACK.size, STACK.nbytes)
    assert sum(1 for _ in volume) == 7
    np.testing.assert_array_equal(np.asarray(volume), STACK)
    assert np.asarray(volume, np.float32).dtype == np.float32
    with pytest.raises(ValueError, match="without a copy"):
        np.array(volume, copy=False)


def repickled(volume):
    """The volume as another process would get it."""
    return pickle.loads(pickle.dumps(volume))  # noqa: S301 - pickled in the same line


def test_pickled_volumes_read_again(stored, monkeypatch, tmp_path):
    monkeypatch.chdir(stored.parent)
    volume = open_volume(stored.name)
    assert len(pickle.dumps(volume)) < 3000  # a path and options, no voxels
    monkeypatch.chdir(tmp_path)  # a relative path stays what it was
    again = repickled(volume)
    assert again.path == stored.name
    np.testing.assert_array_equal(again[2:4, 5], STACK[2:4, 5])


def test_threads(stored):
    volume = repickled(open_volume(stored))
    with ThreadPoolExecutor(8) as pool:
        parts = list(pool.map(lambda z: volume[z % 7, 3:20], range(60)))
    for z, part in enumerate(parts):
        np.testing.assert_array_equal(part, STACK[z % 7, 3:20])


def _sum(volume):
    return int(volume[2:5].sum())


@pytest.mark.slow
def test_other_processes(tmp_path):
    volume = open_volume(write_compressed_nifti(tmp_path))
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(_sum, (volume,)) == int(STACK[2:5].sum())


# Laziness


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
        tracemalloc.start()
        part = open_volume(tmp_path / name)[1000:1005, 300:400, 300:400]
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert part.shape == (5, 100, 100)
        assert peak < 5e6, name


def test_only_the_chunks_under_a_window_are_read(tmp_path):
    path = tmp_path / "a.zarr"
    array = zarr.create_array(path, shape=(2**20,) * 3, chunks=(64, 64, 64), dtype=np.uint8)
    array[:64, :64, :64] = 7
    volume = open_volume(path)
    assert volume[10:12, 20:70, 20:30].sum() == 7 * 2 * 44 * 10


def test_only_the_pages_under_a_window_are_decoded(tmp_path):
    path = write_compressed_tiff(tmp_path)
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
@pytest.mark.parametrize("writer", LITTLE_READ)
def test_opening_and_reading_a_slice_reads_little_else(tmp_path, monkeypatch, writer):
    stack = np.random.default_rng(1).integers(0, 2**16, (48, 128, 128), np.uint16)
    monkeypatch.setattr(sys.modules[__name__], "STACK", stack)
    path = writer(tmp_path)
    open_volume(path)[0]  # so that no module is read later
    start = bytes_read()
    volume = open_volume(path)
    opened = bytes_read()
    part = volume[30]
    np.testing.assert_array_equal(part, stack[30])
    # Sixteen kilobytes a file for its header, and the slices that share chunks with the one that was asked for.
    assert opened - start < 2**14 * 49 + 2**17
    assert bytes_read() - opened < 6 * part.nbytes


@pytest.mark.parametrize("writer", WRITERS)
def test_the_user_may_name_a_link(tmp_path, writer):
    (tmp_path / "real").mkdir()
    name = writer(tmp_path / "real").name
    (tmp_path / "folder").symlink_to(tmp_path / "real")
    np.testing.assert_array_equal(open_volume(tmp_path / "folder" / name)[2], STACK[2])
    if not name.endswith((":raw", ".nhdr")):  # no file by that name; and one whose voxels lie beside it
        (tmp_path / name).symlink_to(tmp_path / "real" / name)
        np.testing.assert_array_equal(open_volume(tmp_path / name)[2], STACK[2])


# Blocks


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


def test_blocks_fill_what_they_may():
    volume = open_volume(np.zeros((64, 32, 32), np.uint8))
    assert len(list(iterate_blocks(volume, 2**14))) == 4
    assert len(list(iterate_blocks(volume))) == 1


# Finiteness


@given(where=st.sets(st.tuples(*[st.integers(0, n - 1) for n in (5, 6, 7)]), max_size=4))
def test_first_nonfinite_in_chunks(where):
    array = np.zeros((5, 6, 7), np.float32)
    for position, index in enumerate(sorted(where)):
        array[index] = (np.nan, np.inf, -np.inf, np.nan)[position]
    expected = (len(where), min(where)) if where else None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(iterate_blocks, "__defaults__", (80,))
        assert find_nonfinite(chunked(array, (5, 2, 2))) == expected


def test_integers_are_not_read_for_finiteness(tmp_path):
    path = write_npy(tmp_path)
    volume = repickled(open_volume(path))
    path.unlink()
    assert find_nonfinite(volume) is None


# Samples


def test_a_small_volume_is_its_own_sample():
    np.testing.assert_array_equal(sample_voxels(open_volume(STACK)), STACK.ravel())
    assert sample_voxels(open_volume(STACK)).dtype == STACK.dtype


def test_a_sample_depends_on_its_seed_alone(stored):
    volume = open_volume(stored)
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


@pytest.mark.slow
def test_percentiles_of_a_real_sample_are_near_the_whole(shared_data):
    volume = open_volume(shared_data / "lucchi_pp/train_image.tif")
    whole = np.percentile(volume[...], [1, 50, 99])
    np.testing.assert_allclose(np.percentile(sample_voxels(volume), [1, 50, 99]), whole, atol=5)


# Hashes


def test_fingerprint_of_a_file_is_its_sha256(tmp_path):
    path = write_npy(tmp_path)
    assert fingerprint(open_volume(path)) == "sha256:" + hashlib.sha256(path.read_bytes()).hexdigest()


def test_fingerprint_of_an_array_is_that_of_its_bytes():
    expected = "sha256:" + hashlib.sha256(STACK.tobytes()).hexdigest()
    assert fingerprint(open_volume(STACK)) == expected
    assert fingerprint(open_volume(np.asfortranarray(STACK))) == expected


def test_fingerprint_of_a_folder(tmp_path):
    path = write_zarr(tmp_path)
    first = fingerprint(open_volume(path))
    shutil.copytree(path, tmp_path / "copy.zarr")
    assert fingerprint(open_volume(tmp_path / "copy.zarr")) == first
    metadata = tmp_path / "copy.zarr" / "zarr.json"
    metadata.write_text(json.dumps(json.loads(metadata.read_text())))  # the same content in other bytes
    assert fingerprint(open_volume(tmp_path / "copy.zarr")) != first


@pytest.mark.parametrize("writer", [write_npy, write_zarr])
def test_fingerprint_of_what_is_very_large(tmp_path, monkeypatch, writer):
    monkeypatch.setattr("evenslice.volumes.info.WHOLE_BYTES", 2000)
    monkeypatch.setattr("evenslice.volumes.info.END_BYTES", 500)
    path = writer(tmp_path)
    volume = open_volume(path)
    first = fingerprint(volume)
    assert first.startswith("sha256-partial:")
    assert fingerprint(volume) == first
    if writer is write_npy:
        content = path.read_bytes()
        size = len(content)
        head, tail = content[:500], content[-500:]
        name = f".\0{size}\0".encode()
        assert first == "sha256-partial:" + hashlib.sha256(name + head + tail).hexdigest()


def test_fingerprint_of_a_file_in_parts_through_another_way(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    folder = write_slices(tmp_path / "a")
    (tmp_path / "link").symlink_to(tmp_path / "a")
    expected = fingerprint(open_volume(folder))
    assert fingerprint(open_volume(tmp_path / "b" / ".." / "a" / "slices")) == expected
    assert fingerprint(open_volume(tmp_path / "link" / "slices")) == expected


def test_crops_of_slices_hold_no_whole_slices(tmp_path):
    folder = tmp_path / "slices"
    folder.mkdir()
    for z in range(12):
        Image.fromarray(np.zeros((1000, 1000), np.uint8)).save(folder / f"{z:02}.png")
    volume = open_volume(folder)
    tracemalloc.start()
    volume[:, :8, :8]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 6e6  # some slices at once, and not all


def test_several_readings_differ_in_intensity_and_fill_alone():
    volumes = [object(), object()]
    both = [Reading(intensity=(0, 1)), Reading(fill=0)]
    assert each_reading(both, volumes) == both
    with pytest.raises(ConfigError, match="differ in intensity and fill alone"):
        each_reading([Reading(), Reading(step=2)], volumes)
