"""Bad input: each gives one line that says what was wrong, where, and what would be right."""

import gzip
import struct
import subprocess
import sys
import tracemalloc

import nibabel as nib
import numpy as np
import pytest
import tifffile
import zarr
from volume_checks import fails

from evenslice._core import errors
from evenslice.volumes.info import fingerprint
from evenslice.volumes.opening import open_volume

STACK = (np.arange(6 * 40 * 32) % 1021).reshape(6, 40, 32).astype(np.uint16)
PNG = bytes.fromhex("89504e470d0a1a0a0000000d49484452") + bytes(600)


def saved(tmp_path, name, write, *arguments, **options):
    """Write a file and return its path as a user would type it."""
    path = tmp_path / name
    write(path, *arguments, **options)
    return str(path)


def save_nifti(path, array, **header):
    image = nib.Nifti1Image(array, np.eye(4), dtype=array.dtype)
    for key, value in header.items():
        image.header[key] = value
    nib.save(image, path)


# Paths


def test_missing(tmp_path):
    fails(str(tmp_path / "none.tif"), "no such file or folder; check the path")
    fails(str(tmp_path / "none.zarr"), "no such file or folder")
    fails("", "path of the volume is empty")
    fails("a\0b.tif", "no such file or folder|null byte")


def test_folders(tmp_path):
    (tmp_path / "slices.zarr").mkdir()
    fails(str(tmp_path), "is a folder without Zarr, N5 or precomputed metadata")
    fails(str(tmp_path / "slices.zarr"), "is a folder without Zarr, N5 or precomputed metadata")
    (tmp_path / "file.zarr").write_bytes(b"PK")
    fails(str(tmp_path / "file.zarr"), "is a file, and a Zarr volume is a folder")


def test_unknown_suffix(tmp_path):
    for name, pattern in {
        "a.tiif": r"cannot read '.tiif' files; did you mean '.tiff?'",
        "a.mp4": r"cannot read '.mp4' files; .*known: .* in all\)",
        "a": "has no suffix that names a format; known:",
    }.items():
        (tmp_path / name).write_bytes(b"x")
        fails(str(tmp_path / name), pattern)


def test_not_a_path():
    fails(5, "a volume is a path or a NumPy array, not int", errors.ConfigError)
    fails([[[1]]], "not list", errors.ConfigError)


# What is not what its name says


@pytest.mark.parametrize("name", ["a.tif", "a.nii", "a.nii.gz", "a.npy"])
@pytest.mark.parametrize(
    ("content", "pattern"),
    [
        (PNG, "its content is a PNG image"),
        (b"z,y,x\n0,0,1\n", "its content is text"),
        (b"", r"its content is nothing \(the file is empty\)"),
        (bytes(range(128, 256)) * 9, "its content is of an unknown format"),
        (bytes(128) + b"DICM" + bytes(600), "its content is a DICOM file"),
    ],
    ids=["png", "text", "empty", "noise", "dicom"],
)
def test_misnamed(tmp_path, name, content, pattern):
    (tmp_path / name).write_bytes(content)
    fails(str(tmp_path / name), pattern)


def test_misnamed_inside_gzip(tmp_path):
    (tmp_path / "a.nii.gz").write_bytes(gzip.compress(PNG))
    fails(str(tmp_path / "a.nii.gz"), "is not a NIfTI file, its content is a PNG image")
    (tmp_path / "a.nii").write_bytes(gzip.compress(PNG))
    fails(str(tmp_path / "a.nii"), "its content is gzip-compressed data")


def test_a_tiff_that_goes_wrong_after_its_signature(tmp_path):
    (tmp_path / "a.tif").write_bytes(b"II*\0" + bytes(range(200)))
    fails(str(tmp_path / "a.tif"), "cannot be read as TIFF|truncated")


# Truncated


