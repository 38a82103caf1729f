"""What Lightning trains, and where it logs: a network with its optimizer, the batches of its steps, loggers."""

from __future__ import annotations

import csv
import io
import math
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from timm.layers.norm_act import convert_sync_batchnorm
from torch import Tensor, nn
from torch.nn.modules.batchnorm import SyncBatchNorm, _BatchNorm
from torch.utils.data import DataLoader, Sampler

from evenslice._core import (
    ModelError,
    needs_extra,
    read_log,
    reporting_write_errors,
    staged_file,
)
from evenslice.networks import METADATA_KEY, is_mark, seed_generators
from evenslice.training.callbacks import log_metrics
from evenslice.training.crops import CentredCrops, CropDataset
from evenslice.training.tasks import TaskLoss, task_logits

with needs_extra("train", "training"):
    from lightning.pytorch import LightningDataModule, LightningModule
    from lightning.pytorch.loggers import Logger
    from lightning.pytorch.plugins import TorchSyncBatchNorm
    from lightning.pytorch.utilities import rank_zero_only

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig

    from evenslice.training.config import TrainConfig
    from evenslice.training.run_folder import RunFolder
    from evenslice.volumes import LabelledVolume

LOG_EVERY = 10  # steps; a row of the log holds their mean loss


class TrainingModule(LightningModule):
    """A network in training.

    The random numbers of a step depend only on the seed, the number of the step and the process.

    Args:
        network: maps windows (batch, slices, y, x), with the scaling it expects, to logits.
        config: the configuration of the run.

    Attributes:
        seconds: training time so far, including that before the run was resumed.
        started: whether training has started; until then, an error in a resumed run is one of its checkpoint.

    Raises:
        ModelError: the loss is not finite.
    """

    def __init__(self, network: nn.Module, config: TrainConfig) -> None:
        super().__init__()
        self.network = network
        self.config = config
        ignored = config.data.ignore_label is not None
        self.loss = TaskLoss(config.training.loss, config.data.classes, ignored=ignored)
        self.seconds = 0.0
        self.started = False
        self._losses: list[Tensor] = []
        self._clock = time.monotonic()

    def forward(self, windows: Tensor) -> Tensor:
        """Return the logits of windows (batch, slices, y, x), see ``task_logits``."""
        return task_logits(self.network, windows, self.config.training.task)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:  # noqa: ARG002  # Lightning's
        """Return the loss of a batch of windows and the classes of their centre slices, or of their centres."""
        windows, labels = batch
        loss: Tensor = self.loss(self(windows.contiguous(memory_format=torch.channels_last)), labels)
        return loss

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """Return AdamW, without weight decay of biases and normalizations, and the learning rate schedule."""
        training = self.config.training
        trained = [parameter for parameter in self.network.parameters() if parameter.requires_grad]
        groups: list[dict[str, Any]] = [
            {"params": [parameter for parameter in trained if parameter.ndim > 1]},
            {"params": [parameter for parameter in trained if parameter.ndim <= 1], "weight_decay": 0.0},
        ]
        optimizer = torch.optim.AdamW(
            groups, lr=training.learning_rate, weight_decay=training.weight_decay, fused=True
        )
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, self._factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_train_start(self) -> None:
        """Start the clock."""
        self.started, self._clock = True, time.monotonic()

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:  # noqa: ARG002  # Lightning's
        """Seed the random numbers of this step."""
        state = np.random.SeedSequence([self.config.seed, self.global_step, self.global_rank])
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
        self.trainer.should_stop |= self.global_step >= self.config.training.steps

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save the training time, the log, and the losses that are not in the log."""
        self._tick()
        losses = [loss.item() for loss in self._losses]
        checkpoint[METADATA_KEY] = {"seconds": self.seconds, "losses": losses, "log": self._log.rows}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore them."""
        # Version 0.2 did not note in the weights where the network averages or is tied, nor the log in the checkpoint.
        marks = {name: mark for name, mark in self.state_dict().items() if is_mark(name)}
        checkpoint["state_dict"] = marks | checkpoint["state_dict"]
        saved = checkpoint[METADATA_KEY]
        rows = saved["log"] if "log" in saved else self._log.read(until=int(checkpoint["global_step"]))
        self._log.restore(rows)
        self.seconds = float(saved["seconds"])
        self._losses = [
            torch.tensor(float(loss), dtype=torch.float32, device="cpu") for loss in saved["losses"]
        ]

    @property
    def _log(self) -> CsvLog:
        return next(logger for logger in self.trainer.loggers if isinstance(logger, CsvLog))

    def _factor(self, step: int) -> float:
        return learning_rate_factor(step, self.config.training.steps, self.config.training.warmup)

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
        rate = self.config.training.learning_rate * self._factor(self.global_step - 1)
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
        parts: the volumes to train on.
        scaling: the mean and standard deviation that the network expects of slices in 0..1.
        pin: whether to hold batches where a GPU reads them fastest.
    """

    def __init__(
        self,
        config: TrainConfig,
        parts: Sequence[LabelledVolume],
        scaling: tuple[float, float],
        *,
        pin: bool = False,
    ) -> None:
        super().__init__()
        self._training, self._pin = config.training, pin
        kind = CentredCrops if config.training.task == "classification" else CropDataset
        self._crops = kind(
            parts,
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
            worker_init_fn=_tolerate_first,
            pin_memory=self._pin,
            generator=torch.Generator(),  # the global generator would advance each epoch
        )


def _tolerate_first(_worker: int) -> None:
    """Let a worker process live through the first signals: the process that trains needs it for one more step."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.signal(signal.SIGTERM, signal.SIG_DFL))


