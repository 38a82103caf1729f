"""Progress of a training: its steps, with the loss, the slice bias and the validation, as a bar or as lines."""

from __future__ import annotations

import math
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import numpy as np

from evenslice._core import needs_extra, progress_bar
from evenslice.results import pair_bias, score_title

with needs_extra("train", "training"):
    from lightning.pytorch import Callback, LightningModule, Trainer

if TYPE_CHECKING:
    from collections.abc import Mapping

    from evenslice._core import Advance
    from evenslice.training.best_network import KeepBest
    from evenslice.training.monitor import AsymmetryMonitor

__all__ = ["ShowProgress", "largest_pair_bias"]

FIRST_LINE = 2.0  # seconds
NOTE_EVERY = 1.0  # seconds; to read the loss, a GPU has to be waited for


class ShowProgress(Callback):
    """A Lightning callback that shows progress on standard error, from the first process.

    Args:
        title: what is trained.
        steps: number of steps.
        show: True for a bar, False for nothing; None for a bar on a terminal and lines elsewhere.
        monitor: measures the slice bias, if anything does.
        best: validates, if anything does.
    """

    def __init__(
        self,
        title: str,
        steps: int,
        *,
        show: bool | None,
        monitor: AsymmetryMonitor | None,
        best: KeepBest | None,
    ) -> None:
        self._title, self._steps, self._show = title, steps, show
        self._monitor, self._best = monitor, best
        self._shown = ExitStack()
        self._advance: Advance | None = None
        self._note, self._due = "", 0.0
        self._last_loss: float | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002  # Lightning's
        """Begin at the step at which the training begins."""
        if trainer.is_global_zero and self._show is not False:
            shown = progress_bar(
                self._title,
                self._steps,
                "steps",
                show=self._show,
                done=trainer.global_step,
                first_line=FIRST_LINE,
            )
            self._advance = self._shown.enter_context(shown)

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,  # noqa: ARG002  # given by Lightning, like the next three
        outputs: Any,
        batch: Any,  # noqa: ARG002
        batch_idx: int,  # noqa: ARG002
    ) -> None:
        """Advance by a step; the last one is shown when the final network has been validated."""
        if self._advance is None:
            return
        if trainer.global_step == self._steps:
            self._last_loss = outputs["loss"].item()
            return
        now = time.monotonic()
        if now >= self._due:
            self._due, self._note = now + NOTE_EVERY, self._notes(outputs["loss"].item())
        self._advance(1, self._note)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002  # Lightning's
        """Show the last step and remove the bar; all callbacks have measured the final network before."""
        if self._advance is not None and self._last_loss is not None:
            self._advance(1, self._notes(self._last_loss))
        self._shown.close()

    def on_exception(
        self,
        trainer: Trainer,  # noqa: ARG002  # given by Lightning, like the next two
        pl_module: LightningModule,  # noqa: ARG002
        exception: BaseException,  # noqa: ARG002
    ) -> None:
        """Remove the bar."""
        self._shown.close()

    def _notes(self, loss: float) -> str:
        bias = (
            largest_pair_bias(self._monitor.history[-1])
            if self._monitor and self._monitor.history
            else math.nan
        )
        return ", ".join(
            (
                f"loss {loss:.3f}",
                *([] if math.isnan(bias) else [f"bias {bias:+z.3f}"]),
                *([self._validation(self._best)] if self._best and not math.isnan(self._best.latest) else []),
            )
        )

    @staticmethod
    def _validation(best: KeepBest) -> str:
        return f"validation {score_title(best.name)} {best.latest:.3f}"


def largest_pair_bias(row: Mapping[str, float]) -> float:
    """Return the pair bias B_k that is furthest from 0, of a row of ``AsymmetryMonitor``; NaN for a single slice.

    Example:
        >>> round(largest_pair_bias({"step": 0, "share_-1": 0.3, "share_0": 0.5, "share_1": 0.2}), 6)
        -0.2
    """
    offsets = sorted(int(name.removeprefix("share_")) for name in row if name.startswith("share_"))
    pairs = pair_bias(np.array([[row[f"share_{offset}"] for offset in offsets]]))[0]
    return float(max(pairs, key=abs, default=math.nan))
