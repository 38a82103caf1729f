"""What was expected of fair networks over the data sets of a study together, held against what was found."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from study_expectations import LOST, Expectation, by_study, outcome

from evenslice.report.base.wording import interval
from evenslice.report.study.pooled import shown_pooled
from evenslice.report.study.wording import difference

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from found_studies import Study

    from evenslice.results import PooledArm, PooledComparison
    from evenslice.results.intervals import Interval
    from evenslice.studying.config import Arm

__all__ = ["pooled_expectations"]

LOSS = "loss_before"  # where a pretrained network is hurt most
HALF = 0.5


@dataclass(frozen=True)
class PooledFound:
    """An arm of a certain kind over all data sets of a study."""

    study: Study
    comparison: PooledComparison
    arm: PooledArm

    @property
    def place(self) -> str:
        """Where it was found."""
        return self.comparison.title

    @property
    def change(self) -> Interval:
        """The difference of its main score from the baseline's."""
        return self.arm.differences[self.arm.score]

    @property
    def baseline(self) -> PooledArm:
        """The baseline of the study."""
        return next(arm for arm in self.comparison.arms if arm.arm == self.study.results.baseline)


def pooled_expectations(studies: Sequence[Study]) -> list[Expectation]:
    """Hold what was expected against the pooled comparisons; what was not run is left out."""
    return [
        *_gains(studies, "encoder", "A network that is symmetrized at the encoder and trained so"),
        *_gains(studies, "output", "A trained network that is symmetrized at the output"),
        *_costs_little(_pooled(studies, _costs_one_pass)),
        *_survives(_pooled(studies, _should_survive)),
    ]


def _pooled(studies: Sequence[Study], chosen: Callable[[Arm], bool]) -> list[PooledFound]:
    return [
        PooledFound(study, comparison, arm)
        for study in studies
        for comparison in shown_pooled(study.results)
        for arm in comparison.arms
        if arm.differences and any(arm.arm == item.name and chosen(item) for item in study.config.arms)
    ]


def _costs_one_pass(arm: Arm) -> bool:
    """Return whether an arm starts fair, in a network that sees each window once."""
    fair = arm.tie is not None or arm.strategy in ("uniform", "twin")
    return fair and arm.symmetrize is None and not arm.missing_slices


def _should_survive(arm: Arm) -> bool:
    """Return whether an arm's training should make it survive a missing slice: a fair one, or one with such slices."""
    return bool(arm.missing_slices) or (
        arm.network_of is None and (_costs_one_pass(arm) or arm.symmetrize is not None)
    )


def _gains(studies: Sequence[Study], place: str, what: str) -> Iterator[Expectation]:
    found = _pooled(studies, lambda arm: arm.symmetrize == place and not arm.missing_slices)
    if found:
        changes = [item.change for item in found]
        yield Expectation(
            f"{what} scores higher than a pretrained one, over all data sets of a study.",
            outcome(
                confirmed=all(change.low > 0 for change in changes),
                refuted=any(change.high < 0 for change in changes),
            ),
            by_study((item.study, f"{item.place}: {difference(item.change)}") for item in found),
        )


def _costs_little(found: Sequence[PooledFound]) -> Iterator[Expectation]:
    """Judge the best fair start of each comparison."""
    places = {(item.study.name, item.place): item for item in found}
    best = [
        max(
            (item for item in found if (item.study.name, item.place) == place),
            key=lambda item: item.change.estimate,
        )
        for place in places
    ]
    if best:
        yield Expectation(
            f"The best fair start that costs no further passes loses no more than {LOST:g}, over all data sets of a study.",
            outcome(
                confirmed=all(item.change.low > -LOST for item in best),
                refuted=any(item.change.high < -LOST for item in best),
            ),
            by_study(
                (item.study, f"{item.place}: {item.arm.arm} {difference(item.change)}") for item in best
            ),
        )


def _survives(found: Sequence[PooledFound]) -> Iterator[Expectation]:
    known = [item for item in found if _known(item.arm.metrics[LOSS]) and _known(item.baseline.metrics[LOSS])]
    if known:
        pairs = [(item.arm.metrics[LOSS], item.baseline.metrics[LOSS]) for item in known]
        yield Expectation(
            "If the slice before is missing, fair starts, and training with missing slices, lose less than half of the Dice "
            "that a pretrained start loses, over all data sets of a study.",
            outcome(
                confirmed=all(loss.high < HALF * pretrained.low for loss, pretrained in pairs),
                refuted=any(loss.low > HALF * pretrained.high for loss, pretrained in pairs),
            ),
            by_study(
                (item.study, f"{item.arm.arm}: {interval(loss)} of {interval(pretrained)}")
                for item, (loss, pretrained) in zip(known, pairs, strict=True)
            ),
        )


def _known(value: Interval) -> bool:
    return not math.isnan(value.low)
