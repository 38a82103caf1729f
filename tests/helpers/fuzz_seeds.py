"""Small valid volumes of every format, for :mod:`fuzzing` to damage."""

from __future__ import annotations

import gzip
import json
import shutil
from typing import TYPE_CHECKING, Any

import h5py
import mrcfile
import nibabel
import numcodecs
import numpy as np
import pydicom
import SimpleITK
import tifffile
import zarr
from chunked_files import PLAIN_SHARDS, SHARDS, write_n5, write_precomputed
from dicom_files import enhanced, save, write_series
from fuzzing import Seed, damaged, edit_json
from PIL import Image
from pydicom.data import get_testdata_file
from pydicom.uid import RLELossless

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

STACK = (np.arange(5 * 24 * 20) % 251).reshape(5, 24, 20).astype(np.uint16)
BYTES = STACK.astype(np.uint8)


def make(name: str, folder: Path) -> list[Seed]:
    """Write the seeds of a format."""
    return list(FORMATS[name](folder))


def _alone(path: Path, **options: Any) -> Seed:
    return Seed(str(path), [path], options)


def _tiff(folder: Path) -> Iterator[Seed]:
    kinds: dict[str, dict[str, Any]] = {
        "imagej": {"imagej": True, "metadata": {"axes": "ZYX", "spacing": 2, "unit": "nm"}},
        "ome": {"ome": True, "metadata": {"axes": "ZYX", **{f"PhysicalSize{axis}": 1 for axis in "XYZ"}}},
        "big": {"bigtiff": True, "byteorder": ">"},
        "lzw": {"compression": "lzw", "predictor": True, "rowsperstrip": 7},
    }
    for name, options in kinds.items():
        tifffile.imwrite(folder / f"{name}.tif", STACK, **options)
        yield _alone(folder / f"{name}.tif")
    for name in ("jpeg", "jpeg2000"):
        tifffile.imwrite(folder / f"{name}.tif", BYTES, compression=name)
        yield _alone(folder / f"{name}.tif")


def _nifti(folder: Path) -> Iterator[Seed]:
    for number, image in enumerate((nibabel.Nifti1Image, nibabel.Nifti2Image)):
        for suffix in (".nii", ".nii.gz"):
            path = folder / f"{number}{suffix}"
            nibabel.save(image(STACK.T, np.eye(4), dtype=np.uint16), path)
            seed = _alone(path)
            seed.edit = _edit_unpacked if suffix.endswith("gz") else None
            yield seed


def _edit_unpacked(content: bytes, chance: Any) -> bytes:
    return gzip.compress(damaged(gzip.decompress(content), chance))


def _npy(folder: Path) -> Iterator[Seed]:
    for name, array in (("c", STACK), ("f", np.asfortranarray(STACK)), ("big", STACK.astype(">f8"))):
        np.save(folder / f"{name}.npy", array)
        yield _alone(folder / f"{name}.npy")


def _zarr(folder: Path) -> Iterator[Seed]:
    kinds: dict[str, dict[str, Any]] = {
        "v3 gzip": {"compressors": zarr.codecs.GzipCodec()},
        "v3 shards": {"shards": (2, 16, 16)},
        "v2 zlib": {"zarr_format": 2, "compressors": numcodecs.Zlib(), "filters": [numcodecs.Delta("<u2")]},
    }
    for name, options in kinds.items():
        path = folder / f"{name}.zarr"
        zarr.create_array(path, data=STACK, chunks=(1, 8, 8), **options)
        metadata = [file for file in path.rglob("*") if file.name in ("zarr.json", ".zarray")]
        chunks = [file for file in path.rglob("*") if file.is_file() and file not in metadata]
        yield Seed(str(path), metadata, edit=edit_json)
        yield Seed(str(path), chunks)


def _ome_zarr(folder: Path) -> Iterator[Seed]:
    for zarr_format in (2, 3):
        path = folder / f"{zarr_format}.ome.zarr"
        group = zarr.open_group(path, mode="w", zarr_format=zarr_format)
        group.create_array("0", data=STACK[None], chunks=(1, 1, 8, 8))
        axes = [{"name": "c", "type": "channel"}]
        axes += [{"name": name, "type": "space", "unit": "micrometer"} for name in "zyx"]
        scale = [{"type": "scale", "scale": [1, 2, 0.5, 0.5]}]
        images = [{"axes": axes, "datasets": [{"path": "0", "coordinateTransformations": scale}]}]
        group.attrs.update({"ome": {"multiscales": images}} if zarr_format == 3 else {"multiscales": images})
        names = ("zarr.json", ".zattrs", ".zgroup", ".zarray")
        yield Seed(str(path), [file for file in path.rglob("*") if file.name in names], edit=edit_json)


