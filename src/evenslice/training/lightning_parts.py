"""What Lightning trains with: a network with its optimizer, the batches of its steps, loggers, callbacks.

    monitor = AsymmetryMonitor(windows, every=200)
    Trainer(callbacks=[monitor], logger=CsvLog("metrics.csv", ["loss", *monitor.columns]))

``AsymmetryMonitor``, ``CsvLog`` and ``SynchronizedNorms`` work with any LightningModule.
"""

from __future__ import annotations

import csv
import math
import signal
import threading
import time
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import SyncBatchNorm, _BatchNorm
from torch.utils.data import DataLoader, Dataset

from evenslice._core import (
    ConfigError,
    ModelError,
    OutputError,
    needs_extra,
    option,
    progress_bar,
    read_log,
    staged_file,
    whole_number,
)
from evenslice.auditing import parse_target, slice_shares
from evenslice.networks import METADATA_KEY
from evenslice.results import Measurements, score_title
from evenslice.training.losses import TaskLoss, task_logits
from evenslice.training.run_folder import refuse_changed

with needs_extra("train", "training"):
    from lightning.pytorch import Callback, LightningModule, Trainer
    from lightning.pytorch.callbacks import Checkpoint
    from lightning.pytorch.loggers import Logger
    from lightning.pytorch.plugins import TorchSyncBatchNorm
    from lightning.pytorch.utilities import rank_zero_only

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig

    from evenslice.training.config import TrainConfig
    from evenslice.training.run_folder import RunFolder


OPTIONS = "evenslice_options"  # with which the run of a checkpoint began
LOG_EVERY = 10  # steps; a row of the log holds their mean loss
SCORE_NOISE = 0.002  # differences of validation scores up to this are noise
FIRST_LINE = 2.0  # seconds


def is_first_process() -> bool:
    """Return whether this is the first of several processes that train together, or the only one."""
    return getattr(rank_zero_only, "rank", 0) == 0


