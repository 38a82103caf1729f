"""The slice bias of a network, watched while it trains.

    monitor = AsymmetryMonitor(windows, every=200)
    Trainer(callbacks=[monitor], logger=CsvLog("metrics.csv", ["loss", *monitor.columns]))

The monitor is plain Lightning, as the log is (``evenslice.training.logs``): they suit modules that know nothing of evenslice.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from evenslice._core import ConfigError, needs_extra
from evenslice.auditing import Mirrored, attribute
from evenslice.results import directional_bias, measure, model_part
from evenslice.training.logs import log_metrics

with needs_extra("train", "watching a network train"):
    from lightning.pytorch import Callback, LightningModule, Trainer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor, nn

    from evenslice.auditing import Target

__all__ = ["AsymmetryMonitor", "bias_columns", "measure_bias"]


class AsymmetryMonitor(Callback):
    """A Lightning callback that logs how unequally a network treats the slices of its windows.

    It suits every LightningModule whose forward pass maps windows to logits. The same windows and their mirrors are
    shown each time, before the first step, every so many steps, and after the last; see ``measure_bias`` for what is
    measured. Neither the weights, nor their gradients, nor the random numbers of the training are touched. Of several
    processes the first one measures.

    Args:
        windows: (n, slices, y, x), as the module's forward pass takes them.
        every: optimizer steps between two measurements.
        target: which class's logit is explained at each pixel, see ``evenslice.auditing.attribution``.
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
