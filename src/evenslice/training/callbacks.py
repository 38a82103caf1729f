"""The callbacks of a training: answers to signals and checkpoints, the best network in validation, and progress.

    with Interruption() as interruption:
        ...                                  # raises KeyboardInterrupt at once
        with interruption.deferred():
            ...                              # only notes it: the step is finished and a checkpoint written

A second signal has the effect that it would have without all this.
"""

from __future__ import annotations

import math
import signal
import threading
import time
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from evenslice._core import needs_extra, progress_bar
from evenslice.results import MAIN_SCORES, pair_bias, score_title
from evenslice.training.training_files import log_metrics

with needs_extra("train", "training"):
    from lightning.pytorch import Callback, LightningModule, Trainer
    from lightning.pytorch.callbacks import Checkpoint

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from pathlib import Path

    from torch import nn

    from evenslice._core import Advance
    from evenslice.training.monitor import AsymmetryMonitor

__all__ = [
    "Interruption",
    "KeepBest",
    "SaveLast",
    "ShowProgress",
    "Stopped",
    "TrainingInterrupted",
    "kept_validation",
    "largest_pair_bias",
]

SCORE_NOISE = 0.002  # differences of validation scores up to this are noise
FIRST_LINE = 2.0  # seconds
NOTE_EVERY = 1.0  # seconds; to read the loss, a GPU has to be waited for


class TrainingInterrupted(KeyboardInterrupt):
    """A training run was interrupted, and can be resumed.

    Args:
        number: the signal.
        reached: what the run had reached, such as "step 30 of 80".

    Attributes:
        status: the exit status that a shell expects: 130 for SIGINT, 143 for SIGTERM.

    Example:
        >>> str(TrainingInterrupted(signal.SIGTERM, "step 30 of 80")), TrainingInterrupted(2, "").status
        ('terminated at step 30 of 80', 130)
    """

    def __init__(self, number: int, reached: str) -> None:
        super().__init__(f"{'terminated' if number == signal.SIGTERM else 'interrupted'} at {reached}")
        self.status = 128 + number


class Stopped(Exception):  # noqa: N818  # nothing went wrong
    """A training has stopped because it was asked to, after its checkpoint was written.

    Lightning would exit the process at a ``KeyboardInterrupt``.
    """


class Interruption(Callback):
    """A context in which SIGINT and SIGTERM interrupt a training run, and the callback that lets its step end first.

    Several processes stop at the same step, whichever of them got the signal. Only the main thread can answer signals,
    and those to which the program has given another meaning keep it.

    Attributes:
        signal: the signal that came, if any.
        stopping: whether all processes that train have agreed to stop after the current step.
        reached: what a run that is resumed begins with, such as "step 30 of 80".
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self.stopping = False
        self.reached = "its start"
        self._deferred = False
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

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the signals back from Lightning, which would end the training in the middle of a step."""
        del trainer, pl_module
        self._take()

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """End the epoch early if a signal came."""
        came = self.signal is not None
        if trainer.strategy.reduce_boolean_decision(came, all=False):
            self.stopping = trainer.should_stop = True

    @contextmanager
    def deferred(self, *, until_end: bool = True) -> Iterator[None]:
        """Only note the first signal in the block; answer it at the end, unless an error is on its way anyhow.

        Args:
            until_end: False answers it at once in a part of such a block.
        """
        before, self._deferred = self._deferred, until_end
        try:
            if self.signal is not None and not until_end:
                raise KeyboardInterrupt
            yield
        finally:
            self._deferred = before
        if self.signal is not None and not self._deferred:
            raise KeyboardInterrupt

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


class SaveLast(Checkpoint):
    """Writes a checkpoint to one file at the end of each epoch, after all other callbacks.

    Unlike ``ModelCheckpoint``, it keeps nothing in checkpoints: that callback removes the files that a checkpoint
    names.

    Args:
        path: the file.
        steps: the number of steps of the training.
        interruption: ends the training after the checkpoint if a signal came.

    Raises:
        Stopped: a signal came.
    """

    def __init__(self, path: Path, steps: int, interruption: Interruption) -> None:
        self.path = path
        self._steps, self._interruption = steps, interruption

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note where a training begins."""
        del pl_module
        self._interruption.reached = f"step {trainer.global_step} of {self._steps}"

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the checkpoint."""
        trainer.save_checkpoint(self.path)
        self.on_train_start(trainer, pl_module)
        if self._interruption.stopping:
            raise Stopped


