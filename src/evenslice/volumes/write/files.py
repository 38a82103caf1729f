"""The voxels to write, read slab by slab, and the formats; each library is imported on first use.

TIFF is written in ImageJ's dialect if that can hold the image, else as OME-TIFF. ImageJ's holds uint8, uint16 and float32 in
files of up to 4 GiB. OME-TIFF holds the rest, as BigTIFF if needed, except for 64-bit integers, which go into a plain TIFF with
the metadata of tifffile. So do single slices, of which ImageJ's dialect would lose an axis, as it would of planes one voxel wide.

In NIfTI x varies fastest, and channels are the fourth axis, which is time in the format. In MetaImage and NRRD, which are
written compressed and in mm as ITK expects, channels are the components of each voxel.

OME-Zarr images are of version 0.5 in Zarr format 3, with resolution levels.
"""

from __future__ import annotations

import gzip
import io
import math
import uuid
import zlib
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np

from evenslice.volumes.geometry import fit_spacing, full_name, is_invertible, sizes_in
from evenslice.volumes.volume import cut_axis

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from _typeshed import ReadableBuffer
    from numpy.typing import NDArray

    from evenslice.volumes.geometry import Unit
    from evenslice.volumes.volume import Volume

SLAB_BYTES = 2**26
"""Bytes of slices that are held in memory at once, unless a single slice of all channels takes more."""

CHUNK_BYTES = 2**21
DEEPEST_CHUNK = 32


class Tally:
    """Counts written voxels and reports them.

    Args:
        total: number of voxels to write.
        report: called after each piece with the number of voxels written and in total.
    """

    def __init__(self, total: int, report: Callable[[int, int], None] | None) -> None:
        self._done, self._total, self._report = 0, total, report or (lambda *_: None)

    def expect(self, voxels: int) -> None:
        """Increase the total by voxels beyond those of the image."""
        self._total += voxels

    def add(self, voxels: int) -> None:
        """Count written voxels."""
        self._done += voxels
        self._report(self._done, self._total)