class TrainingModule(LightningModule):
    """A network in training.

    The random numbers of a step depend only on the seed, the number of the step and the process.

    An epoch lasts to the next validation. Step s uses the crops from ``s * batch`` up to ``(s + 1) * batch``; each of
    several processes takes every so many of them. The trainer must reload the data each epoch
    (``reload_dataloaders_every_n_epochs=1``) and must not replace the sampler (``use_distributed_sampler=False``).

    Args:
        network: maps windows (batch, slices, y, x), with the scaling it expects, to logits.
        config: the configuration of the run.
        crops: those of all steps.

    Attributes:
        seconds: training time so far, including that before the run was resumed.
        started: whether training has started; until then, an error in a resumed run is one of its checkpoint.

    Raises:
        ModelError: the loss is not finite.
    """

    def __init__(self, network: nn.Module, config: TrainConfig, crops: Dataset[Any]) -> None:
        super().__init__()
        self.network, self.config, self._crops = network, config, crops
        ignored = config.data.ignore_label is not None
        self.loss = TaskLoss(config.training.loss, config.data.classes, ignored=ignored)
        self.seconds = 0.0
        self.started = False
        self._losses: list[Tensor] = []
        self._clock = time.monotonic()

    def train_dataloader(self) -> DataLoader[tuple[Tensor, Tensor]]:
        """Return the batches up to the next validation: windows (batch, N, y, x) and classes (batch, y, x), or (batch,).

        They begin with the next step: an epoch in which a run was interrupted is cut in two.
        """
        training, first = self.config.training, self.global_step
        size = training.batch
        end = (first // training.validate_every + 1) * training.validate_every
        batches = [
            list(range(step * size + self.global_rank, (step + 1) * size, self.trainer.world_size))
            for step in range(first, min(end, training.steps))
        ]
        return DataLoader(
            self._crops,
            batch_sampler=batches,
            num_workers=training.workers,
            worker_init_fn=_tolerate_first,
            pin_memory=self.device.type == "cuda",  # whence a GPU reads them fastest
            generator=torch.Generator(),  # the global generator would advance each epoch
        )

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
        torch.manual_seed(int(state.generate_state(1)[0]))

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:  # noqa: ARG002  # Lightning's
        """Log the mean loss every ``LOG_EVERY`` steps, and before a validation, which a network that diverged would fail.

        If the training is interrupted in between, losses wait in the checkpoint, so that the resumed run has the same log as
        an uninterrupted one.
        """
        self._losses.append(outputs["loss"].detach().float())
        if self.global_step % LOG_EVERY == 0 or self.trainer.is_last_batch:
            self._log_losses()

    def on_train_epoch_end(self) -> None:
        """End the training after its last step."""
        self.trainer.should_stop |= self.global_step >= self.config.training.steps

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save the options, the training time, the log, and the losses that are not in the log."""
        self._tick()
        losses = [loss.item() for loss in self._losses]
        checkpoint[OPTIONS] = self.config.option_hashes()
        checkpoint[METADATA_KEY] = {"seconds": self.seconds, "losses": losses, "log": self._log.rows}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore them.

        Raises:
            ConfigError: the run began with other options.
        """
        refuse_changed(checkpoint.get(OPTIONS, {}), self.config, Path("last.ckpt"))
        # Version 0.2 did not note in the weights where the network averages or is tied, nor the log in the checkpoint.
        marks = {
            name: mark
            for name, mark in self.state_dict().items()
            if name.rpartition(".")[2].startswith("evenslice_")
        }
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
        from timm.layers.norm_act import convert_sync_batchnorm

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

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Do nothing: the configuration of a run holds its options."""

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
        self._write()

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Write values to the row of a step, which must not be before the last row."""
        if not self.rows or self.rows[-1]["step"] != step:
            self.rows.append({"step": step or 0})
        self.rows[-1] |= {name: float(value) for name, value in metrics.items()}
        self._write()

    @rank_zero_only
    def _write(self) -> None:
        with (
            staged_file(self.path, force=True) as beside,
            beside.open("w", newline="", encoding="utf-8") as file,
        ):
            writer = csv.DictWriter(file, self._columns, extrasaction="ignore", lineterminator="\n")
            writer.writeheader()
            writer.writerows(self.rows)


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
        import sqlalchemy  # noqa: F401  # required by the store
        from mlflow import MlflowClient
    from lightning.pytorch.loggers import MLFlowLogger

    run.log.mkdir(parents=True, exist_ok=True)
    store = f"sqlite:///{run.log / 'mlflow.db'}"
    began: Sequence[Any] = ()
    if (run.log / "mlflow.db").exists() and is_first_process():
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


def log_metrics(trainer: Trainer, values: Mapping[str, float]) -> None:
    """Log values with every logger of a trainer, at the current optimizer step."""
    for logger in trainer.loggers:
        logger.log_metrics(dict(values), step=trainer.global_step)


class AsymmetryMonitor(Callback):
    """A Lightning callback that logs how unequally a network treats the slices of its windows.

    It works with any LightningModule whose forward pass maps windows to logits. The same windows and their mirrors are
    measured before the first step, every ``every`` steps, and after the last; see ``measure_bias``. Resumed training
    is measured at the same steps. Weights, gradients and random numbers of the training are not changed. Only the first
    of several processes measures.

    Args:
        windows: (n, slices, y, x), as the forward pass of the module takes them.
        every: optimizer steps between measurements.
        target: the output to explain at each pixel: the log-odds of the class that is "predicted" or of a class
            number, or the "sum" of all outputs; "auto" as for ``audit``.
        batch: windows per forward pass.

    Attributes:
        columns: names of the logged values: ``share_-1``, ``share_0``, ``share_1`` for 3 slices, and so on;
            ``directional_bias`` (D_m), ``asymmetry`` (A) and ``imbalance`` (U).
        history: a row of them for each measurement, with its ``step``; stored in checkpoints.

    Raises:
        ConfigError: there are no windows, or their number of slices is even; ``every`` or ``batch`` is below 1; or the
            target is unknown, or "labels", which a monitor does not have. During training, if the network does not
            have the class.
        ModelError: during training, if the output does not suit the target.

    Example:
        >>> monitor = AsymmetryMonitor(torch.rand(4, 3, 32, 32), every=100)
        >>> monitor.columns
        ('share_-1', 'share_0', 'share_1', 'directional_bias', 'asymmetry', 'imbalance')
    """

    def __init__(
        self, windows: Tensor, *, every: int = 200, target: int | str = "auto", batch: int = 4
    ) -> None:
        shape = tuple(np.shape(windows))
        if len(shape) != 4 or shape[0] == 0 or shape[1] % 2 == 0 or not torch.is_floating_point(windows):
            raise ConfigError(
                f"windows of shape {shape}: give at least one as a tensor of floating point, (windows, slices, y, x), with an "
                "odd number of slices"
            )
        self.windows = windows
        self.every = whole_number("every", every, least=1)
        self.target = parse_target(str(target))
        if self.target == "labels":
            raise ConfigError(
                f"{option('target', 'labels')}: a monitor has none; choose auto, predicted, sum or a class"
            )
        self.batch = whole_number("batch", batch, least=1)
        self.columns = bias_columns(windows.shape[1])
        self.history: list[dict[str, float]] = []

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure the initial network, unless training is resumed."""
        if not self.history:
            self._measure(trainer, pl_module)

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,  # noqa: ARG002  # given by Lightning, like the next two
        batch: Any,  # noqa: ARG002
        batch_idx: int,  # noqa: ARG002
    ) -> None:
        """Measure the network if a measurement is due."""
        if trainer.global_step % self.every == 0:
            self._measure(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure the final network."""
        self._measure(trainer, pl_module)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure the final network of training that had no step left, for which Lightning calls no other hook."""
        self._measure(trainer, pl_module)

    def state_dict(self) -> dict[str, Any]:
        """Return the history, for a checkpoint."""
        return {"history": self.history}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the history from a checkpoint."""
        self.history = [
            {"step": int(row["step"]), **{name: float(row[name]) for name in self.columns}}
            for row in state_dict["history"]
        ]

    def _measure(self, trainer: Trainer, module: LightningModule) -> None:
        """Measure at most once per step: a step may have several batches, and a resumed run has measured its first."""
        step = trainer.global_step
        if not trainer.is_global_zero or any(row["step"] == step for row in self.history[-1:]):
            return
        row = measure_bias(module, self.windows, target=self.target, batch=self.batch)
        self.history.append({"step": step, **row})
        log_metrics(trainer, row)


@torch.inference_mode(mode=False)  # what is made in it can be trained, and explained
def measure_bias(
    network: nn.Module, windows: Tensor, *, target: int | str = "auto", batch: int = 4
) -> dict[str, float]:
    """Measure the shares and biases of a network by gradients, on windows and their mirrors.

    The network runs in evaluation mode and in the precision of its weights, and is restored afterwards.

    Args:
        network: maps windows to logits.
        windows: (n, N, y, x), scaled for the network.
        target: the class whose log-odds are explained at each pixel.
        batch: windows per forward pass.

    Returns:
        What ``Measurements.mean_biases`` returns; NaN if no gradient reaches any window.

    Example: a network that is linear in its slices, whose shares are its weights.
        >>> network = torch.nn.Conv2d(3, 1, 1)
        >>> _ = network.weight.requires_grad_(False).copy_(torch.tensor([1.0, 2.0, 5.0]).view(1, 3, 1, 1))
        >>> {name: round(value, 3) for name, value in measure_bias(network, torch.rand(2, 3, 8, 8)).items()}
        {'share_-1': 0.125, 'share_0': 0.25, 'share_1': 0.625, 'directional_bias': 0.667, 'asymmetry': 0.5,
        'imbalance': 0.292}
    """
    weight = next(network.parameters())
    parts = []
    with _evaluating(network):
        for chunk in torch.split(windows, batch):
            given = chunk.to(weight.device, weight.dtype, memory_format=torch.channels_last)
            parts.append(slice_shares(network, given, parse_target(str(target))))
    return Measurements.mean_biases(np.concatenate(parts))


def bias_columns(slices: int) -> tuple[str, ...]:
    """Return the names of the logged shares and biases for windows of N slices.

    Example:
        >>> bias_columns(1)
        ('share_0', 'directional_bias', 'asymmetry', 'imbalance')
    """
    half = slices // 2
    return (*(f"share_{k}" for k in range(-half, half + 1)), "directional_bias", "asymmetry", "imbalance")


@contextmanager
def _evaluating(network: nn.Module) -> Iterator[None]:
    """Put a network into evaluation mode, and restore the mode of each part afterwards."""
    training = [module for module in network.modules() if module.training]
    network.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


class TrainingInterrupted(KeyboardInterrupt):
    """A training run was interrupted, and can be resumed.

    Args:
        number: the signal.
        reached: what the run had reached, such as "step 30 of 80".
        told: whether another process tells the user.

    Attributes:
        status: the exit status that a shell expects: 130 for SIGINT, 143 for SIGTERM.

    Example:
        >>> str(TrainingInterrupted(signal.SIGTERM, "step 30 of 80")), TrainingInterrupted(2, "").status
        ('terminated at step 30 of 80', 130)
    """

    def __init__(self, number: int, reached: str, *, told: bool = False) -> None:
        super().__init__(f"{'terminated' if number == signal.SIGTERM else 'interrupted'} at {reached}")
        self.status, self.told = 128 + number, told


class Stopped(Exception):  # noqa: N818  # nothing went wrong
    """A training has stopped because it was asked to, after its checkpoint was written.

    Lightning would exit the process at a ``KeyboardInterrupt``.
    """


class Interruption(Checkpoint):
    """The checkpoint from which a run is resumed, and the context in which SIGINT and SIGTERM interrupt it.

        with Interruption(path, steps) as interruption:
            ...                                  # raises KeyboardInterrupt at once
            with interruption.deferred():
                ...                              # only notes it: the step is finished and a checkpoint written

    The checkpoint is written at the end of each epoch, after all other callbacks; a signal ends the epoch after its step,
    a second one has the effect that it would have without all this. Several processes stop at the same step, whichever
    of them got the signal. Only the main thread can answer signals, and those to which the program has given another
    meaning keep it. Unlike ``ModelCheckpoint``, it removes no file that a checkpoint names.

    Args:
        path: the file of the checkpoint.
        steps: number of steps of the training.

    Attributes:
        signal: the signal that came, if any.
        reached: what a run that is resumed begins with, such as "step 30 of 80".
    """

    def __init__(self, path: Path, steps: int) -> None:
        self.signal: int | None = None
        self.reached = "its start"
        self._path, self._steps = path, steps
        self._stopping = self._deferred = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        """Take the signals over."""
        if threading.current_thread() is threading.main_thread():
            known = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
            ours = (signal.SIG_DFL, signal.default_int_handler)
            self._before = {number: handler for number, handler in known.items() if handler in ours}
        self._take()
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        """Give the signals back."""
        self._give_back()

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Only note the first signal in the block; answer it at the end, unless an error is on its way anyhow."""
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False
        if self.signal is not None:
            raise KeyboardInterrupt

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the signals back from Lightning, which would end the training in the middle of a step."""
        del pl_module
        self._take()
        self._note_step(trainer)

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """End the epoch early if a signal came."""
        came = self.signal is not None
        if trainer.strategy.reduce_boolean_decision(came, all=False):
            self._stopping = trainer.should_stop = True

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the checkpoint.

        Raises:
            Stopped: a signal came.
        """
        del pl_module
        # The first process alone writes, beside the name, so that the last checkpoint is not lost.
        first = trainer.is_global_zero
        with staged_file(self._path, force=True) if first else nullcontext(self._path) as beside:
            trainer.save_checkpoint(beside)
        self._note_step(trainer)
        if self._stopping:
            raise Stopped

    def _note_step(self, trainer: Trainer) -> None:
        self.reached = f"step {trainer.global_step} of {self._steps}"

    def _take(self) -> None:
        if self.signal is None:
            for number in self._before:
                signal.signal(number, self._note)

    def _note(self, number: int, _frame: object) -> None:
        self.signal = number
        self._give_back()
        if not self._deferred:
            raise KeyboardInterrupt

    def _give_back(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)


def kept_validation(rows: Iterable[Mapping[str, float]], column: str) -> Mapping[str, float] | None:
    """Return the row of a log at whose step ``KeepBest`` last kept the network; None if it never did.

    Args:
        rows: the log.
        column: the column of the validation.

    Example:
        >>> kept_validation([{"step": n, "dice": dice} for n, dice in enumerate([0.9, 0.5, 0.8, 0.799])], "dice")
        {'step': 3, 'dice': 0.799}
    """
    kept, best = None, -math.inf
    for row in rows:
        score = row.get(column, math.nan)
        if row["step"] > 0 and score > best - SCORE_NOISE:
            kept, best = row, max(best, score)
    return kept


class KeepBest(Callback):
    """Validate at the end of each epoch, keep the best network, and stop if it no longer improves.

    Of networks whose scores differ by less than ``SCORE_NOISE``, the last one is kept: it was trained longer and
    ended at a lower learning rate, which neither ``ModelCheckpoint`` nor ``EarlyStopping`` can be told. The score before
    the first step is logged for comparison. What was found before is in the log, which a checkpoint holds.

    Args:
        score: maps the network to a score, of which higher is better and NaN never best; called in the first process.
        save: saves the network; called in the first process.
        path: the file to which it does, if the training cannot do without it.
        patience: number of consecutive validations without improvement before training stops; None never stops.
        log: has the scores.
        column: their name there.
    """

    def __init__(
        self,
        score: Callable[[nn.Module], float],
        save: Callable[[nn.Module], None],
        path: Path | None,
        patience: int | None,
        log: CsvLog,
        column: str,
    ) -> None:
        self._score, self._save, self._path, self._patience = score, save, path, patience
        self._log, self._column = log, column

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check that the best network so far is there.

        Raises:
            OutputError: it is gone.
        """
        del trainer, pl_module
        lost = self._path is not None and not self._path.exists()
        if lost and kept_validation(self._log.rows, self._column):
            raise OutputError(
                f"{self._path}: is lost, and with it the best network so far; copy it back, or remove last.ckpt to train anew"
            )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop a run that had already stopped."""
        del pl_module
        self._stop_early(trainer)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Validate the initial network, when ``Interruption`` has taken the signals from Lightning."""
        if trainer.global_step == 0:
            self._validate(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Validate, and keep the network if it is the best.

        An epoch that is cut short by an interruption is validated when it ends, in the resumed run.
        """
        if trainer.is_last_batch:
            self._validate(trainer, pl_module)
            self._stop_early(trainer)

    def _validate(self, trainer: Trainer, module: LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        network = module.get_submodule("network")
        log_metrics(trainer, {self._column: self._score(network)})
        if kept_validation(self._log.rows, self._column) is self._log.rows[-1]:
            self._save(network)

    def _stop_early(self, trainer: Trainer) -> None:
        """Stop all processes if the last validations, as many as the patience, have not improved the score."""
        found = [row[self._column] for row in self._log.rows if row["step"] > 0 and self._column in row]
        scores = [-math.inf, *(-math.inf if math.isnan(score) else score for score in found)]
        worse = len(scores) - 1 - scores.index(max(scores))
        stop = self._patience is not None and worse >= self._patience
        trainer.should_stop |= trainer.strategy.broadcast(stop)


class ShowProgress(Callback):
    """Shows progress on standard error, from the first process: a bar, or lines elsewhere than on a terminal.

    Args:
        title: what is trained.
        steps: number of steps.
        show: True for a bar, False for nothing; None for a bar on a terminal and lines elsewhere.
        log: has the loss, the slice bias and the validations.
        score: what validations measure.
    """

    def __init__(self, title: str, steps: int, *, show: bool | None, log: CsvLog, score: str) -> None:
        self._title, self._steps, self._show = title, steps, show
        self._log, self._score = log, score
        self._shown = ExitStack()
        self._advance: Callable[..., None] | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin at the step at which the training begins."""
        del pl_module
        done, steps = trainer.global_step, self._steps
        if trainer.is_global_zero and done < steps:
            shown = progress_bar(
                self._title, steps, "steps", show=self._show, done=done, first_line=FIRST_LINE
            )
            self._advance = self._shown.enter_context(shown)

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """Advance by a step; the last one is shown when the final network has been validated."""
        if self._advance is not None and trainer.global_step < self._steps:
            self._advance(1, self._notes())

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show the last step and remove the bar; all callbacks have measured the final network before."""
        del pl_module
        if self._advance is not None and trainer.global_step == self._steps:
            self._advance(1, self._notes())
        self._shown.close()

    def on_exception(self, *_: Any) -> None:
        """Remove the bar."""
        self._shown.close()

    def _notes(self) -> str:
        """Return what was logged last of the loss, the bias and the validation."""
        score = f"validation_{self._score}"
        titles = {"loss": "loss {:.3f}", "directional_bias": "bias {:+z.3f}"}
        titles[score] = f"validation {score_title(self._score)} {{:.3f}}"
        last = {
            name: next((row[name] for row in reversed(self._log.rows) if name in row), math.nan)
            for name in titles
        }
        return ", ".join(
            form.format(last[name]) for name, form in titles.items() if not math.isnan(last[name])
        )
