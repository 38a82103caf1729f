"""Bad input: each gives one line that says what was wrong, where, and what would be right."""

import gzip
import os
import subprocess
import sys
import tracemalloc
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import tifffile
import zarr
from volume_checks import PNG, STACK, fails

from evenslice import ConfigError, MissingExtraError, VolumeError, open_volume


def saved(tmp_path, name, write, *arguments, **options):
    """Write a file and return its path as a user would type it."""
    path = tmp_path / name
    write(path, *arguments, **options)
    return str(path)


def save_nifti(path, array):
    nib.save(nib.Nifti1Image(array, np.eye(4), dtype=array.dtype), path)


# Paths


@pytest.mark.parametrize(
    ("name", "pattern"),
    [
        ("none.tif", "no such file or folder; check the path"),
        ("none.zarr", "no such file or folder"),
        ("a\0b.tif", "no such file or folder|null byte"),
        (f"{'a' * 300}.h5:/x", "too long"),
        ("folder", "it holds the folders slices.zarr"),
        ("folder/slices.zarr", "is a folder without"),
        ("file.zarr", "cannot be read as Zarr .No group found.; check its suffix and its content"),
        ("pipe.npy", "or a pipe"),
        ("a.tiif", r"'.tiif' files; did you mean '.tiff?'"),
        ("a.mp4", r"'.mp4' .*known: "),
        ("a.JPG", "is a single JPEG image; name the folder that holds all slices"),
        ("a", "no suffix .*, .npy, .nrrd, .tif, .zarr"),
        ("empty.tif", "is empty, or a pipe"),
    ],
)
def test_paths_of_no_volume(tmp_path, name, pattern):
    (tmp_path / "folder" / "slices.zarr").mkdir(parents=True)
    os.mkfifo(tmp_path / "pipe.npy")
    for file in ("file.zarr", "a.tiif", "a.mp4", "a.JPG", "a"):
        (tmp_path / file).write_bytes(b"x")
    (tmp_path / "empty.tif").touch()
    fails(f"{tmp_path}/{name}", pattern)


def test_what_is_no_path():
    fails("", "path of the volume is empty")
    for given in (5, [[[1]]]):
        fails(given, "a volume is given as text", ConfigError)


# What is not what its name says

CONTENTS = [PNG, b"z,y,x\n0,0,1\n", b"", bytes(range(128, 256)) * 9, bytes(128) + b"DICM" + bytes(600)]


@pytest.mark.parametrize(
    "suffix", ["tif", "nii", "nii.gz", "npy", "mrc", "mha", "mhd", "nrrd", "nhdr", "h5", "dcm"]
)
def test_misnamed(tmp_path, suffix):
    for content in [*CONTENTS, gzip.compress(PNG), b"II*\0" + bytes(range(200))]:
        (tmp_path / f"a.{suffix}").write_bytes(content)
        fails(str(tmp_path / f"a.{suffix}"), r"cannot be read as|is truncated|contain no image|is empty")


# Truncated, changed and damaged

TIFFS = {
    "plain": {},
    "bare": {"metadata": None},
    "imagej": {"imagej": True, "metadata": {"axes": "ZYX"}},
    "ome": {"ome": True},
    "bigtiff": {"bigtiff": True, "compression": "zlib"},
    "tiles": {"compression": "zlib", "tile": (16, 16)},
}


@pytest.mark.parametrize("options", TIFFS.values(), ids=TIFFS)
def test_truncated_tiff(tmp_path, options):
    path = tmp_path / "a.tif"
    for fraction in (0.99, 0.9, 0.6, 0.3, 0.1):
        tifffile.imwrite(path, STACK, **options)
        os.truncate(path, int(path.stat().st_size * fraction))
        with pytest.raises(VolumeError, match="truncated|cannot be read as"):
            open_volume(path)  # noticed when opened, before anything is computed


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "a.npy"])
def test_truncated(tmp_path, name):
    noise = np.random.default_rng(0).integers(0, 99, (20, 30, 20), np.uint8)
    path = saved(tmp_path, name, np.save if name == "a.npy" else save_nifti, noise)
    for fraction in (0.999, 0.9, 0.3, 0.01):
        os.truncate(path, int(Path(path).stat().st_size * fraction) or 1)
        fails(path, "is truncated|cannot be read as")


def test_a_file_that_changes(tmp_path):
    path = tmp_path / "a.npy"
    np.save(path, STACK)
    volume = open_volume(path)
    state = volume.__reduce_ex__(4)
    np.save(path, STACK[:3])
    again = state[0](*state[1])
    again.__dict__.update(state[2])
    with pytest.raises(VolumeError, match="has changed since it was opened"):
        again[0]
    path.unlink()
    with pytest.raises(VolumeError, match="no such file"):
        again[0]


