"""Training of segmenters: loss, optimizer, learning rate, and the choice of the best network."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from evenslice._core import ModelError, needs_extra
from evenslice.inference import class_logits
from evenslice.networks import METADATA_KEY
from evenslice.training.logs import CsvLog, log_metrics

with needs_extra("train", "training"):
    from lightning.pytorch import Callback, LightningModule, Trainer
    from monai.losses import DiceLoss

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
    from torch import Tensor

    from evenslice.training.config import TrainingConfig

__all__ = [
    "KeepBest",
    "SegmentationLoss",
    "SegmentationModule",
    "kept_validation",
    "learning_rate_factor",
    "output_channels",
]

SCORE_NOISE = 0.002  # differences of validation scores up to this are noise
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

    Example:
        >>> loss = SegmentationLoss("dice_ce", classes=2)
        >>> labels = torch.tensor([[[0, 1]]])
        >>> right = torch.tensor([[[[9.0, -9.0]], [[-9.0, 9.0]]]])
        >>> loss(right, labels).item() < 0.001 < 1 < loss(-right, labels).item()
        True
    """

    def __init__(self, kind: str, classes: int) -> None:
        super().__init__()
        self.channels = output_channels(kind, classes)
        self.exclusive = kind == "dice_ce"
        self.dice = DiceLoss(
            include_background=self.channels == 1,
            softmax=self.exclusive,
            sigmoid=not self.exclusive,
            batch=True,
        )

    def forward(self, scores: Tensor, labels: Tensor) -> Tensor:
        """Return the scalar loss of logits (batch, channels, y, x) and classes (batch, y, x).

        Pixels below 0, ``IGNORED``, do not count; without any other, the loss is 0.
        """
        counted = labels >= 0
        if not bool(counted.all()):
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


class SegmentationModule(LightningModule):
    """A segmentation network in training.

    The random numbers of a step depend only on the seed, the number of the step and the process.

    Args:
        network: maps windows (batch, slices, y, x), with the scaling it expects, to logits.
        config: how it is trained.
        classes: number of classes, including background.
        seed: random seed of the network, for dropout and the like.

    Attributes:
        seconds: training time so far, including that before the run was resumed.
        started: whether training has started; until then, an error in a resumed run is one of its checkpoint.

    Raises:
        ModelError: the loss is not finite.
    """

    def __init__(self, network: nn.Module, config: TrainingConfig, *, classes: int, seed: int = 0) -> None:
        super().__init__()
        self.network = network
        self.config = config
        self.loss = SegmentationLoss(config.loss, classes)
        self.seconds = 0.0
        self.started = False
        self._seed = seed
        self._losses: list[Tensor] = []
        self._clock = time.monotonic()

    def forward(self, windows: Tensor) -> Tensor:
        """Return the logits (batch, channels, y, x) of windows (batch, slices, y, x)."""
        return class_logits(self.network, windows)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:  # noqa: ARG002  # Lightning's
        """Return the loss of a batch of windows and the classes of their centre slices."""
        windows, labels = batch
        loss: Tensor = self.loss(self(windows.contiguous(memory_format=torch.channels_last)), labels)
        self.log("loss", loss.detach(), prog_bar=True, logger=False)
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
        torch.manual_seed(int(state.generate_state(1)[0]))

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:  # noqa: ARG002  # Lightning's
        """Log the mean loss every ``LOG_EVERY`` steps."""
        self._losses.append(outputs["loss"].detach())
        if self.global_step % LOG_EVERY == 0:
            self._log_losses()

    def on_train_epoch_end(self) -> None:
        """Log the remaining losses, so that a run resumed here has the same log as an uninterrupted one."""
        self._log_losses()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save the training time."""
        checkpoint[METADATA_KEY] = {"seconds": self.seconds}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the training time, and tell the log where it goes on."""
        for logger in self.trainer.loggers:
            if isinstance(logger, CsvLog):
                logger.resumed_at = int(checkpoint["global_step"])
        self.seconds = float(checkpoint[METADATA_KEY]["seconds"])

    def _factor(self, step: int) -> float:
        return learning_rate_factor(step, self.config.steps, self.config.warmup)

    def _log_losses(self) -> None:
        if not self._losses:
            return
        loss = torch.stack(self._losses).mean().item()
        self._losses.clear()
        if not math.isfinite(loss):
            raise ModelError(
                f"the loss is {loss} at step {self.global_step}; lower training.learning_rate, or set "
                "training.dtype: float32"
            )
        now = time.monotonic()
        self.seconds, self._clock = self.seconds + now - self._clock, now
        rate = self.config.learning_rate * self._factor(self.global_step - 1)
        log_metrics(self.trainer, {"loss": loss, "learning_rate": rate, "seconds": round(self.seconds, 2)})


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


def kept_validation(rows: Iterable[Mapping[str, float]]) -> Mapping[str, float] | None:
    """Return the row of a log at whose step ``KeepBest`` last kept the network; None if it never did.

    Example:
        >>> kept_validation([{"step": 200 * n, "validation_dice": dice} for n, dice in enumerate([0.9, 0.5, 0.8, 0.799])])
        {'step': 600, 'validation_dice': 0.799}
    """
    kept, best = None, -math.inf
    for row in rows:
        score = row.get("validation_dice", math.nan)
        if row["step"] > 0 and score > best - SCORE_NOISE:
            kept, best = row, max(best, score)
    return kept


class KeepBest(Callback):
    """Validate at the end of each epoch, keep the best network, and stop if it no longer improves.

    Of networks whose scores differ by less than ``SCORE_NOISE``, the last one is kept: it was trained longer and
    ended at a lower learning rate. The score before the first step is logged for comparison.

    Args:
        score: maps the network to a score, of which higher is better and NaN never best; called in the first process.
        save: saves the network; called in the first process.
        patience: number of consecutive validations without improvement before training stops; None never stops.

    Attributes:
        best: the highest score so far; NaN if none.
        worse: number of validations since the best one.
    """

    def __init__(
        self,
        score: Callable[[nn.Module], float],
        save: Callable[[nn.Module], None],
        patience: int | None = None,
    ) -> None:
        self.best = math.nan
        self.worse = 0
        self._score, self._save, self._patience = score, save, patience

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Validate the initial network; stop again a resumed run that had already stopped."""
        if trainer.global_step == 0:
            self._validate(trainer, pl_module)
        trainer.should_stop |= self._stops()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Validate, and keep the network or count a validation without improvement."""
        network, score = pl_module.get_submodule("network"), self._validate(trainer, pl_module)
        if trainer.is_global_zero and (score > self.best - SCORE_NOISE or self._first(score)):
            self._save(network)
        if score > self.best or self._first(score):
            self.best, self.worse = score, 0
        else:
            self.worse += 1
        trainer.should_stop |= self._stops()

    def state_dict(self) -> dict[str, Any]:
        """Return the best score and the validations since, for a checkpoint."""
        return {"best": self.best, "worse": self.worse}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the state from a checkpoint."""
        self.best, self.worse = float(state_dict["best"]), int(state_dict["worse"])

    def _validate(self, trainer: Trainer, module: LightningModule) -> float:
        network = module.get_submodule("network")
        score: float = trainer.strategy.broadcast(
            self._score(network) if trainer.is_global_zero else math.nan
        )
        log_metrics(trainer, {"validation_dice": score})
        return score

    def _first(self, score: float) -> bool:
        return math.isnan(self.best) and not math.isnan(score)

    def _stops(self) -> bool:
        return self._patience is not None and self.worse >= self._patience