class SynchronizedNorms(TorchSyncBatchNorm):
    """Lightning's plugin for synchronized batch norms, without what the conversion of PyTorch loses.

    Some batch norms of timm end with an activation, and the average over a window and its mirror is a hook, which may be
    on a batch norm; PyTorch's conversion drops both.

    Example:
        >>> from timm.layers import BatchNormAct2d
        >>> from torch import nn
        >>> network = nn.Sequential(nn.Conv2d(3, 4, 1), BatchNormAct2d(4))
        >>> SynchronizedNorms().apply(network)[1].act
        ReLU(inplace=True)
    """

    def __init__(self) -> None:
        self._original: dict[nn.Module, nn.Module] = {}

    def apply(self, model: nn.Module) -> nn.Module:
        """Replace the batch norms of a model, in place; weights and statistics are the same tensors."""
        replaced: dict[nn.Module, nn.Module] = {}
        for name, norm in list(model.named_modules(remove_duplicate=False)):
            if isinstance(norm, _BatchNorm) and not isinstance(norm, SyncBatchNorm):
                if norm not in replaced:
                    replaced[norm] = convert_sync_batchnorm(norm)  # type: ignore[no-untyped-call]  # timm's
                    vars(replaced[norm]).update(vars(norm))  # with its hooks
                model.set_submodule(name, replaced[norm])
        self._original |= {synchronized: norm for norm, synchronized in replaced.items()}
        return model

    def revert(self, model: nn.Module) -> nn.Module:
        """Put the original batch norms back, in place, with the weights and statistics that they have by now."""
        for name, norm in list(model.named_modules(remove_duplicate=False)):
            if norm in self._original:
                model.set_submodule(name, self._original[norm].train(norm.training))
        return model


