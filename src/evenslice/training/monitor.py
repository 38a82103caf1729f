"""Monitoring the slice bias of a network during training.

    monitor = AsymmetryMonitor(windows, every=200)
    Trainer(callbacks=[monitor], logger=CsvLog("metrics.csv", ["loss", *monitor.columns]))

The monitor and the log (``evenslice.training.training_files``) are plain Lightning classes: they work with any LightningModule.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from evenslice._core import ConfigError, needs_extra, option, whole_number
from evenslice.auditing import Mirrored, Score, attribute, parse_target
from evenslice.networks import as_float64, with_gradients
from evenslice.results import directional_bias, model_part, ratio
from evenslice.training.training_files import log_metrics

with needs_extra("train", "monitoring of training"):
    from lightning.pytorch import Callback, LightningModule, Trainer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray
    from torch import Tensor, nn

    from evenslice.auditing import Target

    Floats = NDArray[np.float64]

__all__ = ["AsymmetryMonitor", "bias_columns", "measure_bias"]


class AsymmetryMonitor(Callback):
    """A Lightning callback that logs how unequally a network treats the slices of its windows.

    It works with any LightningModule whose forward pass maps windows to logits. The same windows and their mirrors are
    measured before the first step, every ``every`` steps, and after the last; see ``measure_bias``. Resumed training
    is measured at the same steps. Weights, gradients and random numbers of the training are not changed. Only the first
    of several processes measures.

    Args:
        windows: (n, slices, y, x), as the forward pass of the module takes them.
        every: optimizer steps between measurements.
        target: what is explained at each pixel: the log-odds of the class that is "predicted" or of a class number, or the
            "sum" of all outputs; "auto" as for ``audit``.
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

    def __init__(self, windows: Tensor, *, every: int = 200, target: Target = "auto", batch: int = 4) -> None:
        shape = tuple(np.shape(windows))
        if len(shape) != 4 or shape[0] == 0 or shape[1] % 2 == 0 or not torch.is_floating_point(windows):
            raise ConfigError(
                f"windows of shape {shape}: give at least one as a tensor of floating point, (windows, slices, y, x), with an "
                "odd number of slices"
            )
        if not bool(windows.isfinite().all()):
            raise ConfigError("windows: hold NaN or infinity; give finite numbers, scaled for the network")
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


@with_gradients
def measure_bias(
    network: nn.Module, windows: Tensor, *, target: Target = "auto", batch: int = 4
) -> dict[str, float]:
    """Measure the shares and biases of a network by gradients, on windows and their mirrors.

    The network runs in evaluation mode and in the precision of its weights, and is restored afterwards.

    Args:
        network: maps windows to logits.
        windows: (n, N, y, x), scaled for the network.
        target: the class whose log-odds are explained at each pixel.
        batch: windows per forward pass.

    Returns:
        Under the names of ``bias_columns``: the mean share of each offset over the windows and their mirrors, the model
        part D_m of the directional bias, the asymmetry A (half the L1 distance between the shares and their mirror) and
        the imbalance U (half that between the shares and 1/N); NaN if no gradient reaches any window.

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
            found = attribute(network, given, target=target)
            predicted = Score(network).answers(found.output)
            mirrored = attribute(Mirrored(network), given, target=target, predicted=predicted)
            parts.append([_shares(part) for part in (found.attribution, mirrored.attribution.flip(1))])
    shares, mirrored_shares = map(np.concatenate, zip(*parts, strict=True))
    profile = _mean(model_part(shares, mirrored_shares))
    direction = _mean(model_part(directional_bias(shares), directional_bias(mirrored_shares)))
    figures = (
        direction,
        np.abs(profile - profile[::-1]).sum() / 2,
        np.abs(profile - 1 / len(profile)).sum() / 2,
    )
    return dict(zip(bias_columns(len(profile)), map(float, (*profile, *figures)), strict=True))


def bias_columns(slices: int) -> tuple[str, ...]:
    """Return the names of the logged shares and biases for windows of N slices.

    Example:
        >>> bias_columns(1)
        ('share_0', 'directional_bias', 'asymmetry', 'imbalance')
    """
    half = slices // 2
    return (*(f"share_{k}" for k in range(-half, half + 1)), "directional_bias", "asymmetry", "imbalance")


def _shares(attribution: Tensor) -> Floats:
    """Return the shares (batch, N) of the slices in an attribution (batch, N, y, x); NaN where it is 0."""
    sums = as_float64(attribution.abs()).sum(dim=(2, 3)).cpu().numpy()
    return ratio(sums, sums.sum(axis=1, keepdims=True))


def _mean(values: Floats) -> Floats:
    """Return the mean over windows whose shares are not NaN; NaN if there are none."""
    kept = values[~np.isnan(values.reshape(len(values), -1)).any(axis=1)]
    return kept.mean(axis=0) if len(kept) else np.full(values.shape[1:], np.nan)


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
