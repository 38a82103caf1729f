"""Training of networks: loss, optimizer and learning rate."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from evenslice._core import ModelError, needs_extra
from evenslice.networks import METADATA_KEY, seed_generators
from evenslice.training.classification import ClassificationLoss
from evenslice.training.logs import CsvLog, log_metrics
from evenslice.training.tasks import task_logits

with needs_extra("train", "training"):
    from lightning.pytorch import LightningModule

if TYPE_CHECKING:
    from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
    from torch import Tensor

    from evenslice.training.config import TrainingConfig

__all__ = [
    "SegmentationLoss",
    "TrainingModule",
    "learning_rate_factor",
    "output_channels",
]

LOG_EVERY = 10  # steps; a row of the log holds their mean loss


def output_channels(loss: str, classes: int) -> int:
    """Return the number of channels that a network needs: one for each class, or one if a single sigmoid is enough.

    Example:
        >>> output_channels("dice_ce", 2), output_channels("dice_bce", 2), output_channels("dice_bce", 3)
        (2, 1, 3)
    """
    return 1 if loss == "dice_bce" and classes == 2 else classes


class SegmentationLoss(nn.Module):
    """The sum of MONAI's Dice loss and PyTorch's cross entropy.

    The Dice loss excludes the background and is computed over all pixels of a batch at once, so that a crop without a
    class is not penalized; the cross entropy is the mean over pixels.

    Args:
        kind: "dice_ce", softmax over the classes, or "dice_bce", a sigmoid for each class, or only for class 1 of two.
        classes: C, 2 or more.
        ignored: whether labels may be below 0. If not, no step waits for the device to find that out.

    Example:
        >>> loss = SegmentationLoss("dice_ce", classes=2)
        >>> labels = torch.tensor([[[0, 1]]])
        >>> right = torch.tensor([[[[9.0, -9.0]], [[-9.0, 9.0]]]])
        >>> loss(right, labels).item() < 0.001 < 1 < loss(-right, labels).item()
        True
    """

    def __init__(self, kind: str, classes: int, *, ignored: bool = True) -> None:
        with needs_extra("train", "training"):
            from monai.losses import DiceLoss  # takes seconds, which a mistake in the data need not wait for
        super().__init__()
        self.channels = output_channels(kind, classes)
        self.exclusive = kind == "dice_ce"
        self.ignored = ignored
        self.dice = DiceLoss(
            include_background=self.channels == 1,
            softmax=self.exclusive,
            sigmoid=not self.exclusive,
            batch=True,
        )

    def forward(self, scores: Tensor, labels: Tensor) -> Tensor:
        """Return the scalar loss of logits (batch, channels, y, x) and classes (batch, y, x).

        Pixels below 0, ``IGNORED``, do not count if ``ignored``; without any other, the loss is 0.
        """
        if self.ignored and not bool((counted := labels >= 0).all()):
            if not bool(counted.any()):
                return scores.sum() * 0
            # Dice and cross entropy are sums over all pixels of the batch, wherever they are.
            scores, labels = scores.movedim(1, -1)[counted].T[None, :, None], labels[counted][None, None]
        target = labels[:, None].to(scores)
        if self.channels > 1:
            target = functional.one_hot(labels, self.channels).movedim(-1, 1).to(scores)
        if self.exclusive:
            entropy = functional.cross_entropy(scores, labels)
        else:
            entropy = functional.binary_cross_entropy_with_logits(scores, target)
        dice: Tensor = self.dice(scores, target)
        return dice + entropy


class TrainingModule(LightningModule):
    """A network in training.

    The random numbers of a step depend only on the seed, the number of the step and the process.

    Args:
        network: maps windows (batch, slices, y, x), with the scaling it expects, to logits.
        config: how it is trained.
        classes: number of classes, including background.
        seed: random seed of the network, for dropout and the like.
        ignored: whether labels may be below 0, for voxels that do not count.

    Attributes:
        seconds: training time so far, including that before the run was resumed.
        started: whether training has started; until then, an error in a resumed run is one of its checkpoint.

    Raises:
        ModelError: the loss is not finite.
    """

    def __init__(
        self,
        network: nn.Module,
        config: TrainingConfig,
        *,
        classes: int,
        seed: int = 0,
        ignored: bool = True,
    ) -> None:
        super().__init__()
        self.network = network
        self.config = config
        self.loss: nn.Module = (
            ClassificationLoss(ignored=ignored)
            if config.task == "classification"
            else SegmentationLoss(config.loss, classes, ignored=ignored)
        )
        self.seconds = 0.0
        self.started = False
        self._seed = seed
        self._losses: list[Tensor] = []
        self._clock = time.monotonic()

    def forward(self, windows: Tensor) -> Tensor:
        """Return the logits of windows (batch, slices, y, x), see ``task_logits``."""
        return task_logits(self.network, windows, self.config.task)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:  # noqa: ARG002  # Lightning's
        """Return the loss of a batch of windows and the classes of their centre slices, or of their centres."""
        windows, labels = batch
        loss: Tensor = self.loss(self(windows.contiguous(memory_format=torch.channels_last)), labels)
        return loss

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """Return AdamW, without weight decay of biases and normalizations, and the learning rate schedule."""
        trained = [parameter for parameter in self.network.parameters() if parameter.requires_grad]
        groups: list[dict[str, Any]] = [
            {"params": [parameter for parameter in trained if parameter.ndim > 1]},
            {"params": [parameter for parameter in trained if parameter.ndim <= 1], "weight_decay": 0.0},
        ]
        optimizer = torch.optim.AdamW(
            groups, lr=self.config.learning_rate, weight_decay=self.config.weight_decay, fused=True
        )
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, self._factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_train_start(self) -> None:
        """Start the clock."""
        self.started, self._clock = True, time.monotonic()

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:  # noqa: ARG002  # Lightning's
        """Seed the random numbers of this step."""
        state = np.random.SeedSequence([self._seed, self.global_step, self.global_rank])
        seed_generators([self.device], int(state.generate_state(1)[0]))

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:  # noqa: ARG002  # Lightning's
        """Log the mean loss every ``LOG_EVERY`` steps."""
        self._losses.append(outputs["loss"].detach().float())
        if self.global_step % LOG_EVERY == 0:
            self._log_losses()

    def on_train_epoch_end(self) -> None:
        """Log the remaining losses, and end the training after its last step.

        If it was interrupted in the middle of an epoch, the losses wait in the checkpoint, so that the resumed run has the
        same log as an uninterrupted one.
        """
        if self.trainer.is_last_batch:
            self._log_losses()
        self.trainer.should_stop |= self.global_step >= self.config.steps

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save the training time, and the losses that are not in the log."""
        self._tick()
        losses = [loss.item() for loss in self._losses]
        logged = next((log.latest for log in self._csv_logs), None)
        checkpoint[METADATA_KEY] = {"seconds": self.seconds, "losses": losses, "logged": logged}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore them, and tell the log where it goes on.

        Raises:
            ConfigError: the log is damaged, or lacks rows of before.
        """
        saved = checkpoint[METADATA_KEY]
        logged = saved.get("logged")
        remedy = f"restore it, or delete {self.trainer.ckpt_path} to train from the start again"
        for log in self._csv_logs:
            log.resume(int(checkpoint["global_step"]), None if logged is None else int(logged), remedy)
        self.seconds = float(saved["seconds"])
        # Versions before 0.2 write none.
        losses = saved.get("losses", ())[:LOG_EVERY]
        self._losses = [torch.tensor(float(loss), dtype=torch.float32, device="cpu") for loss in losses]

    @property
    def _csv_logs(self) -> list[CsvLog]:
        return [logger for logger in self.trainer.loggers if isinstance(logger, CsvLog)]

    def _factor(self, step: int) -> float:
        return learning_rate_factor(step, self.config.steps, self.config.warmup)

    def _log_losses(self) -> None:
        if not self._losses:
            return
        device = self._losses[-1].device  # those of a checkpoint are on the CPU
        loss = torch.stack([loss.to(device) for loss in self._losses]).mean().item()
        self._losses.clear()
        if not math.isfinite(loss):
            raise ModelError(
                f"the loss is {loss} at step {self.global_step}; lower training.learning_rate, or set "
                "training.dtype: float32"
            )
        self._tick()
        rate = self.config.learning_rate * self._factor(self.global_step - 1)
        log_metrics(self.trainer, {"loss": loss, "learning_rate": rate, "seconds": round(self.seconds, 2)})

    def _tick(self) -> None:
        now = time.monotonic()
        self.seconds, self._clock = self.seconds + now - self._clock, now


def learning_rate_factor(step: int, steps: int, warmup: float) -> float:
    """Return the factor of the peak learning rate in a step: a linear rise, then a cosine decay.

    Args:
        step: the step, 0..steps - 1.
        steps: number of steps.
        warmup: fraction of the steps in which it rises, 0..1.

    Returns:
        A factor above 0, at most 1.

    Example:
        >>> [round(learning_rate_factor(step, 8, 0.25), 2) for step in range(8)]
        [0.5, 1.0, 1.0, 0.93, 0.75, 0.5, 0.25, 0.07]
    """
    rising = round(warmup * steps)
    if step < rising:
        return (step + 1) / rising
    return (1 + math.cos(math.pi * (step - rising) / max(steps - rising, 1))) / 2
