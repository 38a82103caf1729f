"""Neuroglancer's precomputed volumes, of one or several resolution levels, in a folder or at an address.

Source: https://github.com/google/neuroglancer/blob/master/src/datasource/precomputed/volume.md. The format counts its
axes x first and measures voxels in nm; here, as everywhere, z comes first.
"""

from __future__ import annotations

import math
import os
from typing import TYPE_CHECKING, Any

import numpy as np

from evenslice._core import ConfigError, VolumeError, did_you_mean, needs_extra, read_bounded, reason
from evenslice.volumes.read.checks import LARGEST_METADATA, require_piece
from evenslice.volumes.read.chunk_files import (
    ChunkFiles,
    assemble,
    decompress,
    encoded_limit,
    read_json_object,
)
from evenslice.volumes.read.metadata import LARGEST_OFFSET, is_inside, scaled_spacing
from evenslice.volumes.read.precomputed_chunks import ENCODINGS, TYPES, Encoding
from evenslice.volumes.read.precomputed_shards import Shards
from evenslice.volumes.read.source import VoxelSource

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from evenslice.volumes.read.location import Place

__all__ = ["INFO", "PrecomputedSource", "is_precomputed"]

INFO = "info"
_SUFFIXES = {".gz": "gzip", ".zstd": "zstd", ".xz": "lzma", ".bz2": "bz2", ".br": "brotli"}
"""What cloud-volume appends to the names of compressed chunks in a folder, and the compression."""


def is_precomputed(path: Path) -> bool:
    """Return whether a folder is a precomputed volume: whether its file of metadata speaks of scales."""
    try:
        return b'"scales"' in read_bounded(path / INFO, LARGEST_METADATA)
    except OSError:
        return False