def _hdf5(folder: Path) -> Iterator[Seed]:
    kinds: dict[str, dict[str, Any]] = {
        "contiguous": {},
        "gzip": {"chunks": (1, 8, 8), "compression": "gzip", "shuffle": True},
        "lzf": {"chunks": (1, 8, 8), "compression": "lzf", "fletcher32": True},
    }
    for name, options in kinds.items():
        path = folder / f"{name}.h5"
        with h5py.File(path, "w") as file:
            file.create_dataset("group/volume", data=STACK, **options)
            file["link"] = h5py.SoftLink("/group")
        yield _alone(path)
        yield Seed(f"{path}:/link/volume", [path])


def _mrc(folder: Path) -> Iterator[Seed]:
    for name, array in (("u2", STACK), ("f4", STACK.astype(np.float32)), ("i1", STACK.astype(np.int8))):
        mrcfile.write(folder / f"{name}.mrc", array, voxel_size=(1, 2, 3))
        yield _alone(folder / f"{name}.mrc")


def _itk(folder: Path) -> Iterator[Seed]:
    for suffix in ("mha", "mhd", "nrrd", "nhdr"):
        for compress in (False, True):
            inner = folder / f"{suffix} {compress}"
            inner.mkdir()
            SimpleITK.WriteImage(
                SimpleITK.GetImageFromArray(STACK), str(inner / f"a.{suffix}"), useCompression=compress
            )
            yield Seed(str(inner / f"a.{suffix}"), list(inner.iterdir()))


def _dicom(folder: Path) -> Iterator[Seed]:
    for name in ("raw", "rle"):
        paths = write_series(folder / name, STACK, RescaleSlope=2, RescaleIntercept=-5)
        for path in paths:
            file = pydicom.dcmread(path)
            if name == "rle":
                file.compress(RLELossless)
            save(file, path)
        yield Seed(str(folder / name), paths)
    for name in ("MR_small_jp2klossless.dcm", "SC_rgb_jpeg_gdcm.dcm", "MR_small_bigendian.dcm"):
        shutil.copy(get_testdata_file(name), folder / name)
        yield _alone(folder / name, select={"s": 0} if "rgb" in name else {})
    save(enhanced(STACK, slopes=[1, 2, 3, 4, 5]), folder / "enhanced.dcm")
    yield _alone(folder / "enhanced.dcm")


def _images(folder: Path) -> Iterator[Seed]:
    for name in ("jpeg", "tiff", "png"):
        (folder / name).mkdir()
    for z, pixels in enumerate(BYTES):
        Image.fromarray(pixels).save(folder / "png" / f"{z}.png")
        Image.fromarray(pixels).save(folder / "jpeg" / f"{z}.jpg", progressive=True)
        tifffile.imwrite(folder / "tiff" / f"{z}.tif", pixels, compression="zlib", tile=(16, 16))
    for name in ("jpeg", "tiff", "png"):
        yield Seed(str(folder / name), list((folder / name).iterdir()))


def _n5(folder: Path) -> Iterator[Seed]:
    for name in ("raw", "gzip", "bzip2", "xz", "blosc", "zstd"):
        path = folder / f"{name}.n5"
        write_n5(path / "s0", STACK, name, downsamplingFactors=[1, 1, 1])
        metadata = [path / "attributes.json", path / "s0" / "attributes.json"]
        metadata[0].write_text(json.dumps({"resolution": [4, 4, 40], "units": ["nm", "nm", "nm"]}))
        yield Seed(str(path), metadata, edit=edit_json)
        yield Seed(str(path / "s0"), _pieces(path))


def _precomputed(folder: Path) -> Iterator[Seed]:
    labels = STACK.astype(np.uint64)
    for name, array in (("raw", STACK), ("jpeg", BYTES), ("png", BYTES), ("compressed_segmentation", labels)):
        for kind, sharding in (("files", None), ("shards", SHARDS), ("plain shards", PLAIN_SHARDS)):
            path = folder / f"{name} {kind}"
            write_precomputed(path, array, name, sharding)
            yield Seed(str(path), [path / "info"], edit=edit_json)
            yield Seed(str(path), _pieces(path))


def _pieces(path: Path) -> list[Path]:
    names = ("attributes.json", "info")
    return sorted(file for file in path.rglob("*") if file.is_file() and file.name not in names)


FORMATS: dict[str, Callable[[Path], Iterator[Seed]]] = {
    "tiff": _tiff,
    "nifti": _nifti,
    "npy": _npy,
    "zarr": _zarr,
    "ome-zarr": _ome_zarr,
    "n5": _n5,
    "precomputed": _precomputed,
    "hdf5": _hdf5,
    "mrc": _mrc,
    "itk": _itk,
    "dicom": _dicom,
    "images": _images,
}
