"""Time of a training crop, and of the same augmentation with MONAI's transforms, on one core.

python benchmarks/crop_speed.py
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from monai.transforms import (
    Compose,
    RandAdjustContrastd,
    RandFlipd,
    RandGaussianNoised,
    RandRotate90d,
    RandScaleIntensityd,
)

from evenslice import AugmentationConfig, TrainConfig
from evenslice.training.crops import CropDataset
from evenslice.training.data import open_data

if TYPE_CHECKING:
    from collections.abc import Callable

CROPS = 500
SIZE = 192


def main() -> None:
    """Print milliseconds per crop, and the ratio to MONAI's transforms."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        random = np.random.default_rng(0)
        image = random.integers(0, 256, (64, 512, 512), dtype=np.uint8)
        np.save(Path(folder, "image.npy"), image)
        np.save(Path(folder, "labels.npy"), (image > 240).astype(np.uint8))
        pair = {"image": "image.npy", "labels": "labels.npy"}
        data = open_data(TrainConfig.model_validate({"data": {"root": folder, "train": [pair]}}))
    plain, augmented = (
        CropDataset(
            data.train, slices=3, crop=(SIZE, SIZE), length=CROPS, foreground=0.5, augmentation=config
        )
        for config in (None, AugmentationConfig())
    )
    monai = Compose(
        [
            RandFlipd(["window", "labels"], prob=0.5, spatial_axis=1),
            RandFlipd(["window", "labels"], prob=0.5, spatial_axis=2),
            RandRotate90d(["window", "labels"], prob=0.75, spatial_axes=(1, 2)),
            RandFlipd("window", prob=0.5, spatial_axis=0),
            RandScaleIntensityd("window", 0.2, prob=0.5),
            RandAdjustContrastd("window", prob=0.5, gamma=(0.78, 1.28)),
            RandGaussianNoised("window", prob=0.25, std=0.04),
        ]
    )

    def with_monai(index: int) -> object:
        window, labels = plain[index]
        return monai({"window": window[None], "labels": labels[None, None]})

    cut, ours, theirs = (
        milliseconds(crop) for crop in (plain.__getitem__, augmented.__getitem__, with_monai)
    )
    print(f"crop only {cut:.2f} ms, augmented {ours:.2f} ms, augmented by MONAI {theirs:.2f} ms")
    print(f"augmentation: MONAI's transforms cost {(theirs - cut) / (ours - cut):.1f} times as much")


def milliseconds(crop: Callable[[int], object]) -> float:
    """Return the mean time of a crop in milliseconds."""
    crop(0)
    start = time.perf_counter()
    for index in range(CROPS):
        crop(index)
    return 1000 * (time.perf_counter() - start) / CROPS


if __name__ == "__main__":
    main()