class PrecomputedSource(VoxelSource):
    """One resolution level (scale) of a precomputed volume, an image or a segmentation."""

    format = "Neuroglancer precomputed"
    fresh = True
    chunks: tuple[int, ...]

    def __init__(self, place: Place) -> None:
        label = place.label
        self._files = ChunkFiles(place)
        info = read_json_object(self._files, INFO)
        if info is None:
            raise VolumeError(
                f"{label}: has no file {INFO!r}, or the server forbids reading it; check the address and your credentials"
                if self._files.remote
                else f"{label}: has no file {INFO!r}; name the folder of a precomputed volume"
            )
        scale = _scale(info, place.level, label)
        kind, channels = str(info.get("data_type")).lower()[:40], info.get("num_channels")
        if kind not in TYPES:
            raise VolumeError(f"{label}: its data type {kind!r} cannot be read; {did_you_mean(kind, TYPES)}")
        if type(channels) is not int or channels < 1:
            raise _damaged(label, f"num_channels is {str(channels)[:40]}, not a number above zero")
        self.dtype = np.dtype(kind)
        self._size = _three(scale.get("size"), "size", label)
        self._chunk = _three((scale.get("chunk_sizes") or [None])[0], "chunk_sizes", label)
        self._start = _three(scale.get("voxel_offset", [0, 0, 0]), "voxel_offset", label, -LARGEST_OFFSET)
        self._folder = scale.get("key")
        if not is_inside(self._folder):
            raise VolumeError(
                f"{label}: the folder {str(self._folder)[:60]!r} of a scale is none inside the volume's and is not read; name "
                "the folder of each scale relative to that of the volume"
            )
        self._encoding = _encoding(scale, channels, self.dtype, label)
        self._shards = None
        if scale.get("sharding") is not None:
            grid = tuple(-(-length // size) for length, size in zip(self._size, self._chunk, strict=True))
            try:
                self._shards = Shards(scale["sharding"], self._files, self._folder, grid)
            except (TypeError, KeyError, ValueError) as error:
                raise _damaged(label, f"sharding cannot be read ({reason(error)})") from error
        many = channels > 1
        self.names = "czyx" if many else "zyx"
        self.shape = (channels,) * many + self._size[::-1]
        self.chunks = (channels,) * many + self._chunk[::-1]
        # Counted from the corner of a voxel, where the offset of a volume is that of its centre.
        self.offset = (0.0,) * many + tuple(start + 0.5 for start in self._start[::-1])
        require_piece(label, "its chunks", self.chunks, self.dtype)
        resolution = scale.get("resolution")
        if isinstance(resolution, list) and len(resolution) == 3:
            sizes = [math.nan] * many + resolution[::-1]
            self.spacing, self.unit = scaled_spacing(sizes, ["nm"] * len(sizes), self.names)

    def read(self, key: tuple[slice, ...]) -> NDArray[Any]:
        """Decode the chunks under ``key``."""
        return assemble(key, self.chunks, self.dtype, self._decoded, remote=self._files.remote)

    def _decoded(self, index: tuple[int, ...]) -> NDArray[Any] | None:
        """Decode the chunk of a place in the grid; None if it is not stored."""
        cell = index[:-4:-1]
        start = [i * length for i, length in zip(cell, self._chunk, strict=True)]
        stop = [min(a + length, size) for a, length, size in zip(start, self._chunk, self._size, strict=True)]
        shape = tuple(b - a for a, b in zip(start, stop, strict=True))
        most = encoded_limit(math.prod(self.chunks) * self.dtype.itemsize)
        if self._shards is not None:
            content = self._shards.read(cell, most)
        else:
            spans = zip(start, stop, self._start, strict=True)
            name = "_".join(f"{a + origin}-{b + origin}" for a, b, origin in spans)
            content = self._stored(f"{self._folder}/{name}", most, shape)
        if content is None:
            return None
        found = self._encoding.decode(content, shape)
        return found if len(index) == 4 else found[0]

    def _stored(self, name: str, most: int, shape: tuple[int, ...]) -> bytes | None:
        """Return the content of a chunk's file, which cloud-volume compresses, and in a folder names by how."""
        content = self._files.read(name, most)
        if content is None:
            return self._compressed(name, most)
        if self._files.remote and self._encoding.is_gzip(content, shape):
            return decompress(content, "gzip")
        return content

    def _compressed(self, name: str, most: int) -> bytes | None:
        """Return the content of a chunk's file in a folder that has a suffix; None if it is not stored."""
        folder = self._files.place.location
        if isinstance(folder, str):
            return None
        for suffix, codec in _SUFFIXES.items():
            file = f"{name}{suffix}"
            # A look costs little, and of most volumes many chunks are missing.
            if not os.path.lexists(folder / file):
                continue
            packed = self._files.read(file, most)
            return None if packed is None else decompress(packed, codec)
        return None


def _scale(info: Mapping[str, Any], level: int, label: str) -> Mapping[str, Any]:
    """Return the metadata of a level."""
    scales = info.get("scales")
    if not isinstance(scales, list) or not scales:
        raise VolumeError(
            f"{label}: its file {INFO!r} describes no volume (no scales); name the folder of an image or a segmentation"
        )
    if not 0 <= level < len(scales):
        raise ConfigError(
            f"{label}: has no level {level}; it has levels 0 to {len(scales) - 1}, 0 the finest"
        )
    scale = scales[level]
    if not isinstance(scale, dict):
        raise _damaged(label, f"scale {level} is not an object")
    return scale


def _three(value: Any, what: str, label: str, least: int = 1) -> tuple[int, ...]:
    """Return three whole numbers, along x, y, z.

    Raises:
        VolumeError: they are not, or one is below ``least`` or beyond any size.
    """
    right = isinstance(value, list) and len(value) == 3
    if not right or any(type(size) is not int or not least <= size < LARGEST_OFFSET for size in value):
        raise _damaged(label, f"{what} is {str(value)[:60]}, not three whole numbers from {least} on")
    return tuple(value)


def _encoding(scale: Mapping[str, Any], channels: int, dtype: np.dtype[Any], label: str) -> Encoding:
    """Return how chunks are decoded."""
    name = str(scale.get("encoding")).lower()[:40]
    if name not in ENCODINGS:
        raise VolumeError(f"{label}: its encoding {name!r} cannot be read; {did_you_mean(name, ENCODINGS)}")
    if dtype.name not in ENCODINGS[name]:
        raise _damaged(label, f"encoding {name} holds {' or '.join(ENCODINGS[name])}, not {dtype.name}")
    if name in ("jpeg", "png"):
        with needs_extra("volumes", f"reading {name} chunks"):
            import imagecodecs  # noqa: F401
    block = scale.get("compressed_segmentation_block_size", [8, 8, 8])
    block = _three(block, "compressed_segmentation_block_size", label)
    require_piece(label, "the blocks of its segmentation", block, dtype)
    return Encoding(name, channels, dtype, block)


def _damaged(label: str, what: str) -> VolumeError:
    return VolumeError(f"{label}: its {what}; its file {INFO!r} is damaged, copy it again")