@dataclass(frozen=True, eq=False)
class Image:
    """The voxels to write and their metadata.

    Attributes:
        channels: volumes of one shape and data type; a single one unless ``stacked``.
        stacked: whether they form a leading channel axis.
        labels: whether voxels are class numbers, which must not be averaged.
        dtype: data type to store, which holds all values of the volumes.
        like: the volume from which spacing, unit, affine and offset are taken.
        tally: counts the voxels written.
        dataset: the path inside a file of several datasets.
    """

    channels: tuple[Volume, ...]
    stacked: bool
    labels: bool
    dtype: np.dtype[Any]
    like: Volume
    tally: Tally
    dataset: str

    @property
    def zyx(self) -> tuple[int, int, int]:
        """The number of voxels along z, y, x."""
        return self.channels[0].shape

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape (z, y, x), or (channel, z, y, x)."""
        return (len(self.channels), *self.zyx) if self.stacked else self.zyx

    @property
    def chunks(self) -> tuple[int, int, int]:
        """The shape of chunks (z, y, x) of about 2 MiB.

        They are flatter than cubes because volumes are viewed and segmented slice by slice, and the flatter the larger a
        slice is, so that a whole layer of chunks fits into a slab.
        """
        (z, y, x), itemsize = self.zyx, self.dtype.itemsize
        layers = max(1, min(DEEPEST_CHUNK, SLAB_BYTES // (y * x * itemsize)))
        depth = 2 ** int(math.log2(layers))
        side = 2 ** int(math.log2(max(1, CHUNK_BYTES / itemsize / depth)) / 2)
        return min(depth, z), min(side, y), min(side, x)

    def slabs(self, multiple: int = 1) -> Iterator[tuple[int, slice, NDArray[Any]]]:
        """Read channel after channel in slabs of whole slices.

        Args:
            multiple: the number of slices of each slab but the last is a multiple of it.

        Yields:
            The channel, the slices, and their voxels (z, y, x), C-contiguous, of the data type to store.
        """
        depth = self._slab_depth(multiple, 1)
        for number, channel in enumerate(self.channels):
            for part in cut_axis(self.zyx[0], depth):
                voxels = channel[part].astype(self.dtype, copy=False)
                yield number, part, voxels
                self.tally.add(voxels.size)

    def stacks(self) -> Iterator[NDArray[Any]]:
        """Read all channels at once in slabs of whole slices.

        Yields:
            Voxels (channel, z, y, x) of the data type to store.
        """
        for part in cut_axis(self.zyx[0], self._slab_depth(1, len(self.channels))):
            voxels = np.stack([channel[part].astype(self.dtype, copy=False) for channel in self.channels])
            yield voxels
            self.tally.add(voxels.size)

    def _slab_depth(self, multiple: int, channels: int) -> int:
        """Return the number of slices to read at once: whole chunks of the volumes, unless these are too large."""
        itemsize = max(self.dtype.itemsize, self.channels[0].dtype.itemsize)
        most = max(1, SLAB_BYTES // (math.prod(self.zyx[1:]) * itemsize * channels))
        stored = max(channel.chunks[0] if channel.chunks else 1 for channel in self.channels)
        step = -(-stored // multiple) * multiple
        step = step if step <= most else multiple
        return max(step, most // step * step)


def write_npy(path: Path, image: Image) -> None:
    """Write the voxels; the format cannot store their spacing.

    They are appended to the header, not written to a memory map, because a full disk kills a process that does that.
    """
    alike = np.broadcast_to(np.zeros((), image.dtype), image.shape)
    header = np.lib.format.header_data_from_array_1_0(alike)
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        for _, _, voxels in image.slabs():
            file.write(voxels.data)


def write_hdf5(path: Path, image: Image) -> None:
    """Write one dataset into a new file, with its voxel size as the attribute ``element_size_um``, as in ilastik and Fiji."""
    import h5py

    chunks = image.chunks
    lead = (1,) if image.stacked else ()
    with _Sink(path, "w+") as sink:
        with h5py.File(sink, "w") as file:
            array = file.create_dataset(
                image.dataset,
                shape=image.shape,
                dtype=image.dtype,
                chunks=(*lead, *chunks),
                compression="gzip",
                compression_opts=4,
                shuffle=True,
                track_times=False,  # so that the same voxels make the same file
            )
            for number, axis in enumerate("czyx" if image.stacked else "zyx"):
                array.dims[number].label = axis
            if image.like.spacing is not None and image.like.unit is not None:
                array.attrs["element_size_um"] = sizes_in(image.like.spacing, image.like.unit, "um")
            for channel, part, voxels in image.slabs(multiple=chunks[0]):
                array[(channel, part) if image.stacked else part] = voxels
                sink.check()
        sink.check()


class _Sink(io.FileIO):
    """A file that records write errors instead of raising them.

    The HDF5 library cannot release a file that it fails to write, and crashes later. So writes seem to succeed, and
    ``check`` raises the recorded error.
    """

    _failure: OSError | None = None

    def check(self) -> None:
        """Raise the recorded error, if any."""
        if self._failure is not None:
            raise self._failure

    def write(self, data: ReadableBuffer, /) -> int:
        """Write all bytes, or record why not."""
        rest = memoryview(data).cast("B")
        length = len(rest)
        try:
            while rest and self._failure is None:
                rest = rest[super().write(rest) :]
        except OSError as error:
            self._failure = error
        return length

    def truncate(self, size: int | None = None, /) -> int:
        """Set the length of the file, or record why not."""
        try:
            return super().truncate(size)
        except OSError as error:
            self._failure = self._failure or error
            return size or 0


CLASSIC_BYTES = 2**32 - 2**25
"""Bytes of voxels that a classic TIFF can always hold with its tags, compressed or not."""

_BIG_SUFFIXES = (".btf", ".tf8")
_OME_SUFFIXES = (".ome.tif", ".ome.tiff")
_IMAGEJ_TYPES = ("uint8", "uint16", "float32")
_ORIENTATION = (274, 3, 1, 1, False)

_OME_UNITS: dict[Unit, str] = {"um": "µm", "angstrom": "Å", "inch": "in"}


def write_tiff(path: Path, image: Image) -> None:
    """Write one page per slice, or per channel of each slice in turn, as in a hyperstack of ImageJ."""
    import tifffile

    name = path.name.lower()
    z, y, x = image.zyx
    big = math.prod(image.shape) * image.dtype.itemsize > CLASSIC_BYTES or name.endswith(_BIG_SUFFIXES)
    named_ome = name.endswith(_OME_SUFFIXES)
    long = image.dtype.kind in "iu" and image.dtype.itemsize == 8
    plain = long or (z == 1 < x and not named_ome)
    imagej = image.dtype.name in _IMAGEJ_TYPES and x > 1 and not (big or named_ome or plain)
    ome = not plain and not imagej
    pages = (page for voxels in image.stacks() for page in voxels.swapaxes(0, 1).reshape(-1, y, x))
    shape = (z, len(image.channels), y, x) if image.stacked else (z, y, x)
    # tifffile suppresses errors when it closes a file that it opened, so we open it.
    with path.open("w+b") as file, tifffile.TiffWriter(file, bigtiff=big, imagej=imagej, ome=ome) as writer:
        writer.write(
            # Not the generator itself, which the writer would close; and whole where it takes pages for columns.
            map(np.asarray, pages) if x > 1 else np.stack(list(pages)).reshape(shape),
            shape=shape,
            dtype=image.dtype,
            photometric="minisblack",
            compression="zlib",
            metadata={"axes": "ZCYX" if image.stacked else "ZYX", **_sizes(image, ome=ome)},
            resolution=None if ome else _resolution(image),
            resolutionunit="NONE",
            # Without this tag, some versions of ImageJ assume that all slices follow the first one, as in an
            # uncompressed file; with it, all versions follow the chain of pages.
            extratags=[_ORIENTATION],
            buffersize=SLAB_BYTES,
        )
        next(pages, None)  # the writer stops at the last page, which is only counted now


def _resolution(image: Image) -> tuple[float, float] | None:
    """Return pixels per unit along x and y; None if unknown, or beyond what the tags of a TIFF can state."""
    _, y, x = image.like.spacing or (0.0, 0.0, 0.0)
    return (1 / x, 1 / y) if 2**-31 < min(x, y) <= max(x, y) < 2**31 else None


def _sizes(image: Image, *, ome: bool) -> dict[str, Any]:
    """Return the metadata with the voxel size, of which the resolution tags hold that of pixels unless it is OME-TIFF.

    There, an unknown unit is "pixel", because OME-XML assumes micrometres otherwise, and the UUID of the file is generated
    here because that of tifffile would contain the network address of the machine.
    """
    found: dict[str, Any] = {"UUID": str(uuid.uuid4())} if ome else {}
    if image.like.spacing is None:
        return found
    if not ome:
        return {"spacing": image.like.spacing[0]} | (
            {} if image.like.unit is None else {"unit": image.like.unit}
        )
    unit = "pixel" if image.like.unit is None else _OME_UNITS.get(image.like.unit, image.like.unit)
    for axis, size in zip("ZYX", image.like.spacing, strict=True):
        found |= {f"PhysicalSize{axis}": size, f"PhysicalSize{axis}Unit": unit}
    return found


COMPRESSION = 6  # of gzip

# NIfTI has codes for three units of length; the others are converted to one of them.
_NIFTI_UNITS: dict[Unit, Unit] = {"pm": "um", "angstrom": "um", "nm": "um", "cm": "mm", "inch": "mm"}
_NIFTI_CODES: dict[Unit | None, str] = {"um": "micron", "mm": "mm", "m": "meter", None: "unknown"}

_MHA_TYPES = {"i1": "CHAR", "i2": "SHORT", "i4": "INT", "i8": "LONG_LONG", "f4": "FLOAT", "f8": "DOUBLE"}
_NRRD_TYPES = {"float32": "float", "float64": "double"}


def write_nifti(path: Path, image: Image) -> None:
    """Write NIfTI-1, or NIfTI-2 if an axis is too long for NIfTI-1."""
    header = _nifti_header(image)
    zipped = path.name.lower().endswith(".gz")
    # Neither time nor name of the staging file is stored, so that the same voxels make the same file.
    with (
        path.open("wb") as file,
        gzip.GzipFile("", "wb", COMPRESSION, file, mtime=0) if zipped else nullcontext(file) as stream,
    ):
        header.write_to(stream)
        for _, _, voxels in image.slabs():
            stream.write(voxels.data)


def _nifti_header(image: Image) -> Any:
    import nibabel

    shape = (*image.zyx[::-1], len(image.channels)) if image.stacked else image.zyx[::-1]
    # Its own types are partial.
    kind: Any = nibabel.Nifti1Header if max(shape) < 2**15 else nibabel.Nifti2Header
    header = kind(endianness="<")
    header.set_data_dtype(image.dtype)
    header.set_data_shape(shape)
    header.set_slope_inter(1, 0)
    unit = None if image.like.unit is None else _NIFTI_UNITS.get(image.like.unit, image.like.unit)
    header.set_xyzt_units(_NIFTI_CODES[unit])
    spacing = (image.like.spacing or (1.0, 1.0, 1.0))[::-1]
    zooms = spacing if unit is None else sizes_in(spacing, image.like.unit, unit)
    header.set_zooms((*zooms, *(1.0 for _ in shape[3:])))
    affine = _affine_in(image, unit)
    if affine is not None:  # without it both codes are 0, and readers know the voxel size alone
        header.set_sform(affine, code="aligned")
        header.set_qform(affine, code="aligned")
        if not np.allclose(header.get_qform(), affine, rtol=1e-4, atol=1e-4):
            header.set_qform(None, code="unknown")  # a quaternion cannot represent shear
    if image.labels:
        header.set_intent("label")
    return header


def write_mha(path: Path, image: Image) -> None:
    """Write one file, compressed by zlib; the header comes first and states the compressed size, filled in at the end."""
    header = _mha_header(image, 0)
    _write_compressed(path, image, header, zlib.MAX_WBITS)
    with path.open("r+b") as file:
        file.write(_mha_header(image, path.stat().st_size - len(header)))


def write_nrrd(path: Path, image: Image) -> None:
    """Write one file, compressed by gzip; see https://teem.sourceforge.net/nrrd/format.html."""
    _write_compressed(path, image, _nrrd_header(image), zlib.MAX_WBITS + 16)