@pytest.mark.parametrize("fraction", [0.1, 0.3, 0.6, 0.9, 0.99])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"metadata": None},
        {"imagej": True, "metadata": {"axes": "ZYX"}},
        {"ome": True},
        {"bigtiff": True, "compression": "zlib"},
        {"compression": "zlib", "tile": (16, 16)},
        {"imagej": True, "metadata": {"axes": "ZYX"}, "compression": "zlib"},
    ],
    ids=["plain", "bare", "imagej", "ome", "bigtiff", "tiles", "imagej zlib"],
)
def test_truncated_tiff(tmp_path, options, fraction):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, STACK, **options)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * fraction)])
    with pytest.raises(errors.VolumeError, match="truncated|cannot be read as"):
        open_volume(path)  # noticed when opened, before anything is computed


@pytest.mark.parametrize("fraction", [0.01, 0.3, 0.9, 0.999])
@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_truncated_nifti(tmp_path, name, fraction):
    path = tmp_path / name
    save_nifti(path, np.random.default_rng(0).integers(0, 99, (20, 30, 20), np.uint8))
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * fraction)])
    with pytest.raises(errors.VolumeError, match="is truncated|is not|cannot be read as"):
        open_volume(path)[...]


def test_truncated_npy(tmp_path):
    path = tmp_path / "a.npy"
    np.save(path, STACK)
    content = path.read_bytes()
    path.write_bytes(content[:-1])
    fails(
        str(path),
        r"is truncated, its voxels end at byte 15,488 and a.npy has 15,487",
    )
    path.write_bytes(content[:40])
    fails(str(path), "cannot be read as NumPy array")


def test_a_file_that_changes(tmp_path):
    path = tmp_path / "a.npy"
    np.save(path, STACK)
    volume = open_volume(path)
    state = volume.__reduce_ex__(4)
    np.save(path, STACK[:3])
    again = state[0](*state[1])
    again.__dict__.update(state[2])
    with pytest.raises(errors.VolumeError, match="has changed since it was opened"):
        again[0]
    path.unlink()
    with pytest.raises(errors.VolumeError, match="no such file"):
        again[0]


def damage(path, offset):
    """Overwrite 64 bytes of a file with zeros."""
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(bytes(64))


