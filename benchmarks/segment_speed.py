"""Speed of segmenting compared with the bare passes of the network, and with MONAI's sliding window.

All results are ratios of alternating measurements within one run, on the network of the demonstration (uniform, 3
slices):

    python benchmarks/segment_speed.py [--volume PATH] [--slices 32] [--tile 128] [--rounds 5]

- bare: a forward pass over each tile that `evenslice.segment` computes, weights frozen, channels-last, float32, in the
  same batches; the tiles are in memory.
- monai, same tiles: `monai.inferers.SlidingWindowInferer` with the same network, tile, overlap and batch, float32.
- monai, as documented: the same inferer as its documentation uses it (float32, weights as built, windows of the
  size of the tile, batches of four, an overlap of a quarter) on each window of slices in memory.
- segment: `evenslice.segment`, everything included: opening, scaling, reading, blending, writing the labels. With
  no tile given, it computes planes of this size whole.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import tempfile
import time
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from monai.inferers import SlidingWindowInferer
from torch.nn.utils import convert_conv2d_weight_memory_format

import evenslice
from evenslice.cli.demonstration import SPEC
from evenslice.inference.prediction import BATCH_PIXELS, LARGEST_BATCH
from evenslice.neutralizing.network_files import load_network
from evenslice.volumes import fit_scaling, mni152
from evenslice.volumes.windows import WindowGrid, tile_origins

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor, nn


def read_windows(volume: evenslice.Volume, mean: float, std: float) -> Tensor:
    """Read the window of every slice, scaled for the network: (z, 3, y, x)."""
    grid = WindowGrid(volume, fit_scaling(volume), 3, (volume.shape[1], volume.shape[2]), edge="reflect")
    windows = np.stack([grid.read(z, 0, 0) for z in range(len(volume))])
    return (torch.from_numpy(windows) - mean) / std


def cut_tiles(windows: Tensor, tile: int) -> Tensor:
    """Cut windows into the tiles of ``evenslice.segment``: (tiles, 3, tile, tile)."""
    rows, columns = (tile_origins(length, tile, overlap=tile // 8) for length in windows.shape[2:])
    return torch.stack(
        [window[:, y : y + tile, x : x + tile] for window in windows for y, x in product(rows, columns)]
    )


@torch.no_grad()
def bare(network: nn.Module, tiles: Tensor, batch: int) -> None:
    """Run every tile through the network."""
    for chunk in torch.split(tiles, batch):
        network(chunk.contiguous(memory_format=torch.channels_last))


@torch.no_grad()
def monai(network: nn.Module, windows: Tensor, inferer: SlidingWindowInferer) -> None:
    """Segment each slice with MONAI's sliding window."""
    for window in windows:
        inferer(window[None], network).argmax(1)


def seconds(run: Callable[[], object]) -> float:
    """Time one call."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def main() -> None:
    """Print the ratios."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--volume", help="a volume; by default the MNI152 template")
    parser.add_argument(
        "--slices", type=int, default=32, help="number of slices from the middle of the volume"
    )
    parser.add_argument("--tile", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--weights", default="imagenet", help="weights of the network, e.g. of a trained one")
    options = parser.parse_args()

    volume = evenslice.open_volume(options.volume) if options.volume else mni152()
    first = (len(volume) - options.slices) // 2
    volume = evenslice.open_volume(volume[first : first + options.slices])
    strategy = "uniform" if options.weights == "imagenet" else "pretrained"
    model, record, _ = load_network(SPEC, options.weights, slices=3, strategy=strategy)
    model.eval()
    frozen = copy.deepcopy(model).requires_grad_(False)
    convert_conv2d_weight_memory_format(frozen, torch.channels_last)
    windows, tile = read_windows(volume, record.mean, record.std), options.tile
    tiles, batch = cut_tiles(windows, tile), max(1, min(LARGEST_BATCH, BATCH_PIXELS // tile**2))
    same = SlidingWindowInferer(
        (tile, tile), sw_batch_size=batch, overlap=(tile // 8) / tile, mode="gaussian"
    )
    documented = SlidingWindowInferer((tile, tile), sw_batch_size=4, overlap=0.25)

    with tempfile.TemporaryDirectory() as folder:

        def segment(dtype: str, size: tuple[int, int] | None) -> evenslice.Volume:
            out = Path(folder) / f"{dtype}.npy"
            return evenslice.segment(
                model,
                volume,
                out,
                compute=evenslice.Compute(dtype=dtype, progress=False),
                tile=size,
                force=True,
            )

        exact, rounded = segment("float32", None)[...], segment("bfloat16", None)[...]
        runs: dict[str, tuple[Callable[[], object], Callable[[], object]]] = {
            "float32 segment / bare": (
                lambda: segment("float32", (tile, tile)),
                lambda: bare(frozen, tiles, batch),
            ),
            "monai, same tiles / float32 segment": (
                lambda: monai(model, windows, same),
                lambda: segment("float32", (tile, tile)),
            ),
            "monai, as documented / segment in bfloat16": (
                lambda: monai(model, windows, documented),
                lambda: segment("bfloat16", None),
            ),
            "monai, as documented / segment in bfloat16, tiles of the same size": (
                lambda: monai(model, windows, documented),
                lambda: segment("bfloat16", (tile, tile)),
            ),
        }
        for name, (numerator, denominator) in runs.items():
            ratios = [seconds(numerator) / seconds(denominator) for _ in range(options.rounds)]
            print(
                f"{name}: median {statistics.median(ratios):.2f} (from {min(ratios):.2f} to {max(ratios):.2f})",
                flush=True,
            )
    print(f"voxels labelled differently in bfloat16 than in float32: {np.mean(exact != rounded):.4%}")


if __name__ == "__main__":
    main()