def _write_compressed(path: Path, image: Image, header: bytes, form: int) -> None:
    """Write a header and the voxels, channels first, as one stream of a form that zlib knows by its ``wbits``."""
    compressor = zlib.compressobj(COMPRESSION, wbits=form)
    with path.open("wb") as file:
        file.write(header)
        for voxels in image.stacks():
            file.write(compressor.compress(np.ascontiguousarray(np.moveaxis(voxels, 0, -1)).data))
        file.write(compressor.flush())


def _mha_header(image: Image, size: int) -> bytes:
    steps, origin = _itk_placement(image)
    spacing = np.linalg.norm(steps, axis=1)
    kind = image.dtype.str[1:]
    name = f"U{_MHA_TYPES[f'i{kind[1]}']}" if kind[0] == "u" else _MHA_TYPES[kind]
    lines = [
        "ObjectType = Image",
        "NDims = 3",
        "BinaryData = True",
        "BinaryDataByteOrderMSB = False",
        "CompressedData = True",
        f"CompressedDataSize = {size:020d}",
        f"TransformMatrix = {_joined((steps / spacing[:, None]).ravel())}",
        f"Offset = {_joined(origin)}",
        "CenterOfRotation = 0 0 0",
        f"ElementSpacing = {_joined(spacing)}",
        f"DimSize = {' '.join(map(str, image.zyx[::-1]))}",
        f"ElementNumberOfChannels = {len(image.channels)}",
        f"ElementType = MET_{name}",
        "ElementDataFile = LOCAL",
    ]
    return "".join(f"{line}\n" for line in lines).encode()