def test_damage_found_while_reading(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", STACK, compression="zlib")
    with tifffile.TiffFile(tmp_path / "a.tif") as tif:
        damage(tmp_path / "a.tif", tif.pages[3].dataoffsets[0])
    save_nifti(tmp_path / "a.nii.gz", np.random.default_rng(0).integers(0, 99, (90, 90, 90), np.uint8))
    damage(tmp_path / "a.nii.gz", (tmp_path / "a.nii.gz").stat().st_size // 2)
    zarr.create_array(tmp_path / "a.zarr", data=STACK, chunks=STACK.shape)
    damage(tmp_path / "a.zarr/c/0/0/0", 0)
    for name in ("a.tif", "a.nii.gz", "a.zarr"):
        volume = open_volume(tmp_path / name)
        with pytest.raises(errors.VolumeError, match=rf"{name}: cannot be read as \S+"):
            volume[...]


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
    tifffile.imwrite(
        folder / "first.ome.tif", STACK[:3], description=xml, metadata=None, photometric="minisblack"
    )
    return str(folder / "first.ome.tif")


def test_ome_tiff_of_several_files(tmp_path):
    path = write_ome_pair(tmp_path / "a", "second.ome.tif", own="before it was renamed.tif")
    other = tmp_path / "a" / "second.ome.tif"
    tifffile.imwrite(other, STACK[3:], metadata=None, photometric="minisblack")
    volume = open_volume(path)
    np.testing.assert_array_equal(volume[...], STACK)
    assert [file.name for file in volume.files] == ["first.ome.tif", "second.ome.tif"]
    first = fingerprint(volume)
    tifffile.imwrite(other, STACK[3:] + 1, metadata=None, photometric="minisblack")
    assert fingerprint(open_volume(path)) != first


@pytest.mark.parametrize("name", ["../secret.tif", "/etc/passwd", "C:\\\\secret.tif", "link.tif"])
def test_ome_tiff_that_leads_out_of_its_folder(tmp_path, name):
    tifffile.imwrite(tmp_path / "secret.tif", STACK[3:], metadata=None, photometric="minisblack")
    path = write_ome_pair(tmp_path / "a", name)
    (tmp_path / "a" / "link.tif").symlink_to(tmp_path / "secret.tif")
    fails(path, "is outside its folder and is not read")


# Claims that nothing stands behind


def test_nifti_that_claims_too_much(tmp_path):
    path = tmp_path / "a.nii.gz"
    header = nib.Nifti2Header()
    header.set_data_shape((2**14, 2**13, 2**13))
    header.set_data_dtype(np.uint8)
    header["vox_offset"] = 544
    path.write_bytes(gzip.compress(header.binaryblock + bytes(2**20)))
    tracemalloc.start()
    fails(
        str(path),
        r"is truncated, its header claims 1,099,511,628,320 bytes and the file cannot hold as many",
    )
    assert tracemalloc.get_traced_memory()[1] < 10e6
    tracemalloc.stop()


def test_nifti_with_a_gzip_bomb_behind_it(tmp_path):
    path = tmp_path / "a.nii.gz"
    save_nifti(path, STACK.T)
    with gzip.open(path) as file:
        content = file.read()
    path.write_bytes(gzip.compress(content + bytes(2**28)))
    tracemalloc.start()
    np.testing.assert_array_equal(open_volume(path)[...], STACK)  # what lies behind the voxels is not read
    assert tracemalloc.get_traced_memory()[1] < 10e6
    tracemalloc.stop()


def test_nifti_with_an_impossible_header(tmp_path):
    path = tmp_path / "a.nii"
    save_nifti(path, STACK.T)
    content = bytearray(path.read_bytes())
    for offset, value, pattern in ((42, -5, "impossible shape"), (70, 999, "cannot be read as NIfTI")):
        damaged = content.copy()
        damaged[offset : offset + 2] = struct.pack("<h", value)
        path.write_bytes(damaged)
        fails(str(path), pattern)


def test_zarr_with_enormous_chunks(tmp_path):
    path = tmp_path / "a.zarr"
    zarr.create_array(path, shape=(2**12,) * 3, chunks=(2**12,) * 3, dtype=np.uint8)
    fails(
        str(path),
        r"its chunks \(4096, 4096, 4096\) take 68,719,476,736 bytes each, .* in pieces below",
    )


def test_zarr_metadata_that_makes_no_sense(tmp_path):
    path = tmp_path / "a.zarr"
    group = zarr.open_group(path, mode="w")
    group.create_array("0", data=STACK)
    fails(
        str(path),
        r"a Zarr group without OME-Zarr metadata; name what is inside, as \S+a.zarr/0 \(it holds 0\)",
    )
    for image, pattern in (
        ({"datasets": []}, "has no level 0|cannot be read as"),
        ({"datasets": [{"path": "1"}]}, "cannot be read as Zarr"),
        ({"datasets": [{"path": "../0"}]}, r"the path '\.\./0' of level 0 is none inside the image"),
        ({"axes": ["y", "x"], "datasets": [{"path": "0"}]}, "names 2 axes, its array has 3"),
        ({"axes": 5, "datasets": [{"path": "0"}]}, "cannot be read as Zarr"),
    ):
        group.attrs["multiscales"] = [image]
        fails(str(path), pattern, errors.EvensliceError)
    (path / "zarr.json").write_text("{")
    fails(str(path), "cannot be read as Zarr")


def test_empty_zarr_group(tmp_path):
    zarr.open_group(tmp_path / "a.zarr", mode="w")
    fails(str(tmp_path / "a.zarr"), "is an empty Zarr group")


# Data types


@pytest.mark.parametrize("dtype", [np.complex64, "datetime64[s]", "U3", [("r", "u1"), ("g", "u1")]])
def test_voxels_that_are_no_real_numbers(tmp_path, dtype):
    fails(
        saved(tmp_path, "a.npy", np.save, np.zeros((2, 3, 4), dtype)),
        "a volume needs bool, integer or real voxels",
    )


def test_pickled_objects(tmp_path):
    path = saved(tmp_path, "a.npy", np.save, np.full((2, 3, 4), None), allow_pickle=True)
    fails(path, "holds pickled Python objects, which are never loaded")


def test_complex_and_coloured_nifti(tmp_path):
    fails(saved(tmp_path, "a.nii", save_nifti, STACK.T.astype(np.complex64)), "is complex64; a volume needs")
    coloured = np.zeros((4, 4, 4), [("R", "u1"), ("G", "u1"), ("B", "u1")])
    fails(saved(tmp_path, "b.nii", save_nifti, coloured), "a volume needs bool, integer or real voxels")


# Axes


def test_two_dimensions(tmp_path):
    for name, write, array in (
        ("a.npy", np.save, STACK[0]),
        ("a.tif", tifffile.imwrite, STACK[0]),
        ("a.nii", save_nifti, STACK[0]),
    ):
        fails(
            saved(tmp_path, name, write, array),
            r"is 2-D .* a volume needs three axes z, y, x: put all slices",
        )
    zarr.create_array(tmp_path / "a.zarr", data=STACK[0])
    fails(str(tmp_path / "a.zarr"), "is 2-D")
    fails(np.zeros(5), "is 1-D")
    fails(np.array(5), "is 0-D")


def test_four_dimensions(tmp_path):
    array = np.stack([STACK, STACK])
    tail = r" \(2, 6, 40, 32\); pick one of axis T with select=\{'t': 0\}, or name"
    path = saved(tmp_path, "a.tif", tifffile.imwrite, array, imagej=True, metadata={"axes": "TZYX"})
    fails(path, "has 4 axes TZYX" + tail)
    path = saved(tmp_path, "a.npy", np.save, array)
    fails(
        path,
        r"has 4 dimensions \(2, 6, 40, 32\); name them, as axes='tzyx', and pick with select=\{'t': 0\}$",
    )
    fails(path, "has 4 axes TZYX" + tail, axes="tzyx")


def test_five_dimensions():
    array = np.zeros((2, 3, 6, 5, 4))
    fails(array, r"as axes='tczyx', and pick with select=\{'t': 0, 'c': 0\}$")
    fails(array, r"pick one of axis T, C with select=\{'t': 0, 'c': 0\}, or name", axes="tczyx")
    fails(array, r"pick one of axis C with select=\{'c': 0\}, or name", axes="tczyx", select={"t": 1})


def test_colour_image(tmp_path):
    path = saved(tmp_path, "a.tif", tifffile.imwrite, np.zeros((40, 32, 3), np.uint8), photometric="rgb")
    fails(path, r"has axes YXS \(40, 32, 3\) and no axis z")


def test_empty_axis(tmp_path):
    fails(saved(tmp_path, "a.npy", np.save, STACK[:0]), r"has an empty axis, its shape is \(0, 40, 32\)")
    fails(STACK[:, :0], "has an empty axis")
    zarr.create_array(tmp_path / "a.zarr", shape=(4, 0, 3), chunks=(1, 1, 1), dtype=np.uint8)
    fails(str(tmp_path / "a.zarr"), "has an empty axis")


# Options that do not apply are never ignored


@pytest.mark.parametrize(
    ("options", "pattern"),
    [
        ({"axes": "zzx"}, "axes='zzx': give one letter for each axis"),
        ({"axes": "zy"}, "with z, y and x"),
        ({"axes": "z,y,x"}, "give one letter"),
        ({"axes": "tzyx"}, r"axes='tzyx' names 4 axes, its shape \(6, 40, 32\) has 3"),
        ({"select": {"t": 0}}, "have no names to select by; name them, as axes='zyx'"),
        ({"axes": "zyx", "select": {"t": 0}}, "names no axis of the file; its only axes are z, y and x"),
        ({"axes": "zyx", "select": {"z": 0}}, "names no axis of the file"),
        ({"level": 1}, "omit level=1"),
        ({"level": -1}, "omit level=-1"),
        ({"unit": "nm"}, "has no spacing to be in nm; give spacing too"),
        ({"spacing": (1, 1, 1), "unit": "nn"}, "unit='nn': unknown unit of length; did you mean 'nm'"),
        ({"spacing": (1, 1)}, "give three sizes above zero"),
        ({"spacing": (1, 0, 1)}, "give three sizes above zero"),
        ({"spacing": (1, float("nan"), 1)}, "give three sizes above zero"),
        ({"spacing": (1, 1, 1), "unit": 5}, "unit=5: unknown unit of length; known: "),
        ({"plane": 1}, "plane=1: known: x, y, z"),
        ({"plane": ["z"]}, "known: x, y, z"),
        ({"axes": 5}, "axes='5': give one letter"),
        ({"region": 5}, "region 5: give one slice"),
    ],
)
def test_options_that_do_not_apply(tmp_path, options, pattern):
    np.save(tmp_path / "a.npy", STACK)
    zarr.create_array(tmp_path / "a.zarr", data=STACK)
    for volume in (STACK, tmp_path / "a.npy", tmp_path / "a.zarr"):
        fails(volume, pattern, errors.ConfigError, **options)


def test_selections_that_do_not_fit():
    array = np.zeros((2, 1, 6, 5, 4))
    fails(
        array,
        r"select=\{'t': 2\}: axis t has 0 to 1",
        errors.ConfigError,
        axes="tczyx",
        select={"t": 2},
    )
    fails(array, "axis t has 0 to 1", errors.ConfigError, axes="tczyx", select={"t": -1})
    fails(array, "known: c, t", errors.ConfigError, axes="tczyx", select={"q": 0})
    fails(array, "axis c has 0 to 0", errors.ConfigError, axes="tczyx", select={"t": 0, "c": 1})


# What the user sees


def test_nothing_but_the_error_reaches_the_terminal(tmp_path):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, STACK, compression="zlib")
    path.write_bytes(path.read_bytes()[:2000])
    script = (
        "import sys; from evenslice.volumes.opening import open_volume; from evenslice._core.errors import "
        "VolumeError\n"
        "try: open_volume(sys.argv[1])\n"
        "except VolumeError: print('refused')\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", script, str(path)], capture_output=True, text=True, check=True
    )
    assert (ran.stdout, ran.stderr) == ("refused\n", "")