def kept_validation(
    rows: Iterable[Mapping[str, float]], column: str = "validation_dice"
) -> Mapping[str, float] | None:
    """Return the row of a log at whose step ``KeepBest`` last kept the network; None if it never did.

    Args:
        rows: the log.
        column: the column of the validation.

    Example:
        >>> kept_validation([{"step": 200 * n, "validation_dice": dice} for n, dice in enumerate([0.9, 0.5, 0.8, 0.799])])
        {'step': 600, 'validation_dice': 0.799}
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
    the first step is logged for comparison.

    Args:
        score: maps the network to a score, of which higher is better and NaN never best; called in the first process.
        save: saves the network; called in the first process.
        patience: number of consecutive validations without improvement before training stops; None never stops.
        interruption: may interrupt a validation, which is then left to the resumed run.
        name: what the score is, one of ``evenslice.results.MAIN_SCORES``; it is logged as ``validation_`` and this.
        require_saved: raises if a run that is resumed lacks the network that it had saved, or it is damaged.

    Attributes:
        name: likewise.
        best: the highest score so far; -inf if none.
        worse: number of validations since the best one.
        latest: the score of the last validation; NaN before the first.
        due: whether the validation at the end of an epoch was interrupted.
    """

    def __init__(
        self,
        score: Callable[[nn.Module], float],
        save: Callable[[nn.Module], None],
        patience: int | None = None,
        interruption: Interruption | None = None,
        name: str = MAIN_SCORES["segmentation"],
        require_saved: Callable[[], None] = lambda: None,
    ) -> None:
        self.name = name
        self.best, self.latest = -math.inf, math.nan
        self.worse = 0
        self.due = False
        self._score, self._save, self._patience = score, save, patience
        self._interruption = interruption or Interruption()
        self._require_saved = require_saved

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Validate the initial network, or one whose validation was interrupted; stop a run that had already stopped."""
        if trainer.global_step == 0 and self._validate(trainer, pl_module) is None:
            raise KeyboardInterrupt
        self.on_fit_end(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Validate, and keep the network or count a validation without improvement.

        An epoch that is cut short by an interruption is validated when it ends, in the resumed run.
        """
        if self._interruption.stopping:
            self.due = trainer.is_last_batch
            return
        self.due = not self._judge(trainer, pl_module)
        if self.due:
            self._interruption.stopping = trainer.should_stop = True

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Do a validation that was interrupted, also where no step is left, for which Lightning calls no other hook."""
        if self.due:
            if not self._judge(trainer, pl_module):
                raise KeyboardInterrupt
            self.due = False
        trainer.should_stop |= self._patience is not None and self.worse >= self._patience

    def state_dict(self) -> dict[str, Any]:
        """Return the best score and the validations since, for a checkpoint."""
        return {"best": self.best, "worse": self.worse, "due": self.due}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the state from a checkpoint."""
        best = float(state_dict["best"])
        self.best = -math.inf if math.isnan(best) else best  # as earlier versions wrote it
        if self.best > -math.inf:
            self._require_saved()
        self.worse, self.due = int(state_dict["worse"]), bool(state_dict.get("due", False))

    def _judge(self, trainer: Trainer, module: LightningModule) -> bool:
        """Validate, and keep the network or count a validation without improvement; False if it was interrupted."""
        score = self._validate(trainer, module)
        if score is None:
            return False
        if trainer.is_global_zero and score > self.best - SCORE_NOISE:
            self._save(module.get_submodule("network"))
        self.best, self.worse = (score, 0) if score > self.best else (self.best, self.worse + 1)
        trainer.should_stop |= self._patience is not None and self.worse >= self._patience
        return True

    def _validate(self, trainer: Trainer, module: LightningModule) -> float | None:
        """Return the score in all processes; None if the first of them was interrupted."""
        score: float | None = trainer.strategy.broadcast(
            self._measure(module.get_submodule("network")) if trainer.is_global_zero else math.nan
        )
        if score is not None:
            self.latest = score
            log_metrics(trainer, {f"validation_{self.name}": score})
        return score

    def _measure(self, network: nn.Module) -> float | None:
        try:
            with self._interruption.deferred(until_end=False):
                return self._score(network)
        except KeyboardInterrupt:
            return None


class ShowProgress(Callback):
    """Shows progress on standard error, from the first process: a bar, or lines elsewhere than on a terminal.

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

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin at the step at which the training begins."""
        del pl_module
        if trainer.is_global_zero and self._show is not False:
            options: dict[str, Any] = {"done": trainer.global_step, "first_line": FIRST_LINE}
            shown = progress_bar(self._title, self._steps, "steps", show=self._show, **options)
            self._advance = self._shown.enter_context(shown)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *_: Any) -> None:
        """Advance by a step; the last one is shown when the final network has been validated."""
        del pl_module
        if self._advance is None:
            return
        if trainer.global_step == self._steps:
            self._last_loss = outputs["loss"].item()
            return
        now = time.monotonic()
        if now >= self._due:
            self._due, self._note = now + NOTE_EVERY, self._notes(outputs["loss"].item())
        self._advance(1, self._note)

    def on_fit_end(self, *_: Any) -> None:
        """Show the last step and remove the bar; all callbacks have measured the final network before."""
        if self._advance is not None and self._last_loss is not None:
            self._advance(1, self._notes(self._last_loss))
        self._shown.close()

    def on_exception(self, *_: Any) -> None:
        """Remove the bar."""
        self._shown.close()

    def _notes(self, loss: float) -> str:
        notes = [f"loss {loss:.3f}"]
        if self._monitor and self._monitor.history:
            bias = largest_pair_bias(self._monitor.history[-1])
            notes += [] if math.isnan(bias) else [f"bias {bias:+z.3f}"]
        if self._best and not math.isnan(self._best.latest):
            notes.append(f"validation {score_title(self._best.name)} {self._best.latest:.3f}")
        return ", ".join(notes)


def largest_pair_bias(row: Mapping[str, float]) -> float:
    """Return the pair bias B_k that is furthest from 0, of a row of ``AsymmetryMonitor``; NaN for a single slice.

    Example:
        >>> round(largest_pair_bias({"step": 0, "share_-1": 0.3, "share_0": 0.5, "share_1": 0.2}), 6)
        -0.2
    """
    offsets = sorted(int(name.removeprefix("share_")) for name in row if name.startswith("share_"))
    pairs = pair_bias(np.array([[row[f"share_{offset}"] for offset in offsets]]))[0]
    return float(max(pairs, key=abs, default=math.nan))