def _joined(values: NDArray[np.float64], separator: str = " ") -> str:
    return separator.join(map(repr, values.tolist()))


def _nrrd_header(image: Image) -> bytes:
    steps, origin = _itk_placement(image)
    directions = [f"({_joined(step, ',')})" for step in steps]
    sizes, kinds = list(image.zyx[::-1]), ["domain"] * 3
    if image.stacked:
        sizes, kinds, directions = [len(image.channels), *sizes], ["vector", *kinds], ["none", *directions]
    lines = [
        "NRRD0005",
        f"type: {_NRRD_TYPES.get(image.dtype.name, image.dtype.name)}",
        f"dimension: {len(sizes)}",
        "space: left-posterior-superior",
        f"sizes: {' '.join(map(str, sizes))}",
        f"space directions: {' '.join(directions)}",
        f"kinds: {' '.join(kinds)}",
        "endian: little",
        "encoding: gzip",
        f"space origin: ({_joined(origin, ',')})",
    ]
    if image.like.unit is not None:
        lines.append('space units: "mm" "mm" "mm"')
    return "".join(f"{line}\n" for line in (*lines, "")).encode()


def _affine_in(image: Image, unit: Unit | None) -> NDArray[np.float64] | None:
    """Return the affine of an image in a unit of length, with columns as long as the voxels.

    Args:
        image: the image.
        unit: unit of the result; None means mm, as does an unknown unit of the spacing.

    Returns:
        (4, 4) map from voxel indices (x, y, z, 1), or None if the image has no invertible affine.
    """
    if image.like.affine is None or not is_invertible(image.like.affine):
        return None
    if image.like.spacing is None:
        return image.like.affine
    affine = fit_spacing(image.like.affine, image.like.spacing, image.like.unit)
    affine[:3] /= sizes_in([1.0], unit, "mm")[0]
    return affine