def test_opening_volumes_imports_no_format_library_before_it_is_needed():
    script = (
        "import sys, evenslice.volumes.opening\n"
        "libraries = ('torch', 'tifffile', 'nibabel', 'zarr', 'h5py', 'mrcfile', 'PIL', 'pydicom', 'nrrd', 'fsspec')\n"
        "print([name for name in libraries if name in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert ran.stdout == "[]\n"


def test_missing_extra(tmp_path, monkeypatch):
    tifffile.imwrite(tmp_path / "a.tif", STACK)
    save_nifti(tmp_path / "a.nii", STACK)
    zarr.create_array(tmp_path / "a.zarr", data=STACK)
    (tmp_path / "a.h5").write_bytes(b"\x89HDF\r\n\x1a\n")
    (tmp_path / "a.mrc").write_bytes(bytes(208) + b"MAP " + bytes(900))
    (tmp_path / "a.nrrd").write_bytes(b"NRRD0004\n\n")
    (tmp_path / "slices").mkdir()
    (tmp_path / "slices" / "a.png").write_bytes(PNG)
    for module, name, extra in (
        ("tifffile", "a.tif", "volumes"),
        ("nibabel", "a.nii", "volumes"),
        ("zarr", "a.zarr", "volumes"),
        ("h5py", "a.h5", "volumes"),
        ("mrcfile", "a.mrc", "volumes"),
        ("PIL", "slices", "volumes"),
        ("nrrd", "a.nrrd", "medical"),
    ):
        monkeypatch.setitem(sys.modules, module, None)
        monkeypatch.delitem(sys.modules, "PIL.JpegImagePlugin", raising=False)
        with pytest.raises(errors.MissingExtraError, match=rf"pip install 'evenslice\[{extra}\]'"):
            open_volume(tmp_path / name)


def test_a_name_that_is_too_long():
    for name in (f"{'a' * 300}.h5:/x", f"{'a' * 300}.npy"):
        with pytest.raises(errors.VolumeError, match="too long"):
            open_volume(name)
