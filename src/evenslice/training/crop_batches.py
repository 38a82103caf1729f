"""The batches of a training run: which crops belong to which step, and the data module that reads them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from evenslice._core import needs_extra
from evenslice.training.centred_crops import CentredCrops
from evenslice.training.crops import CropDataset
from evenslice.training.interruption import tolerate_first
from evenslice.training.preflight import find_device

with needs_extra("train", "training"):
    from lightning.pytorch import LightningDataModule

if TYPE_CHECKING:
    from collections.abc import Iterator

    from evenslice.training.config import TrainConfig
    from evenslice.training.data import Data

__all__ = ["CropData", "StepSampler"]


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
    """The crops of a training run, in batches; an epoch lasts to the next validation.

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
        kind = CentredCrops if config.training.task == "classification" else CropDataset
        self._crops = kind(
            data.train,
            slices=config.model.slices,
            step=config.model.step,
            crop=config.training.crop,
            length=config.training.steps * config.training.batch,
            foreground=config.training.foreground,
            augmentation=config.augmentation,
            scaling=scaling,
            seed=config.seed,
        )

    def train_dataloader(self) -> DataLoader[tuple[Tensor, Tensor]]:
        """Return the batches up to the next validation: windows (batch, N, y, x) and classes (batch, y, x), or (batch,).

        They begin with the next step: an epoch in which a run was interrupted is cut in two.
        """
        training, trainer = self._training, self.trainer
        first, rank, world = (
            (trainer.global_step, trainer.global_rank, trainer.world_size) if trainer else (0, 0, 1)
        )
        end = (first // training.validate_every + 1) * training.validate_every
        steps = range(first, min(end, training.steps))
        return DataLoader(
            self._crops,
            batch_sampler=StepSampler(steps, training.batch, rank=rank, world=world),
            num_workers=training.workers,
            worker_init_fn=tolerate_first,
            pin_memory=find_device(training).type == "cuda",
            generator=torch.Generator(),  # the global generator would advance each epoch
        )