def _itk_placement(image: Image) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return what MetaImage and NRRD store: steps and origin in mm, x to the left, y to the back, z to the head.

    Returns:
        (3, 3) array whose rows are the steps from a voxel to the next along x, y and z, and the position (3,) of the
        first voxel. An image without an affine is aligned with the axes.
    """
    affine = _affine_in(image, "mm")
    if affine is None:
        spacing = image.like.spacing or (1.0, 1.0, 1.0)
        return np.diag(sizes_in(spacing[::-1], image.like.unit, "mm")), np.zeros(3)
    flipped = np.diag([-1.0, -1.0, 1.0]) @ affine[:3]
    # Adding zero turns -0.0 into 0.0.
    return flipped[:, :3].T + 0.0, flipped[:, 3] + 0.0


SMALLEST = 256
LONGEST = (1.05, 2, 2)  # size of voxels along z, y, x, in that of the shortest, below which an axis is halved


def write_zarr(path: Path, image: Image) -> None:
    """Write the image as a folder."""
    from evenslice.volumes.read.arrays import settle  # which imports Zarr

    try:
        _write_levels(path, image)
    except BaseException:
        settle()
        raise


def _write_levels(path: Path, image: Image) -> None:
    import zarr

    plan = levels(image.zyx, image.like.spacing)
    image.tally.expect(len(image.channels) * sum(math.prod(level.shape) for level in plan[1:]))
    arrays = [_create(path, str(number), level, image) for number, level in enumerate(plan)]
    for channel, part, voxels in image.slabs(multiple=image.chunks[0]):
        arrays[0][_at(image, channel, part)] = voxels
    for number, level in enumerate(plan[1:], start=1):
        _fill(arrays[number], arrays[number - 1], level, image)
    zarr.open_group(path, mode="r+").attrs["ome"] = _metadata(plan, image, path.name)


def _create(path: Path, name: str, level: Level, image: Image) -> Any:
    import zarr
    from zarr.codecs import BloscCodec

    channels = [len(image.channels)] if image.stacked else []
    return zarr.create_array(
        path,
        name=name,
        shape=(*channels, *level.shape),
        chunks=(*(1 for _ in channels), *map(min, image.chunks, level.shape)),
        dtype=image.dtype,
        # Blosc is a core codec of the format; plain zstd is not.
        compressors=BloscCodec(cname="zstd", clevel=3, shuffle="shuffle", typesize=image.dtype.itemsize),
        fill_value=0,
        dimension_names="czyx" if image.stacked else "zyx",
    )


def _fill(array: Any, finer: Any, level: Level, image: Image) -> None:
    """Make a level from the next finer one, one layer of chunks at a time."""
    depth = array.chunks[-3]
    for channel in range(len(image.channels)):
        for part in cut_axis(level.shape[0], depth):
            below = slice(part.start * level.steps[0], min(part.stop * level.steps[0], finer.shape[-3]))
            voxels = np.asarray(finer[_at(image, channel, below)])
            # One slice at a time, to take little memory beyond the layer itself.
            slices = [
                halve(voxels[z], level.steps, labels=image.labels)
                for z in cut_axis(len(voxels), level.steps[0])
            ]
            array[_at(image, channel, part)] = np.concatenate(slices)
            image.tally.add((part.stop - part.start) * math.prod(level.shape[1:]))


def _at(image: Image, channel: int, part: slice) -> tuple[int | slice, ...]:
    return (channel, part) if image.stacked else (part,)


def _metadata(plan: Sequence[Level], image: Image, name: str) -> dict[str, Any]:
    """Return the metadata of the group; see https://ngff.openmicroscopy.org/0.5/."""
    spacing = image.like.spacing or (1.0, 1.0, 1.0)
    unit = {} if image.like.unit is None else {"unit": full_name(image.like.unit)}
    space: list[dict[str, str]] = [{"name": axis, "type": "space", **unit} for axis in "zyx"]
    lead = [1.0] if image.stacked else []
    datasets = []
    for number, level in enumerate(plan):
        scale = [size * factor for size, factor in zip(spacing, level.factors, strict=True)]
        transformations: list[dict[str, Any]] = [{"type": "scale", "scale": [*lead, *scale]}]
        # The first voxel of a coarser level is centred on the voxels of the finest one that it covers.
        shift = [
            size * (place + (factor - 1) / 2)
            for size, place, factor in zip(spacing, image.like.offset, level.factors, strict=True)
        ]
        if any(shift):
            transformations.append({"type": "translation", "translation": [*(0.0 for _ in lead), *shift]})
        datasets.append({"path": str(number), "coordinateTransformations": transformations})
    multiscale = {
        "name": name,
        "axes": [*({"name": "c", "type": "channel"} for _ in lead), *space],
        "datasets": datasets,
        "type": "mode" if image.labels else "mean",
    }
    marks: dict[str, Any] = {"image-label": {}} if image.labels else {}
    return {"version": "0.5", "multiscales": [multiscale], **marks}