class CsvLog(Logger):
    """A Lightning logger that writes one CSV file, with a row for each step at which something was logged.

    Rows are on disk immediately. A run that is resumed at an earlier step restores the rows of before, so that the file
    becomes the same as without the interruption. Lightning's own logger does neither.

    Args:
        path: the file; its folder is created.
        columns: the columns besides ``step``; other values are not written.

    Attributes:
        rows: the values that were logged, by name, for each step.

    Example:
        >>> import tempfile
        >>> log = CsvLog(Path(tempfile.mkdtemp()) / "metrics.csv", ["loss", "dice"])
        >>> for step, values in (10, {"loss": 0.5}), (10, {"dice": 0.25}), (20, {"loss": 0.125}):
        ...     log.log_metrics(values, step)
        >>> log.path.read_text().split()
        ['step,loss,dice', '10,0.5,0.25', '20,0.125,']
        >>> log.restore(log.rows[:1])
        >>> log.log_metrics({"loss": 0.75}, 20)
        >>> log.path.read_text().split()
        ['step,loss,dice', '10,0.5,0.25', '20,0.75,']
    """

    name, version = "csv", ""

    def __init__(self, path: str | os.PathLike[str], columns: Sequence[str]) -> None:
        super().__init__()
        self.path = Path(path)
        self.rows: list[dict[str, Any]] = []
        self._columns = ["step", *columns]
        self._start = 0  # where the last row begins in the file

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Do nothing: the configuration of a run holds its options."""

    def last(self, name: str) -> dict[str, Any] | None:
        """Return the last row that has a value of this name."""
        return next((row for row in reversed(self.rows) if name in row), None)

    def read(self, until: int) -> list[dict[str, Any]]:
        """Return the rows of the file up to a step."""
        rows = [row for row in read_log(self.path) if int(row["step"]) <= until]
        return [
            {"step": int(row.pop("step")), **{name: float(row[name]) for name in row if row[name]}}
            for row in rows
        ]

    def restore(self, rows: Iterable[dict[str, Any]]) -> None:
        """Begin the file with rows of before."""
        self.rows = [*rows]
        self._write_all()

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Write values to the row of a step, which must not be before the last row."""
        new = not self.rows or self.rows[-1]["step"] != step
        if new:
            self.rows.append({"step": step or 0})
        self.rows[-1] |= {name: float(value) for name, value in metrics.items()}
        if new and len(self.rows) == 1:
            self._write_all()
            return
        with reporting_write_errors(self.path), self.path.open("r+b") as file:
            self._start = file.seek(0, io.SEEK_END) if new else file.seek(self._start)
            file.write(self._text(self.rows[-1:]))
            file.truncate()

    @rank_zero_only
    def _write_all(self) -> None:
        with staged_file(self.path, force=True) as beside:
            before = self._text(self.rows[:-1], header=True)
            beside.write_bytes(before + self._text(self.rows[-1:]))
        self._start = len(before)

    def _text(self, rows: Sequence[dict[str, Any]], *, header: bool = False) -> bytes:
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, self._columns, extrasaction="ignore", lineterminator="\n")
        if header:
            writer.writeheader()
        writer.writerows(rows)
        return text.getvalue().encode()


def asked_loggers(config: TrainConfig, run: RunFolder) -> Iterator[Logger]:
    """Yield the loggers of a training besides the CSV file, as configured: TensorBoard and MLflow.

    Raises:
        MissingExtraError: the package of a logger is missing.
    """
    if config.training.tensorboard:
        with needs_extra("tensorboard", "a TensorBoard log"):
            import tensorboard  # noqa: F401  # Lightning names its extra, not ours
        from lightning.pytorch.loggers import TensorBoardLogger

        yield TensorBoardLogger(run.log, name="tensorboard", version="")
    if config.training.mlflow:
        yield _mlflow_logger(config.data.name, run)


def _mlflow_logger(name: str, run: RunFolder) -> Logger:
    """Return a logger to the store of the run; a resumed run continues its record there."""
    with needs_extra("mlflow", "an MLflow log"):
        import alembic  # noqa: F401  # required by the store
        import sqlalchemy  # noqa: F401
        from mlflow import MlflowClient
    from lightning.pytorch.loggers import MLFlowLogger

    run.log.mkdir(parents=True, exist_ok=True)
    store = f"sqlite:///{run.log / 'mlflow.db'}"
    began: Sequence[Any] = ()
    if (run.log / "mlflow.db").exists() and rank_zero_only.rank == 0:
        client = MlflowClient(store)
        experiment = client.get_experiment_by_name(name)
        began = client.search_runs([experiment.experiment_id]) if experiment else ()
    return MLFlowLogger(
        name,
        run_name=run.path.name,
        tracking_uri=store,
        artifact_location=(run.log / "mlflow").as_uri(),
        run_id=began[0].info.run_id if began else None,
    )
