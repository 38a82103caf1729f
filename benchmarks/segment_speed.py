"""Speed of segmenting compared with the bare passes of the network, and with MONAI's sliding window.

All results are ratios of alternating measurements within one run, on the network of the demonstration (uniform, 3
slices):

    python benchmarks/segment_speed.py [--volume PATH] [--slices 32] [--tile 128] [--rounds 5] [--device cuda]

- bare: a forward pass over as many tiles as `evenslice.segment` computes, weights frozen, channels-last, float32, in the
  same batches; the tiles are in memory.
- monai, same tiles: `monai.inferers.SlidingWindowInferer` with the same network, tile, overlap and batch, float32.
- monai, as documented: the same inferer as its documentation uses it (float32, weights as built, windows of the
  size of the tile, batches of four, an overlap of a quarter) on each window of slices in memory.
- segment: `evenslice.segment`, everything included: opening, scaling, reading, blending, writing the labels. With
  no tile given, it computes planes of this size whole.
"""

from __future__ import annotations

import math
import tempfile
from pathlib import Path

import numpy as np
import torch
from monai.inferers import SlidingWindowInferer
from shared import compare, fast_copy, load, make_parser, open_middle

import evenslice


def main() -> None:
    """Print the ratios."""
    parser = make_parser(__doc__)
    parser.add_argument("--volume", help="a volume; by default the MNI152 template")
    parser.add_argument("--slices", type=int, default=32, help="from the middle of the volume")
    parser.add_argument("--tile", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--weights", default="imagenet", help="weights of the network, e.g. of a trained one")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    volume, tile, device = open_middle(options.volume, options.slices), options.tile, options.device
    model = load(options.weights, strategy="uniform" if options.weights == "imagenet" else "pretrained")
    frozen = fast_copy(model, device)
    overlap, batch = tile // 8, max(1, min(16, 2**20 // tile**2))
    places = [math.ceil(max(length - tile, 0) / (tile - overlap)) + 1 for length in volume.shape[1:]]
    planes = torch.rand(len(volume), 3, *volume.shape[1:], device=device)
    tiles = torch.rand(len(volume) * math.prod(places), 3, tile, tile, device=device)
    same = SlidingWindowInferer((tile, tile), sw_batch_size=batch, overlap=overlap / tile, mode="gaussian")
    documented = SlidingWindowInferer((tile, tile), sw_batch_size=4, overlap=0.25)

    @torch.no_grad()
    def bare() -> None:
        for chunk in torch.split(tiles, batch):
            frozen(chunk.contiguous(memory_format=torch.channels_last))

    @torch.no_grad()
    def monai(inferer: SlidingWindowInferer) -> None:
        model.to(device)
        for window in planes:
            inferer(window[None], model).argmax(1)

    with tempfile.TemporaryDirectory() as folder:

        def segment(dtype: str, size: tuple[int, int] | None = None) -> evenslice.Volume:
            found = evenslice.segment(
                model,
                volume,
                Path(folder) / f"{dtype}.npy",
                compute=evenslice.Compute(
                    device=device, dtype=dtype, batch=batch if size else None, progress=False
                ),
                tile=size,
                force=True,
            )
            assert isinstance(found, evenslice.Volume)  # noqa: S101  # as it was written
            return found

        exact, rounded = segment("float32")[...], segment("bfloat16")[...]
        cut = (tile, tile)
        compare("float32 segment / bare", lambda: segment("float32", cut), bare, options.rounds)
        for name, inferer, dtype, size in (
            ("monai, same tiles / float32 segment", same, "float32", cut),
            ("monai, as documented / segment in bfloat16", documented, "bfloat16", None),
            ("monai, as documented / segment in bfloat16, same tiles", documented, "bfloat16", cut),
        ):
            compare(
                name,
                lambda inferer=inferer: monai(inferer),  # type: ignore[misc]
                lambda dtype=dtype, size=size: segment(dtype, size),  # type: ignore[misc]
                options.rounds,
                warm=False,
            )
    print(f"voxels labelled differently in bfloat16 than in float32: {np.mean(exact != rounded):.4%}")


if __name__ == "__main__":
    main()