def test_damage_found_while_reading(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", STACK, compression="zlib")
    with tifffile.TiffFile(tmp_path / "a.tif") as tif:
        places = {"a.tif": tif.pages[3].dataoffsets[0]}
    save_nifti(tmp_path / "a.nii.gz", np.random.default_rng(0).integers(0, 99, (90, 90, 90), np.uint8))
    places["a.nii.gz"] = (tmp_path / "a.nii.gz").stat().st_size // 2
    zarr.create_array(tmp_path / "a.zarr", data=STACK, chunks=STACK.shape)
    places["a.zarr/c/0/0/0"] = 0
    for name, offset in places.items():
        with (tmp_path / name).open("r+b") as file:
            file.seek(offset)
            file.write(bytes(64))
        fails(str(tmp_path / name.partition("/")[0]), r"cannot be read as \S+")


# Files that name others


def write_ome_pair(folder, second, *, own="first.ome.tif"):
    """Write an OME-TIFF whose last three pages lie in a second file, by the name that it is given."""
    planes = "".join(
        f'<TiffData FirstZ="{3 * number}" IFD="0" PlaneCount="3"><UUID FileName="{name}">urn:uuid:{number}</UUID></TiffData>'
        for number, name in enumerate((own, second))
    )
    xml = (
        '<?xml version="1.0"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" UUID="urn:uuid:0">'
        '<Image ID="Image:0"><Pixels ID="Pixels:0" DimensionOrder="XYZCT" Type="uint16" SizeX="32" SizeY="40" SizeZ="6"'
        f' SizeC="1" SizeT="1">{planes}</Pixels></Image></OME>'
    )
    folder.mkdir(exist_ok=True)
    write_pages(folder / "first.ome.tif", STACK[:3], description=xml)
    return str(folder / "first.ome.tif")


def write_pages(path, array, **options):
    tifffile.imwrite(path, array, metadata=None, photometric="minisblack", **options)


def test_ome_tiff_of_several_files(tmp_path):
    path = write_ome_pair(tmp_path / "a", "second.ome.tif", own="before it was renamed.tif")
    other = tmp_path / "a" / "second.ome.tif"
    write_pages(other, STACK[3:])
    volume = open_volume(path)
    np.testing.assert_array_equal(volume[...], STACK)
    assert [file.name for file in volume.files] == ["first.ome.tif", "second.ome.tif"]


@pytest.mark.parametrize(
    "name", ["../secret.tif", "&#46;&#46;/secret.tif", "/etc/passwd", "C:\\\\secret.tif", "link.tif"]
)
def test_ome_tiff_that_leads_out_of_its_folder(tmp_path, name):
    write_pages(tmp_path / "secret.tif", STACK[3:])
    path = write_ome_pair(tmp_path / "a", name)
    (tmp_path / "a" / "link.tif").symlink_to(tmp_path / "secret.tif")
    fails(path, "is outside its folder and is not read")


# Headers that claim what is not there


def test_nifti_that_claims_too_much(tmp_path):
    header = nib.Nifti2Header()
    header.set_data_shape((2**14, 2**13, 2**13))
    header.set_data_dtype(np.uint8)
    header["vox_offset"] = 544
    (tmp_path / "a.nii.gz").write_bytes(gzip.compress(header.binaryblock + bytes(2**20)))
    tracemalloc.start()
    fails(str(tmp_path / "a.nii.gz"), "take 1,099,511,627,776 bytes")
    assert tracemalloc.get_traced_memory()[1] < 10e6
    tracemalloc.stop()


# Data types and axes


@pytest.mark.parametrize(
    "dtype", [np.complex64, "datetime64[s]", "U3", [("R", "u1"), ("G", "u1"), ("B", "u1")]]
)
def test_voxels_that_are_no_real_numbers(tmp_path, dtype):
    fails(
        saved(tmp_path, "a.npy", np.save, np.zeros((2, 3, 4), dtype)), "a volume needs bool, integer or real"
    )
    path = saved(tmp_path, "b.npy", np.save, np.full((2, 3, 4), None), allow_pickle=True)
    fails(path, "Python objects")


def test_two_dimensions(tmp_path):
    zarr.create_array(tmp_path / "a.zarr", data=STACK[0])
    for path in (
        saved(tmp_path, "a.npy", np.save, STACK[0]),
        saved(tmp_path, "a.tif", tifffile.imwrite, STACK[0]),
        saved(tmp_path, "a.nii", save_nifti, STACK[0]),
        str(tmp_path / "a.zarr"),
    ):
        fails(path, "is 2-D")
    fails(np.zeros(5), "is 1-D")
    fails(np.array(5), "is 0-D")
    path = saved(tmp_path, "rgb.tif", tifffile.imwrite, np.zeros((40, 32, 3), np.uint8), photometric="rgb")
    fails(path, r"YXS \(40, 32, 3\) and no axis z")


@pytest.mark.parametrize(
    ("shape", "options", "pattern"),
    [
        ((2, 6, 5, 4), {}, r"as axes='tzyx', and pick with select=\{'t': 0\}$"),
        ((2, 6, 5, 4), {"axes": "tzyx"}, r"pick one of axis T with select=\{'t': 0\}"),
        ((2, 3, 6, 5, 4), {}, r"as axes='tczyx', and pick with select=\{'t': 0, 'c': 0\}$"),
        ((2, 3, 6, 5, 4), {"axes": "tczyx"}, r"axis T, C with select=\{'t': 0, 'c': 0\}"),
        ((2, 3, 6, 5, 4), {"axes": "tczyx", "select": {"t": 1}}, r"axis C with select=\{'c': 0\}"),
        ((0, 5, 4), {}, "has an empty axis"),
    ],
)
def test_more_dimensions_than_three(tmp_path, shape, options, pattern):
    array = np.zeros(shape)
    np.save(tmp_path / "a.npy", array)
    zarr.create_array(tmp_path / "a.zarr", data=array, chunks=(6,) * len(shape))
    for given in (array, str(tmp_path / "a.npy"), str(tmp_path / "a.zarr")):
        fails(given, pattern, **options)


# Options that do not apply are never ignored


@pytest.mark.parametrize(
    ("options", "pattern"),
    [
        ({"axes": "zzx"}, "axes='zzx': give one letter"),
        ({"axes": "z,y,x"}, "with z, y and x"),
        ({"axes": 5}, "axes='5'"),
        ({"axes": "tzyx"}, r"axes='tzyx' names 4 axes"),
        ({"select": {"t": 0}}, "axes='zyx'"),
        ({"axes": "zyx", "select": {"t": 0}}, "its only axes are z, y and x"),
        ({"level": 1}, "level=1"),
        ({"level": -1}, "level=-1"),
        ({"unit": "nm"}, "give spacing too"),
        ({"spacing": (1, 1, 1), "unit": "nn"}, "unit='nn': .* did you mean 'nm'"),
        ({"spacing": (1, 1)}, "three sizes above zero"),
        ({"spacing": (1, float("nan"), 1)}, "three sizes above zero"),
        ({"plane": 1}, "plane=1: known: x, y, z"),
        ({"region": 5}, "region 5"),
    ],
)
def test_options_that_do_not_apply(tmp_path, options, pattern):
    np.save(tmp_path / "a.npy", STACK)
    zarr.create_array(tmp_path / "a.zarr", data=STACK)
    for volume in (STACK, tmp_path / "a.npy", tmp_path / "a.zarr"):
        fails(volume, pattern, ConfigError, **options)


# What the user sees


@pytest.mark.slow
def test_nothing_but_the_error_reaches_the_terminal_and_no_library_is_imported_before(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", STACK, compression="zlib")
    os.truncate(tmp_path / "a.tif", 2000)
    script = (
        "import sys; from evenslice import VolumeError, open_volume; import evenslice.volumes.opening\n"
        "libraries = ('torch', 'tifffile', 'nibabel', 'zarr', 'h5py', 'mrcfile', 'PIL', 'pydicom', 'nrrd', 'fsspec')\n"
        "print([name for name in libraries if name in sys.modules])\n"
        "try: open_volume(sys.argv[1])\n"
        "except VolumeError: print('refused')\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "a.tif")]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    assert (ran.stdout, ran.stderr) == ("[]\nrefused\n", "")


@pytest.mark.parametrize(
    ("package", "module", "name", "extra"),
    [
        ("tifffile", "tiff", "a.tif", "volumes"),
        ("nibabel", None, "a.nii", "volumes"),
        ("zarr", "chunked", "a.zarr", "volumes"),
        ("h5py", "hdf5", "a.h5", "volumes"),
        ("mrcfile", None, "a.mrc", "volumes"),
        ("PIL", None, "slices", "volumes"),
        ("nrrd", None, "a.nrrd", "medical"),
        ("pydicom", "dicom", "a.dcm", "medical"),
    ],
)
def test_missing_extra(tmp_path, monkeypatch, package, module, name, extra):
    path = tmp_path / name
    if name in ("a.zarr", "slices"):
        path.mkdir()
        (path / "zarr.json").write_text("{}") if module else (path / "a.png").write_bytes(PNG)
    else:
        path.write_bytes(
            b"NRRD0004\n\n"
            if extra == "medical"
            else bytes(208) + b"MAP " + bytes(132) + b"n+1\0" + bytes(700)
        )
    monkeypatch.setitem(sys.modules, package, None)
    for held in [held for held in sys.modules if held.startswith("PIL.")]:
        monkeypatch.delitem(sys.modules, held)
    monkeypatch.delitem(sys.modules, f"evenslice.volumes.read.{module}", raising=False)
    with pytest.raises(MissingExtraError, match=rf"pip install 'evenslice\[{extra}\]'"):
        open_volume(path)
