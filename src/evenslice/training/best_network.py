"""The best network: validation while a network is trained, and which of them is kept."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from evenslice._core import needs_extra
from evenslice.results import MAIN_SCORES
from evenslice.training.interruption import Interruption
from evenslice.training.logs import log_metrics

with needs_extra("train", "training"):
    from lightning.pytorch import Callback, LightningModule, Trainer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from torch import nn

__all__ = ["KeepBest", "kept_validation"]

SCORE_NOISE = 0.002  # differences of validation scores up to this are noise


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
    ended at a lower learning rate. The score before the first step is logged for comparison.

    Args:
        score: maps the network to a score, of which higher is better and NaN never best; called in the first process.
        save: saves the network; called in the first process.
        patience: number of consecutive validations without improvement before training stops; None never stops.
        interruption: may interrupt a validation, which is then left to the resumed run.
        name: what the score is, one of ``evenslice.results.MAIN_SCORES``; it is logged as ``validation_`` and this.
        require_saved: raises if a run that is resumed lacks the network that it had saved, or it is damaged.

    Attributes:
        name: likewise.
        best: the highest score so far; NaN if none.
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
        self.best = self.latest = math.nan
        self.worse = 0
        self.due = False
        self._score, self._save, self._patience = score, save, patience
        self._interruption = interruption or Interruption()
        self._require_saved = require_saved

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Validate the initial network, or one whose validation was interrupted; stop a run that had already stopped."""
        if trainer.global_step == 0 and self._validate(trainer, pl_module) is None:
            raise KeyboardInterrupt
        self._catch_up(trainer, pl_module)
        trainer.should_stop |= self._stops()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Validate, and keep the network or count a validation without improvement.

        An epoch that is cut short by an interruption is validated when it ends, in the resumed run.
        """
        if self._interruption.stopping:
            self.due = trainer.is_last_batch
            return
        score = self._validate(trainer, pl_module)
        if score is None:
            self.due = self._interruption.stopping = trainer.should_stop = True
            return
        self._count(score, trainer, pl_module)
        trainer.should_stop |= self._stops()

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Validate a network that had no step left, for which Lightning calls no other hook."""
        self._catch_up(trainer, pl_module)

    def _catch_up(self, trainer: Trainer, module: LightningModule) -> None:
        """Do a validation that was interrupted."""
        if not self.due:
            return
        score = self._validate(trainer, module)
        if score is None:
            raise KeyboardInterrupt
        self.due = False
        self._count(score, trainer, module)

    def _count(self, score: float, trainer: Trainer, module: LightningModule) -> None:
        """Keep the network, or count a validation without improvement."""
        network = module.get_submodule("network")
        if trainer.is_global_zero and (score > self.best - SCORE_NOISE or self._first(score)):
            self._save(network)
        if score > self.best or self._first(score):
            self.best, self.worse = score, 0
        else:
            self.worse += 1

    def state_dict(self) -> dict[str, Any]:
        """Return the best score and the validations since, for a checkpoint."""
        return {"best": self.best, "worse": self.worse, "due": self.due}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the state from a checkpoint."""
        if not math.isnan(state_dict["best"]):
            self._require_saved()
        self.best, self.worse = float(state_dict["best"]), int(state_dict["worse"])
        self.due = bool(state_dict.get("due", False))  # not in checkpoints of earlier versions

    def _validate(self, trainer: Trainer, module: LightningModule) -> float | None:
        """Return the score in all processes; None if the first of them was interrupted."""
        network = module.get_submodule("network")
        score: float | None = trainer.strategy.broadcast(
            self._measure(network) if trainer.is_global_zero else math.nan
        )
        if score is not None:
            self.latest = score
            log_metrics(trainer, {f"validation_{self.name}": score})
        return score

    def _measure(self, network: nn.Module) -> float | None:
        try:
            with self._interruption.heard():
                return self._score(network)
        except KeyboardInterrupt:
            return None

    def _first(self, score: float) -> bool:
        return math.isnan(self.best) and not math.isnan(score)

    def _stops(self) -> bool:
        return self._patience is not None and self.worse >= self._patience
