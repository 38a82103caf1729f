"""What is watched while a network trains: its slice bias, and a log of every figure.

    monitor = AsymmetryMonitor(windows, every=200)
    Trainer(callbacks=[monitor], logger=CsvLog("metrics.csv", ["loss", *monitor.columns]))

Both are plain Lightning: they suit modules that know nothing of evenslice.
"""

from __future__ import annotations

import csv
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from evenslice.asymmetry import directional_bias, measure, model_part
from evenslice.attribution import Mirrored, attribute
from evenslice.errors import ConfigError, needs_extra

with needs_extra("train", "watching a network train"):
    from lightning.pytorch import Callback, LightningModule, Trainer
    from lightning.pytorch.loggers import Logger
    from lightning.pytorch.utilities import rank_zero_only

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator, Mapping, Sequence

    from torch import Tensor, nn

    from evenslice.attribution import Target

__all__ = ["AsymmetryMonitor", "CsvLog", "bias_columns", "log_metrics", "measure_bias"]


class AsymmetryMonitor(Callback):
    """A Lightning callback that logs how unequally a network treats the slices of its windows.

    It suits every LightningModule whose forward pass maps windows to logits. The same windows and their mirrors are
    shown each time, before the first step, every so many steps, and after the last; see ``measure_bias`` for what is
    measured. Neither the weights, nor their gradients, nor the random numbers of the training are touched. Of several
    processes the first one measures.

    Args:
        windows: (n, slices, y, x), as the module's forward pass takes them.
        every: optimizer steps between two measurements.
        target: which class's logit is explained at each pixel, see ``evenslice.attribution``.
        batch: windows in one pass of the network.

    Attributes:
        columns: the names of what is logged: ``share_-1``, ``share_0``, ``share_1`` at 3 slices, and so on;
            ``directional_bias`` (D_m), ``asymmetry`` (A) and ``imbalance`` (U).
        history: a row of these for each measurement, with its ``step``; checkpoints carry it.

    Raises:
        ConfigError: there is no window, or the windows are not of an odd number of slices.

    Example:
        >>> monitor = AsymmetryMonitor(torch.rand(4, 3, 32, 32), every=100)
        >>> monitor.columns
        ('share_-1', 'share_0', 'share_1', 'directional_bias', 'asymmetry', 'imbalance')
    """

    def __init__(self, windows: Tensor, *, every: int = 200, target: Target = "auto", batch: int = 4) -> None:
        if windows.ndim != 4 or len(windows) == 0 or windows.shape[1] % 2 == 0:
            raise ConfigError(
                f"windows of shape {tuple(windows.shape)}: give at least one, as (windows, slices, y, x) with an odd "
                "number of slices"
            )
        if every < 1 or batch < 1:
            raise ConfigError(f"every = {every}, batch = {batch}: both must be at least 1")
        self.windows = windows
        self.every = every
        self.target = target
        self.batch = batch
        self.columns = bias_columns(windows.shape[1])
        self.history: list[dict[str, float]] = []

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure the network as it starts."""
        self._measure(trainer, pl_module)

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,  # noqa: ARG002  # Lightning's, like the two below
        batch: Any,  # noqa: ARG002
        batch_idx: int,  # noqa: ARG002
    ) -> None:
        """Measure the network where it is time to."""
        if trainer.global_step % self.every == 0:
            self._measure(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure the network as it ends."""
        self._measure(trainer, pl_module)

    def state_dict(self) -> dict[str, Any]:
        """Return the history, for a checkpoint."""
        return {"history": self.history}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the history of a checkpoint."""
        self.history = list(state_dict["history"])

    def _measure(self, trainer: Trainer, module: LightningModule) -> None:
        """Measure at most once a step; several batches may make up one, and a resumed run has measured its first."""
        step = trainer.global_step
        if not trainer.is_global_zero or any(row["step"] == step for row in self.history[-1:]):
            return
        row = measure_bias(module, self.windows, target=self.target, batch=self.batch)
        self.history.append({"step": step, **row})
        log_metrics(trainer, row)


def measure_bias(
    network: nn.Module, windows: Tensor, *, target: Target = "auto", batch: int = 4
) -> dict[str, float]:
    """Measure the shares and biases of a network, by gradients, on some windows and their mirrors.

    The network runs in evaluation mode and in the precision of its weights, and is afterwards as it was before.

    Args:
        network: maps windows to logits.
        windows: (n, N, y, x), as the network takes them.
        target: what is explained at each pixel.
        batch: windows in one pass.

    Returns:
        By the names of ``bias_columns``: the mean share of each offset over the windows and their mirrors, the model
        part D_m of the directional bias, the asymmetry A (half the L1 distance between the shares and their mirror) and
        the imbalance U (half that between the shares and 1/N); NaN where no gradient reaches any window.

    Example: a network that is linear in its slices, whose shares are its weights.
        >>> network = torch.nn.Conv2d(3, 1, 1)
        >>> _ = network.weight.requires_grad_(False).copy_(torch.tensor([1.0, 2.0, 5.0]).view(1, 3, 1, 1))
        >>> {name: round(value, 3) for name, value in measure_bias(network, torch.rand(2, 3, 8, 8)).items()}
        {'share_-1': 0.125, 'share_0': 0.25, 'share_1': 0.625, 'directional_bias': 0.667, 'asymmetry': 0.5, 'imbalance': 0.292}
    """
    weight = next(network.parameters())
    rows = []
    with _evaluating(network), torch.enable_grad():
        for chunk in torch.split(windows, batch):
            given = chunk.to(weight.device, weight.dtype, memory_format=torch.channels_last)
            found = attribute(network, given, target=target)
            mirrored = attribute(Mirrored(network), given, target=target)
            rows.append(
                measure(found.attribution, mirrored.attribution.flip(1), found.output, mirrored.output)
            )
    shares = np.concatenate([row["shares"] for row in rows])
    mirrored_shares = np.concatenate([row["mirrored_shares"] for row in rows])
    profile = _mean(model_part(shares, mirrored_shares))
    direction = _mean(model_part(directional_bias(shares), directional_bias(mirrored_shares)))
    figures = (
        direction,
        np.abs(profile - profile[::-1]).sum() / 2,
        np.abs(profile - 1 / len(profile)).sum() / 2,
    )
    return dict(zip(bias_columns(len(profile)), map(float, (*profile, *figures)), strict=True))


def bias_columns(slices: int) -> tuple[str, ...]:
    """Return the names under which shares and biases of windows of N slices are logged.

    Example:
        >>> bias_columns(1)
        ('share_0', 'directional_bias', 'asymmetry', 'imbalance')
    """
    half = slices // 2
    return (*(f"share_{k}" for k in range(-half, half + 1)), "directional_bias", "asymmetry", "imbalance")


def log_metrics(trainer: Trainer, values: Mapping[str, float]) -> None:
    """Give figures to every logger of a trainer, under the number of optimizer steps done."""
    for logger in trainer.loggers:
        logger.log_metrics(dict(values), step=trainer.global_step)


class CsvLog(Logger):
    """A Lightning logger that writes one CSV file, a row for each step at which something was logged.

    What is logged lies on disk at once. A run that is resumed at an earlier step goes on from there: the rows after it
    are dropped, and the file becomes what it would have been without the interruption.

    Args:
        path: the file; its folder is made.
        columns: what it has columns for beside ``step``; anything else is left out.

    Example:
        >>> import tempfile
        >>> log = CsvLog(Path(tempfile.mkdtemp()) / "metrics.csv", ["loss", "dice"])
        >>> for step, values in (10, {"loss": 0.5}), (10, {"dice": 0.25}), (20, {"loss": 0.125}):
        ...     log.log_metrics(values, step)
        >>> log.path.read_text().split()
        ['step,loss,dice', '10,0.5,0.25', '20,0.125,']
        >>> CsvLog(log.path, ["loss", "dice"]).log_metrics({"loss": 0.75}, 20)
        >>> log.path.read_text().split()
        ['step,loss,dice', '10,0.5,0.25', '20,0.75,']
    """

    def __init__(self, path: str | os.PathLike[str], columns: Sequence[str]) -> None:
        super().__init__()
        self.path = Path(path)
        self._columns = ["step", *columns]
        self._row: dict[str, Any] | None = None
        self._start = 0  # where the row at hand begins in the file

    @property
    def name(self) -> str:
        """The name of the log."""
        return "csv"

    @property
    def version(self) -> str:
        """A log has one version."""
        return ""

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Do nothing: a run's options stand in its configuration."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Write figures to the row of a step, which is never before that of the last ones."""
        if self._row is None:
            self._begin(step or 0)
        elif self._row["step"] != step:
            self._start = self.path.stat().st_size
            self._row = {}
        self._row = {**(self._row or {}), "step": step, **metrics}
        with self.path.open("r+", newline="") as file:
            file.seek(self._start)
            file.truncate()
            self._writer(file).writerow(self._row)

    def _begin(self, step: int) -> None:
        """Write the file anew with the rows before a step."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        rows: list[dict[str, str]] = []
        if self.path.exists():
            with self.path.open(newline="") as file:
                rows = [row for row in csv.DictReader(file) if int(row["step"]) < step]
        with self.path.open("w", newline="") as file:
            writer = self._writer(file)
            writer.writeheader()
            writer.writerows(rows)
        self._start = self.path.stat().st_size

    def _writer(self, file: Any) -> csv.DictWriter[str]:
        return csv.DictWriter(file, self._columns, extrasaction="ignore", lineterminator="\n")


def _mean(values: np.typing.NDArray[np.float64]) -> np.typing.NDArray[np.float64]:
    """Return the mean over windows, leaving out those whose shares are NaN; NaN where none is left."""
    kept = values[~np.isnan(values.reshape(len(values), -1)).any(axis=1)]
    return kept.mean(axis=0) if len(kept) else np.full(values.shape[1:], np.nan)


@contextmanager
def _evaluating(network: nn.Module) -> Iterator[None]:
    """Put a network into evaluation mode for a while; parts that were in it before stay in it."""
    training = [module for module in network.modules() if module.training]
    network.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
