"""Ctrl-C and SIGTERM in a training run: the step is finished and a checkpoint written before the run ends.

    with Interruption() as interruption:
        ...                                  # raises KeyboardInterrupt at once
        with interruption.deferred():
            ...                              # only notes it in ``interruption.signal``

A second signal has the effect that it would have without all this.
"""

from __future__ import annotations

import signal
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Self

from evenslice._core import needs_extra

with needs_extra("train", "training"):
    from lightning.pytorch import Callback, LightningModule, Trainer

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Interruption", "StopAtStep", "Stopped", "TrainingInterrupted", "tolerate_first"]

_TAKEN = (signal.SIGINT, signal.SIGTERM)


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


class Interruption:
    """A context in which SIGINT and SIGTERM interrupt a training run.

    Only the main thread can answer signals, and those to which the program has given another meaning keep it.

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
            ours = (signal.SIG_DFL, signal.default_int_handler)
            self._before = {
                number: handler for number in _TAKEN if (handler := signal.getsignal(number)) in ours
            }
        self.take()
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        """Give the signals back."""
        self._give_back()

    def take(self) -> None:
        """Take the signals over again, after a library has done so itself."""
        if self.signal is None:
            for number in self._before:
                signal.signal(number, self._note)

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Only note the first signal in the block; answer it at the end, unless an error is on its way anyhow."""
        before, self._deferred = self._deferred, True
        try:
            yield
        finally:
            self._deferred = before
        if self.signal is not None and not self._deferred:
            raise KeyboardInterrupt

    @contextmanager
    def heard(self) -> Iterator[None]:
        """Answer a signal at once in a part of a ``deferred`` block."""
        before, self._deferred = self._deferred, False
        try:
            if self.signal is not None:
                raise KeyboardInterrupt
            yield
        finally:
            self._deferred = before

    def _note(self, number: int, _frame: object) -> None:
        self.signal = number
        self._give_back()
        if not self._deferred:
            raise KeyboardInterrupt

    def _give_back(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)


class StopAtStep(Callback):
    """A Lightning callback that stops a training after the step in which an interruption was asked for.

    Several processes stop at the same step, whichever of them got the signal.

    Args:
        interruption: where the signal is noted.
    """

    def __init__(self, interruption: Interruption) -> None:
        self.interruption = interruption

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002  # Lightning's
        """Take the signals back from Lightning, which would end the training in the middle of a step."""
        self.interruption.take()

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,  # noqa: ARG002  # given by Lightning, like the next three
        outputs: Any,  # noqa: ARG002
        batch: Any,  # noqa: ARG002
        batch_idx: int,  # noqa: ARG002
    ) -> None:
        """End the epoch early if asked to."""
        asked = self.interruption.signal is not None
        if trainer.strategy.reduce_boolean_decision(asked, all=False):
            self.interruption.stopping = trainer.should_stop = True


def tolerate_first(_worker: int) -> None:
    """Let a worker process live through the first signals: the process that trains needs it for one more step."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.signal(signal.SIGTERM, signal.SIG_DFL))
