"""Random crops of training data, each of which depends only on the seed and its number.

Crop i of a run does not depend on what was drawn before it, nor on the process: a run that is resumed, or that uses
several devices, sees the same crops.

Rotations, flips and intensity changes are array operations instead of MONAI's transforms: by default crops are prepared
in the training process, and the transforms take several times as long (``benchmarks/crop_speed.py``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from evenslice._core import needs_extra
from evenslice.volumes import WindowGrid

with needs_extra("train", "training"):
    from lightning.pytorch import LightningDataModule

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from evenslice.training.config import AugmentationConfig, ModelConfig, TrainConfig
    from evenslice.training.data import Data
    from evenslice.volumes import LabelledVolume

__all__ = ["CropData", "CropDataset", "StepSampler"]

# Ranges and probabilities of intensity changes, for intensities in 0..1.
CHANGED = 0.5
GAMMA = 0.25  # exponents from exp(-GAMMA) to exp(GAMMA)
CONTRAST = 0.2
BRIGHTNESS = 0.1
NOISY = 0.5  # of the changed windows
NOISE = 0.04


class CropDataset(Dataset[tuple[Tensor, Tensor]]):
    """Random crops of parts, with the class of each pixel of their centre slices.

    The position of a crop is uniformly random or, with probability ``foreground``, around a voxel of a foreground
    class. All foreground classes are equally likely, and so are all voxels of a class.

    Args:
        parts: the volumes to crop.
        model: number and distance of the slices of a window.
        crop: size along y and x; a smaller plane is mirrored beyond its borders.
        length: number of crops.
        foreground: fraction of crops drawn around a foreground voxel, 0..1.
        augmentation: random changes; None for none.
        scaling: the mean and standard deviation that the network expects of slices in 0..1.
        seed: random seed.

    Example:
        >>> from evenslice.training import ModelConfig
        >>> from evenslice.volumes import LabelledVolume, index_classes
        >>> from evenslice.volumes import open_volume
        >>> from evenslice.volumes import Scaling
        >>> image, labels = open_volume(np.ones((9, 64, 64))), open_volume(np.array([np.eye(64, dtype=int)] * 9))
        >>> part = LabelledVolume("diagonal", image, labels, Scaling(0, 2), index_classes(labels, 2, keep=100))
        >>> crops = CropDataset([part], ModelConfig(slices=5), crop=(32, 48), length=100, foreground=1)
        >>> window, classes = crops[7]
        >>> window.shape, classes.shape, int(classes.max())
        (torch.Size([5, 32, 48]), torch.Size([32, 48]), 1)
    """

    def __init__(
        self,
        parts: Sequence[LabelledVolume],
        model: ModelConfig,
        *,
        crop: tuple[int, int],
        length: int,
        foreground: float = 0.0,
        augmentation: AugmentationConfig | None = None,
        scaling: tuple[float, float] = (0.0, 1.0),
        seed: int = 0,
    ) -> None:
        self._length, self._crop, self._augmentation, self._seed = length, crop, augmentation, seed
        self._mean, self._std = scaling
        self._places = _Places(parts, foreground)
        self._labels = [part.labels for part in parts]
        self._grids = {
            tile: [
                WindowGrid(part.volume, part.scaling, model.slices, tile, model.step, "reflect")
                for part in parts
            ]
            for tile in (crop, crop[::-1])
        }

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Return crop ``index``.

        Returns:
            The window, (N, y, x) float32, scaled for the network, and its classes, (y, x) int64.

        Raises:
            VolumeError: a file cannot be read.
        """
        if not 0 <= index < self._length:
            raise IndexError(f"crop {index} of {self._length}")
        random = np.random.Generator(np.random.Philox(key=[self._seed, index]))
        config = self._augmentation
        turns = int(random.integers(4)) if config and config.rotations else 0
        tile = self._crop[::-1] if turns % 2 else self._crop
        number, *place = self._places.draw(tile, random)
        grid = self._grids[tile][number]
        window, labels = grid.read(*place), grid.read_labels(self._labels[number], *place)
        window, labels = np.rot90(window, turns, (1, 2)), np.rot90(labels, turns)
        if config:
            window, labels = _flip(window, labels, config, random)
        if config and config.missing_slices:
            window = _lose_slices(window, config.missing_slices, random)
        if config and config.intensity:
            window = _change_intensity(window, random)
        window = (window - self._mean) / self._std
        return torch.from_numpy(np.ascontiguousarray(window)), torch.from_numpy(np.ascontiguousarray(labels))


