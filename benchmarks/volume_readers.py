"""Speed of reading volumes in many pieces, compared with TensorStore on the same files.

All results are ratios of times of alternating measurements within one run, for windows of 5 slices at random places
(`--window`) and for the whole volume, of smooth noise (128 MiB) in chunks of 16 x 128 x 128 voxels:

    python benchmarks/volume_readers.py [--windows 60] [--rounds 5]

A ratio above 1 says how many times faster evenslice is. TensorStore (a package of the group `test`) has no cache here,
as evenslice has none, and its default of threads. docs/security.md says why evenslice does not read with it.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import tensorstore
import zarr
from scipy.ndimage import gaussian_filter

from evenslice import open_volume

if TYPE_CHECKING:
    from collections.abc import Callable

SHAPE, CHUNK = (128, 1024, 1024), (16, 128, 128)


def make_volume() -> np.ndarray:
    """Return smooth noise, which compresses as images do."""
    noise = np.random.default_rng(0).standard_normal((SHAPE[0], 256, 256), dtype=np.float32)
    smooth = gaussian_filter(noise, (0, 2, 2))
    return np.kron(np.clip(128 + 200 * smooth, 0, 255).astype(np.uint8), np.ones((1, 4, 4), np.uint8))


def write(folder: Path, volume: np.ndarray) -> dict[str, tuple[Path, str]]:
    """Write the volume in every format; return the paths and TensorStore's names of the formats."""
    zarr.create_array(folder / "a.zarr", data=volume, chunks=CHUNK)
    zarr.create_array(folder / "b.zarr", data=volume, chunks=CHUNK, shards=(128, 512, 512))
    stored: dict[str, tuple[Path, str]] = {
        "Zarr 3, zstd": (folder / "a.zarr", "zarr3"),
        "Zarr 3, zstd, shards": (folder / "b.zarr", "zarr3"),
    }
    size, chunk = list(SHAPE[::-1]), list(CHUNK[::-1])
    metadata = {"dimensions": size, "blockSize": chunk, "dataType": "uint8", "compression": {"type": "gzip"}}
    _create("n5", folder / "c.n5", volume, metadata=metadata)
    stored["N5, gzip"] = (folder / "c.n5", "n5")
    labels = (volume // 32).astype(np.uint64)
    for encoding, array in (("raw", volume), ("jpeg", volume), ("compressed_segmentation", labels)):
        scale: dict[str, Any] = {
            "size": size,
            "encoding": encoding,
            "chunk_size": chunk,
            "resolution": [1, 1, 1],
        }
        if encoding == "compressed_segmentation":
            scale["compressed_segmentation_block_size"] = [8, 8, 8]
        whole = {"type": "image", "data_type": array.dtype.name, "num_channels": 1}
        if encoding == "compressed_segmentation":
            whole["type"] = "segmentation"
        path = folder / encoding
        _create("neuroglancer_precomputed", path, array, multiscale_metadata=whole, scale_metadata=scale)
        stored[f"precomputed, {encoding}"] = (path, "neuroglancer_precomputed")
    return stored


def _create(driver: str, path: Path, array: np.ndarray, **metadata: Any) -> None:
    spec = {"driver": driver, "kvstore": {"driver": "file", "path": f"{path}/"}, **metadata}
    store = tensorstore.open(spec, create=True).result()
    turned = array.transpose()
    store[...] = turned if store.ndim == 3 else turned[..., None]


def open_tensorstore(path: Path, driver: str) -> Callable[[tuple[slice, ...]], np.ndarray]:
    """Return a function that reads a box (z, y, x)."""
    spec = {"driver": driver, "kvstore": {"driver": "file", "path": f"{path}/"}}
    context = tensorstore.Context({"cache_pool": {"total_bytes_limit": 0}})
    store = tensorstore.open(spec, context=context, read=True).result()
    if driver == "zarr3":
        return lambda box: store[box].read().result()
    if store.ndim == 4:
        only = store[..., 0]  # channel
        return lambda box: only[box[::-1]].read().result().transpose()
    return lambda box: store[box[::-1]].read().result().transpose()


def timed(read: Callable[[tuple[slice, ...]], np.ndarray], boxes: list[tuple[slice, ...]]) -> float:
    """Return the seconds to read some boxes."""
    started = time.perf_counter()
    for box in boxes:
        read(box)
    return time.perf_counter() - started


def main() -> None:
    """Print the ratios of every format."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--windows", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    random = np.random.default_rng(1)
    corners = [tuple(int(random.integers(0, n - size + 1)) for n, size in zip(SHAPE, (5, 256, 256), strict=True))
               for _ in range(options.windows)]  # fmt: skip
    windows = [
        tuple(slice(a, a + n) for a, n in zip(corner, (5, 256, 256), strict=True)) for corner in corners
    ]
    whole = [tuple(slice(0, n) for n in SHAPE)]
    with tempfile.TemporaryDirectory() as folder:
        for name, (path, driver) in write(Path(folder), make_volume()).items():
            volume, other = open_volume(path), open_tensorstore(path, driver)
            np.testing.assert_array_equal(volume[windows[0]], other(windows[0]))
            for kind, boxes in (("windows", windows), ("whole", whole)):
                ratios = []
                for _ in range(options.rounds):
                    ours = timed(volume.__getitem__, boxes)
                    ratios.append(timed(other, boxes) / ours)
                least, middle, most = min(ratios), statistics.median(ratios), max(ratios)
                print(f"{name:38} {kind:8} {least:.2f} {middle:.2f} {most:.2f}", flush=True)


if __name__ == "__main__":
    main()
