"""N5, Neuroglancer precomputed and OME-Zarr volumes, written by TensorStore, zarr or by hand, for tests."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import tensorstore
import zarr

if TYPE_CHECKING:
    from pathlib import Path

IMAGE = np.random.default_rng(0).integers(0, 255, (13, 40, 33), dtype=np.uint8)
LABELS = (np.indices((13, 40, 33)) // 7).sum(0).astype(np.uint64) * 2**33 + 5
SHARDS = {
    "@type": "neuroglancer_uint64_sharded_v1",
    "preshift_bits": 1,
    "hash": "murmurhash3_x86_128",
    "minishard_bits": 2,
    "shard_bits": 3,
    "minishard_index_encoding": "gzip",
    "data_encoding": "gzip",
}
PLAIN_SHARDS = SHARDS | {
    "hash": "identity",
    "shard_bits": 0,
    "minishard_index_encoding": "raw",
    "data_encoding": "raw",
}


def write_precomputed(
    path: Path, array: np.ndarray, encoding: str = "raw", sharding: Any = None, scale: int = 1
) -> np.ndarray:
    """Write an array (z, y, x) or (c, z, y, x) as a level of a volume; return what TensorStore reads of it."""
    full = array if array.ndim == 4 else array[None]
    level: dict[str, Any] = {
        "size": list(full.shape[:0:-1]),
        "encoding": encoding,
        "chunk_size": [16, 16, 4],
        "resolution": [4 * scale, 4 * scale, 40],
        "voxel_offset": [100, -20, 7],
    }
    if encoding == "compressed_segmentation":
        level["compressed_segmentation_block_size"] = [8, 8, 2]
    if sharding is not None:
        level["sharding"] = sharding
    kind = "segmentation" if array.dtype == np.uint64 else "image"
    store = tensorstore.open(
        {
            "driver": "neuroglancer_precomputed",
            "kvstore": {"driver": "file", "path": f"{path}/"},
            "multiscale_metadata": {"type": kind, "data_type": array.dtype.name, "num_channels": len(full)},
            "scale_metadata": level,
        },
        create=True,
    ).result()
    store[...] = full.transpose()
    found = store.read().result().transpose()
    return found if array.ndim == 4 else found[0]


def write_n5(path: Path, array: np.ndarray, compression: str = "raw", **attributes: Any) -> None:
    """Write an array (z, y, x) as an N5 data set."""
    codec = {"type": compression}
    if compression == "blosc":
        codec |= {"cname": "lz4", "clevel": 5, "shuffle": 1}
    store = tensorstore.open(
        {
            "driver": "n5",
            "kvstore": {"driver": "file", "path": f"{path}/"},
            "metadata": {
                "dimensions": list(array.shape[::-1]),
                "blockSize": [16, 16, 4],
                "dataType": array.dtype.name,
                "compression": codec,
            },
        },
        create=True,
    ).result()
    store[...] = array.transpose()
    change_json(path / "attributes.json", **attributes)


def change_json(path: Path, **changes: Any) -> None:
    """Change entries of a JSON object in a file."""
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def first_chunk(path: Path) -> Path:
    """Return a file that holds a chunk, or several."""
    files = (file for file in sorted(path.rglob("*")) if file.is_file())
    return next(file for file in files if file.name not in ("info", "attributes.json"))


def write_ome_zarr(
    path: Path, version: str, axes: Any, levels: Any, scales: Any, image_scale: Any = None
) -> None:
    """Write an OME-Zarr image with zarr alone: metadata under "ome" since 0.5, at the top before."""
    group = zarr.open_group(path, mode="w", zarr_format=3 if version == "0.5" else 2)
    datasets = []
    for number, (array, scale) in enumerate(zip(levels, scales, strict=True)):
        group.create_array(f"s{number}", data=array, chunks=tuple(min(n, 16) for n in array.shape))
        datasets.append(
            {"path": f"s{number}", "coordinateTransformations": [{"type": "scale", "scale": scale}]}
        )
    image = {"axes": axes, "datasets": datasets, "name": "image"}
    if image_scale:
        image["coordinateTransformations"] = [{"type": "scale", "scale": image_scale}]
    if version == "0.5":
        group.attrs["ome"] = {"version": "0.5", "multiscales": [image]}
    else:
        group.attrs["multiscales"] = [{**image, "version": version}]


def space(**units: str | None) -> list[dict[str, str]]:
    """OME-Zarr axes: those with a unit are of space."""
    return [
        {"name": name, "type": "space", "unit": unit} if unit else {"name": name, "type": "channel"}
        for name, unit in units.items()
    ]