@dataclass(frozen=True)
class Level:
    """One resolution level.

    Attributes:
        shape: number of voxels along z, y, x.
        factors: size of a voxel in voxels of the finest level, along z, y, x.
        steps: size of a voxel in voxels of the next finer level, 1 or 2 along each axis.
    """

    shape: tuple[int, int, int]
    factors: tuple[int, ...]
    steps: tuple[int, ...]


def levels(shape: tuple[int, int, int], spacing: tuple[float, float, float] | None) -> list[Level]:
    """Return the resolution levels of an image, the finest first, until a slice is at most ``SMALLEST`` pixels wide and high.

    Each level halves y and x where voxels are less than twice as long as along the shortest axis, and z only where they are
    no longer, so that slices are kept until pixels are larger than slices are thick. An axis of one voxel has nothing to
    halve and does not count.

    Args:
        shape: number of voxels along z, y, x.
        spacing: voxel size along z, y, x; if None, all axes are halved.

    Example:
        >>> [level.shape for level in levels((100, 1000, 800), (50, 10, 10))]
        [(100, 1000, 800), (100, 500, 400), (100, 250, 200)]
        >>> [level.factors for level in levels((100, 1000, 800), None)]
        [(1, 1, 1), (2, 2, 2), (4, 4, 4)]
    """
    found = [Level(shape, (1, 1, 1), (1, 1, 1))]
    while max(found[-1].shape[1:]) > SMALLEST:
        last = found[-1]
        sizes = [size * factor for size, factor in zip(spacing or (1, 1, 1), last.factors, strict=True)]
        shortest = min(size for size, length in zip(sizes, last.shape, strict=True) if length > 1)
        steps = tuple(
            2 if length > 1 and size < most * shortest else 1
            for size, length, most in zip(sizes, last.shape, LONGEST, strict=True)
        )
        z, y, x = (-(-length // step) for length, step in zip(last.shape, steps, strict=True))
        factors = tuple(factor * step for factor, step in zip(last.factors, steps, strict=True))
        found.append(Level((z, y, x), factors, steps))
    return found


def halve(voxels: NDArray[Any], steps: tuple[int, ...], *, labels: bool) -> NDArray[Any]:
    """Reduce every box of ``steps`` voxels to one.

    Labels become the most frequent label of the box, or the first of several, so that no new label appears; intensities
    become the mean, rounded for integers. A box at the far border may contain fewer voxels.

    Args:
        voxels: (z, y, x).
        steps: size of a box along z, y, x, 1 or 2 each.
        labels: whether the voxels are class numbers.

    Returns:
        (ceil(z / steps[0]), ceil(y / steps[1]), ceil(x / steps[2])), of the same data type.

    Example:
        >>> box = np.array([[[0, 3], [3, 9]]], np.uint8)
        >>> halve(box, (1, 2, 2), labels=True).item(), halve(box, (1, 2, 2), labels=False).item()
        (3, 4)
    """
    # Pad halved axes to an even length: repeating the last voxel does not change means and majorities.
    missing = [(0, -length % step) for length, step in zip(voxels.shape, steps, strict=True)]
    whole = np.pad(voxels, missing, mode="edge") if any(end for _, end in missing) else voxels
    corners = [
        np.ascontiguousarray(whole[z :: steps[0], y :: steps[1], x :: steps[2]])
        for z, y, x in product(*(range(step) for step in steps))
    ]
    if labels or voxels.dtype == bool:
        return _mode(corners)
    return _mean(corners)


def _mode(corners: list[NDArray[Any]]) -> NDArray[Any]:
    """Return for each voxel the value that most corners have, or the first of several."""
    counts = [np.sum([corner == other for other in corners], 0, np.uint8) for corner in corners]
    most_frequent: NDArray[Any] = np.choose(np.argmax(counts, axis=0), corners)
    return most_frequent


def _mean(corners: list[NDArray[Any]]) -> NDArray[Any]:
    """Return the mean of the corners; halves of whole numbers are rounded up."""
    dtype = corners[0].dtype
    wide = np.result_type(dtype, np.float32)
    # Divided first, so that sums of large numbers do not overflow; division by 2, 4 or 8 is exact.
    mean = np.asarray(sum(corner.astype(wide) / len(corners) for corner in corners))
    return (mean if dtype.kind == "f" else np.floor(mean + 0.5)).astype(dtype)