class _Places:
    """Draws positions of crops: a part, and the slice and corner in it."""

    def __init__(self, parts: Sequence[LabelledVolume], foreground: float) -> None:
        self._foreground = foreground
        self._shapes = [part.volume.shape for part in parts]
        self._by_size = _cumulate([part.volume.size for part in parts])
        self._classes = [
            (_cumulate([part.index.counts[number] for part in parts]), positions)
            for number, positions in enumerate(zip(*(part.index.positions for part in parts), strict=True))
            if any(len(found) for found in positions)
        ]

    def draw(self, tile: tuple[int, int], random: np.random.Generator) -> tuple[int, int, int, int]:
        """Return the index of a part, the centre slice z, and the corner y, x."""
        if self._classes and random.random() < self._foreground:
            return self._draw_around(tile, random)
        number = _choose(self._by_size, random)
        depth, height, width = self._shapes[number]
        z = random.integers(depth)
        y, x = (
            random.integers(max(length - size, 0) + 1)
            for length, size in zip((height, width), tile, strict=True)
        )
        return number, int(z), int(y), int(x)

    def _draw_around(self, tile: tuple[int, int], random: np.random.Generator) -> tuple[int, int, int, int]:
        """Draw a foreground voxel, and a corner of a tile that contains it."""
        by_part, positions = self._classes[random.integers(len(self._classes))]
        number = _choose(by_part, random)
        voxel = random.choice(positions[number])
        z, *inside = np.unravel_index(voxel, self._shapes[number])
        low = [max(at - size + 1, 0) for at, size in zip(inside, tile, strict=True)]
        high = [
            min(at, max(length - size, 0))
            for at, length, size in zip(inside, self._shapes[number][1:], tile, strict=True)
        ]
        y, x = random.integers(low, high, endpoint=True)
        return number, int(z), int(y), int(x)


def _cumulate(weights: Sequence[int]) -> NDArray[np.float64]:
    total = np.cumsum(weights, dtype=np.float64)
    return np.asarray(total / total[-1])


def _choose(cumulated: NDArray[np.float64], random: np.random.Generator) -> int:
    return int(np.searchsorted(cumulated, random.random(), side="right"))


def _flip(
    window: NDArray[np.float32],
    labels: NDArray[np.int64],
    config: AugmentationConfig,
    random: np.random.Generator,
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    z, y, x = (-1 if draw < 0.5 else 1 for draw in random.random(3))
    if config.flips:
        window, labels = window[:, ::y, ::x], labels[::y, ::x]
    return window[::z] if config.z_flip else window, labels


def _lose_slices(
    window: NDArray[np.float32], probability: float, random: np.random.Generator
) -> NDArray[np.float32]:
    """Put the middle slice in the place of each of its neighbours with some probability."""
    middle = len(window) // 2
    lost = random.random(len(window)) < probability
    return np.where(lost[:, None, None], window[middle], window)


def _change_intensity(window: NDArray[np.float32], random: np.random.Generator) -> NDArray[np.float32]:
    """Change gamma, contrast and brightness of half the windows, equally in all slices, and add noise to half of those."""
    if random.random() >= CHANGED:
        return window
    gamma, contrast, brightness = random.uniform(-1, 1, 3) * (GAMMA, CONTRAST, BRIGHTNESS)
    window = window ** float(np.exp(gamma))
    window = (window - 0.5) * float(1 + contrast) + float(0.5 + brightness)
    if random.random() < NOISY:
        generator = torch.Generator().manual_seed(int(random.integers(2**63)))
        window += random.uniform(0, NOISE) * torch.randn(window.shape, generator=generator).numpy()
    return window


class StepSampler(Sampler[list[int]]):
    """The indices of the crops of each step, for one of several processes.

    Step s uses the crops from ``s * batch`` up to ``(s + 1) * batch``; each of ``world`` processes takes every
    ``world``-th of them.

    Example:
        >>> list(StepSampler(range(1, 3), batch=4, rank=1, world=2))
        [[5, 7], [9, 11]]
    """

    def __init__(self, steps: range, batch: int, *, rank: int = 0, world: int = 1) -> None:
        self._steps, self._batch, self._rank, self._world = steps, batch, rank, world

    def __len__(self) -> int:
        return len(self._steps)

    def __iter__(self) -> Iterator[list[int]]:
        for step in self._steps:
            start = step * self._batch
            yield list(range(start + self._rank, start + self._batch, self._world))


class CropData(LightningDataModule):
    """The crops of a training run, in batches; an epoch lasts from one validation to the next.

    The trainer must reload the data each epoch (``reload_dataloaders_every_n_epochs=1``) and must not replace the
    sampler, which handles several processes (``use_distributed_sampler=False``).

    Args:
        config: the configuration of the run.
        data: its data set.
        scaling: the mean and standard deviation that the network expects of slices in 0..1.
    """

    def __init__(self, config: TrainConfig, data: Data, scaling: tuple[float, float]) -> None:
        super().__init__()
        self._training = config.training
        self._crops = CropDataset(
            data.train,
            config.model,
            crop=config.training.crop,
            length=config.training.steps * config.training.batch,
            foreground=config.training.foreground,
            augmentation=config.augmentation,
            scaling=scaling,
            seed=config.seed,
        )

    def train_dataloader(self) -> DataLoader[tuple[Tensor, Tensor]]:
        """Return the batches of the current epoch: windows (batch, N, y, x) and classes (batch, y, x)."""
        training, trainer = self._training, self.trainer
        epoch, rank, world = (
            (trainer.current_epoch, trainer.global_rank, trainer.world_size) if trainer else (0, 0, 1)
        )
        first = epoch * training.validate_every
        steps = range(first, min(first + training.validate_every, training.steps))
        return DataLoader(
            self._crops,
            batch_sampler=StepSampler(steps, training.batch, rank=rank, world=world),
            num_workers=training.workers,
            pin_memory=torch.cuda.is_available(),
            generator=torch.Generator(),  # the global generator would advance each epoch
        )
